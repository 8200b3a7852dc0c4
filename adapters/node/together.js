// together.js - statements with parameters in one round trip, which node-postgres has for
// statements without parameters only: none runs after one that has failed.

import pg from 'pg';

class Together extends pg.Query {
  constructor(statements, callback) {
    super('', callback);
    this.statements = statements;
  }

  requiresPreparation() {
    return true;
  }

  prepare(connection) {
    for (const [text, values] of this.statements) {
      connection.parse({ text });
      connection.bind({ values });
      connection.describe({ type: 'P', name: '' });
      connection.execute({});
    }
    connection.sync();
  }
}

// Their results, once all of them are there: together(client, [text, values], …)
export const together = (client, ...statements) => new Promise((resolve, reject) => {
  client.query(new Together(statements, (error, results) => (error ? reject(error) : resolve(results))));
});
