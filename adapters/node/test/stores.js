// stores.js - the stores through the interfaces of their middlewares: a line of JSON for
// each promise, [promise, seen, kept].  Stores of one scope stand for as many processes.

import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { postgresStore } from '../stores/hono-idempotency.js';
import { PostgresIdempotencyStore } from '../stores/idempot.js';

class KeyExists extends Error {}

const server = new pg.Pool();
let lost = 0;                   // replies that are still to be lost

const pool = { async query(...statement) {
  const result = await server.query(...statement);
  if (lost > 0) {
    lost--;
    throw new Error('Connection terminated unexpectedly');
  }
  return result;
} };

const response = {
  status: 201, headers: { 'content-type': 'application/json', location: '/7' }, body: '{"\u00fc":1}' };
const same = (left, right) => JSON.stringify(left) === JSON.stringify(right);
const keep = (promise, seen, kept) => console.log(JSON.stringify([promise, String(seen), kept]));
const failure = (promise) => promise.then(() => undefined, (error) => error);

let scopes = 0;
const honoStores = (count, options) => {
  const scope = `hono ${scopes++}`;
  return Array.from({ length: count }, () => postgresStore({ pool, scope, ...options }));
};
const idempotStores = (count, options) => {
  const scope = `idempot ${scopes++}`;
  return Array.from({ length: count },
    () => new PostgresIdempotencyStore({ pool, scope, KeyExistsError: KeyExists, ...options }));
};
const record = (fingerprint = 'fp') => ({ key: 'k', fingerprint, status: 'processing', createdAt: 1234 });

async function hono() {
  const stores = honoStores(8);
  const won = (await Promise.all(stores.map((store) => store.lock('k', record())))).filter(Boolean);
  keep('hono-idempotency: of eight processes one gets the lock', `${won.length} of 8`, won.length === 1);

  const [one, two] = honoStores(2);
  await one.lock('k', record());
  const before = await two.get('k');
  await two.complete('k', response);
  await two.delete('k');
  const during = await two.get('k');
  await one.complete('k', response);
  const after = await two.get('k');
  await one.delete('k');
  keep('hono-idempotency: only the holder completes or releases; all see the answer',
    `${before.status}, ${after.status}`, same(before, record()) && same(during, record())
      && after.status === 'completed' && same(after.response, response)
      && same((await one.get('k')).response, response) && !await two.lock('k', record()));

  await one.lock('free', record());
  await one.delete('free');
  keep('hono-idempotency: a key that was released is free, also for another request', 'locked again',
    await two.get('free') === undefined && await two.lock('free', record('other')));

  const long = '\u00fc'.repeat(500);
  keep('hono-idempotency: a key of a thousand bytes', (await one.lock(long, record()), (await two.get(long)).status),
    (await two.get(long)).fingerprint === 'fp');
}

async function leases() {
  const [dead, next] = honoStores(2, { lease: 300 });
  await dead.lock('k', record());
  await sleep(400);
  const gone = await next.get('k');
  const locked = await next.lock('k', record());
  const late = await failure(dead.complete('k', { ...response, body: 'late' }));
  await next.complete('k', response);
  keep('hono-idempotency: when the lease has ended another takes over, and the first one cannot complete',
    `${locked}, ${late?.code}`, gone === undefined && locked && late?.code === 'ID002'
      && same((await next.get('k')).response, response));

  const [slow] = honoStores(1, { lease: 300 });
  await slow.lock('k', record());
  await sleep(400);
  keep('hono-idempotency: not within one process, where the first could complete by the token of the second',
    'refused', !await slow.lock('k', record()) && await failure(slow.complete('k', response)) === undefined);
}

async function losses() {
  const [hono] = honoStores(1);
  const [idempot] = idempotStores(1);
  const seen = [];
  for (const step of [() => hono.lock('k', record()), () => hono.complete('k', response),
    () => idempot.startProcessing('k', 'fp', 60000), () => idempot.complete('k', response)]) {
    lost = 1;
    seen.push(await failure(step()));
  }
  const { byKey } = await idempot.lookup('k', 'fp');
  keep('Both stores: a reply that is lost is asked for again, by the same owner and token',
    `${seen.filter((error) => error === undefined).length} of 4`, seen.every((error) => error === undefined)
      && same((await hono.get('k')).response, response) && same(byKey.response, response));
}

async function idempot() {
  const [one, two] = idempotStores(2);
  const empty = await one.lookup('k', 'fp');
  await one.startProcessing('k', 'fp', 60000);
  const taken = [await failure(two.startProcessing('k', 'fp', 60000)),
    await failure(two.startProcessing('k', 'other', 60000)),
    await failure(two.startProcessing('other', 'fp', 60000)), await failure(one.startProcessing('k', 'fp', 60000))];
  const free = await two.lookup('other', 'other');
  const during = await two.lookup('other', 'fp');
  const stranger = await failure(two.complete('k', response));
  await one.complete('k', response);
  const after = await two.lookup('k', 'fp');
  keep('idempot-js: a key, or a fingerprint under any key, is taken once',
    `${taken.filter((error) => error instanceof KeyExists).length} of 4 refused`,
    same(empty, { byKey: null, byFingerprint: null }) && same(free, empty)
      && taken.every((error) => error instanceof KeyExists)
      && during.byKey === null && during.byFingerprint.key === 'k' && during.byFingerprint.status === 'processing');
  keep('idempot-js: only the holder completes; all see the answer, by key and by fingerprint',
    after.byKey.status, /No record found/.test(stranger?.message) && after.byKey.status === 'complete'
      && same(after.byKey.response, response) && after.byFingerprint.key === 'k' && after.byKey.expiresAt > Date.now());
}

await hono();
await leases();
await losses();
await idempot();
await server.end();
