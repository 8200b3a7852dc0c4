// held.js - for Express and Fastify: a response of node:http that goes nowhere, and
// keeps what a handler sends until that is stored.

import { ServerResponse } from 'node:http';

// { response, body, inParts }; like: a response whose methods it is to have, too.
export function held(request, like) {
  const response = new ServerResponse(request);
  if (like) Object.setPrototypeOf(response, Object.getPrototypeOf(like));
  const kept = { response, body: undefined, inParts: false };
  const part = () => { kept.inParts = true; return true; };

  response.on('pipe', part);
  Object.assign(response, {
    write: part,
    flushHeaders: part,
    writeHead(status, reason, headers = reason) {
      response.statusCode = status;
      if (typeof headers === 'object') response.setHeaders(new Map(Object.entries(headers)));
      return response;
    },
    end(body, encoding) {
      if (kept.body !== undefined) kept.inParts = true;
      kept.body = typeof body === 'function' ? Buffer.alloc(0) : Buffer.from(body ?? '', encoding);
      return response;
    },
  });
  return kept;
}
