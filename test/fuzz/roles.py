#!/usr/bin/env python3
"""Call every function of the extension as every kind of role: see tools/role-fuzz.

What a role may call is read from doc/security.md, what a call may raise from
doc/errors.md, so that the two are held to what the server does.
"""

import collections
import random
import re
import sys
import time
from pathlib import Path

import psycopg

MARK = "m4rk3d"  # is in each scope, key, request ... that is sent
LEVELS = ["app", "operator", "auditor", "monitor"]
NO_LEVEL = ["none", "outside"]  # with USAGE on the schema, and without

# Of the server's own, before a function of ours is reached or in what it is given: too
# deep, too long, out of the range of a type, not of the encoding.
SERVERS = {"54000", "54001", "22003", "22008", "22021", "22P05", "57014"}

# Arguments whose names are no secrets: a message may say that there is no such policy.
NAMES = {"policy", "limiter", "limiters", "name", "handler", "role", "level", "code", "schedule",
         "purpose"}

SETUP = """
CREATE ROLE keys_owner NOLOGIN;
CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
GRANT USAGE ON SCHEMA idempotency TO keys_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO keys_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO keys_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO keys_owner;
SET search_path = idempotency, public;
CREATE FUNCTION public.answer(request jsonb) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION public.raises(request jsonb) RETURNS json LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'P0001'; END $$;
SELECT idem_policy('kept', completed_ttl => '0 s', failed_ttl => '0 s', audit => true);
SELECT idem_policy('strict', on_repeat => 'reject', on_expiry => 'reject', tombstone => '1 day', key_format => 'uuidv4',
    require_fingerprint => true, on_unfinished => 'error', max_live_keys => 3, max_body_bytes => 10);
SELECT idem_limiter('slow', 3, '1 hour', '1 s', '1 min');
SELECT idem_limiter('huge', 1000000000, '1 s');
SELECT idem_secret('audit', sha256('a'));
SELECT idem_secret('context', sha256('c'));
SELECT count(idem_run('answer(jsonb)', 'kept scope', 'kept ' || i, '{}', 'kept'))
    FROM generate_series(1, 20) i;
"""

# What none of these roles may change
KEPT = {
    "keys of another role": "SELECT md5(string_agg(k::text, ',' ORDER BY key))"
                            " FROM idempotency.idempotency_keys k WHERE scope = 'kept scope'",
    "secrets": "SELECT md5(string_agg(s::text, ',' ORDER BY key_id))"
               " FROM idempotency.idempotency_secrets s",
    "first rows of the log": "SELECT md5(string_agg(l::text, ',' ORDER BY id)) FROM"
                             " idempotency.idempotency_audit_log l WHERE id <= 20",
}


def table_rows(text, heading):
    """The rows of the first table after a heading, each a list of cells."""
    part = text.split(heading, 1)[1]
    lines = part[part.index("\n|") + 1:].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def read_levels(top):
    """What each level may call, and what it may read."""
    text = (top / "doc/security.md").read_text()
    names = lambda cell: set(re.findall(r"`(\w+)`", cell))
    public = names(next(row for row in table_rows(text, "## What each role can do")
                        if row[0].startswith("PUBLIC"))[1])
    call, read = collections.defaultdict(set), collections.defaultdict(set)
    for row in table_rows(text, "### Levels"):
        level = row[0].strip("`")
        call[level] = names(row[1]) | public
        read[level] = names(row[2])
        # a view calls its function as whoever reads it
        call[level] |= {view + "_values" for view in read[level]}
        call[level] |= {"idem_policy_values"} if "idem_policy_list" in read[level] else set()
    call["none"] = public
    return call, read


def read_errors(top):
    """SQLSTATEs that may come; "any other" and broken data are not for this."""
    codes = set()
    for row in table_rows((top / "doc/errors.md").read_text(), "# Errors"):
        codes |= set(re.findall(r"`(\w{5})`", row[0]))
    return codes - {"XX001", "57P01", "57P05"} | SERVERS


