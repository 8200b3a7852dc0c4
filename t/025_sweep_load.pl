# A million keys are swept, and nobody notices.
#
# Scenario: a million keys expire at once, beside some that live.  While the
# background worker removes them, then while CALL idem_sweep_all() removes
# another lot, and while an idem_sweep() has not committed, clients claim,
# complete, replay, run, dedupe and look up with a lock_timeout of 100 ms: each
# of these succeeds.  Whoever sweeps never has a stronger lock on the table
# than ROW EXCLUSIVE, and never waits for one; nor does the log know of anybody
# who waited for the table.  An index is built and dropped CONCURRENTLY
# meanwhile, and VACUUM and ANALYZE run.
#
# An ALTER TABLE that needs the table for itself has its turn between two
# batches, again and again.  While somebody keeps the table locked against
# writers, workers come and go, and a sweep by hand does nothing; neither waits.
#
# At the end what has expired is gone and counted, what lives is there, and
# each effect was had once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A lock that somebody waits for longer than deadlock_timeout is logged
my $node = new_node('load', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 s'
idempotency.sweep_delay = 0
log_line_prefix = '%m [%p] %b: '
log_lock_waits = on
deadlock_timeout = '10 ms'
max_wal_size = '4 GB'
});
my $sql = ($ENV{STORAGE} || 'auto') eq 'sql';
my $observer = session($node);
my $table = 'idempotency_keys';

$observer->query(q{
CREATE TABLE effects (key text NOT NULL);
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT '{}'::json;
$$;

-- Completed keys; the last is due when the INSERT has begun its second second
CREATE FUNCTION fill(scope text, number integer, retention interval)
RETURNS void LANGUAGE sql AS $$
	INSERT INTO idempotency_keys (scope, key, state, attempt, token, claim_xid,
		created_at, finished_at, lease_until, expires_at, purge_at, status_code,
		policy, claimed_by)
	SELECT scope, g::text, 'c', 1, g, pg_current_xact_id(),
		at, at, at, at + retention, at + retention, 200, 'default', 'app'
	FROM generate_series(1, number) g,
		LATERAL (SELECT now() + g * interval '1 us') AS a (at)
$$});

sub left
{
	my ($scope) = @_;

	return $observer->query(
		"SELECT count(*) FROM $table WHERE scope = '$scope'");
}

sub swept
{
	return $observer->query(q{SELECT coalesce(sum(swept), 0) FROM idem_stats
		WHERE datname = 'postgres' AND policy = 'default'});
}

sub set
{
	$node->append_conf('postgresql.conf', join("\n", @_) . "\n");
	$node->reload;
	return;
}

#
# The clients.  Each round is new work and repeats of it, of each kind.
#

my $rounds = 0;
my @errors;
my @clients = map { session($node) } 1 .. 3;

sub patience
{
	my ($time) = @_;

	$_->query("SET lock_timeout = '$time'") foreach @clients;
	return;
}

sub work
{
	my ($key) = @_;

	return qq{
BEGIN;
SELECT outcome FROM idem_claim('load', '$key');
INSERT INTO effects VALUES ('$key');
SELECT (idem_complete('load', '$key', '"done"'::json)).outcome IS NOT NULL;
COMMIT;
SELECT outcome, idem_json(r) FROM idem_claim('load', '$key') r;
SELECT outcome FROM idem_run('buy(jsonb)', 'run', '$key', '{"key": "run $key"}');
SELECT outcome FROM idem_run('buy(jsonb)', 'run', '$key', '{"key": "run $key"}');
SELECT string_agg(first::text, ' ') FROM idem_dedupe('inbox', '{$key,old}');
SELECT outcome FROM idem_lookup('load', '$key');
SELECT outcome FROM idem_claim('live', '7');
SELECT outcome FROM idem_claim('committed', '$key', lease => '1 h');
SELECT (idem_complete('committed', '$key', token => token)).outcome IS NOT NULL
	FROM $table WHERE scope = 'committed' AND key = '$key'};
}
my $worked = join "\n", 'claimed', 't', 'replayed|"done"', 'completed',
  'replayed', 'true false', 'completed', 'replayed', 'claimed', 't';

