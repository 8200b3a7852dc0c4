// core.js - a request and its answer in the transaction that holds the claim of its
// key, whatever the framework.  See README.md.

import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { together } from './together.js';

const TRY_AGAIN = ['40001', '40P01'];
// What jsonb refuses and JSON.parse() does not: \u0000, half a surrogate pair, numbers
// and depths beyond its bounds
const BAD_JSON = ['22003', '22P02', '22P05', '54000', '54001'];

// All of a body in one Buffer; null where it is larger than the limit.
export async function readBody(parts, limit = 1024 * 1024) {
  const read = [];
  let size = 0;
  for await (const part of parts) {
    size += part.length;
    if (size > limit) return null;
    read.push(part);
  }
  return Buffer.concat(read);
}

// The text of a JSON body; undefined where it is none.
export function jsonOf(type, body) {
  if (!/^application\/([^;]+\+)?json\s*(;|$)/i.test(type) || body.length === 0) return undefined;
  return new TextDecoder('utf-8', { fatal: true }).decode(body);
}

// Code and status of the problem where a body cannot be worked on.
export function unreadable(type, body) {
  if (body === null) return ['request_body_too_large', 413];
  try {
    JSON.parse(jsonOf(type, body) ?? 'null');
  } catch {
    return ['request_body_invalid', 400];
  }
  return undefined;
}

export const streamed = () =>
  new Error('an answer that is streamed, or sent in parts, cannot be stored: send it as a whole');

// The headers that a handler has set: name -> values that were not there before it ran.
export function headersSet(headers, before = {}) {
  const list = (value) => [value ?? []].flat().map(String);
  return Object.fromEntries(Object.entries(headers)
    .map(([name, value]) => [name, list(value).filter((each) => !list(before[name]).includes(each))])
    .filter(([, values]) => values.length > 0));
}

