// hono.js - the routes of the test in Hono.

import { serve } from '@hono/node-server';
import { Hono } from 'hono';
import { stream, streamText } from 'hono/streaming';
import { idempotency } from '../hono.js';
import { header, options, work } from './work.js';

const once = idempotency(options);
const app = new Hono();

app.use(async (c, next) => { c.header('X-Request', String(Math.random())); await next(); });
app.get('/health', (c) => c.text('ok'));
app.post('/orders', once(async (c, db) => {
  const json = c.req.header('Content-Type')?.includes('json');
  const answer = await work(c, db, json ? await c.req.json() : Buffer.from(await c.req.arrayBuffer()));
  if (answer) {
    const { status, headers, body } = answer;
    for (const [name, value] of Object.entries(headers)) {
      [value].flat().forEach((each, index) => c.header(name, each, { append: index > 0 }));
    }
    if (body === undefined || Buffer.isBuffer(body)) return c.body(body ?? null, status);
    return typeof body === 'string' ? c.text(body, status) : c.json(body, status);
  }
  switch (header(c, 'x-do')) {
    case 'stream': return streamText(c, async (out) => { await out.write('a'); await out.write('b'); });
    case 'parts': return stream(c, async (out) => { await out.write('a'); await out.write('b'); });
    case 'twice': return new Response(new ReadableStream({
      pull(controller) { controller.enqueue(new Uint8Array([65])); } }));
    default: return undefined;
  }
}));
app.onError((error, c) => c.json({ error: error.message }, 500));
serve({ fetch: app.fetch, port: Number(process.env.PORT), hostname: '127.0.0.1' });
