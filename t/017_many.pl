# 100,000 keys in one transaction.
#
# Scenario: a server with the default of 64 locks a transaction.  One
# transaction claims 100,000 keys, another claims and completes them, another
# gets as many replays, another marks as many messages, another runs handlers.
# None may run out of locks, keep a lock for a key, or need more memory the
# longer it goes on; more, that is, than the server itself needs where a
# transaction changes its own rows.  At COMMIT all keys are there; at ROLLBACK
# TO a savepoint, none.
#
# The SQL way keeps a lock for each key, so it runs out of them: an error, and
# nothing is left of the transaction.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $many = 100_000;
my $batch = 10_000;
my $slack = 64 * 1024;    # of memory contexts

# Fewer checkpoints is all that is not as by default
my $node = new_node('many', conf => "max_wal_size = 4GB\n");

# Whatever way the rest of the suite goes
$node->safe_psql('postgres',
	q{ALTER DATABASE postgres SET idempotency.storage = 'auto'});
is($node->safe_psql('postgres', q{SELECT setting = boot_val FROM pg_settings
	WHERE name = 'max_locks_per_transaction'}),
	't', 'as many locks as by default');

my $session = session($node);
$session->query(
	q{
CREATE FUNCTION answer(request jsonb) RETURNS json LANGUAGE sql AS
	$$SELECT '"done"'::json$$;
CREATE TABLE plain (key text PRIMARY KEY, body text)});

# What the transaction has taken by now: memory of its process, and locks
sub taken
{
	my $bytes = 'SELECT sum(total_bytes) FROM pg_backend_memory_contexts';

	# the first look itself needs memory
	$session->query($bytes);
	return (
		$session->query($bytes),
		$session->query(
			q{SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()
			AND locktype NOT IN ('relation', 'virtualxid', 'transactionid')}),
		$session->query(
			'SELECT count(*) < 30 FROM pg_locks WHERE pid = pg_backend_pid()')
	);
}

# Statements on many keys, batch by batch, in one transaction.  The first
# batches are the warm-up.  Returns what the memory has grown by since then.
sub work_on
{
	my ($name, $statement, $answer, $may_grow) = @_;
	my ($first, $wrong) = (undef, 0);

	for (my $from = 1; $from <= $many; $from += $batch)
	{
		my $to = $from + $batch - 1;
		my %range = (from => $from, to => $to);
		my $got = $session->query($statement =~ s/%(from|to)/$range{$1}/gr);

		$wrong++ if $session->state ne '' || $got ne $answer;
		($first) = taken() if $to == 2 * $batch;
	}
	is($wrong, 0, "$name: every batch of $batch");
	my ($last, $locks, $few) = taken();
	note "$name: $first, then $last bytes";
	cmp_ok($last - $first, '<', $slack + $may_grow,
		"$name: memory does not grow")
	  if defined $may_grow;
	is("$locks $few", '0 t', "$name: no lock for a key");
	return $last - $first;
}