# All clients at once; the observer looks at whoever sweeps meanwhile.
sub work_round
{
	my ($observe) = @_;
	my $n = 0;

	$rounds++;
	$_->send(work($n++ . "-$rounds")) foreach @clients;
	$observe->() if $observe;
	foreach (@clients)
	{
		my $out = $_->receive;
		push @errors, "$out " . $_->state if $out ne $worked || $_->state ne '';
		$_->query('ROLLBACK') if $_->state ne '';
	}
	return;
}

#
# The locks of whoever sweeps.
#

my %modes;
my $waits = 0;

sub look_at
{
	my ($who) = @_;

	foreach (1 .. 10)
	{
		my $locks = $observer->query(
			qq{SELECT CASE locktype WHEN 'relation' THEN relation::regclass::text
				ELSE locktype END, mode, granted
			FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE $who});
		foreach (split /\n/, $locks)
		{
			my ($what, $mode, $granted) = split /\|/;

			$modes{$mode}++ if $what eq $table;
			$waits++ if $granted eq 'f';
		}
	}
	return;
}

my $log_start = -s $node->logfile;

# What the log says, since it was last asked.
sub log_lines
{
	my ($pattern) = @_;
	my $log = substr(slurp_file($node->logfile), $log_start);

	return join "\n", grep { /$pattern/ } split /\n/, $log;
}

# Of a sweep that has been going on during all the rounds since $first.
sub check_sweep
{
	my ($name, $first) = @_;

	note("$name: ", $rounds - $first, ' rounds; ',
		join ', ', map { "$_ $modes{$_}" } sort keys %modes);
	cmp_ok($rounds - $first, '>', 0, "$name: clients have worked");
	is(join("\n", @errors), '', "$name: none of them has seen an error");
	ok($modes{RowExclusiveLock}, "$name: the sweep was seen");
	is( join(' ', grep { !/^(?:AccessShare|RowShare|RowExclusive)Lock$/ }
			  sort keys %modes),
		'',
		"$name: no stronger lock on the table");
	is($waits, 0, "$name: and it waits for none");
	is(log_lines(qr/still waiting for \w+ on relation/),
		'', "$name: nobody has waited for the table");
	(%modes, @errors) = ();
	$waits = 0;
	return;
}

my $worker = q{backend_type = 'idempotency sweep'};

sub fill
{
	my ($scope, $number) = @_;

	$observer->query(qq{SELECT fill('$scope', $number, '0')});
	die $observer->{last_error} if $observer->state ne '';
	return;
}

$observer->query(qq{SELECT fill('live', 1000, '1 day');
	SELECT count(*) FROM idem_dedupe('inbox', '{old}')});
patience('100 ms');
work_round();

#
# The worker.
#

fill('million', 1000000);
my $maintenance = session($node);
my $first = $rounds;

