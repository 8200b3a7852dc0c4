# A key table in partitions, and one with children.
#
# Scenario: keys, some live and some past their time, are in four hash
# partitions, or in children of the table, so that many places in one are places
# in another, too.  Every sweep (a batch, all, the worker's) removes what is due
# and nothing else: what is live is replayed afterwards.  Rows that somebody has
# locked are passed over, however many they are, and a partition that is locked
# against writers is not waited for.
#
# Then a rival inserts the key while a handler runs, in the partition that it
# belongs to: 40001, and nothing of the key in message or log.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $n = 2000;
my $node = new_node('partitions', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 s'
idempotency.worker = off
log_error_verbosity = verbose
log_min_error_statement = panic
});
my $table = 'idempotency_keys';

# Four live keys of every five places are of one half, due ones of the other
my $fill = qq{
SELECT idem_policy('short', completed_ttl => '1 us');
DELETE FROM $table;
SELECT count(*) FROM (
	SELECT count(*) FROM generate_series(1, $n) i,
		idem_run('answer(jsonb)', 'shop', 'live' || i) UNION ALL
	SELECT count(*) FROM generate_series(1, $n) i,
		idem_run('answer(jsonb)', 'shop', 'due' || i, policy => 'short')) r};
my $mix = qq{
CREATE TEMP TABLE all_keys AS SELECT * FROM $table;
TRUNCATE $table;
INSERT INTO $table SELECT * FROM all_keys ORDER BY md5(key)};

$node->safe_psql('postgres',
	q{CREATE FUNCTION answer(request jsonb) RETURNS json LANGUAGE sql AS
	$$SELECT '"done"'::json$$;
	CREATE FUNCTION slow(request jsonb) RETURNS json LANGUAGE sql AS
	$$SELECT pg_advisory_xact_lock(1); SELECT '"done"'::json$$;
	CREATE TABLE held (n integer)});

sub value
{
	my ($sql, $database) = @_;

	return $node->safe_psql($database // 'postgres', $sql);
}

# That all that is due is gone, and all that is live is replayed
sub check_swept
{
	my ($name) = @_;

	is(value(qq{SELECT count(*) FROM $table WHERE key LIKE 'due%'}),
		0, "$name: what was due is gone");
	is( value(qq{SELECT outcome, count(*) FROM generate_series(1, $n) i,
			idem_claim('shop', 'live' || i) GROUP BY 1}),
		"replayed|$n",
		"$name: what is live is replayed");
	return;
}

sub check_sweeps
{
	my ($name, $more) = @_;

	value("$fill; $mix; $more");
	is(value('SELECT idem_sweep()'), $n, "$name: one batch removes what is due");
	check_swept("$name, one batch");

	value("$fill; $mix; $more");
	is(value("SET idempotency.sweep_batch = 100;
			CALL idem_sweep_all(); SELECT count(*) FROM $table"),
		$n, "$name: all batches remove what is due");
	check_swept("$name, all batches");

	value("$fill; $mix; $more");
	# the restart leaves none at work that would come back for what is due next
	value(q{ALTER SYSTEM SET idempotency.worker = on;
		SELECT pg_reload_conf()});
	poll('the worker sweeps',
		sub { value("SELECT count(*) FROM $table") <= $n });
	value('ALTER SYSTEM SET idempotency.worker = off');
	$node->restart;
	check_swept("$name, the worker");
	return;
}

# Rows that are locked, more of them than a batch has
sub check_locked
{
	my ($name) = @_;
	my $session = session($node);

	value($fill);
	$session->query(
		"BEGIN; SELECT FROM $table WHERE key LIKE 'due%' AND key <> 'due77' FOR UPDATE");
	is(value("SET lock_timeout = '2 s'; SELECT idem_sweep(10)"),
		1, "$name: locked rows are passed over");
	$session->query('ROLLBACK');
	is(value('SELECT idem_sweep()'), $n - 1, "$name: and are taken later");
	$session->quit;
	return;
}

partition_keys($node, 4);
is(value("SELECT relkind FROM pg_class WHERE relname = '$table'"),
	'p', 'the table is partitioned');
like(value("SET idempotency.storage = auto;
		SELECT detail FROM idem_health() WHERE check_name = 'storage'"),
	qr/^sql: .*partitioned/, 'the way is SQL');
check_sweeps('four partitions', '');
check_locked('four partitions');

{
	my $session = session($node);

	value($fill);
	$session->query("BEGIN; LOCK TABLE ${table}_2 IN SHARE MODE");
	is( value("SET lock_timeout = '2 s'; SELECT idem_sweep()"),
		0, 'a partition that is locked against writers is not waited for');
	$session->query('ROLLBACK');
	is(value('SELECT idem_sweep()'), $n, 'and then all is swept');
	$session->quit;
}

# A rival without a key lock
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $end ('COMMIT', 'ROLLBACK')
	{
		my $run = session($node, params => [ '-v', 'VERBOSITY=verbose' ]);
		my $rival = session($node);
		my $key = "CANARY $level $end";
		my $log = -s $node->logfile;

		$rival->query('BEGIN; SELECT pg_advisory_xact_lock(1)');
		$run->send("BEGIN ISOLATION LEVEL $level;
			SELECT outcome FROM idem_run('slow(jsonb)', 'CANARY', '$key')");
		poll('the handler waits', sub {
				$rival->query(q{SELECT count(*) FROM pg_locks
					WHERE NOT granted AND locktype = 'advisory'}) });
		$rival->query("SELECT first FROM idem_dedupe('CANARY', '{$key}'); $end");
		my $out = $run->receive;
		is( $run->state || $out,
			$end eq 'COMMIT' ? '40001' : 'completed',
			"$level: the rival inserts while the handler runs: $end");
		unlike($run->{last_error}, qr/CANARY/, "$level, $end: no key in the message");
		unlike(slurp_file($node->logfile, $log),
			qr/CANARY/, "$level, $end: nor in the log");
		$run->query('COMMIT');
		is(value("SELECT outcome FROM idem_claim('CANARY', '$key')"),
			'replayed', "$level, $end: then a replay");
		$_->quit for $run, $rival;
	}
}

# Children by inheritance: rows have been moved there
value('DROP EXTENSION idempotency CASCADE; CREATE EXTENSION idempotency');
value("CREATE TABLE child_1 () INHERITS ($table);
	CREATE TABLE child_2 (LIKE $table INCLUDING INDEXES) INHERITS ($table)");
my $move = join ';', map {
	"WITH moved AS (DELETE FROM ONLY $table WHERE hashtext(key) % 3 = $_ RETURNING *)
	INSERT INTO child_$_ SELECT * FROM moved" } 1, 2;
like(value("SET idempotency.storage = auto;
		SELECT detail FROM idem_health() WHERE check_name = 'storage'"),
	qr/^sql: .*inheritance/, 'with children the way is SQL');
check_sweeps('children', $move);
cmp_ok(value('SELECT count(*) FROM child_1'), '>', 100, 'and keys are in them');
check_locked('children');

$node->stop;
done_testing();