TEXTS = ["", "a", MARK, MARK + " 1", MARK + " 2", "default", "kept", "strict", "slow", "huge",
         f"{MARK}\x1e{MARK}", MARK + "x" * 1017, MARK + "x" * 1018, MARK + "x" * 1019, "y" * 1024,
         "y" * 1025, MARK + "\u2028\U0001f602\u0085", " \t\r\n", "\\", "%s%n", "'; --",
         MARK + "z" * 200000, "8e03978e-40d5-43dd-bc93-6894a57f9324",
         "8E03978E-40D5-43DD-BC93-6894A57F9324", f'"{MARK}"', f'"{MARK}";a=1', "infinity", "NULL",
         "raise", "record", "context", "audit", "p", "c", "idem1:1:" + "0" * 64, "application/json",
         "text/html\r\nX: y", "rate_limited", "* * * * *", "refuse", "monitor", "app"]
INTERVALS = ["0", "1 us", "1 s", "-1 s", "1 month", "1 day -24 hours", "100 years", "1000000 years",
             "178000000 years", "-178000000 years", "9223372036854 s", "-0.000001 s", "infinity",
             "-infinity"]
JSONS = ["null", "{}", "[]", "1", "-0.0", "1e131071", f'"{MARK}"', f'{{"{MARK}": "{MARK}"}}',
         '{"a": {"a": [1, 2, null, true]}}', "[" * 3000 + "]" * 3000,
         '{"a":' * 2000 + "1" + "}" * 2000, "[" + ",".join("1234567890" for _ in range(20000)) + "]",
         '{"Content-Type": "text/plain", "X": ["a", "b"]}', '[["A", "b"], ["C", "d"]]',
         '[{"A": "b"}, {"C": 1}]', '{"A": "b\\r\\nC: d"}', '{"": "x"}', '{"A": "\\u00e9"}',
         '{"method": "POST", "path": "/x", "headers": {"idempotency-key": "' + MARK + '"}}']
VALUES = {
    "text": TEXTS,
    "integer": [str(n) for n in (0, 1, -1, 2, 3, 10, 99, 100, 200, 204, 409, 500, 599, 600, 1000,
                                 10001, 2**31 - 1, -2**31)],
    "bigint": [str(n) for n in (0, 1, -1, 2, 1000, 2**31, 2**53, 2**63 - 1, -2**63)],
    "interval": INTERVALS,
    "boolean": ["t", "f"],
    "timestamp with time zone": ["infinity", "-infinity", "2000-01-01", "4713-01-01 BC",
                                 "294276-12-31", "2100-01-01", "0001-01-01"],
    "jsonb": JSONS,
    "json": JSONS + ['{"a": 1, "a": 2}', '{"a": "\\u0000"}', '{"a": "\\ud800"}', " [ 1 ] "],
    "bytea": ["", "\\x00", "\\x" + "00" * 32, "\\x" + MARK.encode().hex(), "\\x" + "ff" * 1024,
              "\\x" + "ff" * 1025, "\\x00696301" + "00" * 36, "\\x00696301" + "00" * 35,
              "\\x" + "ab" * 100000],
    "uuid": ["00000000-0000-0000-0000-000000000000", "8e03978e-40d5-43dd-bc93-6894a57f9324"],
    "text[]": ["{}", "{NULL}", "{a}", f"{{{MARK},{MARK} 1}}", "{a,NULL,b}", "{{a,b},{c,d}}",
               "[5:6]={a,b}", "[-2147483648:-2147483647]={a,b}", '{""}', '{"",""}',
               '{"' + "x" * 2000 + '"}', "{" + ",".join(f"{MARK}{i}" for i in range(3000)) + "}",
               "{slow}", "{slow,huge}", "{huge,huge}", "{slow,slow,slow}", f"{{{MARK},{MARK}}}"],
    "integer[]": ["{}", "{NULL}", "{1}", "{1,1}", "{0,-1}", "{2147483647,1}", "{{1,2},{3,4}}",
                  "[3:4]={1,1}", "{1,NULL}", "{1,1,1}"],
    "int4multirange": ["{}", "{[400,500)}", "{[0,2147483647)}", "{(,)}", "{[409,410),[503,504)}"],
    "regprocedure": ["public.answer(jsonb)", "public.raises(jsonb)", "pg_catalog.now()",
                     "pg_catalog.jsonb_typeof(jsonb)", "0", "4294967295",
                     "idempotency.idem_fingerprint(jsonb)"],
    "regrole": ["lvl_app", "lvl_none", "postgres", "0", "4294967295"],
    "regclass": ["pg_class", "idempotency.idempotency_keys", "0", "4294967295", "-"],
}


