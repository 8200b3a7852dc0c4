"""Each driver, in each of its modes, executes statements.json in a database of its
own, and says what it read.  That is compared with what psql says; the table of
doc/clients.md must be what comes out, and --update writes it there."""

import csv
import datetime
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import time

from promises import CuttingProxy, Promises

HERE = pathlib.Path(__file__).parent
PATIENCE = 120
NULL = "(null)"
STATEMENTS = json.loads((HERE / "statements.json").read_text())
VALUES = STATEMENTS["values"]
STEPS = STATEMENTS["steps"]
TRIES = [step["key"] for step in STEPS if "try" in step]
COLUMNS = ["driver", "version", "mode", "`SELECT *` of each function", "bytes in", "bytes out",
           "JSON in", "JSON out", "kept for ever", "for a day", "remark"]
VERSION = COLUMNS.index("version")
TABLE = re.compile(r"(?<=<!-- drivers -->\n)(.*?)(?=<!-- /drivers -->)", re.S)

# What is another in every run: compared by its kind alone, and exactly in the
# steps that are stable, which psql repeats.
VOLATILE = {"token", "retry_after_ms", "idem_require", "idem_audit"}


class Program:
    def __init__(self, driver, mode, command, remark, folder, tcp=False):
        self.driver = driver
        self.mode = mode
        self.command = command
        self.remark = remark
        self.folder = HERE / folder
        self.tcp = tcp

    def __str__(self):
        return f"{self.driver}, {self.mode}"

    def run(self, database):
        """The lines that it printed, by the name of the step."""
        environment = {**os.environ, "PGDATABASE": database, "PGUSER": "driver_app"}
        if self.tcp:
            environment["DATABASE_URL"] = (
                f"jdbc:postgresql://127.0.0.1:{PROXY.port}/{database}?user=driver_app"
                "&sslmode=disable")
        done = subprocess.run(self.command, cwd=self.folder, env=environment, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=PATIENCE)
        if done.returncode != 0:
            raise RuntimeError(f"status {done.returncode}: {done.stderr[-500:]}")
        lines = [json.loads(line) for line in done.stdout.split("\n") if line]
        return lines[0]["version"], {line["name"]: line for line in lines[1:]}


def psql(database, sql, user="postgres"):
    """Columns, types and rows as psql prints them, times in UTC."""
    done = subprocess.run(
        ["psql", "-XqA", "--csv", "-P", f"null={NULL}", "-v", "ON_ERROR_STOP=1", "-U", user,
         "-d", database],
        env={**os.environ, "PGTZ": "UTC", "PGCLIENTENCODING": "UTF8"}, text=True,
        input=f"{sql} \\gdesc\n\\echo ----\n{sql};\n", capture_output=True, timeout=PATIENCE)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    types, rows = done.stdout.split("----\n", 1)
    types = list(csv.reader(io.StringIO(types)))[1:]
    rows = [[None if value == NULL else value for value in row]
            for row in list(csv.reader(io.StringIO(rows)))[1:]]
    return [name for name, _ in types], [kind for _, kind in types], rows


def one(database, sql):
    return psql(database, sql)[2][0][0]


def literal(kind, value):
    if value is None:
        return "NULL"
    if kind == "json":
        value = json.dumps(value)
    elif kind == "bytes":
        value = "\\x" + value
    elif kind == "texts":
        value = json.dumps(value)
        value = "{" + value[1:-1] + "}"
    return "'" + str(value).replace("'", "''") + "'"


def reference(database):
    """What psql reads where a driver will: columns, types and rows by step."""
    said = {}
    read = {}
    for step in STEPS:
        if "try" in step:
            continue
        values = [literal(*VALUES[name]) if name in VALUES else read[name]
                  for name in step["args"]]
        sql = re.sub(r"\$(\d+)", lambda match: values[int(match[1]) - 1], step["sql"])
        said[step["name"]] = columns, _, rows = psql(database, sql, "driver_app")
        if rows:
            read.update({f"{step['name']}.{column}": value
                         for column, value in zip(columns, rows[0])})
    return said


def instant(text):
    moment = datetime.datetime.fromisoformat(re.sub(
        r"(\.\d+)", lambda match: match[1][:7].ljust(7, "0"), text.replace("Z", "+00:00")))
    return moment.astimezone(datetime.timezone.utc)


