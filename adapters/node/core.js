// core.js - a request and its answer in the transaction that holds the claim of its
// key, whatever the framework.  See README.md.

import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';

export const BODY_LIMIT = 1024 * 1024;

const JSON_TYPE = /^application\/([^;]+\+)?json\s*(;|$)/i;
const TRY_AGAIN = ['40001', '40P01'];
// What jsonb refuses and JSON.parse() does not: \u0000, half a surrogate pair, numbers
// without bounds, arrays without end
const BAD_JSON = ['22003', '22P02', '22P05', '54000', '54001'];

// All of a body in one Buffer; null where it is larger than the limit.
export async function readBody(parts, limit = BODY_LIMIT) {
  const read = [];
  let size = 0;
  for await (const part of parts) {
    size += part.length;
    if (size > limit) return null;
    read.push(part);
  }
  return Buffer.concat(read);
}

// Why a body cannot be worked on: the status and code of the problem, or undefined.
export function unreadable(type, body) {
  if (body === null) return [413, 'request_body_too_large'];
  if (!isJson(type, body)) return undefined;
  try {
    JSON.parse(textOf(body));
  } catch {
    return [400, 'request_body_invalid'];
  }
  return undefined;
}

export const isJson = (type, body) => JSON_TYPE.test(type) && body.length > 0;

export const textOf = (body) => new TextDecoder('utf-8', { fatal: true }).decode(body);

export const streamed = () =>
  new Error('an answer that is streamed, or sent in parts, cannot be stored: send it as a whole');

// The headers that a handler has set: those that are not as they were before it ran.
export function headersSet(headers, before = {}) {
  return Object.fromEntries(Object.entries(headers)
    .map(([name, value]) => [name, [value].flat().map(String)
      .filter((each) => ![before[name] ?? []].flat().map(String).includes(each))])
    .filter(([, values]) => values.length > 0));
}

function literal(value) {
  if (value === null || value === undefined) return 'NULL';
  if (String(value).includes('\0')) throw new TypeError('PostgreSQL has no text with NUL');
  return pg.escapeLiteral(String(value));
}

const bytes = (buffer) => `decode('${buffer.toString('hex')}', 'hex')`;

