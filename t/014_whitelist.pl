# The whitelist of the direct way, point by point.
#
# Scenario: two sessions work in the direct way.  One of them changes the
# table of keys, in each of the ways that make it another table than the one
# that the install script created: a trigger, a rule, a CHECK, a generated
# column, a foreign key, row security, inheritance, partitioning, and so on.
# With the next statement both sessions, and a new one, must take the SQL way
# and say so in idem_health(); what was added must do what it is there for;
# everything else must work as before, or fail with nothing half done.  When
# it has been taken away, both are back in the direct way.  The same within
# one transaction, between two claims, and then rolled back.
#
# What does not matter to the direct way must leave it on: among it further
# plain indexes, whose entries are compared with the table.
#
# A session in the SQL way keeps a lock for each key that it has claimed, one
# in the direct way does not: so pg_locks shows the way that a claim has gone,
# whatever idem_health() says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node =
  new_node('whitelist', conf => "max_prepared_transactions = 2\n");

# Whatever way the rest of the suite goes
$node->safe_psql('postgres',
	q{ALTER DATABASE postgres SET idempotency.storage = 'auto'});

# The table belongs to a role that is no superuser, so that row security can
# be forced upon it; triggers run as that role.
my $setup = q{
ALTER TABLE idempotency_keys OWNER TO keeper;
ALTER TABLE idempotency_policies OWNER TO keeper;
ALTER TABLE idempotency_limiters OWNER TO keeper;
CREATE TABLE effects (key text NOT NULL);
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT json_build_object('bought', request->>'key');
$$;
BEGIN;
SELECT idem_claim('w', 'kept');
SELECT idem_complete('w', 'kept', '{"kept":   true}'::json);
COMMIT;
SELECT idem_claim('w', 'open', lease => '1 h');
};
$node->safe_psql('postgres', 'CREATE ROLE keeper NOLOGIN;' . $setup);
$node->safe_psql(
	'postgres', q{
CREATE TABLE fired (id serial, op text, key text,
	role name DEFAULT current_user);
CREATE FUNCTION fire_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP = 'DELETE' THEN
		INSERT INTO public.fired (op, key) VALUES (TG_OP, OLD.key);
		RETURN OLD;
	END IF;
	INSERT INTO public.fired (op, key) VALUES (TG_OP, NEW.key);
	RETURN NEW;
END$$;
CREATE FUNCTION fire_statement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.fired (op) VALUES (TG_OP);
	RETURN NULL;
END$$;
CREATE FUNCTION fire_table() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.fired (op, key) SELECT TG_OP, key FROM fresh;
	RETURN NULL;
END$$;
CREATE FUNCTION forbid_bad() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.key = 'bad' THEN
		RAISE EXCEPTION 'bad' USING ERRCODE = 'BADKY';
	END IF;
	RETURN NEW;
END$$;
CREATE DOMAIN media AS text CHECK (VALUE NOT LIKE '%longer%');
CREATE TABLE known (policy text PRIMARY KEY);
INSERT INTO known VALUES ('default');
GRANT ALL ON fired, fired_id_seq, known TO keeper;
SELECT idem_policy('unknown');
});

# How a claim goes, and what idem_health() has to say.  The claim comes first,
# so that it is the one that has to notice.
sub way
{
	my ($session) = @_;
	my $answer = $session->query(
		q{
BEGIN;
SELECT outcome FROM idem_claim('w', 'probe');
SELECT count(*) FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'advisory';
ROLLBACK;
SELECT detail FROM idem_health() WHERE check_name = 'storage'});

	$answer = $session->state . "\n$answer" if $session->state ne '';
	return join ' ', split /\n/, $answer;
}

my $direct = 'claimed 0 direct: the key table is as it was created';

# A round through all that is done with keys.  The second claim of the leased
# one is a retry, the third a take-over.
my $n = 0;
my $work = q{
SELECT string_agg(md5(:'a' || i), '') AS large
FROM generate_series(1, 200) i \gset
BEGIN;
SELECT outcome, attempt FROM idem_claim('w', :'a', '{"n": 1}');
SELECT (idem_complete('w', :'a', json_build_object('key', :'a'), 201,
	'{"X":  "1"}')).expires_at > now();
COMMIT;
SELECT outcome, status_code, headers, body = convert_to(
	json_build_object('key', :'a')::text, 'UTF8')
FROM idem_claim('w', :'a', '{"n": 1}');
SELECT outcome FROM idem_claim('w', :'a', '{"n": 2}');

SELECT token FROM idem_claim('w', :'l', lease => '1 h') \gset
SELECT idem_extend('w', :'l', :token, '2 h') > now();
SELECT idem_checkpoint('w', :'l', :token, 'half', '{"x": 1}') > now();
SELECT outcome FROM idem_claim('w', :'l');
SELECT (idem_fail('w', :'l', json_build_object('key', :'l'),
	token => :token)).expires_at > now();
SELECT outcome, attempt, recovery_point FROM idem_claim('w', :'l');
UPDATE idempotency_keys SET lease_until = created_at - interval '1 hour'
WHERE key = :'l';
SELECT outcome, attempt FROM idem_claim('w', :'l');
SELECT token FROM idempotency_keys WHERE key = :'l' \gset
SELECT idem_release('w', :'l', :token);

SELECT outcome, body = convert_to(
	json_build_object('bought', :'r')::text, 'UTF8')
FROM idem_run('buy(jsonb)', 'w', :'r', jsonb_build_object('key', :'r'));
SELECT outcome, body = convert_to(
	json_build_object('bought', :'r')::text, 'UTF8')
FROM idem_run('buy(jsonb)', 'w', :'r', jsonb_build_object('key', :'r'));
SELECT count(*) FROM effects WHERE key = :'r';
SELECT string_agg(first::text, ' ' ORDER BY ord)
FROM idem_dedupe('w', ARRAY[:'d', :'r', :'d']);

SELECT idem_forget('w', :'a');
BEGIN;
SAVEPOINT a;
SELECT outcome FROM idem_claim('w', :'a');
ROLLBACK TO a;
SELECT outcome, attempt FROM idem_claim('w', :'a');
SELECT (idem_complete('w', :'a', :'large',
	content_type => 'text/plain')).expires_at > now();
COMMIT;
SELECT outcome, body = convert_to(:'large', 'UTF8')
FROM idem_claim('w', :'a');
SELECT outcome, idem_json(r) FROM idem_claim('w', 'kept') r;
SELECT outcome FROM idem_claim('w', 'open')};

