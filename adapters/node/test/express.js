// express.js - the routes of the test in Express.

import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import express from 'express';
import { idempotency } from '../express.js';
import { options, work } from './work.js';

const once = idempotency(options);
const app = express();
const orders = once(async (req, res, db) => {
  const answer = await work(req, db, req.body, (name, value) => res.set(name, value));
  if (answer) {
    res.status(answer.status).set(answer.headers);
    if (answer.body === undefined) res.end();
    else res.send(answer.body);
    return;
  }
  switch (req.get('X-Do')) {
    case 'stream': Readable.from(['a', 'b', 'c']).pipe(res); break;
    case 'pipeline': await pipeline(Readable.from(['a', 'b', 'c']), res); break;
    case 'file': await new Promise((done) => res.sendFile(fileURLToPath(import.meta.url), done)); break;
    case 'parts': res.write('a'); res.end('b'); break;
    case 'callback': await new Promise((done) => res.end('sent', done)); break;
    case 'twice': res.send('a'); res.send('b'); break;
    default: break;                         // sends nothing
  }
});

app.use((req, res, next) => { res.set('X-Request', String(Math.random())); next(); });
app.get('/health', (req, res) => res.send('ok'));
app.post('/parsed', express.json(), orders);
app.post('/orders', orders);
app.use((error, req, res, next) => res.status(500).json({ error: error.message }));
app.listen(process.env.PORT, '127.0.0.1');