export function idempotency({
  pool, principal, policy = 'default', limiter, subject, context, isolation = 'READ COMMITTED',
  retries = 9, schema = 'idempotency',
}) {
  const idem = pg.escapeIdentifier(schema);
  if (!/^[A-Z ]+$/i.test(isolation)) throw new TypeError(`no isolation level: ${isolation}`);

  // A problem of a code, which is one of the extension unless a status comes with it.
  async function refuse(code, status, headers = {}) {
    const of = status === undefined ? literal(code) : `json_populate_record(NULL::${idem}.idem_result,
      json_build_object('error_code', ${literal(code)}, 'http_status', ${status}))`;
    const { rows: [{ problem }] } = await pool.query(`SELECT ${idem}.idem_http_problem(${of})::text AS problem`);
    return problemAnswer(problem, headers);
  }

  // What the claim compares: JSON by what it means, everything else by its bytes.
  function compared(type, query, body) {
    if (!isJson(type, body)) {
      const hash = createHash('sha256').update(`${type}\n${query}\n`).update(body).digest();
      return `fingerprint => ${bytes(hash)}`;
    }
    const json = `${literal(textOf(body))}::jsonb`;
    return query === '' ? `request => ${json}`
      : `fingerprint => sha256(convert_to(${literal(`${query}\n`)} || ${idem}.idem_canonical(${json}), 'UTF8'))`;
  }

  // The parts of the statements that are the same in each try.
  async function prepare({ source, method, url, key, type, body }, who) {
    const [path, query = ''] = url.split(/\?(.*)/s);
    const contexts = context && (await context(source)).map(literal);
    const payer = limiter && literal((await subject?.(source)) ?? who);
    const name = `${idem}.idem_scope(${[who, method, path].map(literal)}), ${idem}.idem_key(${literal(key)})`;
    return {
      name,
      claim: `${idem}.idem_claim(${name}, ${compared(type, query, body)}, policy => ${literal(policy)}`
        + `${contexts ? `, context => ${idem}.idem_context(${contexts})` : ''})`,
      // Evaluated for a new claim only: a repeat costs nothing.
      limited: limiter ? `(SELECT ${idem}.idem_http_problem('rate_limited', NULL, t.retry_after_ms)::text
        FROM ${idem}.idem_throttle(${literal(limiter)}, ${payer}) t WHERE NOT t.allowed)` : 'NULL',
    };
  }

  const claimStatement = ({ claim, limited }) => `BEGIN ISOLATION LEVEL ${isolation};
    SELECT r.outcome::text, r.http_status AS status, r.content_type AS type, r.body,
      r.attempt || ' ' || extract(epoch FROM r.created_at) AS claim,
      ${idem}.idem_http_headers(r)::text AS headers, ${idem}.idem_http_problem(r)::text AS problem,
      CASE WHEN r.outcome = 'claimed' THEN ${limited} END AS limited FROM ${claim} r`;

  const completeStatement = ({ name }, { status, type, headers, body }) => `
    SELECT r.http_status AS status, r.content_type AS type, r.body IS NOT NULL AS kept,
      ${idem}.idem_http_headers(r)::text AS headers FROM ${idem}.idem_complete(${name},
      ${body === null ? 'NULL::bytea' : bytes(body)}, ${Number(status)},
      ${literal(JSON.stringify(headers))}::json, ${literal(type)}) r; COMMIT`;

  // One transaction: { answer }, { refusal }, or { error, again }.
  async function attempt(parts, work, state) {
    let client, answer, broken, claimed = false;
    try {
      client = await pool.connect();
    } catch (error) {
      return { error, again: /^(08|53300|57P0|E[A-Z]+$)/.test(error.code) };
    }
    // A connection that breaks between two statements: the next one says so.
    const ignore = () => {};
    client.on('error', ignore);
    const rollback = () => client.query('ROLLBACK').then(() => undefined, (failure) => failure);
    try {
      const [, { rows: [found] }] = await client.query(claimStatement(parts));
      if (found.outcome !== 'claimed' || found.limited) {
        broken = await rollback();
        return { answer: foundAnswer(found, state), again: found.outcome === 'in_progress' && state.tried > 0 };
      }
      claimed = true;
      state.claim = found.claim;
      parts.limited = 'NULL';                   // paid, also for the tries to come
      answer = normalized(await work(client));
      const [{ rows: [row] }, { command }] = await client.query(completeStatement(parts, answer));
      if (command !== 'COMMIT') throw new Error('the transaction was rolled back');
      return { answer: { ...storedAnswer(row), body: row.kept ? answer.body : null } };
    } catch (error) {
      broken = await rollback();
      const code = error?.code ?? error?.cause?.code;
      if (answer && code === 'ID010') return { answer };        // not to be kept: the key is free
      if (!claimed && code === 'ID012') return { refusal: ['idempotency_key_invalid'] };
      if (!claimed && BAD_JSON.includes(code)) return { refusal: ['request_body_invalid', 400] };
      // Nobody knows what became of the transaction of a connection that broke.
      return { error, again: broken !== undefined || TRY_AGAIN.includes(code) };
    } finally {
      client.off('error', ignore);
      client.release(broken);
    }
  }

  // The answer to a request, which work(client) gives where it is a new one.
  return async function once(request, work) {
    const who = await principal(request.source);
    if (!who) return refuse('principal_missing', undefined, { 'WWW-Authenticate': ['Bearer'] });
    if (request.key === undefined) return refuse('idempotency_key_missing');
    const [status, code] = unreadable(request.type, request.body) ?? [];
    if (code) return refuse(code, status);
    const parts = await prepare(request, who);
    const state = { tried: 0, claim: undefined };
    for (;;) {
      const { answer, refusal, error, again } = await attempt(parts, work, state);
      if (refusal) return refuse(...refusal);
      if (!again || state.tried === retries) {
        if (answer) return answer;
        throw error;
      }
      await sleep(Math.random() * Math.min(1000, 20 * 2 ** state.tried));
      state.tried++;
    }
  };
}

// What was found in place of a new claim.  An answer that this very request has stored,
// in a try whose COMMIT was lost, is the first one.
function foundAnswer(found, { claim }) {
  if (found.limited) return problemAnswer(found.limited);
  const answer = storedAnswer(found);
  if (found.problem) return problemAnswer(found.problem, answer.headers);
  if (found.claim === claim) delete answer.headers['Idempotency-Replayed'];
  return answer;
}

function storedAnswer({ status, type, headers, body = null }) {
  const grouped = {};
  for (const [name, value] of JSON.parse(headers).flatMap(Object.entries)) {
    (grouped[name] ??= []).push(value);
  }
  return { status, type, headers: grouped, body };
}

function problemAnswer(problem, headers = {}) {
  const { status, retry_after: after } = JSON.parse(problem);
  return {
    status, type: 'application/problem+json', body: Buffer.from(problem),
    headers: after === undefined ? headers : { ...headers, 'Retry-After': [String(after)] },
  };
}

function normalized({ status, headers, body }) {
  const { 'content-type': type, ...others } = headersSet(headers);
  return { status, type: type?.[0] ?? null, headers: others,
    body: body === null || body.length === 0 && !type ? null : Buffer.from(body) };
}
