// postgres.js: default, which prepares, prepare: false, or .simple().
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const postgres = require('postgres');
const { run, inlined } = require('./steps');

const version = JSON.parse(fs.readFileSync(
    path.join(__dirname, 'node_modules/postgres/package.json'), 'utf8')).version;
const literal = (text) => ` E'${text.replace(/[\\']/g, '\\$&')}'`;

async function main(mode) {
    const sql = postgres({
        path: `${process.env.PGHOST}/.s.PGSQL.${process.env.PGPORT}`, max: 1,
        prepare: mode === 'default', onnotice: () => {} });
    await run(version, (text, parameters) => mode === 'simple'
        ? sql.unsafe(inlined(text, parameters, literal)).simple()
        : sql.unsafe(text, parameters.map(({ value }) => value), { prepare: mode === 'default' }));
    await sql.end();
}

main(process.argv[2]);