def full(text):
    """A time of PostgreSQL's, whose offset may be hours alone; or seconds and
    microseconds since 1970."""
    if isinstance(text, list):
        return datetime.datetime.fromtimestamp(text[0], datetime.timezone.utc).replace(
            microsecond=text[1])
    return instant(re.sub(r"([+-]\d\d)$", r"\1:00", text.strip().replace(" ", "T")))


def timeless(text):
    """A problem without its time, which is that of the call."""
    return re.sub(r'"time": ?"[-0-9T:.]+Z"', '"time": ""', text)


def same(kind, value, text, exact):
    """Whether the driver's value is psql's."""
    if value is None or text is None:
        return value is None and text is None
    (tag, got), = value.items()
    if kind == "bytea":
        return tag == "bytes" and "\\x" + got == text
    if kind == "boolean":
        return value in ({"bool": text == "t"}, {"text": text})
    if kind in ("integer", "bigint"):
        return tag in ("int", "text") and (int(got) == int(text) or not exact)
    if kind == "timestamp with time zone":
        if tag not in ("time", "epoch", "text") or "infinity" in text:
            return False            # not every driver reads infinity: none is to be sent
        difference = abs(full(got) - full(text))
        # JavaScript knows milliseconds only; without that a run may take a while
        limit = datetime.timedelta(milliseconds=1) if exact else datetime.timedelta(minutes=10)
        return difference < limit if full(got).microsecond % 1000 == 0 or not exact \
            else difference == datetime.timedelta(0)
    if kind in ("json", "jsonb") and tag == "json":
        parsed = json.loads(text)
        if not exact and isinstance(parsed, dict) and "time" in parsed:
            parsed["time"] = got["time"] if re.fullmatch(r"[-0-9T:.]+Z", got["time"]) else None
        return parsed == got
    if kind in ("json", "jsonb") and not exact:
        return tag == "text" and timeless(got) == timeless(text)
    return tag == "text" and got == text


class Trial:
    """One driver in one mode, in a database of its own."""

    def __init__(self, program, database, expected, functions):
        self.program = program
        self.database = database
        self.version, self.said = program.run(database)
        self.texts = set()
        self.kinds = set()          # the types that were read wrongly
        self.wrong = []
        for step in STEPS:
            if "try" not in step:
                problem = self.compare(step, expected[step["name"]])
                if problem:
                    self.wrong.append(f"{step['name']}: {problem}")
        self.called = self.wait_for_calls(functions)

    def wait_for_calls(self, functions):
        """How many of the functions the server has seen: it counts when the session ends."""
        deadline = time.monotonic() + 10
        while True:
            (called, there), = psql(self.database, f"""
                SELECT count(*) FILTER (WHERE calls > 0), count(*) FROM ({functions}) AS f
                    LEFT JOIN pg_stat_user_functions AS s ON s.funcid = f.oid""")[2]
            if called == there or time.monotonic() > deadline:
                return int(called)
            time.sleep(0.1)

    def compare(self, step, expected):
        """What is wrong with a step, or nothing."""
        line = self.said.get(step["name"])
        if line is None:
            self.kinds.add("a row")
            return "it did not get there"
        if "error" in line:
            self.kinds.add("an error")
            return line["error"]
        stable = step.get("stable", False)
        columns, types, rows = psql(self.database, step["sql"], "driver_app") if stable else expected
        if line["columns"] != columns or len(line["rows"]) != len(rows):
            self.kinds.add("a row")
            return f"columns {line['columns']}, {len(line['rows'])} rows"
        wrong = []
        for got, row in zip(line["rows"], rows):
            for column, kind, value, text in zip(columns, types, got, row):
                exact = column != "retry_after_ms" if stable else (
                    column not in VOLATILE and column != "idem_http_problem"
                    and kind != "timestamp with time zone")
                if not same(kind, value, text, exact):
                    wrong.append(f"{column} is {value}, not {text}")
                    self.kinds.add(NAMES.get(kind, kind))
                if value and "text" in value and kind in NAMES:
                    self.texts.add(NAMES[kind])
        return "; ".join(wrong)

    def column(self, step, name):
        line = self.said[step]
        return line["rows"][0][line["columns"].index(name)]

    def arrived(self):
        """The keys for which what the driver sent is there as it should be."""
        bytes_sent, json_sent = VALUES["octets"][1], literal(*VALUES["order"])
        return {row[0] for row in psql(self.database, f"""
            SELECT key FROM unnest('{{{",".join(TRIES)}}}'::text[]) AS key,
                idempotency.idem_lookup('tries', key) AS r
                WHERE (body = '\\x{bytes_sent}' AND content_type = 'application/octet-stream'
                        OR NOT key LIKE 'bytes%')
                    AND (fingerprint = '\\x{bytes_sent}' OR NOT key LIKE 'print%')
                    AND (fingerprint = idempotency.idem_fingerprint({json_sent})
                        OR NOT key LIKE 'request%')
                    AND (idempotency.idem_json(r)::jsonb = {json_sent} OR NOT key LIKE 'json%')""")[2]}

    def way_in(self, tries):
        """As it is, or by which cast."""
        arrived = self.arrived()
        casts = []
        for name in tries:
            good = [step["cast"] for step in STEPS
                    if step.get("try") == name and step["key"] in arrived]
            if not good:
                return "**no**"
            if good[0] and f"`{good[0]}`" not in casts:
                casts.append(f"`{good[0]}`")
        return " ".join(casts) or "yes"

    def row(self, count):
        """Its row of the table."""
        kept = self.column("day", "expires_at") is not None
        finished, expires = (self.column("day", name) for name in ("finished_at", "expires_at"))
        day = full(list(expires.values())[0]) - full(list(finished.values())[0]) if kept else None
        out = self.column("body as json", "idem_json")
        remark = [self.program.remark] if self.program.remark else []
        if self.texts:
            remark.append("as text: " + ", ".join(f"`{name}`" for name in sorted(self.texts)))
        octets = self.column("bytes", "body")
        return [
            self.program.driver, self.version, self.program.mode,
            "yes" if not self.wrong and self.called == count
            else "**no**: " + (", ".join(sorted(self.kinds)) or "not all"),
            self.way_in(["bytes", "fingerprint"]),
            "yes" if octets == {"bytes": VALUES["octets"][1]} else "**no**",
            self.way_in(["request", "json"]),
            {"json": "parsed", "text": "as stored"}.get(next(iter(out or {}), None), "**no**"),
            "null" if self.column("forever", "expires_at") is None else "**no**",
            "a time" if day == datetime.timedelta(days=1) else "**no**",
            "; ".join(remark)]


