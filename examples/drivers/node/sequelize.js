// Sequelize: bind, which has parameters, or replacements, which has none.
'use strict';

const { Sequelize, QueryTypes } = require('sequelize');
const { run, array } = require('./steps');

// Replacements of an array would be a list, and those of an object something else.
const replaceable = ({ kind, value }) =>
    kind === 'json' ? JSON.stringify(value) : kind === 'texts' ? array(value) : value;

async function main(mode) {
    const sequelize = new Sequelize(process.env.PGDATABASE, process.env.PGUSER, null,
        { dialect: 'postgres', host: process.env.PGHOST, port: process.env.PGPORT, logging: false });
    await run(require('sequelize/package.json').version, (sql, parameters) =>
        mode === 'replacements'
            ? sequelize.query(sql.replace(/\$\d+/g, '?'),
                { type: QueryTypes.SELECT, replacements: parameters.map(replaceable) })
            : sequelize.query(sql,
                { type: QueryTypes.SELECT, bind: parameters.map(({ value }) => value) }));
    await sequelize.close();
}

main(process.argv[2]);
