# Sweeping, and rules that change.
#
# Scenario: a coordinator and two workers, each with keys that are due, live keys
# among them.  F2, F7: idem_sweep(), CALL idem_sweep_all(), the background worker
# and pg_cron of a node remove what is due in its own shards, nothing else, and
# leave what is live and what is locked.  F13: a policy and a limiter that change
# on any node are seen by the next statement of an open session on every node.
# Counters, audit log and buckets are of each node.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib", "$FindBin::RealBin/../../t/lib";

use CitusTest;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);
my $cron = -e "$libdir/pg_cron.so";
my @nodes = new_citus(
	3,
	libraries => $cron ? 'pg_cron' : undef,
	conf => join "\n",
	'idempotency.worker = off',
	$cron ? "cron.database_name = 'postgres'" : '');
my ($coordinator, $one, $two) = @nodes;

add_application($coordinator);
distribute($coordinator);

my ($a) = tenant_on($coordinator, $one);
my ($b) = tenant_on($coordinator, $two);
my $remote = 'SET idempotency.remote_claims = on;';

#
# F13
#
my @open = map { session($_) } @nodes;
my %scope = (0 => $a, 1 => $a, 2 => $b);

$_->query($remote) foreach @open;
foreach my $i (0 .. 2)
{
	my $session = $open[$i];
	my $name = $nodes[$i]->name;
	my @seen;

	foreach my $change (
		q{idem_policy('changing', completed_ttl => '1 day')},
		q{idem_policy('changing', completed_ttl => '2 days')},
		q{idem_policy_drop('changing')},
		q{idem_policy('changing', completed_ttl => '3 days')})
	{
		$session->query("SELECT $change");
		is($session->state, '', "F13: $name: a change");
		push @seen, join ' ', map
		{
			$_->query("BEGIN; SELECT idem_claim('$a', 'sesame', policy => 'changing')");
			my $state = $_->state;
			my $days = $_->query("SELECT extract(day FROM expires_at - finished_at) FROM idem_complete('$a', 'sesame')");
			$_->query('ROLLBACK');
			$state || $days;
		} @open;
	}
	is(join(', ', @seen), '1 1 1, 2 2 2, 42704 42704 42704, 3 3 3',
		"F13: $name: open sessions of all nodes see it with the next statement");
	@seen = ();
	foreach my $capacity (1, 2)
	{
		$session->query("SELECT idem_limiter('changing', $capacity, '1 hour')");
		push @seen, join ' ', map { $_->query("SELECT remaining FROM idem_throttle_peek('changing', 'x', 0)") } @open;
	}
	is(join(', ', @seen), '1 1 1, 2 2 2', "F13: $name: a limiter, too");
	$session->query("BEGIN; SELECT idem_policy('changing', completed_ttl => '9 days'); ROLLBACK");
	is(join(' ', on_all(\@nodes, q{SELECT extract(hour FROM completed_ttl) FROM idem_policy_list WHERE name = 'changing'})),
		join(' ', ('72') x 3), "F13: $name: nothing of what is rolled back");
}

#
# F7, F2
#
sub fill
{
	$coordinator->safe_psql('postgres', qq{$remote
		SELECT idem_policy('short', completed_ttl => '1 s', tombstone => '0');
		SELECT idem_policy('long', completed_ttl => '1 day', tombstone => '0')});
	# hold what is due in half of the pages' places
	foreach my $tenant (tenant_on($coordinator, $one, 2), tenant_on($coordinator, $two, 2))
	{
		$coordinator->safe_psql('postgres', qq{$remote
			SELECT count(*) FROM idem_dedupe('$tenant', ARRAY(SELECT 'sesame-s' || i FROM generate_series(1, 100) i), 'short');
			SELECT count(*) FROM idem_dedupe('$tenant', ARRAY(SELECT 'sesame-l' || i FROM generate_series(1, 100) i), 'long')});
	}
	# they are due now, whatever the clock says
	$coordinator->safe_psql('postgres', q{UPDATE idempotency_keys SET expires_at = created_at, purge_at = created_at
		WHERE policy = 'short'});
	return;
}

# How many keys there are of a policy on each worker
sub left
{
	my ($policy) = @_;

	return join ' ', map
	{
		$_->safe_psql('postgres', qq{SELECT coalesce(sum(result::int), 0) FROM run_command_on_placements('idempotency.idempotency_keys',
			\$\$SELECT count(*) FROM %s WHERE policy = '$policy'\$\$) WHERE nodeport = } . $_->port)
	} $one, $two;
}

