// Prisma's $queryRawUnsafe over its adapter for node-postgres, the engine in
// WebAssembly.  The adapter drops the offset of a time: right only where the session
// has UTC.
'use strict';

const { PrismaClient } = require('@prisma/client');
const { PrismaPg } = require('@prisma/adapter-pg');
const { run } = require('./steps');

async function main(mode) {
    const adapter = new PrismaPg({
        host: process.env.PGHOST, port: process.env.PGPORT,
        user: process.env.PGUSER, database: process.env.PGDATABASE,
        options: mode === 'utc' ? '-c TimeZone=UTC' : '' });
    const prisma = new PrismaClient({ adapter });
    await run(require('@prisma/client/package.json').version, (sql, parameters) =>
        prisma.$queryRawUnsafe(sql, ...parameters.map(({ value }) => value)));
    await prisma.$disconnect();
}

main(process.argv[2]);
