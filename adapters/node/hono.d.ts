import type { Context, Env, Handler } from 'hono';
import type { PoolClient } from 'pg';
import type { RouteOptions } from './core.js';

/** Makes a handler that returns its answer a route: `app.post(path, once(handler))`. */
export function idempotency<E extends Env = Env>(options: RouteOptions<Context<E>>):
  (handler: (c: Context<E>, db: PoolClient) => Response | Promise<Response>) => Handler<E>;
