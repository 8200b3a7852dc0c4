# The table of keys is changed and maintained while clients work.
#
# Scenario: clients run handlers, claim and complete in one transaction and in
# two, mark messages one by one and in batches, give claims up, and repeat all
# of it, several of them on every key.  Every answer that they get is written
# down.  Meanwhile, one after the other and again and again, the table is
# vacuumed, rewritten, clustered, analyzed and dumped, its indexes are rebuilt,
# others come and go, columns come and go, and so does a trigger.  A subscriber
# gets all rows.  Clients may have to repeat a transaction (40001, and 40P01
# where the server's own locks make it) and see no other error.  At the end
# each key has had its effect once, each answer is replayed byte for byte, the
# trigger has fired whenever it was there, subscriber and dumps agree with the
# table, and so does every index.
#
# A transaction that holds a claim lets wait what must wait for a writer, a
# replay what must wait for a reader, in both ways to the table: they leave
# the same locks.  A table without replica identity that is published refuses
# changes in both.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 6;
my $transactions = 100;    # of each client, for each change
my $most = 30;            # times that a change is made
my $folder = PostgreSQL::Test::Utils::tempdir;
my $node = new_node(
	'ddl',
	streaming => 'logical',
	conf => q{
log_min_error_statement = panic
log_error_verbosity = verbose
deadlock_timeout = 100ms
});
my $copy = new_node('copy');

# Whatever way the rest of the suite goes
$_->safe_psql('postgres',
	q{ALTER DATABASE postgres SET idempotency.storage = 'auto'})
  foreach ($node, $copy);

$node->safe_psql(
	'postgres', q{
CREATE TABLE effects (key text NOT NULL);
CREATE TABLE answers (key text NOT NULL, body bytea NOT NULL);
CREATE TABLE fired (key text NOT NULL);

-- no two calls have the same answer
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT json_build_object('bought', request->>'key',
		'by', pg_current_xact_id()::text);
$$;
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.fired VALUES (NEW.key);
	RETURN NEW;
END$$;
SELECT idem_policy('short', completed_ttl => '1 us', failed_ttl => '1 us');
CREATE PUBLICATION keys FOR TABLE idempotency_keys;
});
# for the changes that add it
$copy->safe_psql('postgres',
	'ALTER TABLE idempotency_keys ADD COLUMN extra text');
$copy->safe_psql('postgres',
	"CREATE SUBSCRIPTION follower CONNECTION '"
	  . $node->connstr
	  . " dbname=postgres' PUBLICATION keys");
$copy->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_subscription_rel WHERE srsubstate = 'r'")
  or die 'the table was not copied in time';

my $session = session($node);
$session->query('SET client_min_messages = warning; CREATE EXTENSION amcheck');
my $amcheck = $session->state eq '';

sub storage
{
	return $session->query(
		q{SELECT detail FROM idem_health() WHERE check_name = 'storage'});
}

my $direct = 'direct: the key table is as it was created';
is(storage(), $direct, 'the way is direct');

#
# What clients do
#

