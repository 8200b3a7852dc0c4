// An API in which users create events.  Settings: PORT, POOL_SIZE, and the PG*
// variables of libpq for the database with schema.sql.

import express from 'express';
import pg from 'pg';

import { Failure, Refusal, idempotent } from './idempotency.js';

const pool = new pg.Pool({
  max: Number(process.env.POOL_SIZE ?? 20),
  connectionTimeoutMillis: 10_000,
});

// A connection that breaks says so twice: the query under way fails, which is
// dealt with there, and this event comes, which would end the process.
pool.on('connect', (db) => db.on('error', () => {}));
pool.on('error', () => {});

// Who the user is was found out by the proxy before us, which authenticates and
// sets this header; one that comes from outside it must remove.
function authenticated(req, res, next) {
  req.user = req.get('X-User-Id');
  if (!/^[\w.@-]{1,100}$/.test(req.user ?? '')) {
    throw new Refusal(401, 'UNAUTHENTICATED', 'Who are you?');
  }
  next();
}

function eventIn(req) {
  const { title, starts_at: startsAt } = req.body ?? {};
  if (typeof title !== 'string' || !title || typeof startsAt !== 'string' ||
      Number.isNaN(Date.parse(startsAt))) {
    throw new Refusal(400, 'INVALID_EVENT', 'An event has a title and starts_at.');
  }
  return [req.user, title, new Date(startsAt)];
}

// A user has some events free.  A further one costs a credit, and that is done
// only when the user has said so: the form asks, and sends the same once more,
// with the same key and ?confirm_credit=1.
async function createEvent(db, req) {
  const values = eventIn(req);
  const account = (await db.query(
    'SELECT free_left FROM app.accounts WHERE user_id = $1 FOR UPDATE',
    [req.user])).rows[0];
  if (!account) throw new Refusal(403, 'NO_ACCOUNT', 'You have no account.');

  const pays = account.free_left === 0;
  if (pays && req.query.confirm_credit !== '1') {
    throw new Refusal(402, 'CONFIRM_CREDIT', 'This event costs one credit. Create it?');
  }
  const event = (await db.query(
    `INSERT INTO app.events (user_id, title, starts_at) VALUES ($1, $2, $3)
       RETURNING id, title, starts_at, created_at`, values)).rows[0];
  const paid = await db.query(pays
    ? 'UPDATE app.accounts SET credits = credits - 1 WHERE user_id = $1 AND credits > 0'
    : 'UPDATE app.accounts SET free_left = free_left - 1 WHERE user_id = $1', [req.user]);
  if (!paid.rowCount) throw new Failure(402, 'NO_CREDIT', 'You have no credit left.');
  return {
    status: 201,
    headers: [{ Location: `/api/events/${event.id}` }],
    body: { success: true, data: { event } },
  };
}

async function createDraft(db, req) {
  const draft = (await db.query(
    `INSERT INTO app.drafts (user_id, title, starts_at) VALUES ($1, $2, $3)
       RETURNING id, title, starts_at, created_at`, eventIn(req))).rows[0];
  return { status: 201, body: { success: true, data: { draft } } };
}

const app = express();
app.use(express.json());
app.get('/health', (req, res) => res.send('ok'));
app.post('/api/events', authenticated, idempotent(pool, 'events-api', createEvent));
app.post('/api/drafts', authenticated, idempotent(pool, 'events-api', createDraft));

// Express knows by the four arguments that this is for errors.
app.use((error, req, res, next) => {
  const answer = error.answer ?? (error.status < 500
    ? new Refusal(error.status, 'BAD_REQUEST', 'The request cannot be read.')
    : new Refusal(500, 'INTERNAL_ERROR', 'Please send the same request with the same key again.')
  ).answer;
  if (answer.status === 500) console.error(error);
  if (res.headersSent) return next(error);
  res.status(answer.status).json(answer.body);
});

const server = app.listen(Number(process.env.PORT), '127.0.0.1');
process.on('SIGTERM', () => server.close(() => pool.end()));
