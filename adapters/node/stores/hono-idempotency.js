// hono-idempotency.js - a store for the middleware hono-idempotency.  See ../README.md.

import { CLAIM, Leased, nameOf } from './leased.js';

const DAY = 24 * 60 * 60 * 1000;

export function postgresStore({ scope = 'hono-idempotency', ttl = DAY, ...options }) {
  const keys = new Leased(options);

  return {
    async get(key) {
      const found = await keys.find(scope, key);
      if (!found) return undefined;
      const { state: status, fingerprint, createdAt, response, data } = found;
      return { key, fingerprint, status, createdAt, ...data, ...(response && { response }) };
    },

    // The record's own key and time are kept beside the claim.
    async lock(key, { fingerprint, key: name, createdAt }) {
      if (keys.isKept(key)) return false;
      const { token } = await keys.row(`
        SELECT r.token, CASE WHEN r.outcome = 'claimed' THEN
            idem_checkpoint($1, $2, r.token, 'locked', $3::jsonb) END
          FROM idem_claim($1, $2, ${CLAIM}) r`,
      [scope, nameOf(key), JSON.stringify({ key: name, createdAt }), fingerprint, ...keys.claimValues(ttl)]);
      if (token === null) return false;
      keys.keep(key, ttl, { token });
      return true;
    },

    async complete(key, { status, headers, body }) {
      const kept = keys.kept(key);
      if (!kept) return;
      await keys.finish(key, `
        SELECT idem_complete($1, $2, convert_to($3, 'UTF8'), $4::integer, $5::json, token => $6::bigint,
          ttl => make_interval(secs => $7 / 1000.0))`,
      [scope, nameOf(key), body, status, JSON.stringify(headers), kept.token, ttl]);
    },

    // Only what this process has locked: an answer that is stored stays.
    async delete(key) {
      const kept = keys.kept(key);
      if (kept) await keys.finish(key, 'SELECT idem_release($1, $2, $3::bigint)', [scope, nameOf(key), kept.token]);
    },

    // The server sweeps by itself.
    async purge() {
      return 0;
    },
  };
}
