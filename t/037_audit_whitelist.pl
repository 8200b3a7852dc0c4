# The whitelist of the direct way to the audit log, point by point.
#
# Scenario: two sessions write to the log in the direct way.  One of them
# changes the log or its partition in each of the ways that make it another
# table than the one that the install script created, and both, and a new one,
# must take the statement: what was added does what it is there for, or the row
# is refused with nothing half done.  When it has been taken away, both are back
# in the direct way.  What an INSERT does not mind must leave it on, among it
# further plain indexes, whose entries are compared with the table.
#
# Then the partitions: rows go to the one of their time, across bounds, and to
# the default one where there is none, while partitions are attached, detached
# and dropped and a session has them cached, also behind a lock.  The extension
# is dropped and created under a session.  Savepoints, SERIALIZABLE, a sequence
# that was set back, logical decoding.  Both ways write equal rows, and at the
# end all of them are sealed and verified.
#
# The two rows of an idem_run are of one command in the direct way, and of one
# each by statements: cmin tells the way.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'audit_whitelist',
	streaming => 1,
	conf => q{
wal_level = logical
listen_addresses = '127.0.0.1'
});

# Whatever way the rest of the suite goes
$node->safe_psql('postgres',
	q{ALTER DATABASE postgres SET idempotency.storage = 'auto'});
$node->safe_psql(
	'postgres', q{
CREATE EXTENSION amcheck;
CREATE ROLE keeper NOLOGIN;
CREATE ROLE app LOGIN;
GRANT USAGE ON SCHEMA public TO keeper;
SELECT idem_grant('app', 'app');
SELECT idem_policy('audited', audit => true);
CREATE FUNCTION work(request jsonb) RETURNS json LANGUAGE sql
	AS $$SELECT '{}'::json$$;
CREATE TABLE fired (id serial, op text, action text);
CREATE FUNCTION fire_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.fired (op, action) VALUES (TG_OP, NEW.action);
	RETURN NEW;
END$$;
CREATE FUNCTION fire_statement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.fired (op) VALUES (TG_OP);
	RETURN NULL;
END$$;
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RETURN NULL;
END$$;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'bad' USING ERRCODE = 'BADKY';
END$$;
CREATE TABLE known (action text PRIMARY KEY);
INSERT INTO known VALUES ('claimed'), ('completed');
GRANT ALL ON fired, fired_id_seq, known TO keeper;
-- the first row of a cluster writes down where its ids begin
SELECT idem_audit('first', 'order', '0');
});

# How the rows of a run come: how many, and by how many commands; or with what
# the run fails.  The transaction is undone.
my $n = 0;

sub way
{
	my ($session) = @_;
	$n++;
	my $answer = $session->query(
		qq{
BEGIN;
SELECT outcome FROM idem_run('work(jsonb)', 'w', '$n', '{}', 'audited');
SELECT count(*), count(DISTINCT cmin::text) FROM idempotency_audit_log
WHERE xid = pg_current_xact_id()});
	my $state = $session->state;

	$session->query('ROLLBACK');
	return $state ne '' ? $state : $answer;
}

my $direct = "completed\n2|1";
my $sql = "completed\n2|2";

sub state_of
{
	my ($session, $statement) = @_;

	$session->query($statement);
	my $state = $session->state;
	$session->query('ROLLBACK') if $state ne '';
	return $state;
}

# A run that is kept, and what the log has of it
sub work_round
{
	my ($session) = @_;

	$n++;
	my $answer = $session->query(
		qq{
TRUNCATE fired;
SELECT outcome FROM idem_run('work(jsonb)', 'w', '$n', '{}', 'audited');
SELECT action, attempt, token > 0,
	xmin::text = xid::text, session_role, effective_role, client_addr, application_name = current_setting('application_name'), detail,
	at BETWEEN now() - interval '1 min' AND clock_timestamp()
FROM idempotency_audit_log WHERE entity = 'idempotency_key'
	AND entity_id = idem_log_id('w') || '/' || idem_log_id('$n') ORDER BY id;});
	$answer = $session->state . "\n$answer" if $session->state ne '';
	return $answer;
}

my $right = join "\n", 'completed',
  map { "$_|1|t|t|postgres|postgres||t||t" } qw(claimed completed);

