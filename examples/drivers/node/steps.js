// What the Node.js programs share: the statements of statements.json are executed
// one after the other, and a line of JSON says what was read by each.
'use strict';

const fs = require('node:fs');
const path = require('node:path');

const { values, steps } = JSON.parse(
    fs.readFileSync(path.join(__dirname, '..', 'statements.json'), 'utf8'));
const say = (what) => process.stdout.write(JSON.stringify(what) + '\n');

// What the driver made of a column.
function tagged(value) {
    if (value === null || value === undefined) return null;
    if (typeof value === 'boolean') return { bool: value };
    if (typeof value === 'number' || typeof value === 'bigint') return { int: String(value) };
    if (typeof value === 'string') return { text: value };
    if (value instanceof Uint8Array) return { bytes: Buffer.from(value).toString('hex') };
    if (value instanceof Date) return { time: value.toISOString() };
    return { json: value };
}

// execute(sql, parameters) returns rows; a parameter has a kind and a value.
exports.run = async function (version, execute) {
    const read = {};
    const parameter = (name) => {
        if (!(name in values)) return { kind: 'bigint', value: read[name] };
        const [kind, value] = values[name];
        return { kind, value: kind === 'bytes' ? Buffer.from(value, 'hex') : value };
    };
    say({ version });
    for (const { name, sql, args } of steps) {
        try {
            const rows = await execute(sql, args.map(parameter));
            const columns = rows.length ? Object.keys(rows[0]) : [];
            for (const column of columns) read[`${name}.${column}`] = rows[0][column];
            say({ name, columns,
                rows: [...rows].map((row) => columns.map((column) => tagged(row[column]))) });
        } catch (error) {
            say({ name, error: String(error.message) });
        }
    }
};

// The statement with its parameters in it, where a driver is to get none:
// literal(text) quotes.
exports.inlined = (sql, parameters, literal) => sql.replace(/\$(\d+)/g, (_, number) => {
    const { kind, value } = parameters[number - 1];
    if (value === null) return 'NULL';
    if (kind === 'bytes') return literal('\\x' + value.toString('hex'));
    if (kind === 'json') return literal(JSON.stringify(value));
    if (kind === 'texts') return literal(exports.array(value));
    if (kind === 'text') return literal(value);
    return String(value);
});

// An array of texts as PostgreSQL writes it.
exports.array = (texts) =>
    `{${texts.map((text) => `"${text.replace(/["\\]/g, '\\$&')}"`).join(',')}}`;
