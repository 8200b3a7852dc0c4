// Makes a route safe to repeat, by the header Idempotency-Key:
//
//     app.post('/api/events', authenticated, idempotent(pool, 'events-api', createEvent));
//
// createEvent(db, req) works in the transaction that holds its key, too, and
// returns { status, headers, body }.  Key, work and answer are committed
// together, and a repeat gets that answer.  It may also throw
//
//     Refusal   nothing is kept, the key neither: as if it had not been asked
//     Failure   the work is undone, the answer kept; the key can be claimed again
//
// and with any other error all is rolled back, which frees the key.

import { setTimeout as sleep } from 'node:timers/promises';

const ATTEMPTS = 3;

// As the client sees them; our database says the rest.
const CODES = {
  in_progress: 'REQUEST_IN_PROGRESS',
  mismatch: 'IDEMPOTENCY_KEY_REUSED',
};

const CLAIM = `
  SELECT r.outcome, r.http_status, r.body, idempotency.idem_http_headers(r) AS headers,
         idempotency.idem_http_problem(r) ->> 'detail' AS detail
    FROM idempotency.idem_claim(idempotency.idem_scope($1, $2), idempotency.idem_key($3),
         $4::jsonb, policy => $5, wait => $6::interval) r`;

const finish = (name) => `
  SELECT idempotency.${name}(idempotency.idem_scope($1, $2), idempotency.idem_key($3),
         $4::text, status_code => $5, headers => $6::json)`;
const COMPLETE = finish('idem_complete');
const FAIL = finish('idem_fail');

const problem = (code, message) => ({ success: false, error: { code, message } });

export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.answer = { status, body: problem(code, message) };
  }
}

export class Failure extends Refusal {}

export function idempotent(pool, policy, work) {
  return async (req, res) => {
    for (let attempt = 1; ; attempt++) {
      try {
        return send(res, await once(pool, policy, work, req, attempt));
      } catch (error) {
        if (error instanceof Refusal) return send(res, error.answer);
        if (!error.again || attempt === ATTEMPTS) throw error;
        await sleep(50 * attempt);
      }
    }
  };
}

async function once(pool, policy, work, req, attempt) {
  const db = await pool.connect();
  const name = [req.user, `${req.method} ${req.baseUrl}${req.route.path}`,
    req.get('Idempotency-Key')];
  let lost = false;
  try {
    await db.query('BEGIN');
    const claimed = await claim(db, name, req, policy, attempt);
    if (claimed.outcome !== 'claimed') {
      await db.query('ROLLBACK');
      return repeated(claimed);
    }
    await db.query('SAVEPOINT work');
    const [answer, statement] = await work(db, req).then(
      (done) => [done, COMPLETE],
      async (error) => {
        if (!(error instanceof Failure)) throw error;
        await db.query('ROLLBACK TO work');
        return [error.answer, FAIL];
      });
    const headers = answer.headers ?? [];
    await db.query(statement, [...name, JSON.stringify(answer.body), answer.status,
      JSON.stringify(headers)]);
    await db.query('COMMIT');
    if (statement === FAIL) return answer;
    return { ...answer, headers: [...headers, { 'X-Idempotency-Stored': 'true' }] };
  } catch (error) {
    // When even this fails, the connection is gone, perhaps between COMMIT and
    // its reply.  The same key tells: it is replayed, or runs for the first time.
    lost = await db.query('ROLLBACK').then(() => false, () => true);
    error.again = lost || ['40001', '40P01'].includes(error.code);
    throw error;
  } finally {
    db.release(lost);
  }
}

// What tells one request from another under the same key is its body; the query,
// with its confirmation, is not.  Our own lost transaction may still be ending.
async function claim(db, name, req, policy, attempt) {
  const request = JSON.stringify({ params: req.params, body: req.body });
  try {
    const wait = attempt > 1 ? '5 s' : null;
    return (await db.query(CLAIM, [...name, request, policy, wait])).rows[0];
  } catch (error) {
    if (error.code === 'ID012') {
      throw new Refusal(400, 'INVALID_IDEMPOTENCY_KEY',
        'The header Idempotency-Key must be a UUID, version 4.');
    }
    if (error.code?.startsWith('22')) throw new Refusal(400, 'INVALID_REQUEST', 'This is no JSON.');
    throw error;
  }
}

function repeated({ outcome, http_status: status, headers, body, detail }) {
  if (outcome !== 'replayed') return { status, headers, body: problem(CODES[outcome], detail) };
  return { status, headers: [...headers, { 'X-Idempotency-Replay': 'true' }], body };
}

// A stored body is bytes, and is sent as it is.
function send(res, { status, headers = [], body }) {
  for (const header of headers) {
    for (const [name, value] of Object.entries(header)) res.append(name, value);
  }
  res.status(status).type('json')
    .send(Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body)));
}