NAMES = {"boolean": "boolean", "integer": "integer", "bigint": "bigint", "json": "json",
         "jsonb": "jsonb", "timestamp with time zone": "timestamptz"}


def debian(package):
    """The upstream version of a package that has been built in."""
    version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package],
                             check=True, capture_output=True, text=True).stdout
    return re.sub(r"^\d+:|[-+].*", "", version)


def libpq(mode, name, remark=""):
    return Program("libpq", name, ["./with_libpq", mode], remark, "c")


def python(driver, file, mode, name, remark=""):
    return Program(driver, name, ["/usr/bin/python3", "-B", file, mode], remark, "python")


def node(driver, file, mode, name, remark=""):
    return Program(driver, name, ["node", file, mode], remark, "node")


def jdbc(mode, name, remark=""):
    return Program("JDBC", name, ["java", "-XX:TieredStopAtLevel=1", "-cp",
                                  "/usr/share/java/postgresql.jar:/usr/share/java/gson.jar:.",
                                  "WithJdbc", mode], remark, "java", tcp=True)


def pgx(mode, name, remark=""):
    return Program("pgx 4", name, ["./with_go", debian("golang-github-jackc-pgx-v4-dev"),
                                   "pgx", mode], remark, "go")


def pq(mode, name, remark=""):
    return Program("lib/pq", name, ["./with_go", debian("golang-github-lib-pq-dev"),
                                    "pq", mode], remark, "go")


def tokio(mode, name, remark=""):
    return Program("tokio-postgres", name,
                   ["target/debug/with-tokio-postgres",
                    debian("librust-tokio-postgres-dev"), mode], remark, "rust")


