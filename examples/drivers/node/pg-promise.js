// pg-promise puts the parameters into the statement, and so has the simple protocol.
'use strict';

const pgPromise = require('pg-promise')();
const { run } = require('./steps');

async function main() {
    const db = pgPromise({ host: process.env.PGHOST });
    await run(require('pg-promise/package.json').version, (sql, parameters) =>
        db.any(sql, parameters.map(({ value }) => value)));
    pgPromise.end();
}

main();
