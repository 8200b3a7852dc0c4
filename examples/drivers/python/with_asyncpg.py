"""asyncpg: default, or without its cache of prepared statements.  It has the
extended protocol only; JSON is text, in and out."""

import asyncio
import json
import sys

import asyncpg

from steps import Steps


async def main(mode):
    steps = Steps(asyncpg.__version__)
    options = {"statement_cache_size": 0} if mode == "no cache" else {}
    connection = await asyncpg.connect(**options)
    for sql, values in steps:
        values = [json.dumps(value) if kind == "json" else value for kind, value in values]
        try:
            records = await connection.fetch(sql, *values)
            steps.said(list(records[0].keys()) if records else [],
                       [list(record.values()) for record in records])
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            steps.failed(error)
    await connection.close()


asyncio.run(main(sys.argv[1]))