my $note_answer = q{
\if :known
INSERT INTO answers VALUES (':key', decode(':body', 'hex'));
\endif
};
my @scripts = (
	q{
\set k random(1, 120)
SELECT 'run-' || :phase || '-' || :k AS key, true AS known \gset
SELECT encode(body, 'hex') AS body
FROM idem_run('buy(jsonb)', 'shop', ':key', '{"key": ":key"}',
	wait => '1 min') \gset
} . $note_answer, q{
\set k random(1, 120)
SELECT 'atomic-' || :phase || '-' || :k AS key, true AS known \gset
BEGIN;
SELECT outcome = 'claimed' AS mine
FROM idem_claim('shop', ':key', '{"key": ":key"}', wait => '1 min') \gset
\if :mine
SELECT buy('{"key": ":key"}') AS answer \gset
SELECT idem_complete('shop', ':key', ':answer'::json);
\endif
SELECT encode(body, 'hex') AS body FROM idem_lookup('shop', ':key') \gset
COMMIT;
} . $note_answer, q{
\set k random(1, 60)
SELECT 'leased-' || :phase || '-' || :k AS key \gset
SELECT outcome = 'claimed' AS mine, outcome = 'replayed' AS known,
       coalesce(token, 0) AS token, encode(body, 'hex') AS body
FROM idem_claim('shop', ':key', '{"key": ":key"}', lease => '1 h',
	owner => lpad(:client_id::text, 32, '0')::uuid) \gset
\if :mine
BEGIN;
SELECT buy('{"key": ":key"}') AS answer \gset
SELECT idem_checkpoint('shop', ':key', :token, 'bought');
SELECT idem_complete('shop', ':key', ':answer'::json, token => :token);
COMMIT;
\endif
} . $note_answer, q{
\set k random(1, 1000)
INSERT INTO effects SELECT key FROM idem_dedupe('inbox', ARRAY(
	SELECT 'message-' || :phase || '-' || :k % 50 + i * 7
	FROM generate_series(1, 5) i)) WHERE first;
}, q{
\set k random(1, 50)
SELECT 'message-' || :phase || '-' || :k AS key \gset
BEGIN;
SELECT outcome = 'claimed' AS mine
FROM idem_claim('inbox', ':key', wait => '1 min') \gset
\if :mine
INSERT INTO effects VALUES (':key');
SELECT idem_complete('inbox', ':key');
\endif
COMMIT;
}, q{
\set k random(1, 50)
SELECT 'message-' || :phase || '-' || :k AS key \gset
SELECT outcome FROM idem_run('buy(jsonb)', 'inbox', ':key', '{"key": ":key"}',
	wait => '1 min');
}, q{
\set k random(1, 20)
BEGIN;
SELECT idem_claim('shop', 'run-' || :phase || '-' || :k) IS NULL;
SAVEPOINT a;
SELECT idem_claim('shop', 'atomic-' || :phase || '-' || :k) IS NULL;
ROLLBACK TO a;
SELECT idem_claim('shop', 'leased-' || :phase || '-' || :k) IS NULL;
ROLLBACK;
}, q{
\set k random(1, 20)
SELECT outcome FROM idem_run('buy(jsonb)', 'short', 'short-' || :k,
	jsonb_build_object('key', 'short'), policy => 'short', wait => '1 min');
SELECT idem_sweep(3);
});

#
# What is done to the table
#

my $table = 'idempotency_keys';
my $pkey = 'idempotency_keys_pkey';
my $trigger = "CREATE TRIGGER t AFTER INSERT OR UPDATE ON $table
	FOR EACH ROW EXECUTE FUNCTION fire()";

# Each change with what it waits for behind a claim, and behind a replay
my @changes = (
	[ "VACUUM $table", '', '' ],
	[ "ANALYZE $table", '', '' ],
	[ "VACUUM FULL $table", "$table AccessExclusiveLock",
		"$table AccessExclusiveLock" ],
	[ "CLUSTER $table USING $pkey", "$table AccessExclusiveLock",
		"$table AccessExclusiveLock" ],
	[ "REINDEX TABLE $table", "$table ShareLock",
		"$pkey AccessExclusiveLock" ],
	[ "REINDEX INDEX $pkey", "$table ShareLock",
		"$pkey AccessExclusiveLock" ],
	[ "REINDEX TABLE CONCURRENTLY $table", 'virtualxid ShareLock',
		'virtualxid ShareLock' ],
	[ "REINDEX INDEX CONCURRENTLY $pkey", 'virtualxid ShareLock',
		'virtualxid ShareLock' ],
	[ "CREATE INDEX CONCURRENTLY another ON $table (policy, state)",
		'virtualxid ShareLock', '' ],
	[ 'DROP INDEX CONCURRENTLY another', 'virtualxid ShareLock',
		'virtualxid ShareLock' ],
	[ "CREATE INDEX another ON $table (state, policy)", "$table ShareLock",
		'' ],
	[ 'DROP INDEX another', "$table AccessExclusiveLock",
		"$table AccessExclusiveLock" ],
	[ "ALTER TABLE $table ADD COLUMN extra text",
		"$table AccessExclusiveLock", "$table AccessExclusiveLock" ],
	[ "ALTER TABLE $table DROP COLUMN extra",
		"$table AccessExclusiveLock", "$table AccessExclusiveLock" ],
	[ $trigger, "$table ShareRowExclusiveLock", '' ],
	[ "DROP TRIGGER t ON $table", "$table AccessExclusiveLock",
		"$table AccessExclusiveLock" ]);