my $right = q{claimed|1
t
replayed|201|{"X":  "1"}|t
mismatch
t
t
in_progress
t
claimed|2|half
claimed|3
t
completed|t
replayed|t
1
true false false
t
claimed
claimed|1
t
replayed|t
replayed|{"kept":   true}
in_progress};

sub work_round
{
	my ($session) = @_;

	$n++;
	my $names = join '', map { "\\set $_ $_$n\n" } qw(a d l r);
	my $answer = $session->query($names . $work);
	$answer = $session->state . "\n$answer" if $session->state ne '';
	return $answer;
}

# What a change of the table is:
#
#	name    what it is
#	up      statements that make it
#	breaks  with what they fail
#	down    statements that take it away
#	why     what idem_health() says of it; none: the way stays direct
#	see     a query after a round, with %n the number of that
#	is      its answer
#	bad     a transaction that must fail in that state,
#	state   with this
#	fails   with what every claim of a new key fails in that state,
#	kept    and a replay, if it does
#	before  what must be done first
#	alone   cannot be done in a transaction, or not between two claims
my $bad = q{SELECT idem_claim('w', 'bad')};
my $bad_media = q{
BEGIN;
SELECT idem_claim('w', 'bad');
SELECT idem_complete('w', 'bad', 'x', content_type => 'text/longer-than-six');
COMMIT};
# that there once was a rule is known until the next VACUUM
my $drop_rule = 'DROP RULE r ON idempotency_keys; VACUUM idempotency_keys';
my $set_class = q{
UPDATE pg_index SET indclass = (
	SELECT (c.oid || ' ' || c.oid)::oidvector
	FROM pg_opclass c JOIN pg_am a ON a.oid = c.opcmethod
	WHERE c.opcname = '%s' AND a.amname = 'btree')
WHERE indexrelid = 'idempotency_keys_pkey'::regclass};
my @cases = (
	{
		name => 'a trigger for each row',
		up => q{CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE
			ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION fire_row()},
		down => 'DROP TRIGGER t ON idempotency_keys',
		why => qr/trigger/,
		see => q{SELECT role, string_agg(op, ' ' ORDER BY id) FROM fired
			WHERE key = 'a%n' GROUP BY role},
		is => 'keeper|INSERT UPDATE DELETE INSERT UPDATE',
	},
	{
		name => 'a trigger that refuses',
		up => q{CREATE TRIGGER t AFTER INSERT ON idempotency_keys
			FOR EACH ROW EXECUTE FUNCTION forbid_bad()},
		down => 'DROP TRIGGER t ON idempotency_keys',
		why => qr/trigger/,
		bad => $bad,
		state => 'BADKY',
	},
	{
		name => 'a trigger for each statement',
		up => q{CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE
			ON idempotency_keys EXECUTE FUNCTION fire_statement()},
		down => 'DROP TRIGGER t ON idempotency_keys',
		why => qr/trigger/,
		see => q{SELECT string_agg(DISTINCT op, ' ' ORDER BY op) FROM fired},
		is => 'DELETE INSERT UPDATE',
	},
	{
		name => 'a trigger with a transition table',
		up => q{CREATE TRIGGER t AFTER INSERT ON idempotency_keys
			REFERENCING NEW TABLE AS fresh EXECUTE FUNCTION fire_table()},
		down => 'DROP TRIGGER t ON idempotency_keys',
		why => qr/trigger/,
		see => q{SELECT string_agg(op, ' ') FROM fired WHERE key = 'a%n'},
		is => 'INSERT INSERT',
	},
	{
		name => 'a trigger at the end of the transaction',
		up => q{CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE
			ON idempotency_keys DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION fire_row()},
		down => 'DROP TRIGGER t ON idempotency_keys',
		why => qr/trigger/,
		# the server defers nothing in a security-restricted operation
		fails => '42501',
	},
	{
		name => 'a trigger for replicas only',
		up => q{CREATE TRIGGER t BEFORE INSERT ON idempotency_keys
				FOR EACH ROW EXECUTE FUNCTION fire_row();
			ALTER TABLE idempotency_keys ENABLE REPLICA TRIGGER t},
		down => 'DROP TRIGGER t ON idempotency_keys',
		why => qr/trigger/,
		see => q{SELECT count(*) FROM fired},
		is => '0',
	},
	{
		name => 'a rule for removals',
		up => q{CREATE RULE r AS ON DELETE TO idempotency_keys
			DO ALSO INSERT INTO fired (op, key) VALUES ('rule', OLD.key)},
		down => $drop_rule,
		why => qr/rule/,
		see => q{SELECT op, key FROM fired},
		is => 'rule|a%n',
	},
	{
		name => 'a rule for new rows',
		up => q{CREATE RULE r AS ON INSERT TO idempotency_keys
			DO ALSO INSERT INTO fired (op, key) VALUES ('rule', NEW.key)},
		down => $drop_rule,
		why => qr/rule/,
		# ON CONFLICT does not go with rules
		fails => '0A000',
	},
	{
		name => 'a CHECK',
		up => q{ALTER TABLE idempotency_keys ADD CONSTRAINT c
			CHECK (key <> 'bad')},
		down => 'ALTER TABLE idempotency_keys DROP CONSTRAINT c',
		why => qr/CHECK/,
		bad => $bad,
		state => '23514',
	},
	{
		name => 'a CHECK of answers, not validated',
		up => q{ALTER TABLE idempotency_keys ADD CONSTRAINT c
			CHECK (key <> 'bad' OR body IS NULL) NOT VALID},
		down => 'ALTER TABLE idempotency_keys DROP CONSTRAINT c',
		why => qr/CHECK/,
		bad => $bad_media,
		state => '23514',
	},
	{
		name => 'a generated column',
		up => q{ALTER TABLE idempotency_keys ADD COLUMN extra text
			GENERATED ALWAYS AS (key || '!' || state::text) STORED},
		down => 'ALTER TABLE idempotency_keys DROP COLUMN extra',
		why => qr/column/,
		see => q{SELECT extra FROM idempotency_keys WHERE key = 'r%n'},
		is => 'r%n!c',
	},
	{
		name => 'a column of numbers by itself',
		up => q{ALTER TABLE idempotency_keys ADD COLUMN extra bigint
			GENERATED ALWAYS AS IDENTITY},
		down => 'ALTER TABLE idempotency_keys DROP COLUMN extra',
		why => qr/column/,
		see => q{SELECT count(DISTINCT extra) = count(*)
			FROM idempotency_keys},
		is => 't',
	},
	{
		name => 'a column with a default',
		up => q{ALTER TABLE idempotency_keys ADD COLUMN extra text
			DEFAULT current_user},
		down => 'ALTER TABLE idempotency_keys DROP COLUMN extra',
		why => qr/column/,
		see => q{SELECT extra FROM idempotency_keys WHERE key = 'r%n'},
		is => 'keeper',
	},
	{
		name => 'a column',
		up => 'ALTER TABLE idempotency_keys ADD COLUMN extra text',
		down => 'ALTER TABLE idempotency_keys DROP COLUMN extra',
		why => qr/column/,
	},
	{
		name => 'a foreign key of ours',
		up => q{ALTER TABLE idempotency_keys ADD CONSTRAINT f
			FOREIGN KEY (policy) REFERENCES known},
		down => 'ALTER TABLE idempotency_keys DROP CONSTRAINT f',
		why => qr/foreign key/,
		bad => q{SELECT idem_claim('w', 'bad', policy => 'unknown')},
		state => '23503',
	},
	{
		name => 'a foreign key of ours, looked at when all is done',
		up => q{ALTER TABLE idempotency_keys ADD CONSTRAINT f
			FOREIGN KEY (policy) REFERENCES known
			DEFERRABLE INITIALLY DEFERRED},
		down => 'ALTER TABLE idempotency_keys DROP CONSTRAINT f',
		why => qr/foreign key/,
		fails => '42501',
	},
	{
		name => 'a foreign key to ours',
		up => q{CREATE TABLE child (scope text, key text,
			FOREIGN KEY (scope, key) REFERENCES idempotency_keys);
			INSERT INTO child VALUES ('w', 'kept')},
		down => 'DROP TABLE child',
		why => qr/foreign key/,
		bad => q{SELECT idem_forget('w', 'kept')},
		state => '23503',
	},
	{
		name => 'a foreign key to ours that cascades',
		up => q{CREATE TABLE child (scope text, key text,
			FOREIGN KEY (scope, key) REFERENCES idempotency_keys
			ON DELETE CASCADE);
			INSERT INTO child VALUES ('w', 'kept')},
		down => 'DROP TABLE child',
		why => qr/foreign key/,
		see => q{INSERT INTO child VALUES ('w', 'r%n');
			SELECT idem_forget('w', 'r%n');
			SELECT key FROM child},
		is => "t\nkept",
	},
	{
		# our code is let through, in the SQL way; nobody else is
		name => 'row security, forced',
		up => q{ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY,
				FORCE ROW LEVEL SECURITY},
		down => q{ALTER TABLE idempotency_keys DISABLE ROW LEVEL SECURITY,
				NO FORCE ROW LEVEL SECURITY},
		why => qr/row security/,
		see => q{SET ROLE keeper;
			SELECT count(*) FROM idempotency_keys;
			RESET ROLE},
		is => '0',
	},
	{
		name => 'row security, not forced',
		up => q{ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY},
		down => 'ALTER TABLE idempotency_keys DISABLE ROW LEVEL SECURITY',
	},
	{
		name => 'a parent',
		up => q{CREATE TABLE parent (LIKE idempotency_keys);
			ALTER TABLE idempotency_keys INHERIT parent},
		down => q{ALTER TABLE idempotency_keys NO INHERIT parent;
			DROP TABLE parent},
		why => qr/inheritance/,
		see => q{SELECT count(*) FROM parent WHERE key = 'r%n'},
		is => '1',
	},
	{
		# that there once was a child is known until the next ANALYZE
		name => 'a child',
		up => q{CREATE TABLE child () INHERITS (idempotency_keys);
			INSERT INTO child (scope, key, state, claim_xid, created_at,
				finished_at, expires_at, purge_at, claimed_by)
				SELECT 'w', 'child', 'c', 1::text::xid8, now(), now(),
				'infinity', 'infinity', 'postgres'},
		down => q{DROP TABLE child; ANALYZE idempotency_keys},
		why => qr/inheritance/,
		see => q{SELECT outcome, status_code FROM idem_claim('w', 'child')},
		is => 'replayed|200',
	},
	{
		name => 'a place as partition',
		up => q{CREATE TABLE parent (LIKE idempotency_keys)
				PARTITION BY LIST (scope);
			ALTER TABLE parent ATTACH PARTITION idempotency_keys
				FOR VALUES IN ('w')},
		down => q{ALTER TABLE parent DETACH PARTITION idempotency_keys;
			DROP TABLE parent},
		why => qr/partition/,
		see => q{SELECT count(*) FROM parent WHERE key = 'r%n'},
		is => '1',
		bad => q{SELECT idem_claim('elsewhere', 'bad')},
		state => '23514',
	},
	{
		name => 'a partitioned table in its place',
		up => q{ALTER EXTENSION idempotency DROP TABLE idempotency_keys;
			ALTER TABLE idempotency_keys RENAME TO plain;
			CREATE TABLE idempotency_keys (LIKE plain INCLUDING DEFAULTS,
				PRIMARY KEY (scope, key)) PARTITION BY HASH (scope, key);
			CREATE TABLE part0 PARTITION OF idempotency_keys
				FOR VALUES WITH (MODULUS 2, REMAINDER 0);
			CREATE TABLE part1 PARTITION OF idempotency_keys
				FOR VALUES WITH (MODULUS 2, REMAINDER 1);
			ALTER TABLE idempotency_keys OWNER TO keeper;
			ALTER EXTENSION idempotency ADD TABLE idempotency_keys;
			INSERT INTO idempotency_keys SELECT * FROM plain},
		down => q{ALTER EXTENSION idempotency DROP TABLE idempotency_keys;
			DROP TABLE idempotency_keys;
			ALTER TABLE plain RENAME TO idempotency_keys;
			ALTER EXTENSION idempotency ADD TABLE idempotency_keys},
		why => qr/partitioned/,
		see => q{SELECT (SELECT count(*) > 0 FROM part0),
			(SELECT count(*) > 0 FROM part1)},
		is => 't|t',
	},
	{
		name => 'another access method',
		up => q{CREATE ACCESS METHOD heap2 TYPE TABLE
				HANDLER heap_tableam_handler;
			ALTER TABLE idempotency_keys SET ACCESS METHOD heap2},
		down => q{ALTER TABLE idempotency_keys SET ACCESS METHOD heap;
			DROP ACCESS METHOD heap2},
		why => qr/access method/,
	},
	{
		name => 'an index whose building failed',
		up => q{CREATE UNIQUE INDEX CONCURRENTLY broken
			ON idempotency_keys (scope)},
		breaks => '23505',
		down => 'DROP INDEX broken',
		why => qr/not valid/,
		alone => 1,
	},
	{
		name => 'an index that is set not valid',
		up => q{UPDATE pg_index SET indisvalid = false
			WHERE indexrelid = 'idempotency_keys_purge_at'::regclass},
		down => q{UPDATE pg_index SET indisvalid = true
			WHERE indexrelid = 'idempotency_keys_purge_at'::regclass},
		why => qr/not valid/,
	},
	{
		name => 'a primary key that is set not valid',
		up => q{UPDATE pg_index SET indisvalid = false
				WHERE indexrelid = 'idempotency_keys_pkey'::regclass;
			ALTER TABLE idempotency_keys SET (fillfactor = 95)},
		down => q{UPDATE pg_index SET indisvalid = true
				WHERE indexrelid = 'idempotency_keys_pkey'::regclass;
			ALTER TABLE idempotency_keys SET (fillfactor = 95)},
		why => qr/not valid/,
		fails => 'XX001',
	},
	{
		name => 'not logged',
		up => 'ALTER TABLE idempotency_keys SET UNLOGGED',
		down => 'ALTER TABLE idempotency_keys SET LOGGED',
		why => qr/not permanent/,
	},
	{
		name => 'a column of ours that must not be null',
		up => q{ALTER TABLE idempotency_keys
			ALTER COLUMN finished_at SET NOT NULL},
		before => q{UPDATE idempotency_keys SET finished_at = created_at
			WHERE finished_at IS NULL},
		down => q{ALTER TABLE idempotency_keys
			ALTER COLUMN finished_at DROP NOT NULL},
		why => qr/columns are not those/,
		fails => '23502',
		alone => 1,
	},
	{
		name => 'a column of ours that may be null',
		up => q{ALTER TABLE idempotency_keys
			ALTER COLUMN claimed_by DROP NOT NULL},
		down => q{ALTER TABLE idempotency_keys
			ALTER COLUMN claimed_by SET NOT NULL},
		why => qr/columns are not those/,
	},
	{
		name => 'a column of another type',
		up => q{ALTER TABLE idempotency_keys
			ALTER COLUMN attempt TYPE bigint},
		down => q{ALTER TABLE idempotency_keys
			ALTER COLUMN attempt TYPE integer},
		why => qr/columns are not those/,
	},
	{
		name => 'a column of ours that counts by itself',
		up => q{UPDATE idempotency_keys SET attempt = 1 WHERE attempt IS NULL;
			ALTER TABLE idempotency_keys ALTER COLUMN attempt SET NOT NULL,
			ALTER COLUMN attempt ADD GENERATED ALWAYS AS IDENTITY},
		down => q{ALTER TABLE idempotency_keys
			ALTER COLUMN attempt DROP IDENTITY,
			ALTER COLUMN attempt DROP NOT NULL},
		why => qr/generated|columns are not those/,
		fails => '428C9',
	},
	{
		name => 'a column with less precision',
		up => q{ALTER TABLE idempotency_keys
			ALTER COLUMN created_at TYPE timestamptz(0)},
		down => q{ALTER TABLE idempotency_keys
			ALTER COLUMN created_at TYPE timestamptz},
		why => qr/columns are not those/,
		see => q{SELECT created_at = date_trunc('second', created_at)
			FROM idempotency_keys WHERE key = 'r%n'},
		is => 't',
	},
	{
		name => 'a column with a length',
		up => q{ALTER TABLE idempotency_keys
			ALTER COLUMN content_type TYPE varchar(16)},
		down => q{ALTER TABLE idempotency_keys
			ALTER COLUMN content_type TYPE text},
		why => qr/columns are not those/,
		bad => $bad_media =~ s/(longer-than-six)/$1teen/r,
		state => '22001',
	},
	{
		name => 'a column of a domain',
		up => q{ALTER TABLE idempotency_keys
			ALTER COLUMN content_type TYPE media},
		down => q{ALTER TABLE idempotency_keys
			ALTER COLUMN content_type TYPE text},
		why => qr/columns are not those/,
		bad => $bad_media,
		state => '23514',
	},
	{
		name => 'a column with another name',
		up => q{ALTER TABLE idempotency_keys
			RENAME COLUMN checkpoint TO point},
		down => q{ALTER TABLE idempotency_keys
			RENAME COLUMN point TO checkpoint},
		why => qr/columns are not those/,
		fails => '42703',
		kept => '42703',
	},
	{
		name => 'a unique index more',
		before => q{SELECT idem_policy('digest', max_body_bytes => 0,
				on_oversize => 'digest');
			BEGIN;
			SELECT idem_claim('w', 'taken', policy => 'digest');
			SELECT idem_complete('w', 'taken', '"same"'::json);
			COMMIT},
		up => q{CREATE UNIQUE INDEX u ON idempotency_keys (body_sha256)
			INCLUDE (key)},
		down => 'DROP INDEX u',
		why => qr/another unique index/,
		bad => q{BEGIN;
			SELECT idem_claim('w', 'bad', policy => 'digest');
			SELECT idem_complete('w', 'bad', '"same"'::json);
			COMMIT},
		state => '23505',
	},
	{
		name => 'a unique index more, of the same columns',
		up => 'CREATE UNIQUE INDEX u ON idempotency_keys (scope, key)',
		down => 'DROP INDEX u',
		why => qr/another unique index/,
	},
	{
		name => 'an exclusion constraint',
		up => q{ALTER TABLE idempotency_keys ADD CONSTRAINT u
			EXCLUDE USING btree (body_sha256 WITH =)},
		down => 'ALTER TABLE idempotency_keys DROP CONSTRAINT u',
		why => qr/exclusion/,
		bad => q{BEGIN;
			SELECT idem_claim('w', 'bad', policy => 'digest');
			SELECT idem_complete('w', 'bad', '"same"'::json);
			COMMIT},
		state => '23P01',
	},
	{
		name => 'an index on an expression',
		up => 'CREATE INDEX i ON idempotency_keys (upper(key))',
		down => 'DROP INDEX i',
		why => qr/expression/,
		see => q{SET enable_seqscan = off;
			SELECT key FROM idempotency_keys WHERE upper(key) = 'R%n';
			RESET enable_seqscan},
		is => 'r%n',
	},
	{
		name => 'a partial index',
		up => q{CREATE INDEX i ON idempotency_keys (key) WHERE state = 'c'},
		down => 'DROP INDEX i',
		why => qr/partial/,
		see => q{SET enable_seqscan = off;
			SELECT key FROM idempotency_keys WHERE key = 'r%n' AND state = 'c';
			RESET enable_seqscan},
		is => 'r%n',
	},
	{
		name => 'no primary key',
		up => q{ALTER TABLE idempotency_keys
			DROP CONSTRAINT idempotency_keys_pkey},
		down => q{ALTER TABLE idempotency_keys
			ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key)},
		why => qr/no primary key/,
		fails => 'XX001',
	},
	map({
		my ($name, $definition, $why) = @$_;
		{
			name => "a primary key $name",
			up => "ALTER TABLE idempotency_keys
				DROP CONSTRAINT idempotency_keys_pkey,
				ADD CONSTRAINT idempotency_keys_pkey $definition",
			down => q{ALTER TABLE idempotency_keys
				DROP CONSTRAINT idempotency_keys_pkey,
				ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key)},
			why => $why,
			fails => 'XX001',
		}
	} [ 'that is deferrable', 'PRIMARY KEY (scope, key) DEFERRABLE',
			qr/unique|internal trigger/ ],
		[ 'with swapped columns', 'PRIMARY KEY (key, scope)', qr/unique/ ],
		[ 'with a column more', 'PRIMARY KEY (scope, key, claim_xid)',
			qr/unique/ ],
		[ 'that covers a column', 'PRIMARY KEY (scope, key) INCLUDE (state)',
			qr/unique/ ]),
	{
		name => 'a unique index of another class in place of the primary key',
		up => q{ALTER TABLE idempotency_keys
				DROP CONSTRAINT idempotency_keys_pkey;
			CREATE UNIQUE INDEX idempotency_keys_pkey ON idempotency_keys
				(scope text_pattern_ops, key text_pattern_ops)},
		down => q{DROP INDEX idempotency_keys_pkey;
			ALTER TABLE idempotency_keys
				ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key)},
		why => qr/unique/,
		fails => 'XX001',
	},
	{
		name => 'a primary key of another class',
		up => $set_class =~ s/%s/text_pattern_ops/r,
		down => $set_class =~ s/%s/text_ops/r,
		why => qr/unique/,
	},
	{
		name => 'a column of the key with another collation',
		up => q{ALTER TABLE idempotency_keys
			ALTER COLUMN key TYPE text COLLATE "POSIX"},
		down => q{ALTER TABLE idempotency_keys
			ALTER COLUMN key TYPE text COLLATE "C"},
		why => qr/unique/,
	},
	{
		# its functions then touch the table that they distribute
		name => 'Citus',
		up => q{SET allow_system_table_mods = on;
			CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass);
			RESET allow_system_table_mods;
			ALTER TABLE idempotency_keys SET (fillfactor = 95)},
		down => q{SET allow_system_table_mods = on;
			DROP TABLE pg_catalog.pg_dist_partition;
			RESET allow_system_table_mods;
			ALTER TABLE idempotency_keys SET (fillfactor = 95)},
		why => qr/Citus/,
	},
	{
		name => 'what the planner and TOAST are told',
		up => q{ALTER TABLE idempotency_keys
				ALTER COLUMN body SET STORAGE EXTERNAL,
				ALTER COLUMN headers SET STATISTICS 10,
				ALTER COLUMN policy SET DEFAULT 'default',
				SET (autovacuum_enabled = off, fillfactor = 50),
				REPLICA IDENTITY FULL;
			CREATE STATISTICS stat ON policy, state FROM idempotency_keys;
			COMMENT ON TABLE idempotency_keys IS 'ours';
			GRANT SELECT ON idempotency_keys TO PUBLIC;
			CLUSTER idempotency_keys USING idempotency_keys_pkey},
		down => q{ALTER TABLE idempotency_keys
				ALTER COLUMN body SET STORAGE EXTENDED,
				ALTER COLUMN headers SET STATISTICS -1,
				ALTER COLUMN policy DROP DEFAULT,
				RESET (autovacuum_enabled), SET (fillfactor = 95),
				REPLICA IDENTITY DEFAULT, SET WITHOUT CLUSTER;
			DROP STATISTICS stat;
			REVOKE SELECT ON idempotency_keys FROM PUBLIC},
	},
	{
		name => 'another owner',
		up => 'ALTER TABLE idempotency_keys OWNER TO postgres',
		down => 'ALTER TABLE idempotency_keys OWNER TO keeper',
	},
	{
		name => 'a plain index more',
		up => q{CREATE INDEX i ON idempotency_keys (policy, state)
			INCLUDE (attempt)},
		down => 'DROP INDEX i',
		see => q{SET enable_seqscan = off;
			SELECT count(*) FROM idempotency_keys
			WHERE policy IS NULL AND state = 'c' AND key LIKE '_%n';
			RESET enable_seqscan},
		is => '3',
	});

