// work.js - what the handlers of the test do, whatever the framework.

import pg from 'pg';

// A lock that the test holds, to open a gate for the handlers of this server
const GATE = "SELECT pg_advisory_xact_lock_shared(hashtext(current_setting('application_name')))";

const tried = new Map();
const die = () => process.kill(process.pid, 'SIGKILL');
const raise = (db, code) => db.query(`DO $$ BEGIN RAISE 'as the test wants' USING ERRCODE = '${code}'; END $$`);

// A pool whose process dies where the request says: before the claim, in the handler,
// between idem_complete and COMMIT, after COMMIT.
class DyingPool extends pg.Pool {
  connect(callback) {
    return callback ? super.connect(callback) : this.connectOnce();
  }

  async connectOnce() {
    const client = await super.connect();
    const { query } = client;
    client.query = (...all) => {
      const { statements, callback } = all[0];
      if (statements?.at(-1)[0] === 'COMMIT' && ['completed', 'committed'].includes(DyingPool.step)) {
        if (DyingPool.step === 'completed') statements.pop();
        all[0].callback = (error, ...rest) => (error ? callback(error, ...rest) : die());
      }
      return query.apply(client, all);
    };
    return client;
  }
}

export const pool = new DyingPool({ max: 10, connectionTimeoutMillis: 20000 });
pool.on('error', () => {});

export const options = {
  pool,
  bodyLimit: 65536,
  policy: process.env.POLICY ?? 'web',
  isolation: process.env.ISOLATION,
  limiter: process.env.LIMITER,
  context: process.env.CONTEXT && ((request) => [header(request, 'x-device')]),
  principal: async (request) => {
    DyingPool.step ??= header(request, 'x-die');
    if (DyingPool.step === 'claim') die();
    return header(request, 'x-user');
  },
};

export function header(request, name) {
  return typeof request.req?.header === 'function' ? request.req.header(name) : request.headers[name];
}

// { status, headers, body }, or null where the framework itself has to misbehave;
// set(name, value) is how it sets a header at once.
export async function work(request, db, body, set) {
  const mode = header(request, 'x-do') ?? 'order';
  const key = header(request, 'idempotency-key');
  const count = (tried.get(key) ?? 0) + 1;
  tried.set(key, count);
  const { rows: [{ id }] } = await db.query(
    'INSERT INTO effects (key, body) VALUES ($1, $2) RETURNING id', [key, JSON.stringify(body) ?? null]);
  if (DyingPool.step === 'work') die();
  const answer = { status: 201, body: { effect: Number(id), at: Math.random(), count },
    headers: { Location: `/orders/${id}`, 'X-Twice': ['one', 'two'], 'Set-Cookie': [`a=${id}`, 'b=2'],
      'X-Try': String(count) } };
  switch (mode) {
    case 'refuse': return { ...answer, status: 409 };
    case 'release': return { ...answer, status: 503 };
    case 'throw': throw new Error('the handler throws');
    case 'swallow': await raise(db, 'P0001').catch(() => {}); return answer;
    case 'commit': await db.query('COMMIT'); return answer;
    case 'again': set(`X-Of-${count}`, 'x'); if (count < 4) await raise(db, '40001'); return answer;
    case 'deadlock': if (count < 3) await raise(db, '40P01'); return answer;
    case 'for-ever': await raise(db, '40001'); return answer;
    case 'vanish': if (count < 3) await db.query('SELECT pg_terminate_backend(pg_backend_pid())'); return answer;
    case 'large': return { ...answer, body: 'x'.repeat(100000) };
    case 'empty': return { status: 204, headers: {}, body: undefined };
    case 'bytes': return { ...answer, body: Buffer.from(Array.from({ length: 256 }, (_, i) => i)) };
    case 'text': return { ...answer, body: 'plain \u00fc' };
    case 'wait': await db.query(GATE); return answer;
    case 'echo': return { ...answer, body: { got: Buffer.isBuffer(body) ? body.toString('latin1') : body ?? null } };
    case 'order': return answer;
    default: return null;
  }
}
