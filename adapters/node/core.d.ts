// What the core is told and gives, for the adapters and for one of your own.

import type { Pool, PoolClient } from 'pg';

/** Anything of a request that is asked for may be found out asynchronously. */
type Asked<Source, Value> = (request: Source) => Value | Promise<Value>;

export interface Options<Source> {
  /** Connections of a role with the level `app`. */
  pool: Pool;
  /** Who sends the request, from your authentication; without one it is 401. */
  principal: Asked<Source, string | null | undefined>;
  /** Name of the policy; `default` unless told. */
  policy?: string;
  /** Name of the rate limiter that new work pays. */
  limiter?: string;
  /** Who pays; the principal unless told. */
  subject?: Asked<Source, string | null | undefined>;
  /** What the key is bound to beside the principal, for `idem_context`. */
  context?: Asked<Source, string[]>;
  /** `READ COMMITTED` unless told. */
  isolation?: string;
  /** How often a transaction is tried again; 9 unless told. */
  retries?: number;
  /** Schema of the extension; `idempotency` unless told. */
  schema?: string;
}

export interface RouteOptions<Source> extends Options<Source> {
  /** Largest body of a request, in bytes; 1 MiB unless told. */
  bodyLimit?: number;
}

export interface CoreRequest<Source> {
  /** What `principal`, `subject` and `context` are called with. */
  source: Source;
  method: string;
  /** Path and query. */
  url: string;
  /** The header Idempotency-Key as it came. */
  key: string | undefined;
  /** The header Content-Type, or an empty string. */
  type: string;
  /** What `readBody` has returned. */
  body: Buffer | null;
}

/** What a handler has answered; names of headers in lower case, Content-Type among them. */
export interface HandlerAnswer {
  status: number;
  headers: Record<string, string | number | string[]>;
  body: Uint8Array | null;
}

export interface Answer {
  status: number;
  /** Without Content-Type. */
  headers: Record<string, string[]>;
  type: string | null;
  body: Buffer | null;
}

export function idempotency<Source>(options: Options<Source>):
  (request: CoreRequest<Source>, work: (db: PoolClient) => Promise<HandlerAnswer>) => Promise<Answer>;

export function readBody(parts: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, limit?: number):
  Promise<Buffer | null>;
export function jsonOf(type: string, body: Buffer): string | undefined;
export function unreadable(type: string, body: Buffer | null): [code: string, status: number] | undefined;
export function headersSet(headers: Record<string, unknown>, before?: Record<string, unknown>):
  Record<string, string[]>;
export function streamed(): Error;