my $failed = '';
my @phases = (
	[ 'VACUUM', \&make_changes, 0 ],
	[ 'ANALYZE', \&make_changes, 1 ],
	[ 'VACUUM FULL', \&make_changes, 2 ],
	[ 'CLUSTER', \&make_changes, 3 ],
	[ 'REINDEX', \&make_changes, 4, 5 ],
	[ 'REINDEX CONCURRENTLY', \&make_changes, 6, 7 ],
	[ 'an index CONCURRENTLY', \&make_changes, 8, 9 ],
	[ 'an index', \&make_changes, 10, 11 ],
	[ 'a column', \&make_changes, 12, 13 ],
	[ 'a trigger', \&make_trigger ],
	[ 'pg_dump', \&make_dump ]);

# Is it still at it?
sub works
{
	my ($pgbench) = @_;

	$pgbench->{handle}->pump_nb if $pgbench->{handle}->pumpable;
	return $pgbench->{handle}->pumpable;
}

sub make_changes
{
	my (@which) = @_;

	foreach my $change (map { $changes[$_][0] } @which)
	{
		# it may be the victim of a deadlock, as any client
		poll($change,
			sub {
				$session->query($change);
				$session->state ne '40P01';
			});
		$failed .= "$change: " . $session->state . "\n"
		  if $session->state ne '';
	}
	return;
}

# Whoever gets its transaction id while the trigger is there must fire it.
sub make_trigger
{
	my ($pgbench) = @_;
	my $xid = q{SELECT pg_current_xact_id()::text};
	my $count = q{SELECT count(*) FROM fired};

	make_changes(14);
	my $first = $session->query($xid);
	my $before = $session->query($count);
	# until some clients have worked under it
	poll('work under the trigger',
		sub {
			!works($pgbench) || $session->query($count) >= $before + 20;
		});
	$session->query(
		qq{SELECT idem_claim('trigger', '$first', policy => 'default');
		SELECT idem_complete('trigger', '$first', token => token)
		FROM $table WHERE key = '$first'});
	my $last = $session->query($xid);
	$failed .= $session->query(
		qq{SELECT 'not fired for ' || key FROM $table k
		WHERE claim_xid::text::bigint BETWEEN $first AND $last
		AND NOT EXISTS (SELECT FROM fired f WHERE f.key = k.key);
		SELECT 'fired ' || count(*) || ' times' FROM fired
		WHERE key = '$first' HAVING count(*) <> 2});
	make_changes(15);
	return;
}

my $dumps = 0;

