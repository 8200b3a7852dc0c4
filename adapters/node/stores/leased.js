// leased.js - what the stores share: keys that are claimed in one transaction and
// completed in another, by the token of the claim.

import { createHash, randomUUID } from 'node:crypto';
import pg from 'pg';

const TRIES = 3;

// The arguments of a claim beside scope and key: $4 a fingerprint, $5 to $8 as given
// by claimValues().
export const CLAIM = `fingerprint => convert_to($4, 'UTF8'), policy => $5, owner => $6::uuid, wait => '0',
  lease => make_interval(secs => $7 / 1000.0), ttl => make_interval(secs => $8 / 1000.0)`;

// What is too long for a key is stored as its hash.
export const nameOf = (key) =>
  Buffer.byteLength(key) <= 255 ? key : createHash('sha256').update(key).digest('hex');

export class Leased {
  #tokens = new Map();          // what this process has claimed: key -> { ttl, until, … }

  constructor({ pool, policy = 'default', lease = 60000, schema = 'idempotency' }) {
    this.pool = pool;
    this.policy = policy;
    this.lease = lease;
    this.idem = pg.escapeIdentifier(schema);
  }

  // The row of a statement, again where the connection was lost: the same claim by the
  // same owner, and the same completion by the same token, may be repeated.
  async row(text, values) {
    const qualified = text.replaceAll('idem_', `${this.idem}.idem_`);
    for (let tried = 1; ; tried++) {
      try {
        const { rows: [row] } = await this.pool.query(qualified, values);
        return row;
      } catch (error) {
        if (tried === TRIES || (error.severity && !/^(08|57P0)/.test(error.code))) throw error;
      }
    }
  }

  // Of a request that died, the same may take over when the lease has ended, and any
  // other when the ttl has.
  claimValues(ttl) {
    const lease = Math.min(this.lease, ttl / 2);
    return [this.policy, randomUUID(), lease, ttl - lease];
  }

  // complete(key) does not say which request it is for: while one of this process has
  // the key, no other may take it over, or the one would complete by the token of the
  // other.  A request that ended without a word has it until the key expires.
  isKept(key) {
    for (const [old, { until }] of this.#tokens) {
      if (until <= Date.now()) this.#tokens.delete(old);
    }
    return this.#tokens.has(key);
  }

  keep(key, ttl, claim) {
    this.#tokens.set(key, { ...claim, ttl, until: Date.now() + ttl });
  }

  kept(key) {
    return this.#tokens.get(key);
  }

  // The last statement for a key that is kept.  If it fails, nobody works on it any more.
  async finish(key, text, values) {
    try {
      await this.row(text, values);
      this.#tokens.delete(key);
    } catch (error) {
      this.#tokens.get(key).until = Date.now() + this.lease;
      throw error;
    }
  }

  // What is known of a key; undefined where it is free.
  async find(scope, key) {
    const row = await this.row(`
      SELECT outcome::text AS state, status_code AS status, headers::text, body, checkpoint::text,
          convert_from(fingerprint, 'UTF8') AS fingerprint, floor(extract(epoch FROM created_at) * 1000) AS created,
          floor(extract(epoch FROM expires_at) * 1000) AS expires, lease_until > clock_timestamp() AS held
        FROM idem_lookup($1, $2)`, [scope, nameOf(key)]);
    const { state, held, fingerprint, status, headers, body } = row;
    const found = { fingerprint, createdAt: Number(row.created), expiresAt: Number(row.expires ?? Infinity) };
    if (state === 'in_progress' && held) return { ...found, state: 'processing', data: JSON.parse(row.checkpoint) };
    if (state !== 'completed') return undefined;
    return { ...found, state,
      response: { status, headers: JSON.parse(headers ?? '{}'), body: body?.toString() ?? '' } };
  }
}