# What 18 has in addition
push @cases,
  {
	name => 'a column that is generated when it is read',
	up => q{ALTER TABLE idempotency_keys ADD COLUMN extra text
		GENERATED ALWAYS AS (key || '!') VIRTUAL},
	down => 'ALTER TABLE idempotency_keys DROP COLUMN extra',
	why => qr/column/,
	see => q{SELECT extra FROM idempotency_keys WHERE key = 'r%n'},
	is => 'r%n!',
  },
  {
	name => 'a column that new rows must not have null',
	up => q{ALTER TABLE idempotency_keys ADD CONSTRAINT c
		NOT NULL finished_at NOT VALID},
	down => 'ALTER TABLE idempotency_keys DROP CONSTRAINT c',
	why => qr/columns are not those/,
	fails => '23502',
  }
  if $node->pg_version->major >= 18;

sub state_of
{
	my ($session, $sql) = @_;

	$session->query($sql);
	my $state = $session->state;
	$session->query('ROLLBACK') if $state ne '';
	return $state;
}

# All that could be half done
sub contents
{
	my ($session) = @_;

	return $session->query(
		q{
SELECT md5(string_agg(concat(scope, key, state, token, xmin), ' '
	ORDER BY scope, key)) FROM idempotency_keys;
SELECT count(*) FROM effects});
}

