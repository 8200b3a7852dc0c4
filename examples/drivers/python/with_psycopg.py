"""psycopg 3: default, binary results, or ClientCursor, which uses the simple protocol.
In binary form an enum that is not registered would be bytes."""

import sys

import psycopg
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Jsonb

from steps import Steps, placeholders

CURSORS = {"default": psycopg.Cursor, "binary": psycopg.Cursor, "client": psycopg.ClientCursor}

mode = sys.argv[1]
steps = Steps(psycopg.__version__)
with psycopg.connect(autocommit=True, cursor_factory=CURSORS[mode]) as connection:
    if mode == "binary":
        register_enum(EnumInfo.fetch(connection, "idem_outcome"), connection)
    for sql, values in steps:
        values = [Jsonb(value) if kind == "json" else value for kind, value in values]
        try:
            cursor = connection.cursor(binary=mode == "binary")
            cursor.execute(placeholders(sql, "%s"), values)
            steps.said([column.name for column in cursor.description], cursor.fetchall())
        except psycopg.Error as error:
            steps.failed(error)
