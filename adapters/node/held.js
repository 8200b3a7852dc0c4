// held.js - for Express and Fastify: a response of node:http that goes nowhere, and
// keeps what a handler sends until that is stored.

import { ServerResponse } from 'node:http';

// { response, body, inParts }; like: a response whose methods it is to have, too.
export function held(request, like) {
  const response = new ServerResponse(request);
  if (like) Object.setPrototypeOf(response, Object.getPrototypeOf(like));
  const kept = { response, body: undefined, inParts: false };
  // For a handler that waits for what it sends to be gone.
  const finish = () => process.nextTick(() => ['finish', 'close'].forEach((event) => response.emit(event)));
  const part = () => { kept.inParts = true; finish(); return true; };

  response.on('pipe', part);
  Object.assign(response, {
    write: part,
    flushHeaders: part,
    writeHead(status, reason, headers = reason) {
      response.statusCode = status;
      if (typeof headers === 'object') response.setHeaders(new Map(Object.entries(headers)));
      return response;
    },
    end(...given) {
      const [body = '', encoding] = given.filter((each) => typeof each !== 'function');
      if (kept.body !== undefined) kept.inParts = true;
      kept.body = Buffer.from(body ?? '', encoding);
      given.find((each) => typeof each === 'function')?.();
      finish();
      return response;
    },
  });
  return kept;
}
