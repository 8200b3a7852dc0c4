# Sweeping behind a snapshot that does not go away.
#
# Scenario: a session has a REPEATABLE READ transaction open, with a snapshot
# and a transaction id, so that VACUUM can remove nothing that has been deleted
# since.  Keys expire wave after wave: the worker removes each of them, is not
# late, and has no error, though all that it has removed before is still in the
# index.  When the transaction has ended, VACUUM removes it all, the table is
# smaller, and new waves are no larger than the first.
#
# A prepared transaction does the same over a crash, after which the worker
# begins at the beginning: it comes past what is dead, and removes a row that
# was locked when it was there last.
#
# Where nothing is due, sweeping takes no transaction id.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = 20000;    # in a wave
my $node = new_node('snapshot', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 s'
max_prepared_transactions = 5
});
my $session = session($node);
my @relations = ('idempotency_keys', 'idempotency_keys_pkey',
	'idempotency_keys_purge_at');

$session->query(q{SELECT idem_policy('short', completed_ttl => '1 ms');
	SELECT idem_claim('live', i::text) FROM generate_series(1, 100) i});
$node->reload;    # the launcher looks at once who is there

sub value
{
	my ($sql) = @_;
	my $out = $session->query($sql);

	die $session->{last_error} if $session->state ne '';
	return $out;
}

sub size
{
	my ($relation) = @_;

	return value("SELECT pg_relation_size('$relation')");
}

# What this session has deleted must not be counted after the VACUUM
sub vacuum
{
	value('SELECT pg_stat_force_next_flush()');
	value('VACUUM idempotency_keys');
	return;
}

sub dead
{
	return value(q{SELECT n_dead_tup FROM pg_stat_user_tables
		WHERE relname = 'idempotency_keys'});
}

sub left
{
	my ($scope) = @_;

	return value(
		"SELECT count(*) FROM idempotency_keys WHERE scope = '$scope'");
}

sub runs
{
	return value('SELECT last_run FROM idem_sweep_status');
}

# A wave comes and goes.  The worker is late when it has passed one by.
sub wave
{
	my ($name) = @_;
	my $before = runs();

	value(qq{SELECT count(*) FROM idem_dedupe('$name', ARRAY(
		SELECT i::text FROM generate_series(1, $keys) i), 'short')});
	poll("wave $name to be swept", sub { left($name) == 0 });
	poll('the worker to have ended', sub { runs() ne $before });
	is( value(q{SELECT lag < '10 s', last_error IS NULL FROM idem_sweep_status}),
		't|t',
		"$name: swept, with no lag and no error");
	return;
}

#
# An idle transaction.
#

my $holder = session($node);
$holder->query(q{BEGIN ISOLATION LEVEL REPEATABLE READ;
	SELECT count(*) FROM idempotency_keys; SELECT pg_current_xact_id()});
wave("held $_") foreach 1 .. 3;
vacuum();
cmp_ok(dead(), '>=', 3 * $keys, 'VACUUM can remove nothing of it');
is($holder->query('SELECT count(*) FROM idempotency_keys'), '100', 'the snapshot is as old as it was');
my $held = size('idempotency_keys');

$holder->query('COMMIT');
wave('after');
vacuum();
poll('dead rows to be gone', sub { dead() == 0 });
cmp_ok(size('idempotency_keys'), '<', $held / 2, 'VACUUM gives the space back');

# A page of an index is used again when a later VACUUM has found it empty
sub sizes
{
	my ($name) = @_;

	wave($name);
	vacuum();
	my @sizes = map { size($_) } @relations;
	note("$name: @sizes");
	return @sizes;
}
my @first = sizes('later 1');
my @last = sizes('later 2');
cmp_ok($last[$_], '<=', $first[$_], "$relations[$_] does not grow again")
  foreach 0 .. $#relations;

#
# Nothing to do.
#

my $next = 'SELECT pg_snapshot_xmax(pg_current_snapshot())';
my $xid = value($next);
my %seen;
poll('idle sweeps', sub { $seen{ runs() } = 1; return keys %seen > 2 });
is(value($next), $xid, 'a sweep that finds nothing takes no transaction id');

#
# A prepared transaction, a locked row, and a crash.
#

sub set
{
	$node->append_conf('postgresql.conf', "$_[0]\n");
	$node->reload;
	return;
}

$session->query(q{BEGIN; SELECT pg_current_xact_id();
	SELECT count(*) FROM idem_dedupe('prepared', '{a}', 'short');
	PREPARE TRANSACTION 'p'});
wave('prepared');
set('idempotency.worker = off');
poll('the last worker', sub { value(q{SELECT count(*) FROM pg_stat_activity
	WHERE backend_type = 'idempotency sweep'}) == 0 });
value(q{SELECT count(*) FROM idem_dedupe('locked', '{a}', 'short')});
is($holder->query(q{BEGIN; SELECT count(*) FROM (SELECT FROM idempotency_keys
	WHERE scope = 'locked' FOR UPDATE) AS rows}), '1', 'a row is locked');
set('idempotency.worker = on');
wave('beside');
is(left('locked'), 1, 'it is passed over');
$_->quit foreach $session, $holder;
crash($node);
restart_after_crash($node);
$session = session($node);
poll('the locked row to be swept', sub { left('locked') == 0 });
pass('it is removed when the worker begins at the beginning');
wave('after a crash');
vacuum();
cmp_ok(dead(), '>=', 3 * $keys, 'what it has come past is still there');
value(q{COMMIT PREPARED 'p'});
# its row was due before others that are gone by now
poll('a row that was committed late to be swept', sub { left('prepared') == 0 });
pass('it is removed, too');
wave('at the end');
vacuum();
poll('dead rows to be gone again', sub { dead() == 0 });
is(value(q{SELECT scope, count(*) FROM idempotency_keys GROUP BY scope}), 'live|100',
	'what lives is there');

unlike(slurp_file($node->logfile), qr/ERROR|PANIC|cannot be swept/, 'and no error in the log');
$session->quit;
$node->stop;
done_testing();
