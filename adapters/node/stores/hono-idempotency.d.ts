import type { StoredResponse, StoreOptions } from './leased.js';

interface IdempotencyRecord {
  key: string;
  fingerprint: string;
  status: 'processing' | 'completed';
  response?: StoredResponse;
  createdAt: number;
}

/** A store for `idempotency({ store })` of hono-idempotency; ttl in milliseconds, a day unless told. */
export function postgresStore(options: StoreOptions & { ttl?: number }): {
  get(key: string): Promise<IdempotencyRecord | undefined>;
  lock(key: string, record: IdempotencyRecord): Promise<boolean>;
  complete(key: string, response: StoredResponse): Promise<void>;
  delete(key: string): Promise<void>;
  purge(): Promise<number>;
};
