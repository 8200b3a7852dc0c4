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
  const body = json ? await c.req.json() : Buffer.from(await c.req.arrayBuffer());
  const answer = await work(c, db, body, (name, value) => c.header(name, value));
  if (answer) {
    const { status, headers, body: sent } = answer;
    for (const [name, value] of Object.entries(headers)) {
      [value].flat().forEach((each, index) => c.header(name, each, { append: index > 0 }));
    }
    if (sent === undefined || Buffer.isBuffer(sent)) return c.body(sent ?? null, status);
    return typeof sent === 'string' ? c.text(sent, status) : c.json(sent, status);
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