# What a change is:
#
#	name    what it is
#	up      statements that make it
#	down    statements that take it away
#	direct  the way stays direct
#	see     a query after a round, and
#	is      its answer
#	fails   with what every run under audit fails in that state
#	some    but not every other row
#	breaks  with what "up" fails
#	alone   cannot be done in a transaction
#	before  up to this major only
my $log = 'idempotency_audit_log';
my $part = "${log}_default";
my $fired = q{SELECT string_agg(concat_ws(' ', op, action), ', ' ORDER BY id) FROM fired};
my $two = 'INSERT claimed, INSERT completed';
# that there once was a rule is known until the next VACUUM
my $drop_rule = "DROP RULE r ON $log; VACUUM $log";
my @cases = (
	{
		name => 'a trigger for each row',
		up => "CREATE TRIGGER a BEFORE INSERT ON $log FOR EACH ROW EXECUTE FUNCTION fire_row()",
		down => "DROP TRIGGER a ON $log",
		see => $fired,
		is => $two,
	},
	{
		name => 'a trigger of the partition',
		up => "CREATE TRIGGER z AFTER INSERT ON $part FOR EACH ROW EXECUTE FUNCTION fire_row()",
		down => "DROP TRIGGER z ON $part",
		see => $fired,
		is => $two,
	},
	{
		name => 'a trigger for each statement',
		up => "CREATE TRIGGER a AFTER INSERT ON $log EXECUTE FUNCTION fire_statement()",
		down => "DROP TRIGGER a ON $log",
		see => $fired,
		is => 'INSERT, INSERT',
	},
	{
		name => 'a trigger that suppresses the row',
		up => "CREATE TRIGGER a BEFORE INSERT ON $log FOR EACH ROW EXECUTE FUNCTION swallow()",
		down => "DROP TRIGGER a ON $log",
		fails => 'XX001',
	},
	{
		name => 'a trigger of the partition that suppresses the row',
		up => "CREATE TRIGGER a BEFORE INSERT ON $part FOR EACH ROW EXECUTE FUNCTION swallow()",
		down => "DROP TRIGGER a ON $part",
		fails => 'XX001',
	},
	{
		name => 'a trigger that refuses',
		up => "CREATE TRIGGER a AFTER INSERT ON $log FOR EACH ROW EXECUTE FUNCTION refuse()",
		down => "DROP TRIGGER a ON $log",
		fails => 'BADKY',
	},
	{
		name => 'a trigger at the end of the transaction',
		up => "CREATE CONSTRAINT TRIGGER a AFTER INSERT ON $log DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION fire_row()",
		down => "DROP TRIGGER a ON $log",
		# the server defers nothing in a security-restricted operation
		fails => '42501',
	},
	{
		name => 'a trigger for replicas only',
		up => "CREATE TRIGGER a BEFORE INSERT ON $log FOR EACH ROW EXECUTE FUNCTION refuse();
			ALTER TABLE $log ENABLE REPLICA TRIGGER a",
		down => "DROP TRIGGER a ON $log",
	},
	{
		name => 'a trigger for another event',
		up => "CREATE TRIGGER a BEFORE UPDATE OR DELETE ON $log FOR EACH ROW EXECUTE FUNCTION refuse()",
		down => "DROP TRIGGER a ON $log",
		direct => 1,
	},
	{
		name => 'the guard by another trigger',
		up => "CREATE TRIGGER z AFTER INSERT ON $log FOR EACH ROW EXECUTE FUNCTION idem_audit_guard()",
		down => "DROP TRIGGER z ON $log",
		# a superuser needs no pass
	},
	{
		name => 'a guard that is off',
		up => "ALTER TABLE $log DISABLE TRIGGER idempotency_audit_guard_row",
		down => "ALTER TABLE $log ENABLE ALWAYS TRIGGER idempotency_audit_guard_row",
	},
	{
		name => 'a guard for origins only',
		up => "ALTER TABLE $log ENABLE TRIGGER idempotency_audit_guard_row",
		down => "ALTER TABLE $log ENABLE ALWAYS TRIGGER idempotency_audit_guard_row",
	},
	{
		name => 'a guard with another function',
		up => q{CREATE OR REPLACE FUNCTION idem_audit_guard() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN
				INSERT INTO public.fired (op) VALUES ('guard');
				RETURN COALESCE(NEW, OLD);
			END$$},
		down => q{CREATE OR REPLACE FUNCTION idem_audit_guard() RETURNS trigger
			LANGUAGE c AS '$libdir/idempotency', 'idem_audit_guard'},
		see => $fired,
		is => 'guard, guard',
	},
	{
		name => 'a rule',
		up => "CREATE RULE r AS ON INSERT TO $log DO ALSO INSERT INTO fired (op, action) VALUES ('rule', NEW.action)",
		down => $drop_rule,
		see => $fired,
		is => 'rule claimed, rule completed',
	},
	{
		name => 'a rule that suppresses the row',
		up => "CREATE RULE r AS ON INSERT TO $log DO INSTEAD NOTHING",
		down => $drop_rule,
		fails => 'XX001',
	},
	{
		name => 'a CHECK',
		up => "ALTER TABLE $log ADD CONSTRAINT c CHECK (action <> 'bad') NOT VALID",
		down => "ALTER TABLE $log DROP CONSTRAINT c",
	},
	{
		name => 'a CHECK of the partition that refuses',
		up => "ALTER TABLE $part ADD CONSTRAINT c CHECK (action <> 'completed') NOT VALID",
		down => "ALTER TABLE $part DROP CONSTRAINT c",
		some => 1,
		fails => '23514',
	},
	{
		name => 'a foreign key',
		up => "ALTER TABLE $part ADD CONSTRAINT f FOREIGN KEY (action) REFERENCES known NOT VALID",
		down => "ALTER TABLE $part DROP CONSTRAINT f",
	},
	{
		name => 'a foreign key that refuses',
		up => "DELETE FROM known WHERE action = 'completed';
			ALTER TABLE $part ADD CONSTRAINT f FOREIGN KEY (action) REFERENCES known NOT VALID",
		down => "ALTER TABLE $part DROP CONSTRAINT f; INSERT INTO known VALUES ('completed')",
		some => 1,
		fails => '23503',
	},
	{
		# our code is let through; nobody else is
		name => 'row security, forced',
		up => "ALTER TABLE $log FORCE ROW LEVEL SECURITY",
		down => "ALTER TABLE $log NO FORCE ROW LEVEL SECURITY",
	},
	{
		name => 'a column',
		up => "ALTER TABLE $log ADD COLUMN extra text DEFAULT current_user",
		down => "ALTER TABLE $log DROP COLUMN extra",
		see => "SELECT count(*) FROM $log WHERE extra = 'postgres' AND xmin = (SELECT max(xmin::text::bigint)::text::xid FROM $log)",
		is => '2',
	},
	{
		name => 'a generated column',
		up => "ALTER TABLE $log ADD COLUMN extra text GENERATED ALWAYS AS (action || '!') STORED",
		down => "ALTER TABLE $log DROP COLUMN extra",
		see => "SELECT count(*) FROM $log WHERE extra = action || '!' AND action = 'completed'",
		is => qr/^[1-9]/,
	},
	{
		name => 'an id that counts by itself',
		up => "ALTER TABLE $log ALTER COLUMN id SET GENERATED ALWAYS",
		down => "ALTER TABLE $log ALTER COLUMN id SET GENERATED BY DEFAULT",
		fails => '428C9',
	},
	{
		name => 'a column of ours that must not be null',
		up => "ALTER TABLE $part ADD CONSTRAINT c CHECK (detail IS NOT NULL) NOT VALID;
			UPDATE pg_attribute SET attnotnull = true WHERE attrelid = '$part'::regclass AND attname = 'detail';
			ALTER TABLE $part DROP CONSTRAINT c",
		down => "ALTER TABLE $part ALTER COLUMN detail DROP NOT NULL",
		fails => '23502',
		before => 17,
	},
	{
		name => 'a column of another type',
		up => "ALTER TABLE $log ALTER COLUMN attempt TYPE bigint",
		down => "ALTER TABLE $log ALTER COLUMN attempt TYPE integer",
	},
	{
		name => 'an owner who took INSERT from himself, a superuser',
		up => "REVOKE INSERT ON $log FROM postgres",
		down => "GRANT INSERT ON $log TO postgres",
	},
	{
		name => 'an owner who took INSERT from himself',
		up => "ALTER TABLE $log OWNER TO keeper; REVOKE INSERT ON $log FROM keeper",
		down => "GRANT INSERT ON $log TO keeper; ALTER TABLE $log OWNER TO postgres",
		fails => '42501',
	},
	{
		name => 'another owner',
		up => "ALTER TABLE $log OWNER TO keeper",
		down => "ALTER TABLE $log OWNER TO postgres",
		direct => 1,
	},
	{
		name => 'an INSERT for others',
		up => "GRANT INSERT, SELECT ON $log TO app",
		down => "REVOKE INSERT, SELECT ON $log FROM app",
		direct => 1,
	},
	{
		name => 'a unique index more',
		up => "CREATE UNIQUE INDEX u ON $part (entity_id, action, id)",
		down => 'DROP INDEX u',
	},
	{
		name => 'an exclusion constraint',
		up => "ALTER TABLE $part ADD CONSTRAINT u EXCLUDE USING btree (id WITH =)",
		down => "ALTER TABLE $part DROP CONSTRAINT u",
	},
	{
		name => 'an index on an expression',
		up => "CREATE INDEX i ON $part (upper(action))",
		down => 'DROP INDEX i',
	},
	{
		name => 'a partial index',
		up => "CREATE INDEX i ON $part (action) WHERE action = 'claimed'",
		down => 'DROP INDEX i',
	},
	{
		name => 'an index whose building failed',
		up => "CREATE UNIQUE INDEX CONCURRENTLY i ON $part (entity)",
		breaks => '23505',
		down => 'DROP INDEX i',
		alone => 1,
	},
	{
		name => 'an index that is set not valid',
		up => "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '${part}_entity'::regclass",
		down => "UPDATE pg_index SET indisvalid = true WHERE indexrelid = '${part}_entity'::regclass",
	},
	map({
		{
			name => "a plain index more: $_->[0]",
			up => "CREATE INDEX i ON $part $_->[1]",
			down => 'DROP INDEX i',
			direct => 1,
			see => $_->[2] // qq{
				SET enable_seqscan = off; SET enable_bitmapscan = on;
				SELECT action FROM $log WHERE action = 'completed' AND at > now() - interval '1 min' LIMIT 1;
				RESET enable_seqscan},
			is => $_->[3] // 'completed',
		}
	} [
			'btree',
			'(action, at DESC) INCLUDE (token)',
			q{SELECT bt_index_check('i', true)},
			''
		],
		[ 'hash', 'USING hash (action)' ],
		[ 'brin', 'USING brin (at)' ],
		[ 'gin', 'USING gin (detail)' ]),
	{
		name => 'no primary key',
		up => "ALTER TABLE $part DROP CONSTRAINT ${part}_pkey",
		down => "ALTER TABLE $part ADD CONSTRAINT ${part}_pkey PRIMARY KEY (id)",
		direct => 1,
	},
	{
		name => 'a primary key that is deferrable',
		up => "ALTER TABLE $part DROP CONSTRAINT ${part}_pkey, ADD CONSTRAINT ${part}_pkey PRIMARY KEY (id) DEFERRABLE",
		down => "ALTER TABLE $part DROP CONSTRAINT ${part}_pkey, ADD CONSTRAINT ${part}_pkey PRIMARY KEY (id)",
	},
	{
		name => 'not logged',
		up => "ALTER TABLE $part SET UNLOGGED",
		down => "ALTER TABLE $part SET LOGGED",
	},
	{
		name => 'another access method',
		up => "CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
			ALTER TABLE $part SET ACCESS METHOD heap2",
		down => "ALTER TABLE $part SET ACCESS METHOD heap; DROP ACCESS METHOD heap2",
	},
	{
		name => 'a partition with partitions',
		up => "ALTER TABLE $log DETACH PARTITION $part;
			ALTER TABLE $part RENAME TO away;
			ALTER EXTENSION idempotency DROP TABLE away;
			CREATE TABLE $part PARTITION OF $log DEFAULT PARTITION BY LIST (action);
			CREATE TABLE sub PARTITION OF $part DEFAULT",
		down => "ALTER TABLE $log DETACH PARTITION $part; DROP TABLE $part;
			ALTER TABLE away RENAME TO $part;
			ALTER EXTENSION idempotency ADD TABLE $part;
			ALTER TABLE $log ATTACH PARTITION $part DEFAULT",
		see => 'SELECT count(*) FROM sub',
		is => '4',
	},
	{
		name => 'another default partition',
		up => "ALTER TABLE $log DETACH PARTITION $part;
			CREATE TABLE other PARTITION OF $log DEFAULT",
		down => "DROP TABLE other; ALTER TABLE $log ATTACH PARTITION $part DEFAULT",
		see => 'SELECT count(*) FROM other',
		is => '4',
	},
	{
		name => 'no partition at all',
		up => "ALTER TABLE $log DETACH PARTITION $part",
		down => "ALTER TABLE $log ATTACH PARTITION $part DEFAULT",
		fails => '23514',
	},
	{
		# its functions then touch the table that they distribute
		name => 'Citus',
		up => "SET allow_system_table_mods = on;
			CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass);
			RESET allow_system_table_mods;
			ALTER TABLE $log ALTER COLUMN detail SET STATISTICS 10",
		down => "SET allow_system_table_mods = on;
			DROP TABLE pg_catalog.pg_dist_partition;
			RESET allow_system_table_mods;
			ALTER TABLE $log ALTER COLUMN detail SET STATISTICS -1",
	},
	{
		name => 'a publication',
		up => "CREATE PUBLICATION p FOR TABLE $log WITH (publish_via_partition_root = true)",
		down => 'DROP PUBLICATION p',
		direct => 1,
	},
	{
		name => 'a column that was dropped',
		up => "ALTER TABLE $log ADD COLUMN gone text; ALTER TABLE $log DROP COLUMN gone",
		down => 'SELECT 1',
		direct => 1,
	});

