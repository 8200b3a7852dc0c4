# Crash and restart, at every point of a request.
#
# Scenario: a shop books an effect for each key, in the transaction of the
# claim.  (1) A client's connection is terminated at every point while a
# rival waits for the same key.  (2) The server process of a client is killed
# with SIGKILL at every point, and the server recovers.  (3) The postmaster is
# killed with SIGKILL while many clients, two on every key, are buying; the
# server is started again and every request is repeated.  Each key has had its
# effect once or not at all, once if its COMMIT was acknowledged; a repeat
# gets the answer or runs for the first time; nothing is stuck.
#
# (4) What is flushed under synchronous_commit = off: the commit of a claim
# that is still in progress, of idem_extend() and idem_checkpoint(), and
# nothing else.  A claim whose COMMIT came right before a crash is still there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('crash', conf => "restart_after_crash = on\n");
my $folder = PostgreSQL::Test::Utils::tempdir;

$node->safe_psql(
	'postgres', q{
CREATE TABLE effects (key text NOT NULL);
CREATE TABLE plain (id integer);

-- the handler of idem_run: has its effect, and waits where it is told to
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effects VALUES (request->>'key');
	IF request ? 'wait' THEN
		PERFORM pg_advisory_xact_lock(1);
	END IF;
	RETURN json_build_object('bought', request->>'key');
END$$;

-- a whole request; the same for a repeat
CREATE FUNCTION request(key text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result idem_result;
BEGIN
	result := idem_claim('shop', key, jsonb_build_object('key', key));
	IF result.outcome = 'claimed' THEN
		INSERT INTO effects VALUES (key);
		PERFORM idem_complete('shop', key,
			json_build_object('bought', key));
	END IF;
	RETURN result.outcome || ' ' || result.attempt;
END$$;
});

sub effects
{
	my ($key) = @_;

	return $node->safe_psql('postgres',
		"SELECT count(*) FROM effects WHERE key = '$key'");
}

# The statements of a request, and of what may go wrong after each of them
my @steps = (
	[ 'claim', q{SELECT outcome FROM idem_claim('shop', 'KEY', '{"key": "KEY"}')} ],
	[ 'work', q{INSERT INTO effects VALUES ('KEY')} ],
	[ 'complete', q{SELECT idem_complete('shop', 'KEY', '{"bought": "KEY"}'::json)} ]);

sub begin_up_to
{
	my ($session, $key, $last) = @_;

	$session->query('BEGIN');
	foreach my $step (@steps)
	{
		(my $sql = $step->[1]) =~ s/KEY/$key/g;
		$session->query($sql);
		is($session->state, '', "$key: $step->[0]");
		last if $step->[0] eq $last;
	}
	return;
}

#
# 1. A client that is cut off while another one waits
#

foreach my $last (map { $_->[0] } @steps)
{
	my $key = "cut-$last";
	my $first = session($node);
	my $rival = session($node);

	begin_up_to($first, $key, $last);
	$rival->query('BEGIN');
	$rival->send(
		qq{SELECT outcome, attempt FROM idem_claim('shop', '$key',
		   '{"key": "$key"}', wait => '1 min')});
	$node->safe_psql('postgres',
		'SELECT pg_terminate_backend(' . $first->pid . ')');
	is($rival->receive, 'claimed|1',
		"rival claims for the first time, cut off after $last");
	$rival->query('COMMIT');
	$rival->quit;
	$first->query('SELECT 1');
	isnt($first->state, '', 'the first client is gone');
	$first->quit;
	is(effects($key), 0, "no effect, cut off after $last");
}

#
# 2. SIGKILL of a server process
#

# Kill the process of a session, and wait until the server has recovered
sub kill_session
{
	my ($session) = @_;
	my $checkpointer = q{SELECT pid FROM pg_stat_activity
	                     WHERE backend_type = 'checkpointer'};
	my $before = $node->safe_psql('postgres', $checkpointer);

	kill 'KILL', $session->pid;
	poll(
		'recovery',
		sub {
			# psql may be gone before it has been told what to ask
			my ($status, $pid) = eval { $node->psql('postgres', $checkpointer) };
			return defined $status && $status == 0 && $pid ne '' && $pid ne $before;
		});
	$session->quit;
	return;
}

foreach my $last (map { $_->[0] } @steps)
{
	my $key = "kill-$last";
	my $session = session($node);

	begin_up_to($session, $key, $last);
	kill_session($session);
	is(effects($key), 0, "no effect, killed after $last");
	is($node->safe_psql('postgres', "SELECT request('$key')"),
		'claimed 1', "a clean first run, killed after $last");
	is($node->safe_psql('postgres', "SELECT request('$key')"),
		'replayed 1', "then a replay, killed after $last");
	is(effects($key), 1, "one effect, killed after $last");
}

# After COMMIT
{
	my $session = session($node);

	begin_up_to($session, 'kill-commit', 'complete');
	$session->query('COMMIT');
	kill_session($session);
	is($node->safe_psql('postgres', "SELECT request('kill-commit')"),
		'replayed 1', 'a replay, killed after COMMIT');
	is(effects('kill-commit'), 1, 'one effect, killed after COMMIT');
}

# In the handler of idem_run, and after idem_run but before COMMIT
my $run = q{SELECT outcome, idem_json(r) FROM idem_run('buy(jsonb)', 'shop',
            'KEY', '{"key": "KEY", "wait": true}') r};
{
	my $blocker = session($node);
	my $session = session($node);
	(my $sql = $run) =~ s/KEY/kill-handler/g;

	$blocker->query('SELECT pg_advisory_lock(1)');
	$session->send($sql);
	ok( $node->poll_query_until(
			'postgres', q{
SELECT count(*) = 1 FROM pg_locks
WHERE locktype = 'advisory' AND objid = 1 AND objsubid = 1 AND NOT granted}),
		'the handler has worked and waits');
	kill_session($session);
	$blocker->quit;
	is(effects('kill-handler'), 0, 'no effect, killed in the handler');
	is($node->safe_psql('postgres', $sql),
		'completed|{"bought" : "kill-handler"}',
		'a clean first run, killed in the handler');

	$session = session($node);
	$sql =~ s/kill-handler/kill-run/g;
	$session->query('BEGIN');
	like($session->query($sql), qr/^completed/, 'idem_run has completed');
	kill_session($session);
	is(effects('kill-run'), 0, 'no effect, killed after idem_run');
	like($node->safe_psql('postgres', $sql),
		qr/^completed/, 'a clean first run, killed after idem_run');
	like($node->safe_psql('postgres', $sql), qr/^replayed/, 'then a replay');
	is(effects('kill-run'), 1, 'one effect, killed after idem_run');
}

# The inbox of a consumer
{
	my $session = session($node);
	my $sql = q{SELECT string_agg(key || ' ' || first, ',' ORDER BY ord)
	            FROM idem_dedupe('inbox', '{m1,m2}')};

	$session->query('BEGIN');
	is($session->query($sql), 'm1 true,m2 true', 'messages are new');
	kill_session($session);
	is($node->safe_psql('postgres', $sql),
		'm1 true,m2 true', 'messages are new again, killed before COMMIT');
	is($node->safe_psql('postgres', $sql),
		'm1 false,m2 false', 'and known after COMMIT');
}

# A leased claim outlives the process that made it, and is nobody else's
{
	my $session = session($node);
	my $token =
	  $session->query(q{SELECT token FROM idem_claim('lease', 'k')});

	$session->query('BEGIN');
	$session->query("SELECT idem_complete('lease', 'k', token => $token)");
	is($session->state, '', 'completed in a transaction');
	kill_session($session);
	is( $node->safe_psql(
			'postgres', q{
SELECT outcome, http_status, retry_after_ms > 0
FROM idem_claim('lease', 'k')}),
		'in_progress|409|t',
		'still in progress, killed before its completion was committed');
	is(sqlstate($node, q{SELECT idem_complete('lease', 'k')}),
		'ID002', 'not to be completed without its token');
	is( sqlstate(
			$node, "SELECT idem_complete('lease', 'k', token => $token)"),
		'', 'the holder comes back with its token');
	is($node->safe_psql('postgres', q{SELECT outcome FROM idem_claim('lease', 'k')}),
		'replayed', 'and has finished it');
}

#
# 3. SIGKILL of the postmaster with many clients
#

# Two clients work on the same keys.  They wait for one another, so that every
# COMMIT that is acknowledged stands for an effect, their own or the other's.
my $begin = q{
\set n :n + 1
\set k (:client_id / 2) * 1000000 + :n
};
my @scripts = (
	$begin . q{
BEGIN;
SELECT outcome = 'claimed' AS mine FROM idem_claim('shop', 'ROUND-:k', '{"key": "ROUND-:k"}', wait => '1 min') \gset
\if :mine
INSERT INTO effects VALUES ('ROUND-:k');
SELECT idem_complete('shop', 'ROUND-:k', '{"bought": "ROUND-:k"}'::json);
\endif
COMMIT;
}, $begin . q{
SELECT outcome FROM idem_run('buy(jsonb)', 'shop', 'ROUND-:k', '{"key": "ROUND-:k"}', wait => '1 min');
});

my $clients = 8;

foreach my $round (1 .. 3)
{
	my $pgbench = start_pgbench(
		$node,
		clients => $clients,
		folder => $folder,
		scripts => [ map { s/ROUND/round$round/gr } @scripts ],
		params => [
			'-T', 600, '-D', 'n=0', '-l',
			"--log-prefix=$folder/round$round"
		]);

	$node->poll_query_until('postgres',
		"SELECT count(*) > 300 FROM effects WHERE key LIKE 'round$round-%'")
	  or die 'no effects';
	crash($node);
	$pgbench->{handle}->finish;
	restart_after_crash($node);

	my $acknowledged = pgbench_acknowledged("$folder/round$round");
	my @repeats;
	foreach my $client (0 .. $clients - 1)
	{
		my $base = int($client / 2) * 1000000;
		my $count = $acknowledged->{$client} // 0;

		push @repeats,
		  map { [ "round$round-" . ($base + $_), $_ <= $count ? 1 : 0 ] }
		  1 .. $count + 2;
	}
	my $values = join ',', map { "('$_->[0]', $_->[1])" } @repeats;

	$node->safe_psql(
		'postgres', qq{
CREATE TABLE round$round AS
SELECT key, bool_or(ack = 1) AS ack,
       (SELECT count(*) FROM effects e WHERE e.key = v.key) AS before
FROM (VALUES $values) v (key, ack) GROUP BY key;
ALTER TABLE round$round ADD again text;
UPDATE round$round SET again = request(key);
});
	my $result = $node->safe_psql(
		'postgres', qq{
SELECT count(*) FILTER (WHERE ack) >= 300,
       count(*) FILTER (WHERE ack AND (before <> 1 OR again <> 'replayed 1')),
       count(*) FILTER (WHERE before > 1),
       count(*) FILTER (WHERE again <> CASE before WHEN 1 THEN 'replayed 1' ELSE 'claimed 1' END),
       (SELECT count(*) FROM (SELECT 1 FROM effects WHERE key LIKE 'round$round-%'
                              GROUP BY key HAVING count(*) <> 1) x),
       (SELECT count(*) FROM idempotency_keys WHERE scope = 'shop' AND state <> 'c')
         - (SELECT count(*) FROM idempotency_keys WHERE scope = 'shop' AND key LIKE 'cut-%')
FROM round$round});
	is($result, 't|0|0|0|0|0',
		"round $round: enough acknowledged; lost; doubled; wrong repeat; wrong count; stuck");
}

#
# 4. synchronous_commit = off
#

$node->append_conf(
	'postgresql.conf', q{
synchronous_commit = off
wal_writer_delay = 10s
checkpoint_timeout = 1h
});
$node->restart;

my $session = session($node);

# Run statements in a transaction, and tell whether its commit was flushed.
# The WAL writer may flush now and then of itself: so "not flushed" counts when
# it is seen once in some attempts, while "flushed" must be seen every time.
my $attempts = 5;
my $number = 0;

sub flushed
{
	my (@statements) = @_;
	my $yes = 0;

	for (1 .. $attempts)
	{
		my $key = 'sync' . ++$number;

		$session->query('BEGIN');
		$session->query('INSERT INTO plain VALUES (1)');
		foreach my $statement (@statements)
		{
			$session->query($statement =~ s/KEY/$key/gr);
			die "failed: $statement" if $session->state ne '';
		}
		my $end = $session->query('SELECT pg_current_wal_insert_lsn()');
		$session->query('COMMIT');
		die 'COMMIT failed' if $session->state ne '';
		$yes++
		  if $session->query("SELECT pg_current_wal_flush_lsn() >= '$end'") eq 't';
	}
	return $yes == $attempts ? 'always' : 'not always';
}

my $claim = "SELECT idem_claim('sync', 'KEY')";
my $complete = "SELECT idem_complete('sync', 'KEY')";

# Keys that exist before, by name
$session->query(
	q{CREATE FUNCTION held(key text, what text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	t bigint;
BEGIN
	EXECUTE format(what, key, (SELECT k.token FROM idempotency_keys k
	                           WHERE k.scope = 'held' AND k.key = held.key));
END$$});

is(flushed(), 'not always', 'a plain commit is not flushed');
is(flushed($claim), 'always', 'an open claim is flushed');
is(flushed($claim, $complete),
	'not always', 'a claim that is finished in its transaction is not');
is(flushed(q{SELECT idem_run('buy(jsonb)', 'sync', 'KEY', '{"key": "KEY"}')}),
	'not always', 'an idem_run is not');
is( flushed($claim, "SELECT idem_fail('sync', 'KEY')"),
	'not always', 'a claim that has failed is not');
is( flushed($claim, "SELECT idem_release('sync', 'KEY')"),
	'not always', 'a claim that was released is not');
is( flushed($claim, "SELECT idem_forget('sync', 'KEY')"),
	'not always', 'a claim that was forgotten is not');
is(flushed('SAVEPOINT a', $claim, 'ROLLBACK TO a'),
	'not always', 'a claim in a savepoint that was rolled back is not');
is(flushed('SAVEPOINT a', $claim, 'RELEASE a'),
	'always', 'a claim in a savepoint that was released is');
is(flushed('SAVEPOINT a', 'SAVEPOINT b', $claim, 'RELEASE b', 'RELEASE a'),
	'always', 'a claim in nested savepoints that were released is');
is( flushed('SAVEPOINT a', 'SAVEPOINT b', $claim, 'RELEASE b', 'ROLLBACK TO a'),
	'not always', 'a claim in a released savepoint of one rolled back is not');
is(flushed($claim, 'SAVEPOINT a', $complete, 'ROLLBACK TO a'),
	'always', 'a claim whose completion was rolled back is');
is(flushed($claim, 'SAVEPOINT a', $complete, 'RELEASE a'),
	'not always', 'a claim that was completed in a savepoint is not');
is( flushed(
		$claim, 'SAVEPOINT a', "SELECT idem_claim('sync', 'KEY-2')",
		'ROLLBACK TO a', $complete),
	'not always',
	'a finished claim beside one that was rolled back is not');
is(flushed($claim, "SELECT idem_claim('sync', 'KEY-2')", $complete),
	'always', 'one of two claims left open is');

# Claims of earlier transactions
$session->query(
	q{SELECT idem_claim('held', 'sync' || i, lease => '1 h')
      FROM generate_series(1, 500) i});
is( flushed(q{SELECT held('KEY', $$SELECT idem_extend('held', %L, %L, '1 h')$$)}),
	'always', 'idem_extend is');
is( flushed(
		q{SELECT held('KEY', $$SELECT idem_checkpoint('held', %L, %L, 'half')$$)}),
	'always', 'idem_checkpoint is');
is( flushed(q{SELECT held('KEY', $$SELECT idem_complete('held', %L, token => %L)$$)}),
	'not always', 'the completion of an earlier claim is not');

# A take-over is a claim like the first
$session->query(
	q{SELECT idem_claim('over', 'sync' || i, lease => '1 us')
      FROM generate_series(1, 500) i});
is(flushed(q{SELECT idem_claim('over', 'KEY')}),
	'always', 'a claim taken over is');

# And a crash right after COMMIT
my $token =
  $session->query("SELECT token FROM idem_claim('sync', 'last', lease => '1 h')");
crash($node);
$session->quit;
restart_after_crash($node);
is( $node->safe_psql(
		'postgres', "SELECT outcome FROM idem_claim('sync', 'last')"),
	'in_progress',
	'the claim is there after a crash');
is(sqlstate($node, "SELECT idem_complete('sync', 'last', token => $token)"),
	'', 'and its token is good');

$node->stop;

done_testing();