# A VACUUM that truncates would lock the table itself
$maintenance->send("
CREATE INDEX CONCURRENTLY extra ON $table (policy);
VACUUM (TRUNCATE false) $table;
ANALYZE $table;
DROP INDEX CONCURRENTLY extra");
poll('the million to be swept', sub {
	work_round(sub { look_at($worker) });
	return swept() >= 1000000; });
$maintenance->receive;
is($maintenance->state, '', 'an index comes and goes, VACUUM and ANALYZE run');
check_sweep('the worker', $first);
poll('the last batch to be committed', sub { left('million') == 0 });
is(swept(), 1000000, 'the worker: a million keys are gone and counted');
is(left('live'), 1000, 'the worker: those that live are there');

#
# CALL idem_sweep_all().
#

my $sweeper = session($node);
my $pid = $sweeper->pid;

set('idempotency.worker = off');
fill('all', 100000);
$sweeper->query('SET idempotency.sweep_batch = 2000');
$first = $rounds;
$sweeper->send('CALL idem_sweep_all()');
poll('the lot to be swept', sub {
	work_round(sub { look_at("pid = $pid") });
	return swept() >= 1100000; });
$sweeper->receive;
is($sweeper->state, '', 'idem_sweep_all');
check_sweep('idem_sweep_all', $first);
is(swept() . ' ' . left('all'), '1100000 0', 'idem_sweep_all: all are gone');

#
# idem_sweep() in a transaction that stays open.
#

fill('open', 10000);
$sweeper->query('BEGIN');
is($sweeper->query('SELECT idem_sweep(6000)'), 6000, 'idem_sweep removes what it is told to');
set('idempotency.worker = on');
$first = $rounds;
poll('the worker to remove the others', sub {
	work_round(sub { look_at("pid = $pid OR $worker") });
	return swept() == 1110000; });
poll('the last batch to be committed', sub { left('open') < 10000 });
is(left('open'), 6000, 'idem_sweep: it has not committed');
if (!$sql)
{
	# documented for the SQL way: it can wait for the row, as for an idem_dedupe
	like($clients[0]->query(q{BEGIN; SELECT outcome FROM idem_claim('open', '1');
		ROLLBACK}), qr/^in_progress$/, 'idem_sweep: a claim of such a key does not wait');
}
check_sweep('idem_sweep', $first);
$sweeper->query('COMMIT');
is(left('open'), 0, 'idem_sweep: now it has');

#
# Who needs the table for himself.
#

patience('10 s');
$maintenance->query(q{SET lock_timeout = '10 s'});
set('idempotency.sweep_batch = 1000');
foreach my $time (1 .. 2)
{
	my ($state, $left) = ('', 0);

	# on a busy machine all may be gone before the statement is there: then again
	for (my $try = 0; $state eq '' && $left == 0 && $try < 20; $try++)
	{
		fill('alter', 100000);
		poll('the worker', sub { $observer->query(
			"SELECT count(*) FROM pg_stat_activity WHERE $worker") > 0 });
		$maintenance->send("ALTER TABLE $table ALTER body SET STORAGE EXTENDED");
		work_round(sub { look_at($worker) });
		$maintenance->receive;
		$state = $maintenance->state;
		$left = left('alter');
		poll('the rest to be swept', sub { left('alter') == 0 });
	}
	is($state, '', "ALTER TABLE has its turn, time $time");
	cmp_ok($left, '>', 0, 'while a worker is at it');
}
is(join("\n", @errors), '', 'and so have the clients');
is($waits, 0, 'the worker does not wait behind it');

# Somebody who keeps it, as a CREATE INDEX does; it can still be read.
set('idempotency.worker = off');
poll('the last worker', sub { $observer->query(
	"SELECT count(*) FROM pg_stat_activity WHERE $worker") == 0 });
fill('kept', 1000);
$maintenance->query("BEGIN; LOCK TABLE $table IN SHARE MODE");
set('idempotency.worker = on');
my %runs;
poll('workers to come and go', sub {
	look_at($worker);
	$runs{ $observer->query('SELECT last_run FROM idem_sweep_status') } = 1;
	return keys %runs > 2; });
is($waits, 0, 'workers come and go while the table is locked, and do not wait');
is(left('kept'), 1000, 'nor do they remove anything');
$sweeper->query(q{SET lock_timeout = '100 ms'});
is($sweeper->query('SELECT idem_sweep()') . $sweeper->state, '0',
	'nor does idem_sweep(), which does nothing');
$sweeper->query('CALL idem_sweep_all()');
is($sweeper->state, '', 'nor idem_sweep_all()');
like($sweeper->{last_error}, qr/WARNING:  55P03/, 'which says so');
$maintenance->query('COMMIT');
poll('those to be swept', sub { left('kept') == 0 });
pass('swept when the table is free');

#
# At the end.
#

work_round();
my $done = $rounds * @clients;
is(join("\n", @errors), '', 'and the clients go on');
is( $observer->query(
		"SELECT scope, count(*), count(DISTINCT key) FROM $table
		WHERE state = 'c' GROUP BY scope ORDER BY scope"),
	join("\n",
		"committed|$done|$done", 'inbox|' . ($done + 1) . '|' . ($done + 1),
		'live|1000|1000', "load|$done|$done", "run|$done|$done"),
	'what lives is there, and nothing else');
is( $observer->query('SELECT count(*), count(DISTINCT key) FROM effects'),
	2 * $done . '|' . 2 * $done,
	'each effect was had once');
is(log_lines(qr/idempotency (?:sweep|launcher): /), '', 'the worker has nothing to say');
is(log_lines(qr/ERROR|FATAL|PANIC|WARNING(?!:  expired keys may be left)/), '',
	'nor has anybody else');

$_->quit foreach @clients, $observer, $sweeper, $maintenance;
$node->stop;
done_testing();
