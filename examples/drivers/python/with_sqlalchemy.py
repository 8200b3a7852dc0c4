"""SQLAlchemy over psycopg2, or over asyncpg.  JSON is text on its way in: text()
knows no types.  A cast by :: directly behind a parameter is not understood."""

import asyncio
import json
import os
import re
import sys

import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from steps import Steps

URL = "postgresql+{}:///{}?host={}"


def statement(sql, values):
    sql = re.sub(r"\$(\d+)::([a-z]+(?:\[\])?)", r"CAST($\1 AS \2)", sql)
    values = {f"p{number}": json.dumps(value) if kind == "json" else value
              for number, (kind, value) in enumerate(values, 1)}
    return sqlalchemy.text(re.sub(r"\$(\d+)", r":p\1", sql)), values


def execute(connection, steps):
    for sql, values in steps:
        try:
            result = connection.execute(*statement(sql, values))
            steps.said(list(result.keys()), [list(row) for row in result.fetchall()])
        except sqlalchemy.exc.DBAPIError as error:
            steps.failed(error.orig)


async def by_asyncpg(url, steps):
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.run_sync(execute, steps)
    await engine.dispose()


driver = sys.argv[1]
url = URL.format(driver, os.environ["PGDATABASE"], os.environ["PGHOST"])
steps = Steps(sqlalchemy.__version__)
if driver == "asyncpg":
    asyncio.run(by_asyncpg(url, steps))
else:
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        execute(connection, steps)