class Run:
    """The functions, who may call them, and what came of it."""
    def __init__(self, top, seed, log):
        self.random = random.Random(seed)
        self.log = Path(log)
        self.call, self.read = read_levels(top)
        self.errors = read_errors(top)
        self.passed, self.problems = 0, []
        self.seen = collections.Counter()
        self.admin = psycopg.connect("dbname=postgres", autocommit=True)
        self.admin.execute(SETUP)
        for role in LEVELS + NO_LEVEL:
            self.admin.execute(f"CREATE ROLE lvl_{role} LOGIN")
        for level in LEVELS:
            self.admin.execute(f"SELECT idempotency.idem_grant('lvl_{level}', '{level}')")
        self.admin.execute("GRANT USAGE ON SCHEMA idempotency TO lvl_none")
        self.admin.execute("SELECT idempotency.idem_audit('kept', 'kept', 'kept')")
        self.functions = self.admin.execute("""
            SELECT p.oid::regprocedure::text, p.proname, p.prokind::text, p.provariadic <> 0,
                ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY a (t, i)
                    ORDER BY i),
                COALESCE(p.proargnames, '{}'), p.pronargdefaults, p.prorettype::regtype::text, p.proisstrict
            FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
            WHERE d.refclassid = 'pg_extension'::regclass AND d.classid = 'pg_proc'::regclass
                AND d.deptype = 'e' AND d.refobjid =
                    (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
            ORDER BY 1""").fetchall()
        self.relations = self.admin.execute("""
            SELECT relname, relkind::text FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
            WHERE d.refclassid = 'pg_extension'::regclass AND d.classid = 'pg_class'::regclass
                AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
                AND relkind IN ('r', 'p', 'v', 'm', 'S') ORDER BY 1""").fetchall()
        self.values = {kind: self.valid(kind, values) for kind, values in VALUES.items()}
        self.columns = self.admin.execute(
            "SELECT relnatts FROM pg_class WHERE relname = 'idem_result'").fetchone()[0]
        self.kept = self.read_kept()
        self.sessions = {}

    def valid(self, kind, values):
        """Those that the type takes: what it refuses never comes to a function of ours."""
        taken = []
        for value in values:
            try:
                self.admin.execute(f"SELECT %s::{kind}", [value])
                taken.append(value)
            except psycopg.Error:
                pass
        return taken

    def read_kept(self):
        return {name: self.admin.execute(query).fetchone() for name, query in KEPT.items()}

    def fail(self, what):
        if len(self.problems) < 40:
            print(f"not ok   {what}", flush=True)
        self.problems.append(what)

    def session(self, role):
        if role not in self.sessions or self.sessions[role].closed:
            self.sessions[role] = psycopg.connect(
                f"dbname=postgres user=lvl_{role}", autocommit=True,
                options="-c statement_timeout=5s -c search_path=idempotency,public"
                        " -c idle_in_transaction_session_timeout=60s")
        return self.sessions[role]

    @staticmethod
    def qualified(kind):
        return "idempotency." + kind.split(".")[-1] if "idem_" in kind else kind

    def pick(self, kind, name):
        """An expression for an argument, and its parameters."""
        choose = self.random.random()
        if choose < 0.12:
            return f"NULL::{self.qualified(kind)}", []
        if kind.endswith("idem_result"):
            return self.random.choice([
                ("ROW(" + ",".join(["NULL"] * self.columns) + ")::idempotency.idem_result", []),
                ("(SELECT r FROM idempotency.idem_claim(%s, %s) r)", [MARK, MARK + str(self.random.random())]),
                ("(SELECT r FROM idempotency.idem_lookup(%s, %s) r)", [MARK, MARK]),
                ("jsonb_populate_record(NULL::idempotency.idem_result, %s)", [
                    '{"outcome": "mismatch", "http_status": %d, "error_code": "%s", "retry_after":'
                    ' "%s", "expires_at": "infinity", "body": "\\\\x00", "headers": {"A": "%s"}}'
                    % (self.random.choice([0, -1, 99, 200, 400, 599, 600, 2**31 - 1]),
                       self.random.choice(["", "x", "rate_limited"]),
                       self.random.choice(["1 s", "-1 s", "100 years"]), MARK)])])
        if kind == "text" and choose < 0.45:
            if name in ("policy", "name"):
                return f"%s::{kind}", [self.random.choice(["default", "kept", "strict"])]
            if name in ("limiter", "limiters"):
                return f"%s::{kind}", [self.random.choice(["slow", "huge"])]
            if name in ("scope", "key", "subject"):
                return f"%s::{kind}", [self.random.choice([MARK, MARK + " 1", MARK + " 2"])]
        if kind == "bigint" and name == "token" and choose < 0.5:
            return ("(SELECT max(r.token) FROM idempotency.idem_claim(%s, %s) r)", [MARK, MARK])
        return f"%s::{kind}", [self.random.choice(self.values[kind])]

    def make_call(self, function):
        """A statement that calls a function, and its parameters."""
        _, name, kind, variadic, types, names, defaults, *_ = function
        number = len(types) - (self.random.randint(0, defaults) if defaults else 0)
        words, parameters = [], []
        for i in range(number):
            word, values = self.pick(types[i], names[i] if i < len(names) else "")
            if variadic and i == len(types) - 1:
                word = "VARIADIC " + word
            words.append(word)
            parameters += values
        call = f"idempotency.{name}({', '.join(words)})"
        if kind == "p":
            return f"CALL {call}", parameters
        if function[7] == "trigger":
            return f"SELECT {call}", parameters
        return self.random.choice([f"SELECT {call}", f"SELECT * FROM {call} f",
                                   f"SELECT ({call})::text"]), parameters

    def judge(self, role, function, error, statement, parameters):
        """Whether an error, or none, is what is due."""
        _, name, _, _, _, names, *_, strict = function
        code = error.sqlstate if error else None
        what = f"{role}: {name}: {code} {str(error).splitlines()[0] if error else ''}"
        self.seen[code] += 1
        self.passed += 1
        # a strict function of a null is none to the planner, whoever calls it
        if code is None and name not in self.call[role] and not (strict and "NULL" in statement):
            return self.fail(f"{role} may call {name}")
        if error is None:
            return None
        # what an argument calls may be denied, too, but not instead
        if name not in self.call[role]:
            if code != "42501":
                self.fail(f"{what}, and not 42501: {statement} {str(parameters)[:200]}")
        elif code == "42501" and "permission denied for function " + name in str(error):
            self.fail(f"{role} may not call {name}, and doc/security.md says that it may")
        elif code is None:
            self.fail(f"{what}: the connection is lost: {statement} {str(parameters)[:200]}")
        elif code not in self.errors and not code.startswith(("53", "P0")):
            self.fail(f"{what}: not in doc/errors.md: {statement} {str(parameters)[:200]}")
        diag = error.diag
        said = " ".join(filter(None, (diag.message_primary, diag.message_detail, diag.message_hint,
                                      diag.context)))
        if MARK in said and not (set(names) & NAMES and self.only_in_names(said)):
            self.fail(f"{what}: shows what it was given: {said[:300]}")
        return None

    @staticmethod
    def only_in_names(said):
        """Of a policy, a limiter or a handler that there is not, in quotation marks."""
        return re.search(r'(policy|limiter|function|role|level|named?|argument|value) +"+[^"]*' + MARK,
                         said)

    def try_once(self, role, function):
        session = self.session(role)
        statement, parameters = self.make_call(function)
        error = None
        try:
            session.execute(statement, parameters)
        except psycopg.Error as raised:
            error = raised
        if error and error.sqlstate is None:
            return self.fail(f"{role}: the connection was lost: {error}: {statement}"
                             f" {str(parameters)[:300]}")
        return self.judge(role, function, error, statement, parameters)

    def try_transaction(self, role):
        """Several calls, then COMMIT, which has a say of its own."""
        session = self.session(role)
        function = None
        isolation = self.random.choice(["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE",
                                        "READ COMMITTED READ ONLY"])
        session.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        for _ in range(self.random.randint(1, 8)):
            session.execute("SAVEPOINT s")
            function = self.random.choice(self.functions)
            before = len(self.problems)
            self.try_once(role, function)
            if session.closed or len(self.problems) > before and "lost" in self.problems[-1]:
                return
            if session.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
                session.execute("ROLLBACK TO s")
            elif session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                return
        try:
            session.execute(self.random.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
        except psycopg.Error as error:
            self.seen[error.sqlstate] += 1
            if error.sqlstate not in self.errors:
                self.fail(f"{role}: COMMIT: {error.sqlstate} {error}")
            if MARK in str(error):
                self.fail(f"{role}: COMMIT shows what was given: {error}")

    def try_relations(self, role):
        """What a role may read, and that it may write nothing."""
        session = self.session(role)
        for name, kind in self.relations:
            statements = {"SELECT": f"SELECT * FROM idempotency.{name} LIMIT 1"}
            if kind in ("r", "p"):
                column = self.admin.execute(
                    "SELECT attname FROM pg_attribute WHERE attnum = 1 AND attrelid ="
                    f" 'idempotency.{name}'::regclass").fetchone()[0]
                statements |= {
                    "INSERT": f"INSERT INTO idempotency.{name} DEFAULT VALUES",
                    "UPDATE": f"UPDATE idempotency.{name} SET {column} = {column}",
                    "DELETE": f"DELETE FROM idempotency.{name}",
                    "TRUNCATE": f"TRUNCATE idempotency.{name}",
                    "LOCK": f"LOCK idempotency.{name} IN ACCESS EXCLUSIVE MODE NOWAIT",
                    "REFERENCES": f"ALTER TABLE idempotency.{name} DISABLE TRIGGER ALL"}
            for what, statement in statements.items():
                self.passed += 1
                try:
                    with session.transaction():
                        session.execute(statement)
                    code = None
                except psycopg.Error as error:
                    code = error.sqlstate
                may = what == "SELECT" and name in self.read[role]
                if (code != "42501") if not may else (code is not None):
                    self.fail(f"{role}: {what} {name}: {code}")

    def check_server(self):
        """Nothing died, nothing that is ours is broken, nothing of others is changed."""
        log = self.log.read_text(errors="replace")
        for pattern in ("PANIC", "TRAP:", "was terminated by", "server process .* exited",
                        "could not open relation", "cache lookup failed", "XX000"):
            if re.search(pattern, log):
                self.fail(f"the log of the server has: {re.search('.*' + pattern + '.*', log)[0]}")
            self.passed += 1
        for name, was in self.kept.items():
            self.passed += 1
            if self.read_kept()[name] != was:
                self.fail(f"{name}: changed")
        for sql, what in (("SELECT count(*) FROM idempotency.idem_audit_verify()", "audit log"),):
            self.passed += 1
            if self.admin.execute(sql).fetchone()[0] != 0:
                self.fail(f"{what}: {self.admin.execute(sql.replace('count(*)', '*')).fetchall()[:3]}")
        self.admin.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
        self.admin.execute("""SELECT bt_index_parent_check(i.indexrelid, true) FROM pg_index i
            JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
            WHERE t.relname ~ '^idempotency_' AND c.relkind = 'i'
            AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')""")
        self.passed += 1

    def run(self, seconds):
        roles = LEVELS + NO_LEVEL
        end = time.monotonic() + seconds
        shown = time.monotonic()
        for role in roles:
            self.try_relations(role)
            for function in self.functions:
                self.try_once(role, function)
        while time.monotonic() < end:
            role = self.random.choice(roles + ["app", "app", "operator"])
            if self.random.random() < 0.3:
                self.try_transaction(role)
            else:
                may = [f for f in self.functions if f[1] in self.call[role]]
                self.try_once(role, self.random.choice(may or self.functions))
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"         {self.passed} calls, {len(self.problems)} problems", flush=True)
        for session in self.sessions.values():
            session.close()
        self.check_server()
        print("         SQLSTATEs: " + ", ".join(
            f"{code or 'none'} {n}" for code, n in sorted(self.seen.items(), key=lambda i: -i[1])))


def main():
    top, seed, seconds, log = sys.argv[1:]
    run = Run(Path(top), int(seed), log)
    run.run(int(seconds))
    print(f"{run.passed - len(run.problems)} passed, {len(run.problems)} failed")
    sys.exit(1 if run.problems else 0)


main()
