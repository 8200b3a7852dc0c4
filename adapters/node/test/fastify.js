// fastify.js - the routes of the test in Fastify.

import { Readable } from 'node:stream';
import Fastify from 'fastify';
import { idempotency } from '../fastify.js';
import { options, work } from './work.js';

const once = idempotency(options);
const app = Fastify();

app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body));
app.addHook('onRequest', async (request, reply) => { reply.header('X-Request', String(Math.random())); });
app.get('/health', async () => 'ok');
app.post('/orders', once(async (request, reply, db) => {
  const answer = await work(request, db, request.body, (name, value) => reply.header(name, value));
  if (answer) {
    reply.code(answer.status).headers(answer.headers);
    return answer.body === undefined ? reply.send() : answer.body;
  }
  switch (request.headers['x-do']) {
    case 'stream': return Readable.from(['a', 'b', 'c']);
    case 'parts': reply.raw.write('a'); reply.raw.end('b'); return reply.send();
    case 'twice': reply.hijack(); return reply;
    default: return undefined;
  }
}));
app.setErrorHandler((error, request, reply) => reply.code(500).send({ error: error.message }));
app.listen({ port: Number(process.env.PORT), host: '127.0.0.1' });
