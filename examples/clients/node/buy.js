// Orders from standard input, a line each: KEY REQUEST.  For each, one line:
// STATUS OUTCOME TRIES BODY.  Connects as the PG* variables say.
'use strict';

const pg = require('pg');
const readline = require('node:readline');
const sleep = require('node:timers/promises').setTimeout;

const TRIES = 10;
const BUY = `
    SELECT outcome, http_status, body, retry_after_ms
        FROM idempotency.idem_run('shop.buy(jsonb)',
            idempotency.idem_scope('shop', 'buy'), $1, $2::jsonb, 'orders')`;

const pool = new pg.Pool({ connectionTimeoutMillis: 5000 });
pool.on('error', () => {});     // an idle connection is lost: without this the process ends

// Not from the server: the connection is lost, or there was none.  The code of such
// an error is none, or one of Node's, and EPIPE is as long as an SQLSTATE.
const worthARetry = (error) => !(error instanceof pg.DatabaseError) ||
    /^(08...|57P..|40001|40P01|53300)$/.test(error.code);

// 50 ms, 100 ms, … 2 s, from half of it to the whole; at least so many s.
function pauseBefore(tries, atLeast) {
    const seconds = Math.min(2, 0.05 * 2 ** (tries - 1)) * (0.5 + Math.random() / 2);
    return sleep(1000 * Math.max(seconds, atLeast));
}

async function buy(key, request) {
    for (let tries = 1; ; tries++) {
        let retryAfter = 0;
        try {
            const { rows: [row] } = await pool.query(BUY, [key, request]);
            if (row.outcome !== 'in_progress' || tries === TRIES) {
                return [row.http_status, row.outcome, tries, row.body ?? ''];
            }
            retryAfter = (row.retry_after_ms ?? 0) / 1000;
        } catch (error) {
            if (!worthARetry(error) || tries === TRIES) {
                console.error(error.message);
                const state = error instanceof pg.DatabaseError ? error.code : 'none';
                return ['error', state, tries, ''];
            }
        }
        await pauseBefore(tries, retryAfter);
    }
}

async function main() {
    for await (const line of readline.createInterface({ input: process.stdin })) {
        const space = line.indexOf(' ');
        const [status, outcome, tries, body] =
            await buy(line.slice(0, space), line.slice(space + 1));
        process.stdout.write(Buffer.concat([
            Buffer.from(`${status} ${outcome} ${tries} `), Buffer.from(body), Buffer.from('\n')]));
    }
    await pool.end();
}

main();