def programs():
    return [
        libpq("simple", "`PQexec`: simple protocol"),
        libpq("text", "`PQexecParams`, text results"),
        libpq("binary", "`PQexecParams`, binary results"),
        python("psycopg 3", "with_psycopg.py", "default", "default"),
        python("psycopg 3", "with_psycopg.py", "binary", "binary results",
               "`outcome` is bytes until `register_enum`"),
        python("psycopg 3", "with_psycopg.py", "client", "`ClientCursor`: simple protocol"),
        python("asyncpg", "with_asyncpg.py", "default", "default"),
        python("asyncpg", "with_asyncpg.py", "no cache", "`statement_cache_size=0`"),
        python("SQLAlchemy", "with_sqlalchemy.py", "psycopg2", "psycopg2: simple protocol",
               "`CAST(:x AS …)`"),
        python("SQLAlchemy", "with_sqlalchemy.py", "asyncpg", "asyncpg", "`CAST(:x AS …)`"),
        node("node-postgres", "pg.js", "default", "default"),
        node("node-postgres", "pg.js", "simple", "no parameters: simple protocol"),
        node("postgres.js", "postgres.js", "default", "default"),
        node("postgres.js", "postgres.js", "unprepared", "`prepare: false`"),
        node("postgres.js", "postgres.js", "simple", "`simple()`: simple protocol"),
        node("Prisma", "prisma.js", "default", "`$queryRawUnsafe`, adapter-pg",
             "takes any time for one in UTC; see the next line"),
        node("Prisma", "prisma.js", "utc", "the same, `options: '-c TimeZone=UTC'`"),
        node("pg-promise", "pg-promise.js", "default", "default: simple protocol"),
        node("Sequelize", "sequelize.js", "bind", "`bind`"),
        node("Sequelize", "sequelize.js", "replacements", "`replacements`: simple protocol"),
        jdbc("default", "default"),
        jdbc("binary", "`prepareThreshold=-1`: binary results"),
        jdbc("simple", "`preferQueryMode=simple`",
             "no `setBytes`: `\\x…` by `setString`"),
        pgx("default", "default"),
        pgx("simple", "`PreferSimpleProtocol`"),
        pgx("database/sql", "database/sql"),
        pq("default", "default"),
        pq("binary", "`binary_parameters=yes`"),
        pq("simple", "no parameters: simple protocol"),
        tokio("default", "default", "`outcome` wants a type of yours, or `outcome::text`"),
        tokio("simple", "`simple_query`", "`bytea` as `\\x…`"),
        Program("ActiveRecord", "default", ["ruby", "with_activerecord.rb", "default"],
                "columns by `cast_values`", "ruby"),
        Program("ActiveRecord", "`prepared_statements: false`",
                ["ruby", "with_activerecord.rb", "unprepared"],
                "columns by `cast_values`", "ruby"),
        Program("PDO", "default", ["php", "with_pdo.php", "default"],
                "`bytea` is a stream", "php"),
        Program("PDO", "`ATTR_EMULATE_PREPARES`: simple protocol",
                ["php", "with_pdo.php", "emulated"],
                "`bytea` is a stream", "php"),
    ]


def table(rows):
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(row).replace("|  |", "| |") + " |" for row in rows]) + "\n"


def without_versions(row):
    return row[:VERSION] + row[VERSION + 1:]


def documented(path):
    """The rows that the page has."""
    found = TABLE.search(path.read_text())
    lines = found[1].strip().splitlines()[2:] if found else []
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def main():
    global PROXY
    page = HERE / "../../doc/clients.md"
    promises = Promises("drivers")
    PROXY = CuttingProxy()
    functions = """
        SELECT p.oid FROM pg_proc AS p JOIN pg_depend AS d
            ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
            JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'idempotency'
            WHERE has_function_privilege('driver_app', p.oid, 'EXECUTE')"""
    count = int(one("drivers", f"SELECT count(*) FROM ({functions}) AS f"))

    def copy(name):
        subprocess.run(["createdb", "-T", "drivers", name], check=True, timeout=PATIENCE)
        return name

    expected = reference(copy("reference"))
    shown = documented(page)
    rows = []
    for number, program in enumerate(programs()):
        try:
            trial = Trial(program, copy(f"driver_{number}"), expected, functions)
            row = trial.row(count)
        except Exception as error:          # of whatever kind: it is BROKEN
            promises.keep(str(program), f"{type(error).__name__}: {error}", False)
            continue
        rows.append(row)
        as_shown = without_versions(row) in map(without_versions, shown)
        if not as_shown:
            for problem in trial.wrong[:5]:
                print(f"    {program}: {problem}"[:400], flush=True)
        promises.keep(
            f"{program}: as doc/clients.md says",
            f"{trial.called} of {count} functions, {len(trial.wrong)} rows read wrongly",
            as_shown or "--update" in sys.argv)
    print("\n" + table(rows))
    if "--update" in sys.argv:
        page.write_text(TABLE.sub(lambda _: table(rows), page.read_text()))
    else:
        promises.keep("doc/clients.md has these rows, and no others",
                      f"{len(shown)} rows there, {len(rows)} here",
                      list(map(without_versions, rows)) == list(map(without_versions, shown)))
    PROXY.close()
    return promises.finish()


if __name__ == "__main__":
    sys.exit(main())