# Two claims with a change between them, in one transaction; it is undone.
sub change_between
{
	my ($session, $case) = @_;
	my $answer = $session->query(
		qq{
BEGIN;
SELECT outcome FROM idem_claim('w', 'before');
\\o /dev/null
$case->{up};
\\o
SELECT outcome FROM idem_claim('w', 'after');
SELECT (idem_complete('w', 'before')).expires_at > now();
SELECT (idem_complete('w', 'after')).expires_at > now();
SELECT count(*) FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'advisory';
SELECT outcome FROM idem_claim('w', 'before');
SELECT outcome FROM idem_claim('w', 'after')});
	my $state = $session->state;

	$session->query('ROLLBACK');
	return $state eq '' ? join ' ', split /\n/, $answer : $state;
}

my ($s, $t) = (session($node), session($node));

is(way($s), $direct, 'a new table of keys is accessed directly');
is(way($t), $direct, 'by each session');
is(work_round($s), $right, 'a round of work');
is(work_round($t), $right, 'another one');

# A change of the table: seen by all, doing what it should.
sub try_change
{
	my ($case) = @_;
	my $name = $case->{name};
	my $why = $case->{why};
	my $claim = $case->{fails} // 'claimed ' . (defined $why ? 1 : 0);
	my $expected =
	  defined $why ? qr/^$claim sql: .*$why/ : qr/^\Q$direct\E$/;

	$s->query($case->{before}) if defined $case->{before};
	if (!$case->{alone})
	{
		my $locks = defined $why ? 2 : 0;

		is( change_between($s, $case),
			$case->{fails} // "claimed claimed t t $locks replayed replayed",
			"$name: between two claims");
		is(way($s), $direct, "$name: undone");
	}

	is(state_of($s, $case->{up}), $case->{breaks} // '', "$name: is made");
	like(way($s), $expected, "$name: seen by who made it");
	like(way($t), $expected, "$name: seen by another session");
	my $new = session($node);
	like(way($new), $expected, "$name: seen by a new session");
	$new->quit;

	if (defined $case->{fails})
	{
		my $contents = contents($s);

		foreach my $session ($s, $t)
		{
			is(state_of($session, q{SELECT idem_claim('w', 'new')}),
				$case->{fails}, "$name: a claim fails");
			my $kept =
			  $session->query(q{SELECT outcome FROM idem_claim('w', 'kept')});
			is($kept || $session->state,
				$case->{kept} // 'replayed',
				"$name: a replay");
		}
		is(contents($s), $contents, "$name: nothing half done");
	}
	else
	{
		$s->query('TRUNCATE fired');
		is(work_round($t), $right, "$name: work goes on");
		is($t->query($case->{see} =~ s/%n/$n/gr),
			$case->{is} =~ s/%n/$n/gr, "$name: does its work")
		  if defined $case->{see};
		is(work_round($s), $right, "$name: where it was made, too");
	}
	if (defined $case->{bad})
	{
		my $contents = contents($s);

		is(state_of($_, $case->{bad}), $case->{state}, "$name: refuses")
		  foreach ($t, $s);
		is(contents($s), $contents, "$name: nothing half done");
	}

	is(state_of($s, $case->{down}), '', "$name: taken away");
	is(way($t), $direct, "$name: as before in another session");
	is(way($s), $direct, "$name: as before where it was made");
	is(work_round($t), $right, "$name: work as before");
	return;
}

try_change($_) foreach @cases;

#
# The setting
#
{
	my $set = 'SET idempotency.storage = sql';
	my $sql = 'claimed 1 sql: idempotency.storage says so';

	$s->query($set);
	is(way($s), $sql, 'the setting: in the session');
	is(way($t), $direct, 'the setting: not in another');
	is(work_round($s), $right, 'the setting: work goes on');
	$s->query('RESET idempotency.storage');
	is(way($s), $direct, 'the setting: taken back');

	is( $s->query(
			qq{
BEGIN;
SELECT outcome FROM idem_claim('w', 'before');
SAVEPOINT a;
SET LOCAL idempotency.storage = sql;
SELECT outcome FROM idem_claim('w', 'after');
SELECT (idem_complete('w', 'before')).expires_at > now();
ROLLBACK TO a;
SELECT outcome FROM idem_claim('w', 'after');
SELECT (idem_complete('w', 'after')).expires_at > now();
$set;
SELECT (idem_complete('w', 'before')).expires_at > now();
SELECT outcome FROM idem_claim('w', 'after');
ROLLBACK}),
		"claimed\nclaimed\nt\nclaimed\nt\nt\nreplayed",
		'the setting: back and forth in a transaction');
	is(way($s), $direct, 'the setting: undone');

	$s->query('CREATE ROLE app LOGIN');
	$s->query(q{SELECT idem_grant('app', 'app')});
	my $app = session($node, user => 'app');
	# without the library the server does not know yet who may set it
	$app->query($set);
	is( $app->query(
			q{BEGIN;
			SELECT outcome FROM idem_claim('w', 'app');
			SELECT count(*) FROM pg_locks
			WHERE pid = pg_backend_pid() AND locktype = 'advisory';
			COMMIT}),
		"claimed\n0",
		'the setting: not for everybody');
	is(state_of($app, $set), '42501', 'the setting: refused');
	$app->quit;
}

#
# A change in the midst of a statement
#
{
	my $trigger = q{CREATE TRIGGER t AFTER INSERT ON idempotency_keys
		FOR EACH ROW EXECUTE FUNCTION fire_row()};
	my $fired = q{SELECT string_agg(key, ' ' ORDER BY id) FROM fired};

	$s->query(
		qq{
TRUNCATE fired;
CREATE FUNCTION add_trigger(request jsonb) RETURNS json
LANGUAGE plpgsql AS \$\$
BEGIN
	$trigger;
	RETURN '"added"';
END\$\$;
CREATE FUNCTION drop_trigger(request jsonb) RETURNS json
LANGUAGE plpgsql AS \$\$
BEGIN
	DROP TRIGGER t ON idempotency_keys;
	RETURN '"dropped"';
END\$\$});
	is( state_of(
			$s, qq{
DO \$\$
BEGIN
	PERFORM idem_claim('w', 'one');
	$trigger;
	PERFORM idem_claim('w', 'two');
	DROP TRIGGER t ON idempotency_keys;
	PERFORM idem_claim('w', 'three');
	-- these need that nobody here has the table open
	ALTER TABLE idempotency_keys ADD COLUMN extra text;
	PERFORM idem_claim('w', 'four');
	ALTER TABLE idempotency_keys DROP COLUMN extra;
	PERFORM idem_claim('w', 'five');
	PERFORM idem_complete('w', i) FROM unnest(
		'{one,two,three,four,five}'::text[]) i;
END\$\$}),
		'',
		'a block adds a trigger and drops it, then a column');
	is($s->query($fired), 'two', 'it has fired while it was there');
	is( $s->query(
			q{SELECT outcome, idem_json(r)
			FROM idem_run('add_trigger(jsonb)', 'w', 'adds') r}
		),
		'completed|"added"',
		'a handler adds a trigger');
	is($s->query($fired), 'two adds', 'which fires for the key of the call');
	like(way($t), qr/^claimed 1 sql:/, 'the other session has seen it');
	is( $t->query(
			q{SELECT outcome, idem_json(r)
			FROM idem_run('drop_trigger(jsonb)', 'w', 'drops') r}
		),
		'completed|"dropped"',
		'a handler drops it');
	is($s->query($fired), 'two adds',
		'it does not fire for the key of that');
	is(way($s), $direct, 'and all is as before');
}

#
# Several calls in one statement: each sees what was done before it
#
foreach my $way ('auto', 'sql')
{
	my $key = "within $way";

	$s->query("SET idempotency.storage = $way");
	is( $s->query(
			qq{
SELECT (idem_claim('w', '$key')).outcome, (idem_complete('w', '$key')).expires_at > now(),
       (idem_claim('w', '$key')).outcome, idem_forget('w', '$key'),
       (idem_claim('w', '$key')).outcome, idem_release('w', '$key'),
       (idem_claim('w', '$key')).attempt, (idem_fail('w', '$key')).expires_at > now(),
       (idem_run('buy(jsonb)', 'w', '$key', '{"key": "$key"}')).outcome,
       idem_forget('w', '$key'),
       (idem_run('buy(jsonb)', 'w', '$key', '{"key": "$key"}')).outcome,
       (idem_run('buy(jsonb)', 'w', '$key', '{"key": "$key"}')).outcome}),
		'claimed|t|replayed|t|claimed|t|2|t|mismatch|t|completed|replayed',
		"$way: one call after the other in a statement");
	is( $s->query(
			qq{
WITH gone AS (DELETE FROM idempotency_keys WHERE key = '$key' RETURNING key)
SELECT outcome, attempt FROM gone, idem_claim('w', gone.key);
WITH done AS (UPDATE idempotency_keys SET state = 'c' WHERE key = '$key'
	RETURNING key)
SELECT outcome FROM done, idem_claim('w', done.key);
WITH new AS (INSERT INTO idempotency_keys (scope, key, state, attempt, token,
	claim_xid, created_at, finished_at, lease_until, expires_at, purge_at, ttl,
	status_code, owner, policy, claimed_by)
	SELECT scope, key || ' new', state, attempt, token, claim_xid, created_at,
		now(), lease_until, expires_at, purge_at, ttl, 200, owner, policy,
		claimed_by
	FROM idempotency_keys WHERE key = '$key' RETURNING key)
SELECT outcome FROM new, idem_claim('w', new.key)}),
		"claimed|1\nreplayed\nreplayed",
		"$way: calls after changes of the table in a statement");
	$s->query('RESET idempotency.storage');
}

#
# Prepared transactions and both ways
#
{
	$s->query(
		q{
BEGIN;
SELECT idem_claim('w', 'prepared');
PREPARE TRANSACTION 'p'});
	is($s->state, '', 'a claim is prepared');
	$t->query('SET idempotency.storage = sql');
	is( $t->query(
			q{SET lock_timeout = '10s';
			SELECT outcome FROM idem_claim('w', 'kept');
			RESET lock_timeout}),
		'replayed',
		'the SQL way goes on beside it');
	$s->query("COMMIT PREPARED 'p'");
	is( $t->query(q{SELECT outcome FROM idem_claim('w', 'prepared')}),
		'in_progress', 'and finds it');
	$t->query('RESET idempotency.storage');
}

#
# The entries of further indexes
#

# Is what a condition finds by an index what it finds without?
sub agrees
{
	my ($index, $condition, $columns) = @_;
	my $query = qq{SELECT $columns FROM idempotency_keys WHERE $condition};
	my $list = qq{SELECT count(*),
		md5(string_agg(x::text, ' ' ORDER BY x::text)) FROM ($query) x};

	my $without = $s->query("SET enable_indexscan = off;
		SET enable_indexonlyscan = off; SET enable_bitmapscan = off; $list");
	my $plan = $s->query("SET enable_seqscan = off; RESET enable_indexscan;
		RESET enable_indexonlyscan; RESET enable_bitmapscan; EXPLAIN $query");
	my $with = $s->query($list);
	$s->query('RESET enable_seqscan');
	like($plan, qr/\b\Q$index\E\b/, "$index is used");
	is($with, $without, "$index has what the table has");
	unlike($with, qr/^0/, "$index has something");
	return;
}

{
	my %indexes = (
		keys_by_policy => [ '(policy, scope)', q{policy IS NULL},
			'key, state' ],
		keys_by_state => [ '(state) INCLUDE (attempt)', q{state > ''},
			'state, attempt' ],
		keys_by_token => [ 'USING hash (token)',
			q{token = (SELECT token FROM idempotency_keys
			WHERE scope = 'x' AND key = 'sum7')}, 'key, state' ],
		keys_by_time => [ 'USING brin (lease_until) WITH (pages_per_range = 1)',
			q{lease_until > now() + interval '1 hour'}, 'key, state' ],
		keys_by_point => [ 'USING gin (checkpoint)',
			q{checkpoint @> '{"n": 1}'}, 'key' ],
		keys_by_status =>
		  [ 'USING brin (status_code) WITH (pages_per_range = 1)',
			'status_code = 292', 'key' ],
		keys_by_type => [ 'USING spgist (content_type)',
			q{content_type = 'text/x'}, 'key' ]);

	# All that writes, in every state that indexes can be in
	my $write = q{
SELECT count(idem_claim('x', :'p' || i)) FROM generate_series(1, 200) i;
SELECT count(brin_summarize_new_values(i.oid)) >= 0
FROM pg_class i JOIN pg_am a ON a.oid = i.relam WHERE amname = 'brin';
SELECT count(idem_complete('x', :'p' || i, 'b' || i, :status,
	content_type => 'text/x', token => token))
FROM generate_series(1, 60) i JOIN idempotency_keys ON key = :'p' || i;
SELECT count(idem_checkpoint('x', :'p' || i, token, 'p', '{"n": 1}')::text)
FROM generate_series(61, 90) i JOIN idempotency_keys ON key = :'p' || i;
SELECT count(idem_extend('x', :'p' || i, token, '1 d'))
FROM generate_series(61, 90) i JOIN idempotency_keys ON key = :'p' || i;
SELECT count(idem_fail('x', :'p' || i, token => token))
FROM generate_series(91, 120) i JOIN idempotency_keys ON key = :'p' || i;
SELECT count(idem_claim('x', :'p' || i)) FROM generate_series(91, 100) i;
SELECT count(idem_forget('x', :'p' || i)) FROM generate_series(50, 55) i;
BEGIN;
SELECT count(idem_claim('x', :'p' || i)) FROM generate_series(201, 300) i;
SELECT count(idem_complete('x', :'p' || i)) FROM generate_series(201, 300) i;
ROLLBACK;
SELECT count(idem_claim('x', :'p' || i)) FROM generate_series(201, 220) i;
SELECT count(*) FROM generate_series(301, 310) i,
	idem_run('buy(jsonb)', 'x', :'p' || i, jsonb_build_object('key', 'y'));
SELECT count(*) FROM idem_dedupe('x', ARRAY[:'p' || 'd', :'p' || 'e']);
UPDATE idempotency_keys SET purge_at = created_at, expires_at = created_at
WHERE key IN (:'p' || 3, :'p' || 4, :'p' || 5);
SELECT idem_sweep()};
	my $written = join "\n", 200, 't', 60, 30, 30, 30, 10, 6, 100, 100, 20, 10,
	  2, 3;

	my $write_as = sub {
		my ($session, $p, $status) = @_;

		return $session->query(
			"\\set p $p\n\\set status $status\n" . $write);
	};

	is($write_as->($s, 'hot', 291), $written, 'writes before indexes');
	$s->query("CREATE INDEX $_ ON idempotency_keys $indexes{$_}[0]")
	  foreach sort grep { /time|status/ } keys %indexes;
	is(way($s), $direct, 'with two indexes more: direct');
	is($write_as->($s, 'sum', 292), $written, 'writes with BRIN indexes');
	agrees($_, @{ $indexes{$_} }[ 1, 2 ])
	  foreach sort grep { /time|status/ } keys %indexes;
	$s->query("CREATE INDEX $_ ON idempotency_keys $indexes{$_}[0]")
	  foreach sort grep { !/time|status/ } keys %indexes;
	is(way($s), $direct, 'with all kinds of indexes: direct');
	is($write_as->($s, 'all', 293), $written, 'writes with all kinds');
	is($write_as->($t, 'more', 294), $written, 'in another session');
	agrees($_, @{ $indexes{$_} }[ 1, 2 ]) foreach sort keys %indexes;
	agrees('idempotency_keys_pkey', q{scope = 'x'}, 'scope, key');
	agrees('idempotency_keys_purge_at', q{purge_at > '-infinity'}, 'purge_at');
	$s->query('DROP INDEX ' . join ', ', keys %indexes);
	is(way($s), $direct, 'and without them: direct');
}

#
# A table that was changed for good
#
{
	$node->safe_psql('postgres', 'CREATE DATABASE spare');
	$node->safe_psql('spare',
		q{ALTER DATABASE spare SET idempotency.storage = 'auto'});
	install($node, 'spare');
	$node->safe_psql('spare', $setup);
	my $spare = session($node, database => 'spare');

	is(way($spare), $direct, 'another database');
	is( state_of(
			$spare, q{
ALTER TABLE idempotency_keys
	DROP COLUMN checkpoint, ADD COLUMN checkpoint jsonb}
		),
		'',
		'a column is dropped and added again');
	like(way($spare), qr/^claimed 1 sql:.*columns/, 'never again direct');
	is(work_round($spare), $right, 'but right');
	$spare->quit;
	is(way($s), $direct, 'which is nothing to the other database');
}

$s->quit;
$t->quit;
unlike(slurp_file($node->logfile), qr/WARNING:.*(?:leak|not closed)/,
	'nothing was left open');
$node->stop;

done_testing();
