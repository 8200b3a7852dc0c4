import type { Pool } from 'pg';

export interface StoreOptions {
  /** Connections of a role with the level `app`. */
  pool: Pool;
  /** Keys of another scope are others. */
  scope?: string;
  /** Name of the policy; `default` unless told. */
  policy?: string;
  /** Milliseconds after which the key of a request that died may be taken over; 60,000 unless told. */
  lease?: number;
  /** Schema of the extension; `idempotency` unless told. */
  schema?: string;
}

export interface StoredResponse {
  status: number;
  headers: Record<string, string>;
  body: string;
}