fill();
is(left('short') . ', ' . left('long'), '200 200, 200 200', 'keys that are due among others');
is($coordinator->safe_psql('postgres', 'SELECT idem_sweep()'), '0', 'F7: the coordinator has none to sweep');
is($one->safe_psql('postgres', 'SELECT idem_sweep(50)'), '50', 'F7: as many as were asked for');
is($one->safe_psql('postgres', 'SELECT idem_sweep()'), '150', 'F7: a worker sweeps its own');
is(left('short') . ', ' . left('long'), '0 200, 200 200', 'F2: and no other');
$two->safe_psql('postgres', 'CALL idem_sweep_all()');
is(left('short') . ', ' . left('long'), '0 0, 200 200', 'F7: idem_sweep_all()');
is(join(' ', on_all(\@nodes, q{SELECT coalesce(sum(swept), 0) FROM idem_stats})), '0 200 200',
	'idem_stats is of each node');

# what is locked is passed over
fill();
$open[2]->query("BEGIN; SELECT * FROM idempotency_keys WHERE tenant = $b AND key = 'sesame-s1' FOR UPDATE");
is($two->safe_psql('postgres', 'SELECT idem_sweep()'), '199', 'F7: a locked row is left');
$open[2]->query('COMMIT');
is($two->safe_psql('postgres', 'SELECT idem_sweep()'), '1', 'F7: until it is free');
is($two->safe_psql('postgres', 'SET force_parallel_mode = on; SET default_transaction_isolation = serializable; SELECT idem_sweep()'),
	'0', 'F7: SERIALIZABLE');

# pg_cron of each node: each has its job, and the job sweeps
SKIP:
{
	skip 'pg_cron is not installed', 3 if !$cron;
	$coordinator->safe_psql('postgres', 'CREATE EXTENSION IF NOT EXISTS pg_cron');
	fill();
	$_->safe_psql('postgres', q{SET citus.enable_ddl_propagation = off; CREATE EXTENSION IF NOT EXISTS pg_cron})
	  foreach @nodes;
	foreach my $node ($one, $two)
	{
		$node->safe_psql('postgres', q{SELECT idem_schedule('0 0 1 1 *')});
		$node->safe_psql('postgres', $node->safe_psql('postgres',
			q{SELECT command FROM cron.job WHERE jobname = 'idempotency-sweep'}));
	}
	is(left('short') . ', ' . left('long'), '0 0, 200 200', 'F7: the jobs of pg_cron');
	is(join(' ', on_all([ $one, $two ], 'SELECT count(*) FROM cron.job')), '1 1', 'F7: one on each node');
	pass('F1: with pg_cron');
}

# the background worker of each node
fill();
foreach my $node (@nodes)
{
	$node->append_conf('postgresql.conf', "idempotency.worker = on\nidempotency.sweep_interval = 1s");
	$node->reload;
}
poll('the background workers to sweep', sub { left('short') eq '0 0' });
is(left('long'), '200 200', 'F2, F7: the background workers remove what is due only');
ok(!grep({ log_count($_, qr/ERROR:.*(?:sweep|distributed plan)/) } @nodes), 'F7: ... without an error');

# leases that are left, and the lag
$coordinator->safe_psql('postgres', qq{$remote
	SELECT idem_policy('work', recoverable => true, lease => '1 s', completed_ttl => '1 s', tombstone => '0');
	SELECT idem_claim('$a', 'sesame-w', policy => 'work');
	UPDATE idempotency_keys SET expires_at = created_at, purge_at = created_at WHERE key = 'sesame-w';
	UPDATE idempotency_leases SET purge_at = now() - interval '1 day' WHERE key = 'sesame-w'});
poll('the leases to be swept', sub {
	$coordinator->safe_psql('postgres', 'SELECT count(*) FROM idempotency_leases') eq '0' });
pass('F7: and leases');

#
# What is of each node: the audit log and its digest
#
$coordinator->safe_psql('postgres', q{SELECT idem_policy('audited', audit => true)});
$_->query("SELECT idem_claim('$a', 'sesame-' || pg_backend_pid(), policy => 'audited')") foreach @open;
$open[1]->query("SELECT idem_claim('$a', 'sesame-1', policy => 'audited')");
is(join(' ', on_all(\@nodes, q{SELECT count(*) FROM idempotency_audit_log WHERE action = 'claimed'})), '1 2 1',
	'audit rows are on the node of the call');
on_all(\@nodes, q{SELECT idem_secret('audit', decode(repeat('ab', 32), 'hex')); SELECT idem_audit_seal()});
is(join('', on_all(\@nodes, 'SELECT count(*) FROM idem_audit_verify()')), '000', '... and verify clean on each');

$_->quit foreach @open;
no_word_of('sesame', @nodes);
done_testing();