sub make_dump
{
	my $file = "$folder/dump.sql";
	my %rows;

	run_log(
		[
			'pg_dump', '-f', $file, '-d', $node->connstr('postgres'), '-t',
			$table, '-t', 'effects', '-e', 'idempotency'
		]) || die 'pg_dump failed';
	# a key without its effect, or the other way round?
	my $copying = '';
	foreach my $line (split /\n/, slurp_file($file))
	{
		$copying = $1 if $line =~ /^COPY public\.(\w+) /;
		$copying = '' if $line eq '\\.';
		$rows{$1}{$copying}++
		  if $copying eq 'effects' && $line =~ /^(\w+-\d+-\d+)$/
		  || $copying eq $table
		  && $line =~ /\tc\t(?:shop|inbox)\t(\S+)\t/;
	}
	my @bad = grep {
			 ($rows{$_}{effects} // 0) != 1
		  || ($rows{$_}{$table} // 0) != 1
	} keys %rows;
	$failed .= "not of the same moment: @bad" if @bad;
	$dumps++ if keys %rows;
	return;
}

my $phase = 0;
my $log = 0;

foreach (@phases)
{
	my ($name, $make, @arguments) = @$_;
	$failed = '';
	my $pgbench = start_pgbench(
		$node,
		clients => $clients,
		folder => $folder,
		scripts => \@scripts,
		params => [
			'-t', $transactions, '-D', 'phase=' . ++$phase,
			'--max-tries=1000'
		]);
	my $rounds = 0;

	do
	{
		$make->(@arguments ? @arguments : $pgbench);
		$rounds++;
	} while (works($pgbench) && $rounds < $most);
	$pgbench->{handle}->finish;
	is($failed, '', "$name: goes well");
	is($pgbench->{handle}->result(0), 0, "$name: clients ended well");
	my $done = $clients * $transactions;
	like(
		$pgbench->{out},
		qr{^number of transactions actually processed: $done/$done$}m,
		"$name: all is done");
	unlike($pgbench->{err}, qr/aborted/, "$name: no client has failed");

	# only its own locks make the server choose a victim
	my $allowed =
	  $name =~ /CONCURRENTLY|^(?:VACUUM|ANALYZE|pg_dump)$/
	  ? qr/^40001$/
	  : qr/^40(?:001|P01)$/;
	my $new = slurp_file($node->logfile, $log);
	my %seen;
	$log += length $new;
	$seen{$1}++ while $new =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})/g;
	note join ' ', "$name: $rounds times;",
	  map { "$_: $seen{$_}" } sort keys %seen;
	is(join(' ', grep { !/$allowed/ } sort keys %seen),
		'', "$name: no other error");
	is(storage(), $direct, "$name: then the way is direct");
}
cmp_ok($dumps, '>', 0, "$dumps dumps with something in them");

#
# What has come of it
#

is( $session->query(
		q{
SELECT count(*) FROM (SELECT FROM effects WHERE key <> 'short'
	GROUP BY key HAVING count(*) > 1) x;
SELECT count(*) FROM idempotency_keys k WHERE scope IN ('shop', 'inbox')
AND NOT EXISTS (SELECT FROM effects e WHERE e.key = k.key);
SELECT count(*) FROM effects e WHERE e.key <> 'short'
AND NOT EXISTS (SELECT FROM idempotency_keys k WHERE e.key = k.key);
SELECT count(*) FROM idempotency_keys
WHERE scope IN ('shop', 'inbox') AND state <> 'c'}),
	"0\n0\n0\n0",
	'effects that are double; keys without one; effects without a key; stuck');
cmp_ok($session->query('SELECT count(*) FROM answers'),
	'>', 500, 'many answers were given');
my $replays = q{
SELECT DISTINCT a.key FROM answers a,
LATERAL idem_claim('shop', a.key, jsonb_build_object('key', a.key)) r
WHERE (r.outcome, r.body) IS DISTINCT FROM ('replayed', a.body)};
is($session->query($replays), '', 'each is replayed byte for byte');
$session->query('SET idempotency.storage = sql');
is($session->query($replays), '', 'in the SQL way, too');
$session->query('RESET idempotency.storage');