export function idempotency({ pool, principal, policy = 'default', limiter = null, subject, context,
  isolation = 'READ COMMITTED', retries = 9, schema = 'idempotency' }) {
  const idem = `${pg.escapeIdentifier(schema)}.idem`;
  if (!/^[A-Z ]+$/i.test(isolation)) throw new TypeError(`no isolation level: ${isolation}`);

  const KEY = `${idem}_scope($1::text, $2::text, $3::text), ${idem}_key($4::text)`;
  const HEADERS = `r.http_status AS status, r.content_type AS type, ${idem}_http_headers(r)::text AS headers`;
  // The limiter is asked where the claim is a new one: a repeat costs nothing.
  const CLAIM = `
    SELECT ${HEADERS}, r.outcome::text, r.body, ${idem}_http_problem(r)::text AS problem,
        r.attempt || ' ' || extract(epoch FROM r.created_at) AS claim,
        CASE WHEN r.outcome = 'claimed' AND $10::text IS NOT NULL THEN
          (SELECT ${idem}_http_problem('rate_limited', NULL, t.retry_after_ms)::text
            FROM ${idem}_throttle($10::text, $11::text) t WHERE NOT t.allowed) END AS limited
      FROM ${idem}_claim(${KEY}, policy => $5::text, request => $6::jsonb,
        fingerprint => coalesce($7::bytea, sha256(convert_to($8::text || ${idem}_canonical($9::jsonb), 'UTF8'))),
        context => CASE WHEN $12::json IS NOT NULL THEN
          ${idem}_context(VARIADIC ARRAY(SELECT json_array_elements_text($12::json))) END) r`;
  const COMPLETE = `
    SELECT ${HEADERS}, r.body IS NOT NULL AS kept
      FROM ${idem}_complete(${KEY}, $5::bytea, $6::integer, $7::json, $8::text) r`;
  const LIMITER = 9;                    // its place among the values of CLAIM

  // A problem by its code, which is one of the extension unless a status comes with it.
  async function refuse(code, status, headers) {
    const { rows: [{ problem }] } = await (status === undefined
      ? pool.query(`SELECT ${idem}_http_problem($1::text)::text AS problem`, [code])
      : pool.query(`SELECT ${idem}_http_problem(json_populate_record(NULL::${idem}_result, $1::json))::text AS problem`,
        [JSON.stringify({ error_code: code, http_status: status })]));
    return problemAnswer(problem, headers);
  }

  // The values of CLAIM, the first four of them those of COMPLETE, too.
  async function valuesOf({ source, method, url, key, type, body }, who) {
    const [path, query = ''] = url.split(/\?(.*)/s);
    return [String(who), method, path, key, policy, ...compared(type, query, body),
      limiter, String((await subject?.(source)) ?? who), context ? JSON.stringify(await context(source)) : null];
  }

  // One transaction: { answer }, { refusal }, or { error }, and whether to try again.
  async function attempt(client, values, state, work) {
    let answer, claimed = false;
    const rollback = () => client.query('ROLLBACK').then(() => undefined, (failure) => failure);
    try {
      const [, { rows: [found] }] = await together(client, [`BEGIN ISOLATION LEVEL ${isolation}`], [CLAIM, values]);
      if (found.outcome !== 'claimed' || found.limited) {
        return { broken: await rollback(), answer: foundAnswer(found, state.claim),
          again: found.outcome === 'in_progress' && state.tried > 0 };
      }
      claimed = true;
      state.claim = found.claim;
      values[LIMITER] = null;           // paid for, also in the tries to come
      answer = normalized(await work(client));
      const { status, type, headers, body } = answer;
      const [{ rows: [row] }, { command }] = await together(client,
        [COMPLETE, [...values.slice(0, 4), body, String(status), JSON.stringify(headers), type]], ['COMMIT']);
      if (command !== 'COMMIT') throw new Error('the transaction was rolled back');
      return { answer: { ...storedAnswer(row), body: row.kept ? body : null } };
    } catch (error) {
      const broken = await rollback();
      const code = error?.code ?? error?.cause?.code;
      if (answer && code === 'ID010') return { broken, answer };        // not to be stored
      if (!claimed && code === 'ID012') return { broken, refusal: ['idempotency_key_invalid'] };
      if (!claimed && BAD_JSON.includes(code)) return { broken, refusal: ['request_body_invalid', 400] };
      // Where the connection broke, nobody knows what became of the transaction.
      return { broken, error, again: broken !== undefined || TRY_AGAIN.includes(code) };
    }
  }

  async function onConnection(...rest) {
    let client;
    try {
      client = await pool.connect();
    } catch (error) {
      return { error, again: /^(08|53300|57P0|E[A-Z]+$)/.test(error.code) };
    }
    const ignore = () => {};            // a connection that breaks: the next statement says so
    client.on('error', ignore);
    const result = await attempt(client, ...rest);
    client.off('error', ignore);
    client.release(result.broken);
    return result;
  }

  // The answer to a request, by work(client) where it is a new one.
  return async function once(request, work) {
    const who = await principal(request.source);
    if (!who) return refuse('principal_missing', undefined, { 'WWW-Authenticate': ['Bearer'] });
    if (request.key === undefined) return refuse('idempotency_key_missing');
    const problem = unreadable(request.type, request.body);
    if (problem) return refuse(...problem);
    const values = await valuesOf(request, who);
    for (const state = { tried: 0, claim: undefined }; ; state.tried++) {
      const { answer, refusal, error, again } = await onConnection(values, state, work);
      if (refusal) return refuse(...refusal);
      if (!again || state.tried === retries) {
        if (answer) return answer;
        throw error;
      }
      await sleep(Math.random() * Math.min(1000, 20 * 2 ** state.tried));
    }
  };
}

// What the claim compares: JSON by what it means, everything else by its bytes.
function compared(type, query, body) {
  const json = jsonOf(type, body);
  const hash = () => createHash('sha256').update(`${type}\n${query}\n`).update(body).digest();
  if (json === undefined) return [null, hash(), null, null];
  return query === '' ? [json, null, null, null] : [null, null, `${query}\n`, json];
}

// What was found in place of a new claim.  An answer that an earlier try of this very
// request has stored, whose COMMIT was lost, is the first one.
function foundAnswer(found, claim) {
  if (found.limited) return problemAnswer(found.limited);
  const answer = storedAnswer(found);
  if (found.problem) return problemAnswer(found.problem, answer.headers);
  if (found.claim === claim) delete answer.headers['Idempotency-Replayed'];
  return answer;
}

function storedAnswer({ status, type, headers, body = null }) {
  const grouped = {};
  for (const [name, value] of JSON.parse(headers).flatMap(Object.entries)) (grouped[name] ??= []).push(value);
  return { status, type, headers: grouped, body };
}

function problemAnswer(problem, headers = {}) {
  const { status, retry_after: after } = JSON.parse(problem);
  return { status, type: 'application/problem+json', body: Buffer.from(problem),
    headers: after === undefined ? headers : { ...headers, 'Retry-After': [String(after)] } };
}

function normalized({ status, headers, body }) {
  const { 'content-type': type, ...others } = headersSet(headers);
  const given = body?.length > 0 || type !== undefined;
  return { status, type: type?.[0] ?? null, headers: others, body: given ? Buffer.from(body ?? '') : null };
}
