// node-postgres: with parameters, or by the simple protocol, which has none.
'use strict';

const pg = require('pg');
const { run, inlined } = require('./steps');

async function main(mode) {
    const client = new pg.Client();
    await client.connect();
    await run(require('pg/package.json').version, async (sql, parameters) => {
        const result = mode === 'simple'
            ? await client.query(inlined(sql, parameters, (text) => client.escapeLiteral(text)))
            : await client.query(sql, parameters.map(({ value }) => value));
        return result.rows;
    });
    await client.end();
}

main(process.argv[2]);
