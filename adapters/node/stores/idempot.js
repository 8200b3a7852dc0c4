// idempot.js - a store for the middlewares of idempot-js.  See ../README.md.

import { CLAIM, Leased, nameOf } from './leased.js';

const TAKEN = ['ID003', 'ID004', 'ID005', 'ID006', 'ID007'];

// A request is found by its key, and by its fingerprint under whatever key it came:
// two claims, in one statement, so that both are there or none.
export class PostgresIdempotencyStore {
  #keys;
  #scope;
  #fingerprints;
  #KeyExistsError;

  // KeyExistsError: IdempotencyKeyExistsError of @idempot/core
  constructor({ scope = 'idempot', KeyExistsError, ...options }) {
    this.#keys = new Leased(options);
    this.#scope = `${scope}\u001ekey`;
    this.#fingerprints = `${scope}\u001efingerprint`;
    this.#KeyExistsError = KeyExistsError;
  }

  async lookup(key, fingerprint) {
    const [byKey, first] = await Promise.all(
      [this.#record(key), this.#keys.find(this.#fingerprints, fingerprint)]);
    if (!first) return { byKey, byFingerprint: null };
    const name = first.data?.key ?? first.response.body;
    return { byKey, byFingerprint: name === key ? byKey : await this.#record(name) };
  }

  async #record(key) {
    const found = await this.#keys.find(this.#scope, key);
    if (!found) return null;
    const { state, fingerprint, expiresAt, response } = found;
    return { key, fingerprint, status: state === 'completed' ? 'complete' : state, expiresAt, response };
  }

  async startProcessing(key, fingerprint, ttl) {
    if (this.#keys.isKept(key)) throw new this.#KeyExistsError('the key is taken');
    try {
      const claim = await this.#keys.row(`
        WITH claims AS MATERIALIZED (
          SELECT idem_require($1, $2, ${CLAIM}) AS token, idem_require($3, $4, ${CLAIM}) AS other)
        SELECT token, other, idem_checkpoint($3, $4, other, 'started', json_build_object('key', $9::text)::jsonb)
          FROM claims`,
      [this.#scope, nameOf(key), this.#fingerprints, fingerprint, ...this.#keys.claimValues(ttl), key]);
      this.#keys.keep(key, ttl, { ...claim, fingerprint });
    } catch (error) {
      if (!TAKEN.includes(error.code)) throw error;
      throw new this.#KeyExistsError('the key is taken', { cause: error });
    }
  }

  async complete(key, { status, headers, body }) {
    const kept = this.#keys.kept(key);
    if (!kept) throw new Error('No record found for the key: not started here, or completed already');
    await this.#keys.finish(key, `
      WITH t AS (SELECT make_interval(secs => $10 / 1000.0) AS ttl)
      SELECT idem_complete($1, $2, convert_to($3, 'UTF8'), $4::integer, $5::json, token => $6::bigint, ttl => ttl),
          idem_complete($7, $8, convert_to($11, 'UTF8'), $4::integer, token => $9::bigint, ttl => ttl) FROM t`,
    [this.#scope, nameOf(key), body, status, JSON.stringify(headers), kept.token,
      this.#fingerprints, kept.fingerprint, kept.other, kept.ttl, key]);
  }

  // The pool is the caller's.
  async close() {}
}
