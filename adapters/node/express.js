// express.js - idempotent routes of Express 5.  See README.md.

import { idempotency as core, jsonOf, readBody, streamed, unreadable } from './core.js';
import { held } from './held.js';

// The body as bytes, from the request or from what a parser before us made of it.
async function bytesOf(req, limit) {
  if (!req.readableEnded) return readBody(req.iterator({ destroyOnReturn: false }), limit);
  if (Buffer.isBuffer(req.body) || typeof req.body === 'string') return Buffer.from(req.body);
  if (!req.is(['json', '+json', 'urlencoded'])) {
    throw new Error('the body was read before: a route that is idempotent reads it itself');
  }
  return Buffer.from(JSON.stringify(req.body ?? null));
}

function send(res, { status, type, headers, body }) {
  for (const [name, values] of Object.entries(headers)) {
    const others = /^(set-cookie|vary)$/i.test(name) ? [res.getHeader(name) ?? []].flat() : [];
    res.setHeader(name, [...others, ...values]);
  }
  if (type) res.setHeader('Content-Type', type);
  res.status(status).end(body);
}

export function idempotency({ bodyLimit, ...options }) {
  const once = core(options);

  return (handler) => async (req, res) => {
    const type = req.get('Content-Type') ?? '';
    const parsed = req.readableEnded;
    const body = await bytesOf(req, bodyLimit);
    if (!parsed && !unreadable(type, body) && body.length > 0) {
      const json = jsonOf(type, body);
      req.body = json === undefined ? body : JSON.parse(json);
    }
    send(res, await once(
      { source: req, method: req.method, url: req.originalUrl, key: req.get('Idempotency-Key'), type, body },
      async (db) => {
        const kept = held(req, res);
        kept.response.locals = res.locals;
        await handler(req, kept.response, db);
        if (kept.inParts) throw streamed();
        if (kept.body === undefined) throw new Error('the handler has sent no answer');
        return { status: kept.response.statusCode, headers: kept.response.getHeaders(), body: kept.body };
      }));
  };
}
