"""What the three Python programs share: the statements of statements.json are
executed one after the other, and a line of JSON says what was read by each."""

import datetime
import decimal
import enum
import json
import pathlib
import re

FILE = pathlib.Path(__file__).parent.parent / "statements.json"


def tagged(value):
    """What the driver made of a column, in JSON."""
    if value is None:
        return None
    if isinstance(value, bool):
        return {"bool": value}
    if isinstance(value, (int, decimal.Decimal)):
        return {"int": str(value)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, datetime.datetime):
        return {"time": value.astimezone(datetime.timezone.utc).isoformat()}
    if isinstance(value, enum.Enum):
        return {"text": value.name}
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, (dict, list)):
        return {"json": value}
    raise TypeError(f"a column is a {type(value)}")


class Steps:
    """Iterates over (sql, [(kind, value), ...]); said() takes what came of it."""

    def __init__(self, version):
        self.read = {}
        self.step = None
        self.all = json.loads(FILE.read_text())
        print(json.dumps({"version": version}))

    def __iter__(self):
        for self.step in self.all["steps"]:
            yield self.step["sql"], [self._value(name) for name in self.step["args"]]

    def _value(self, name):
        if name in self.all["values"]:
            kind, value = self.all["values"][name]
            return kind, bytes.fromhex(value) if kind == "bytes" else value
        return "bigint", self.read.get(name)

    def said(self, columns, rows):
        for row in rows[:1]:
            for column, value in zip(columns, row):
                self.read[f"{self.step['name']}.{column}"] = value
        print(json.dumps({"name": self.step["name"], "columns": list(columns),
                          "rows": [[tagged(value) for value in row] for row in rows]}))

    def failed(self, error):
        print(json.dumps({"name": self.step["name"], "error": str(error)}))


def placeholders(sql, form):
    """The same statement with placeholders of another form."""
    return re.sub(r"\$(\d+)", form, sql)