# Each entry for a row, each row with its entries
sub check_indexes
{
	my ($when) = @_;

	foreach my $index ($pkey, 'idempotency_keys_purge_at')
	{
		my ($columns, $condition) =
		  $index eq $pkey
		  ? ('scope, key', q{scope > ''})
		  : ('purge_at', q{purge_at > '-infinity'});
		my $rows = "SELECT $columns FROM $table WHERE $condition";
		my $list = "SELECT count(*),
			md5(string_agg(x::text, ' ' ORDER BY x::text)) FROM ($rows) x";

		$session->query('SET enable_bitmapscan = off;
			SET enable_indexscan = off; SET enable_indexonlyscan = off');
		my $without = $session->query($list);
		$session->query('RESET enable_indexscan; RESET enable_indexonlyscan;
			SET enable_seqscan = off');
		like($session->query("EXPLAIN $rows"), qr/\b$index\b/,
			"$when: $index is used");
		is($session->query($list), $without,
			"$when: $index agrees with the table");
		$session->query('RESET enable_seqscan; RESET enable_bitmapscan');
	  SKIP:
		{
			skip 'no amcheck here', 1 if !$amcheck;
			is( $session->query(
					"SELECT bt_index_parent_check('$index', true)")
				  . $session->state,
				'',
				"$when: $index is sound");
		}
	}
	return;
}
check_indexes('after the load');
$session->query("VACUUM $table");
check_indexes('after a VACUUM');

#
# The subscriber
#

sub rows_of
{
	my ($from) = @_;

	return $from->safe_psql(
		'postgres', q{
SELECT count(*), md5(string_agg(concat_ws('|', scope, key, state, attempt,
	token, claim_xid, created_at, finished_at, lease_until, expires_at,
	purge_at, ttl, status_code, owner, policy, claimed_by, fingerprint,
	context, headers, content_type, body_size, body_sha256, body,
	recovery_point, checkpoint), ' ' ORDER BY scope, key))
FROM idempotency_keys});
}

$node->wait_for_catchup('follower');
is(rows_of($copy), rows_of($node), 'the subscriber has the same rows');
cmp_ok($copy->safe_psql('postgres', 'SELECT count(*) FROM idempotency_keys'),
	'>', 500, 'and many of them');

# Without replica identity nothing can be changed, and nothing is
foreach my $way ('auto', 'sql')
{
	my $done = q{SELECT string_agg(concat(key, state, attempt, xmin), ' '
		ORDER BY key) FROM idempotency_keys WHERE scope = 'identity'};

	$session->query("SET idempotency.storage = $way");
	$session->query(
		qq{
SELECT idem_claim('identity', 'open $way', lease => '1 h');
SELECT idem_claim('identity', 'ended $way', lease => '1 us');
BEGIN;
SELECT idem_claim('identity', 'done $way');
SELECT idem_complete('identity', 'done $way', '"done"'::json);
COMMIT;
ALTER TABLE $table REPLICA IDENTITY NOTHING});
	my $before = $session->query($done);
	foreach my $statement (
		"SELECT idem_complete('identity', 'open $way', token => token)
		 FROM $table WHERE key = 'open $way'",
		"SELECT idem_claim('identity', 'ended $way')",
		"SELECT idem_forget('identity', 'done $way')",
		"BEGIN;
		 SELECT idem_claim('identity', 'new $way');
		 SELECT idem_complete('identity', 'new $way');
		 COMMIT")
	{
		$session->query($statement);
		is($session->state, '55000', "$way: no change without identity");
		$session->query('ROLLBACK') if $statement =~ /BEGIN/;
	}
	is($session->query($done), $before, "$way: nothing half done");
	is( $session->query(
			"SELECT outcome, idem_json(r)
			 FROM idem_claim('identity', 'done $way') r"),
		'replayed|"done"',
		"$way: a replay");
	is( $session->query(
			"SELECT outcome, idem_json(r)::jsonb->>'bought'
			 FROM idem_run('buy(jsonb)', 'identity', 'run $way',
				 '{\"key\": \"run $way\"}') r"),
		"completed|run $way",
		"$way: a new key in one go");
	$session->query("ALTER TABLE $table REPLICA IDENTITY DEFAULT");
	$session->query(
		"SELECT idem_complete('identity', 'open $way', token => token)
		 FROM $table WHERE key = 'open $way'");
	is($session->state, '', "$way: with identity it is changed");
	$session->query('RESET idempotency.storage');
}
$node->wait_for_catchup('follower');
is(rows_of($copy), rows_of($node), 'the subscriber has these, too');

#
# Who waits for whom
#

my $ours = qq{(
	SELECT '$table'::regclass::oid
	UNION SELECT indexrelid FROM pg_index WHERE indrelid = '$table'::regclass
	UNION SELECT reltoastrelid FROM pg_class WHERE oid = '$table'::regclass
	UNION SELECT i.indexrelid FROM pg_index i JOIN pg_class c
		ON i.indrelid = c.reltoastrelid WHERE c.oid = '$table'::regclass)};
my $other = session($node);

# What a session waits for
sub waits_for
{
	my ($pid) = @_;

	return $session->query(
		qq{SELECT coalesce(relation::regclass::text, locktype) || ' ' || mode
		FROM pg_locks WHERE pid = $pid AND NOT granted});
}

# Make a change while a transaction is open: what it waits for, and whether
# others can work meanwhile where that is promised.
my $n = 0;

sub wait_behind
{
	my ($way, $holds, $change, $expected) = @_;
	my $name = "$way: behind a $holds: " . $change =~ s/\s+/ /gr;
	my $holder = session($node);
	my $waited = '';

	$n++;
	my $hold =
	  $holds eq 'claim'
	  ? "BEGIN; SELECT idem_claim('held', 'held$n')"
	  : "BEGIN; SELECT idem_claim('held', 'replay')";
	$holder->query("SET idempotency.storage = $way");
	# a plan that is made takes more locks than one that is used
	$holder->query("$hold; ROLLBACK");
	$holder->query($hold);
	$other->send($change);
	if ($expected eq '')
	{
		$other->receive;
	}
	else
	{
		poll("$change waits",
			sub { ($waited = waits_for($other->pid)) eq $expected });
	}
	if ($expected =~ /virtualxid/)
	{
		like(storage(), qr/^sql: .*not valid/, "$name: the way is SQL");
		is( $session->query(
				"BEGIN;
				SELECT outcome FROM idem_claim('held', 'other$n');
				SELECT (idem_complete('held', 'other$n')).expires_at > now();
				COMMIT;
				SELECT outcome FROM idem_claim('held', 'other$n')"),
			"claimed\nt\nreplayed",
			"$name: others can work");
	}
	$holder->query("SELECT idem_complete('held', 'held$n')")
	  if $holds eq 'claim';
	my $state = $holder->state;
	$holder->query('COMMIT');
	$other->receive if $expected ne '';
	is( join('/', $waited, $state, $holder->state, $other->state),
		"$expected///", $name);
	is( $holder->query("SELECT outcome FROM idem_claim('held', 'held$n')"),
		'replayed', "$name: the claim was kept")
	  if $holds eq 'claim';
	$holder->quit;
	is(storage(), $direct, "$name: the way is direct")
	  if $change !~ /^(?:ALTER TABLE \w+ ADD|CREATE TRIGGER)/;
	return;
}

$session->query(
	q{BEGIN;
	SELECT idem_claim('held', 'replay');
	SELECT idem_complete('held', 'replay');
	COMMIT;
	SET lock_timeout = '10 s'});
foreach my $way ('auto', 'sql')
{
	wait_behind($way, 'claim', $_->[0], $_->[1]) foreach @changes;
	wait_behind($way, 'replay', $_->[0], $_->[2]) foreach @changes;
}
$other->quit;

#
# The same locks in both ways
#

# What a call leaves locked of ours, the second time that it is made: the
# first time it may look things up.
my @calls = (
	[ 'a claim', q{SELECT idem_claim('locks', 'claim')} ],
	[ 'a claim that is completed', q{SELECT idem_claim('locks', 'claim');
		SELECT idem_complete('locks', 'claim')} ],
	[ 'a large answer', q{SELECT idem_claim('locks', 'claim');
		SELECT idem_complete('locks', 'claim', (SELECT to_json(string_agg(
			md5(i::text), '')) FROM generate_series(1, 1000) i))} ],
	[ 'a replay', q{SELECT idem_claim('locks', 'done')} ],
	[ 'a replay of a large answer',
		q{SELECT md5(body) FROM idem_claim('locks', 'large')} ],
	[ 'a look', q{SELECT idem_lookup('locks', 'done')} ],
	[ 'a look in vain', q{SELECT idem_lookup('locks', 'none')} ],
	[ 'a mismatch', q{SELECT idem_claim('locks', 'done', '{}')} ],
	[ 'in progress', q{SELECT idem_claim('locks', 'open')} ],
	[ 'a take-over', q{SELECT idem_claim('locks', 'ended')} ],
	[ 'a run', q{SELECT idem_run('buy(jsonb)', 'locks', 'run', '{"key": 1}')} ],
	[ 'a run again',
		q{SELECT idem_run('buy(jsonb)', 'locks', 'again', '{"key": 1}')} ],
	[ 'a failure', q{SELECT idem_fail('locks', 'open', token => :token)} ],
	[ 'a completion',
		q{SELECT idem_complete('locks', 'open', token => :token)} ],
	[ 'a heartbeat', q{SELECT idem_extend('locks', 'open', :token, '1 h')} ],
	[ 'a checkpoint', q{SELECT idem_checkpoint('locks', 'open', :token, 'x')} ],
	[ 'a release', q{SELECT idem_release('locks', 'open', :token)} ],
	[ 'a removal', q{SELECT idem_forget('locks', 'done')} ],
	[ 'a removal in vain', q{SELECT idem_forget('locks', 'none')} ],
	[ 'a batch', q{SELECT idem_dedupe('locks', '{a,b,done}')} ],
	[ 'a sweep', 'SELECT idem_sweep()' ]);

sub locks_after
{
	my ($way, $call) = @_;

	$session->query("SET idempotency.storage = $way");
	$session->query("BEGIN; $call; ROLLBACK");
	$session->query("BEGIN; $call");
	my $state = $session->state;
	my $locks = $session->query(
		qq{SELECT string_agg(DISTINCT CASE
			WHEN c.relkind = 't' THEN 'toast table'
			WHEN c.relname LIKE 'pg_toast%' THEN 'toast index'
			ELSE c.relname END || ' ' || mode, ', ')
		FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
		WHERE pid = pg_backend_pid() AND c.oid IN $ours});
	$session->query('ROLLBACK; RESET idempotency.storage');
	return $state eq '' ? $locks : $state;
}

$session->query(
	q{
BEGIN;
SELECT idem_claim('locks', 'done');
SELECT idem_complete('locks', 'done', '"done"'::json);
SELECT idem_claim('locks', 'large');
SELECT idem_complete('locks', 'large', (SELECT to_json(string_agg(
	md5(i::text), '')) FROM generate_series(1, 1000) i));
COMMIT;
SELECT idem_claim('locks', 'open', lease => '1 h');
SELECT idem_claim('locks', 'ended', lease => '1 us');
SELECT idem_claim('locks', 'again', '{"key": 1}', lease => '1 us');
SELECT token FROM idempotency_keys WHERE key = 'open' AND scope = 'locks' \gset
});
foreach (@calls)
{
	my ($name, $call) = @$_;
	my $locks = locks_after('auto', $call);

	note "$name: $locks";
	like($locks, qr/^$table /, "$name: the table is locked");
	my $expected = locks_after('sql', $call);
	# the direct sweep locks no row before it deletes it: a plain DELETE
	$expected = "$table RowExclusiveLock, ${table}_purge_at RowExclusiveLock"
	  if $name eq 'a sweep';
	# and a HOT update makes no index entries
	s/, \w+_pkey RowExclusiveLock(?=, \w+_pkey RowShareLock)// foreach $locks, $expected;
	is($locks, $expected, "$name: as in the SQL way");
}

$session->quit;
unlike(slurp_file($node->logfile), qr/WARNING:.*(?:leak|not closed)/,
	'nothing was left open');
$copy->stop;
$node->stop;

done_testing();
