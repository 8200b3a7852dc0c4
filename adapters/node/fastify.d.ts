import type { FastifyReply, FastifyRequest, preParsingAsyncHookHandler, RouteHandlerMethod } from 'fastify';
import type { PoolClient } from 'pg';
import type { RouteOptions } from './core.js';

/** Makes a handler the options of a route: `fastify.post(path, once(handler))`. */
export function idempotency(options: RouteOptions<FastifyRequest>):
  (handler: (request: FastifyRequest, reply: FastifyReply, db: PoolClient) => unknown) => {
    bodyLimit?: number;
    preParsing: preParsingAsyncHookHandler;
    handler: RouteHandlerMethod;
  };
