import type { StoredResponse, StoreOptions } from './leased.js';

interface IdempotencyRecord {
  key: string;
  fingerprint: string;
  status: 'processing' | 'complete';
  response?: StoredResponse;
  expiresAt: number;
}

/** A store for `idempotency({ store })` of the middlewares of idempot-js. */
export class PostgresIdempotencyStore {
  /** KeyExistsError: `IdempotencyKeyExistsError` of `@idempot/core`. */
  constructor(options: StoreOptions & { KeyExistsError: new (message: string, options?: ErrorOptions) => Error });
  lookup(key: string, fingerprint: string):
    Promise<{ byKey: IdempotencyRecord | null; byFingerprint: IdempotencyRecord | null }>;
  startProcessing(key: string, fingerprint: string, ttl: number): Promise<void>;
  complete(key: string, response: StoredResponse): Promise<void>;
  close(): Promise<void>;
}