my ($s, $t) = (session($node), session($node));

is(way($_), $direct, 'a new log is written directly') foreach ($s, $t);
is(work_round($_), $right, 'its rows') foreach ($s, $t);

# All that could be half done
sub contents
{
	my ($session) = @_;

	return $session->query(
		"SELECT count(*) FROM idempotency_keys; SELECT count(*) FROM $log");
}

sub try_change
{
	my ($case) = @_;
	my $name = $case->{name};
	my $way = $case->{fails} // ($case->{direct} ? $direct : $sql);

	if (!$case->{alone})
	{
		$s->query("BEGIN; $case->{up}");
		is($s->state, '', "$name: within a transaction");
		$n++;
		$s->query("SELECT idem_run('work(jsonb)', 'w', '$n', '{}', 'audited')");
		is($s->state, $case->{fails} // '', "$name: a run in it");
		$s->query('ROLLBACK');
		is(way($s), $direct, "$name: undone");
	}
	is(state_of($s, $case->{up}), $case->{breaks} // '', "$name: is made");
	is(way($s), $way, "$name: seen by who made it");
	is(way($t), $way, "$name: seen by another session");
	like(
		$t->query(
			q{SELECT detail FROM idem_health() WHERE check_name = 'storage'}),
		$case->{direct}
		? qr/^direct: [^;]*$/
		: qr/; the audit log by statements: \w/,
		"$name: idem_health tells");
	my $new = session($node);
	is(way($new), $way, "$name: seen by a new session");
	$new->quit;
	if (defined $case->{fails})
	{
		my $before = contents($s);

		is(way($t), $way, "$name: a run again");
		is(state_of($t, q{SELECT idem_audit('sold', 'order', '1')}),
			$case->{fails}, "$name: another row")
		  if !$case->{some};
		is(contents($s), $before, "$name: nothing half done");
	}
	else
	{
		is(work_round($_), $right, "$name: rows") foreach ($t, $s);
	}
	like($t->query($case->{see}),
		ref $case->{is} ? $case->{is} : qr/^\Q$case->{is}\E$/,
		"$name: does its work")
	  if defined $case->{see};
	is(state_of($s, $case->{down}), '', "$name: taken away");
	is(way($_), $direct, "$name: as before") foreach ($t, $s);
	is(work_round($t), $right, "$name: rows as before");
	return;
}

try_change($_)
  foreach grep { $node->pg_version->major <= ($_->{before} // 99) } @cases;

#
# The setting
#
$s->query('SET idempotency.storage = sql');
is(way($s), $sql, 'the setting');
is(way($t), $direct, 'the setting: not in another session');
is(work_round($s), $right, 'the setting: rows');
$s->query('RESET idempotency.storage');
is(way($s), $direct, 'the setting: taken back');

#
# Both ways write the same, of every kind of row
#
my $address = $node->connstr('postgres') =~ s/host=\S+/host=127.0.0.1/r;
my $rows = qq{
SELECT id - min(id) OVER (), action, entity, entity_id, attempt, token - min(token) OVER () >= 0,
	session_role, effective_role, client_addr, application_name, detail,
	at BETWEEN now() AND clock_timestamp()
FROM $log WHERE xid = pg_current_xact_id() ORDER BY id};
my @written;

$s->query("GRANT SELECT ON $log TO app");
foreach my $way ('auto', 'sql')
{
	$s->query("ALTER ROLE app SET idempotency.storage = $way");
	my $app = session($node,
		params => [ '-d', "$address user=app application_name=shop" ]);
	push @written, $app->query(
		qq{
BEGIN;
SELECT idem_audit('sold', 'order', '4711', '{"sku": "a", "n": [1, null]}') IS NOT NULL;
SELECT idem_audit('sold', 'order', repeat('o', 1024), to_jsonb(repeat('d', 10000))) IS NOT NULL;
SELECT outcome FROM idem_run('work(jsonb)', 'same', 'run', '{}', 'audited');
SELECT outcome FROM idem_claim('same', 'claim', policy => 'audited');
SELECT (idem_complete('same', 'claim')).expires_at > now();
SELECT first FROM idem_dedupe('same', '{a,b}', 'audited');
SET LOCAL application_name = '';
SELECT idem_audit('sold', 'order', '1') IS NOT NULL;
$rows;
ROLLBACK});
	$app->quit;
}
$s->query("REVOKE SELECT ON $log FROM app; ALTER ROLE app RESET idempotency.storage");
like(
	$written[0],
	qr/^0\|sold\|order\|4711\|\|\|app\|app\|127\.0\.0\.1\|shop\|\{"n": \[1, null\], "sku": "a"\}\|t$/m,
	'who, from where, and what');
is(scalar(() = $written[0] =~ /^\d+\|.*\|t$/mg), 9, 'nine rows');
is($written[0], $written[1], 'both ways write the same');

#
# Partitions
#

# A partition of a stretch of time
sub attach
{
	my ($name, $from, $to) = @_;

	$s->query(
		qq{
CREATE TABLE $name (LIKE $part INCLUDING INDEXES);
ALTER TABLE $log ATTACH PARTITION $name FOR VALUES FROM ('$from') TO ('$to')});
	is($s->state, '', "partition $name is attached");
	return;
}

sub time_in
{
	my ($ms) = @_;

	return $s->query(
		"SELECT clock_timestamp() + $ms * interval '1 millisecond'");
}

sub wait_until
{
	my ($when) = @_;

	return poll("it is $when",
		sub { $s->query("SELECT clock_timestamp() > '$when'") eq 't' });
}

# Where the rows of a run are, and by how many commands
sub place
{
	my ($session) = @_;

	$n++;
	$session->query(
		"SELECT outcome FROM idem_run('work(jsonb)', 'w', '$n', '{}', 'audited')");
	return $session->state if $session->state ne '';
	return $session->query(
		qq{
SELECT string_agg(DISTINCT tableoid::regclass::text, ' '), count(DISTINCT cmin::text)
FROM $log WHERE entity_id = idem_log_id('w') || '/' || idem_log_id('$n')});
}

# One statement writes across bounds, of which nobody tells it meanwhile
my ($first, $second, $third) = map { time_in($_) } (500, 900, 1300);

attach('first', $first, $second);
attach('second', $second, $third);
is(way($t), $direct, 'partitions to come');
is( state_of(
		$t, qq{
DO \$\$
DECLARE n integer := 0;
BEGIN
	WHILE clock_timestamp() < timestamptz '$third' + interval '0.3 s' LOOP
		n := n + 1;
		PERFORM idem_audit('sold', 'bounds', n::text);
		PERFORM idem_run('work(jsonb)', 'bounds', n::text, '{}', 'audited');
		PERFORM pg_sleep(0.001);
	END LOOP;
END\$\$}),
	'',
	'rows are written across bounds');
is( $s->query(
		qq{
SELECT tableoid::regclass, at FROM $log WHERE tableoid::regclass::text <> CASE
	WHEN at >= '$first' AND at < '$second' THEN 'first'
	WHEN at >= '$second' AND at < '$third' THEN 'second' ELSE '$part' END}),
	'',
	'each to the partition of its time');
is( $s->query(
		qq{
SELECT string_agg(DISTINCT tableoid::regclass::text, ' ' ORDER BY tableoid::regclass::text)
FROM $log WHERE entity = 'bounds'}),
	"first $part second",
	'each partition has some');
is( $s->query(
		qq{
SELECT max(commands) FROM (SELECT count(DISTINCT cmin::text) AS commands
	FROM $log WHERE entity = 'idempotency_key'
	AND xid = (SELECT xid FROM $log WHERE entity = 'bounds' LIMIT 1)
	GROUP BY entity_id) c}),
	'1',
	'all of them directly');

# Attached, detached and dropped while a session has it cached
is(place($t), "$part|1", 'to the default partition');
my $when = time_in(200);
attach('third', $when, '2200-01-01');
wait_until($when);
is(place($t), 'third|1', 'to one that was attached');
is(place($t), 'third|1', 'again');
$s->query("ALTER TABLE $log DETACH PARTITION third");
is(place($t), "$part|1", 'it is detached');
$s->query('DROP TABLE third');
$when = time_in(200);
attach('third', $when, '2200-01-01');
wait_until($when);
is(place($t), 'third|1', 'to one of that name');
$s->query('CREATE INDEX third_more ON third (effective_role)');
is(place($t), 'third|1', 'with an index more');
is($s->query(q{SELECT bt_index_check('third_more', true)}), '',
	'which has all rows');
$s->query("BEGIN; DROP TABLE third");
is($s->query("SELECT outcome FROM idem_run('work(jsonb)', 'w', 'drop', '{}', 'audited');
		SELECT DISTINCT tableoid::regclass FROM $log WHERE xid = pg_current_xact_id()"),
	"completed\n$part", 'dropped by this transaction');
$s->query('ROLLBACK');
is(place($s), 'third|1', 'not dropped after all');
$s->query('DROP TABLE third');
is(place($t), "$part|1", 'dropped');

# A writer waits for the default partition behind one who attaches a partition
# for the very time of its row.  The statement would refuse the row.
$when = time_in(300);
$s->query(
	qq{
CREATE TABLE late (LIKE $part INCLUDING INDEXES);
BEGIN;
ALTER TABLE $log ATTACH PARTITION late FOR VALUES FROM ('$when') TO ('2200-01-01')});
wait_until($when);
$t->send("SELECT idem_audit('sold', 'late', '1') IS NOT NULL");
poll(
	'the writer to wait',
	sub {
		$s->query('SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = '
			  . $t->pid) eq '1';
	});
$s->query('COMMIT');
is($t->receive . $t->state, 't', 'a row whose partition came meanwhile');
is($s->query("SELECT tableoid::regclass FROM $log WHERE entity = 'late'"),
	'late', 'it is there');
is(place($t), 'late|1', 'and so are others');

# A partition that is being detached is one for some and not for others
$s->query("ALTER TABLE $log DETACH PARTITION $part");
is(place($t), 'late|1', 'without a default partition');
my $u = session($node);
$u->query("BEGIN; SELECT count(*) FROM $log");
$s->send("ALTER TABLE $log DETACH PARTITION first CONCURRENTLY");
poll(
	'the first step',
	sub {
		$t->query('SELECT count(*) FROM pg_inherits WHERE inhdetachpending')
		  eq '1';
	});
is(place($t), 'late|2', 'another partition is being detached');
$u->query('COMMIT');
$u->quit;
$s->receive;
is($s->state, '', 'it was');
is(place($t), 'late|1', 'and is in the way no more');
is(state_of($s, "ALTER TABLE $log ATTACH PARTITION $part DEFAULT"),
	'', 'the default partition is there again');

#
# Transactions
#
is( $t->query(
		qq{
BEGIN;
SAVEPOINT a;
SELECT outcome FROM idem_run('work(jsonb)', 'tx', 'undone', '{}', 'audited');
ROLLBACK TO a;
SELECT outcome FROM idem_run('work(jsonb)', 'tx', 'done', '{}', 'audited');
SAVEPOINT b;
SELECT idem_audit('sold', 'tx', '1') IS NOT NULL;
RELEASE b;
COMMIT;
SELECT count(*) FROM $log WHERE entity = 'tx' OR entity_id IN (
	SELECT idem_log_id('tx') || '/' || idem_log_id(k) FROM unnest('{undone,done}'::text[]) k)}),
	"completed\ncompleted\nt\n3",
	'savepoints');

# Two that have read the log and then write to it: one of them only
foreach my $way ('auto', 'sql')
{
	$_->query(
		"SET idempotency.storage = $way; BEGIN ISOLATION LEVEL SERIALIZABLE;
		SELECT count(*) FROM $log WHERE entity = 'skew'") foreach ($s, $t);
	$_->query(q{SELECT idem_audit('sold', 'skew', '1')}) foreach ($s, $t);
	my @states = map { $_->query('COMMIT'); $_->state } ($s, $t);

	is(join(' ', sort @states), ' 40001', "SERIALIZABLE, $way");
	$_->query('ROLLBACK; RESET idempotency.storage') foreach ($s, $t);
}

# An id that is there already
foreach my $way ('auto', 'sql')
{
	is( state_of(
			$t, qq{
SET idempotency.storage = $way;
BEGIN;
SELECT setval('${log}_id_seq', (SELECT max(id) - 1 FROM late));
SELECT idem_audit('sold', 'order', '1')}),
		'23505',
		"a sequence that was set back, $way");
	$t->query(
		qq{
RESET idempotency.storage;
SELECT setval('${log}_id_seq', (SELECT max(id) + 100 FROM $log))});
}

# What a replica is told
SKIP:
{
	skip 'no test_decoding here', 2
	  if !-e $node->config_data('--pkglibdir') . '/test_decoding.so';
	$s->query(
		q{SELECT pg_create_logical_replication_slot('decoded', 'test_decoding')});
	is(place($t), 'late|1', 'rows to be decoded');
	is( $s->query(
			q{
SELECT string_agg(substring(data FROM 'action.text.:.(\w+)'), ' ')
FROM pg_logical_slot_get_changes('decoded', NULL, NULL)
WHERE data LIKE 'table public.late: INSERT:%'}),
		'claimed completed',
		'both are');
	$s->query(q{SELECT pg_drop_replication_slot('decoded')});
}

#
# All that was written
#
is( $s->query(
		qq{
SELECT count(bt_index_check(i.indexrelid, true)) > 5 FROM pg_inherits h
JOIN pg_index i ON i.indrelid = h.inhrelid
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
WHERE h.inhparent = '$log'::regclass AND a.amname = 'btree'}),
	't',
	'indexes have all rows');
is($s->query("SELECT count(*) - count(DISTINCT id) FROM $log"),
	'0', 'no id twice');

# The extension is made anew under sessions that know the old one
is( state_of(
		$s, q{
SET client_min_messages = warning;
DROP EXTENSION idempotency CASCADE;
CREATE EXTENSION idempotency;
SELECT idem_policy('audited', audit => true)}),
	'',
	'another extension');
is(way($_), $direct, 'with a log of its own') foreach ($t, $s);
is(work_round($_), $right, 'which has the rows') foreach ($t, $s);
is($s->query('SELECT idem_audit_seal()'), '4', 'they are sealed');
is($s->query('SELECT count(*) FROM idem_audit_verify()'), '0', 'and well');

$_->quit foreach ($s, $t);
$node->stop;

done_testing();