sub count_keys
{
	my ($scope) = @_;

	return $session->query("SELECT count(*) FROM idempotency_keys
		WHERE scope = '$scope'");
}

my $claims = q{SELECT count(idem_claim('%scope', i::text))
	FROM generate_series(%from, %to) i};
my $completions = q{
	SELECT count(idem_complete('%scope', i::text, '"done"'::json,
		token => token))
	FROM generate_series(%from, %to) i
	JOIN idempotency_keys ON scope = '%scope' AND key = i::text};
my $both = q{DO $$BEGIN
	FOR i IN %from..%to LOOP
		PERFORM idem_claim('%scope', i::text);
		PERFORM idem_complete('%scope', i::text, '"done"'::json);
	END LOOP;
END$$};
my $plain = q{DO $$BEGIN
	FOR i IN %from..%to LOOP
		INSERT INTO plain VALUES (i::text);
		UPDATE plain SET body = 'done' WHERE key = i::text;
	END LOOP;
END$$};
my $runs = q{SELECT count(*) FROM generate_series(%from, %to) i,
	idem_run('answer(jsonb)', '%scope', i::text) r
	WHERE outcome = 'completed'};
my $replays = q{SELECT count(*) FROM generate_series(%from, %to) i,
	idem_claim('%scope', i::text) r
	WHERE outcome = 'replayed' AND body = '"done"'};
my $messages = q{SELECT count(*) FROM idem_dedupe('%scope',
	ARRAY(SELECT i::text FROM generate_series(%from, %to) i)) WHERE first};

sub transaction
{
	my ($name, $scope, $statement, $answer, $may_grow) = @_;

	$session->query('BEGIN');
	my $grown = work_on($name, $statement =~ s/%scope/$scope/gr,
		$answer, $may_grow);
	$session->query('COMMIT');
	is($session->state, '', "$name: COMMIT");
	return $grown;
}

# With a savepoint, to which all goes back
sub undone
{
	my ($name, $scope, $statement, $answer) = @_;

	$session->query("BEGIN; SELECT idem_claim('$scope', 'kept');
		SAVEPOINT a");
	work_on($name, $statement =~ s/%scope/$scope/gr, $answer, 0);
	is(count_keys($scope), $many + 1, "$name: all are there");
	$session->query('ROLLBACK TO a');
	is(count_keys($scope), 1, "$name: none after ROLLBACK TO");
	is($session->query("SELECT outcome FROM idem_claim('$scope', '1')"),
		'claimed', "$name: one can be claimed");
	is((taken())[1], 0, "$name: and leaves no lock");
	$session->query('COMMIT');
	is(count_keys($scope), 2, "$name: COMMIT");
	return;
}

transaction('claims', 'claims', $claims, $batch, 0);
is(count_keys('claims'), $many, 'all are there');
transaction('claims again', 'claims', $claims, $batch, 0);
transaction('completions', 'claims', $completions, $batch, 0);
transaction('replays', 'claims', $replays, $batch, 0);
transaction('runs', 'runs', $runs, $batch, 0);
is(count_keys('runs'), $many, 'all are there');
transaction('messages', 'messages', $messages, $batch, 0);
is(count_keys('messages'), $many, 'all are there');

# An inserted row that is updated has two command ids, which the server keeps
my $grown = transaction('rows that are changed', '', $plain, '', undef);
transaction('claims and completions', 'both', $both, '', $grown);
is(count_keys('both'), $many, 'all are there');

# All of them in one call; what it needed is given back
$session->query('BEGIN');
my ($before) = taken();
is( $session->query($messages =~ s/%scope/one call/r =~ s/%from/1/r =~ s/%to/$many/r),
	$many, 'messages in one call: all are first');
my ($after, $locks, $few) = taken();
is("$locks $few", '0 t', 'messages in one call: no lock for a key');
cmp_ok($after - $before, '<', 4 * $slack, 'messages in one call: no memory for a key');
$session->query('COMMIT');
is(count_keys('one call'), $many, 'all are there');

undone('claims undone', 'claims2', $claims, $batch);
undone('messages undone', 'messages2', $messages, $batch);

# The same within one statement
is( $session->query(
		qq{
BEGIN;
CREATE TEMP TABLE sizes (bytes bigint) ON COMMIT DROP;
DO \$\$BEGIN
	FOR i IN 1..$many LOOP
		PERFORM idem_claim('block', i::text);
		IF i IN (1, 2 * $batch, $many) THEN
			INSERT INTO sizes SELECT sum(total_bytes)
			FROM pg_backend_memory_contexts;
		END IF;
	END LOOP;
END\$\$;
SELECT max(bytes) - (SELECT bytes FROM sizes OFFSET 1 LIMIT 1) < $slack
FROM sizes;
COMMIT}),
	't',
	'claims in a block: memory does not grow');
is(count_keys('block'), $many, 'all are there');

# In the SQL way
$session->query('SET idempotency.storage = sql');
$session->query(
	$claims =~ s/%scope/sql/gr =~ s/%from/1/r =~ s/%to/$many/r);
is($session->state, '53200', 'the SQL way has not as many locks');
is(count_keys('sql'), 0, 'and leaves nothing');
is((taken())[1], 0, 'not even a lock');
$session->query('RESET idempotency.storage');
is( $session->query(
		$claims =~ s/%scope/sql/gr =~ s/%from/1/r =~ s/%to/$batch/r),
	$batch,
	'then the direct way again');

$session->quit;
$node->stop;

done_testing();
