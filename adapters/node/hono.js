// hono.js - idempotent routes of Hono 4.  See README.md.

import { headersSet, idempotency as core, readBody, streamed } from './core.js';

const headersOf = (headers) => {
  const { 'set-cookie': cookie, ...others } = Object.fromEntries(headers);
  return cookie === undefined ? others : { ...others, 'set-cookie': headers.getSetCookie() };
};

function replace(headers, by) {
  [...headers.keys()].forEach((name) => headers.delete(name));
  for (const [name, value] of Object.entries(by)) [value].flat().forEach((each) => headers.append(name, each));
}

// The only part of an answer: what is streamed has more, and is not waited for.
async function bytesOf({ body }) {
  const reader = body?.getReader();
  const part = await reader?.read();
  if (!part?.value) return null;
  if (!(await reader.read()).done) {
    reader.cancel().catch(() => {});
    throw streamed();
  }
  return Buffer.from(part.value);
}

export function idempotency({ bodyLimit, ...options }) {
  const once = core(options);

  return (handler) => async (c) => {
    const { raw } = c.req;
    const parsed = raw.bodyUsed;
    const body = parsed ? Buffer.from(await c.req.arrayBuffer()) : await readBody(raw.body ?? [], bodyLimit);
    if (raw.body && body && !parsed) c.req.raw = new Request(raw, { body });
    const { pathname, search } = new URL(raw.url);
    const before = headersOf(c.res.headers);
    const reset = () => replace(c.res.headers, before);
    const request = {
      source: c, method: raw.method, url: pathname + search, key: c.req.header('Idempotency-Key'),
      type: c.req.header('Content-Type') ?? '', body };
    const { status, type, headers, body: bytes } = await once(request, async (db) => {
      reset();
      const response = await handler(c, db);
      if (!response?.headers) throw new Error('the handler has returned no answer');
      const all = { ...headersOf(c.res.headers), ...headersOf(response.headers) };
      return { status: response.status, headers: headersSet(all, before), body: await bytesOf(response) };
    }).finally(reset);
    for (const [name, values] of Object.entries(headers)) {
      values.forEach((value, index) => c.header(name, value, { append: index > 0 }));
    }
    if (type) c.header('Content-Type', type);
    return c.body(bytes, status);
  };
}
