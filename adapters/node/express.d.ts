import type { Request, RequestHandler, Response } from 'express';
import type { PoolClient } from 'pg';
import type { RouteOptions } from './core.js';

/** Makes a handler that sends its answer a route: `app.post(path, once(handler))`. */
export function idempotency(options: RouteOptions<Request>):
  (handler: (req: Request, res: Response, db: PoolClient) => unknown) => RequestHandler;
