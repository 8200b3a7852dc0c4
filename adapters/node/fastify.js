// fastify.js - idempotent routes of Fastify 5.  See README.md.

import { Readable } from 'node:stream';
import { headersSet, idempotency as core, readBody, streamed, unreadable } from './core.js';
import { held } from './held.js';

const BODY = Symbol('body of an idempotent request');

const asked = (request) => ({
  source: request, method: request.method, url: request.originalUrl,
  key: request.headers['idempotency-key'], type: request.headers['content-type'] ?? '', body: request[BODY],
});

// What a payload is as bytes; sets the content type as Fastify does.
function bytesOf(reply, payload) {
  if (payload instanceof Error) throw payload;
  if (payload?.pipe || payload?.getReader || payload instanceof Response) throw streamed();
  if (payload === undefined) return null;
  const binary = ArrayBuffer.isView(payload);
  const ours = binary ? 'application/octet-stream'
    : typeof payload === 'string' ? 'text/plain; charset=utf-8' : 'application/json; charset=utf-8';
  if (!reply.hasHeader('content-type')) reply.type(ours);
  return binary ? Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength)
    : Buffer.from(typeof payload === 'string' ? payload : reply.serialize(payload));
}

function send(reply, { status, type, headers, body }) {
  reply.code(status).headers(headers);
  if (type) reply.type(type);
  return reply.send(body ?? undefined);
}

export function idempotency({ bodyLimit, ...options }) {
  const once = core(options);

  // Options of a route: fastify.post(url, once(handler))
  return (handler) => ({
    ...(bodyLimit && { bodyLimit }),
    async preParsing(request, reply, payload) {
      const body = request[BODY] = await readBody(payload.iterator({ destroyOnReturn: false }), bodyLimit);
      if (unreadable(request.headers['content-type'] ?? '', body)) return send(reply, await once(asked(request)));
      return Object.assign(Readable.from(body.length ? [body] : [], { objectMode: false }),
        { receivedEncodedLength: body.length });
    },
    async handler(request, reply) {
      const before = structuredClone({ ...reply.getHeaders() });
      const reset = () => {
        Object.keys(reply.getHeaders()).forEach((name) => reply.removeHeader(name));
        reply.headers(structuredClone(before));
      };
      const answer = await once(asked(request), async (db) => {
        reset();
        const kept = held(request.raw);
        let sent;
        const own = Object.assign(Object.create(reply), {
          raw: kept.response,
          then: undefined,
          hijack() { throw streamed(); },
          send(payload) { sent ??= { payload }; return own; },
        });
        const returned = await handler.call(this, request, own, db);
        if (!sent && returned === undefined) throw new Error('the handler has sent no answer');
        const body = bytesOf(own, sent ? sent.payload : returned);
        if (kept.inParts || kept.body !== undefined) throw streamed();
        return { status: own.statusCode, headers: headersSet(own.getHeaders(), before), body };
      }).finally(reset);
      return send(reply, answer);
    },
  });
}
