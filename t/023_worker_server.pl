# The background worker and the state of the server.
#
# Scenario: on a standby no launcher runs, and nothing is removed; after its
# promotion it is there by itself and removes what has expired.  Where all
# slots for background workers are in use the launcher says so once, tries
# again, says once that there is one again, and sweeps.  A batch that somebody
# cancels has failed, and was not too long.  A worker that is
# killed makes the server restart its processes, as any process of its does
# when it is killed, once: the launcher is among them, and goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 s'
};
my $expire = q{
SELECT idem_policy('short', completed_ttl => '1 ms');
SELECT count(*) FROM idem_dedupe('s', ARRAY(
	SELECT i::text FROM generate_series(1, 100) i), 'short')};
my $left = 'SELECT count(*) FROM idempotency_keys';
my $processes = q{SELECT count(*) FROM pg_stat_activity
	WHERE backend_type LIKE 'idempotency%'};

sub gone
{
	my ($node) = @_;

	return poll('keys to be swept', sub { $node->safe_psql('postgres', $left) == 0 });
}

sub switch_worker
{
	my ($node, $setting) = @_;

	$node->append_conf('postgresql.conf', "idempotency.worker = $setting\n");
	$node->reload;
	return;
}

#
# A standby.
#

my $primary = new_node('primary', streaming => 1,
	conf => $conf . "idempotency.worker = off\n");
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->append_conf('postgresql.conf', "idempotency.worker = on\n");
$standby->start;
$primary->safe_psql('postgres', $expire);
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

is($primary->safe_psql('postgres', $processes), '1', 'the launcher runs on a primary');
is($standby->safe_psql('postgres', $processes), '0', 'and not on a standby');
is($standby->safe_psql('postgres', q{SELECT detail FROM idem_health() WHERE check_name = 'worker'}),
	'this is a standby; no key is long due', 'as idem_health says there');
is($standby->safe_psql('postgres', $left), '100', 'nothing is removed');
$primary->stop('immediate');
$standby->promote;
gone($standby);
pass('it runs after a promotion');
$standby->stop;

#
# Slots.
#

# One for the launcher, one for that of logical replication, one to fight for
my $node = new_node('slots', conf => $conf . "max_worker_processes = 3\n"
	  . "max_parallel_workers_per_gather = 1\nrestart_after_crash = on\n");
$node->safe_psql('postgres', $expire);
gone($node);

my $holder = session($node);
$holder->query(q{CREATE TABLE big AS SELECT i FROM generate_series(1, 100000) i;
	ALTER TABLE big SET (parallel_workers = 1);
	SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
	SET min_parallel_table_scan_size = 0});
my $pid = $holder->pid;

# Where processes start slowly one sweep follows the other, and has the slot
switch_worker($node, 'off');
poll('the last slot to be taken', sub {
	$holder->send('SELECT count(pg_sleep(0.1)) FROM big');
	# a cancel that comes before the query is lost
	poll('the query', sub { $node->safe_psql('postgres',
		qq{SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND state = 'active'}) == 1 });
	return 1 if poll_short(sub { $node->safe_psql('postgres',
		qq{SELECT count(*) FROM pg_stat_activity WHERE leader_pid = $pid}) == 1 });
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	$holder->receive;
	return 0; });
switch_worker($node, 'on');

# The last sweep may have its slot while the query starts: then it goes without.
sub poll_short
{
	my ($condition) = @_;

	for (1 .. 20)
	{
		return 1 if $condition->();
		select(undef, undef, undef, 0.05);
	}
	return 0;
}

poll('the complaint', sub { log_count($node, qr/no free slot/) > 0 });
$node->safe_psql('postgres', $expire);
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
$holder->receive;
gone($node);
is(log_count($node, qr/no free slot/), 1, 'no slot is said once');
is(log_count($node, qr/is free again/), 1, 'and once that there is one');

#
# Cancelled.
#

$node->safe_psql('postgres', q{
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_sleep(0.3);
	RETURN NEW;
END
$$;
CREATE TRIGGER zzz BEFORE INSERT ON idempotency_audit_log FOR EACH ROW
	WHEN (NEW.detail ? 'count') EXECUTE FUNCTION slow();
SELECT idem_policy('audited', audit => true);
SELECT idem_claim('s', 'audited', '1', policy => 'audited')});
# A refusal may be written between two looks, and a cancel come too late: then
# there is another one.
my $refusals = 0;
poll('a worker to be cancelled', sub {
	$node->safe_psql('postgres', q{SELECT idem_claim('s', 'audited', '2')});
	$refusals++;
	$node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity
		WHERE backend_type = 'idempotency sweep' AND wait_event = 'PgSleep'});
	return log_count($node,
		qr/refusals of database "postgres" cannot be written.*: canceling statement due to user request/) > 0 });
$node->safe_psql('postgres', 'DROP TRIGGER zzz ON idempotency_audit_log');
poll('the refusals', sub { $node->safe_psql('postgres',
	q{SELECT sum((detail->>'count')::bigint) FROM idempotency_audit_log WHERE action = 'mismatch'})
	  eq $refusals });
$node->safe_psql('postgres', q{DELETE FROM idempotency_keys WHERE key = 'audited'});
is(log_count($node, qr/takes too long/), 0, 'a cancel is not read as a batch that took too long');

#
# Killed.
#

$node->append_conf('postgresql.conf', "idempotency.sweep_batch = 1\n");
$node->reload;
$node->safe_psql('postgres', $expire =~ s/100/1000/r);
# A worker may end by itself before it is killed.  Once the server has seen that
# one is gone it takes connections only after it has told how.
poll('a worker to kill', sub {
	my $worker = $node->safe_psql('postgres',
		q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotency sweep'});

	return 0 if $worker eq '' || !kill('KILL', $worker);
	poll('its end', sub { !kill(0, $worker) });
	is_up($node);
	return log_count($node, qr/was terminated by signal 9/) > 0 });
poll('the server', sub {
	is_up($node)
	  && log_count($node, qr/all server processes terminated; reinitializing/) > 0 });
gone($node);
is(log_count($node, qr/all server processes terminated; reinitializing/), 1,
	'a worker that was killed costs one restart, and the sweep goes on');

$node->stop;
done_testing();
