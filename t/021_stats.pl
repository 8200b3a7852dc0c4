# What is counted, and what becomes of it.
#
# Scenario: without preload everything is null.  With it, each outcome is
# counted for the policy of the row, whether its transaction commits or not;
# counters live through a clean restart, and begin anew after a crash, after
# idem_stats_reset() (this database only), and with a database that is gone
# and one that takes its name.  A file that was damaged is ignored.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('stats');
my @counters = qw(claimed replayed in_progress mismatch duplicate expired
  completed failed taken_over lost swept throttled waits refusals_dropped);

sub value
{
	my ($sql, $database) = @_;

	return $node->safe_psql($database // 'postgres', $sql);
}

# Counters that are not zero, of all policies
sub counted
{
	my ($database) = @_;
	my $pairs = join ', ', map { "'$_', sum($_)" } @counters;

	return value(qq{SELECT string_agg(key || ' ' || value, ', ' ORDER BY key)
		FROM json_each_text((SELECT json_build_object($pairs) FROM idem_stats
			WHERE datname = current_database())) WHERE value <> '0'}, $database);
}

is(value(q{SELECT count(*) FROM idem_stats WHERE datname = current_database()
	AND num_nulls(policy, claimed, swept, wait_ms, stats_reset) = 5}), '1',
	'without preload: one row, of nulls');
is(value('SELECT last_run IS NULL, last_rows IS NULL, lag FROM idem_sweep_status'),
	't|t|00:00:00', 'and nothing known of sweeps but the lag');
is(value('SELECT idem_stats_reset()'), '', 'a reset does nothing');

$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'idempotency'\nidempotency.worker = off\n");
$node->restart;

is(counted(), '', 'with preload: nothing yet');
$node->safe_psql('postgres', q{
CREATE FUNCTION f(request jsonb) RETURNS json LANGUAGE sql AS $$ SELECT '{}'::json $$;
SELECT idem_policy('refuse', on_expiry => 'reject', tombstone => '1 d', completed_ttl => '1 us', failed_ttl => '1 us');
SELECT idem_policy('once', on_repeat => 'reject');
SELECT idem_run('f(jsonb)', 's', 'run', '{"a": 1}');
SELECT idem_run('f(jsonb)', 's', 'run', '{"a": 1}');
SELECT idem_run('f(jsonb)', 's', 'run', '{"a": 2}');
SELECT idem_run('f(jsonb)', 's', 'old', policy => 'refuse');
SELECT idem_claim('s', 'old', policy => 'refuse');
SELECT idem_claim('s', 'lease', lease => '1 us');
SELECT idem_claim('s', 'lease', lease => '1 h');
SELECT idem_claim('s', 'lease', wait => '1 s');
SELECT * FROM idem_dedupe('s', '{a,b,a}');
SELECT idem_run('f(jsonb)', 's', 'once', policy => 'once');
SELECT idem_run('f(jsonb)', 's', 'once', policy => 'once');
BEGIN;
SELECT idem_claim('s', 'undone');
ROLLBACK;
});
is(sqlstate($node, q{SELECT idem_complete('s', 'lease', token => 1)}), 'ID002',
	'a claim that is lost');
$node->safe_psql('postgres', q{
UPDATE idempotency_keys SET purge_at = now() WHERE scope = 's' AND key = 'a';
SELECT idem_sweep()});
my $all = 'claimed 8, completed 5, duplicate 2, expired 1, in_progress 1,'
  . ' lost 1, mismatch 1, replayed 1, swept 1, taken_over 1, waits 1';
is(counted(), $all, 'each outcome is counted');
is(value(q{SELECT wait_ms >= 1 FROM idem_stats WHERE policy = 'default' AND datname = current_database()}),
	't', 'and the time of waiting');
is(value(q{SELECT claimed, duplicate FROM idem_stats WHERE policy = 'once'}), '1|1',
	'by policy');
is(value(q{SELECT last_rows, lag FROM idem_sweep_status}), '1|00:00:00',
	'a sweep by hand is told of, too');
is(value(q{SELECT count(*), min(attempt), bool_and(lease_left > '0' AND age > '0')
	FROM idem_activity WHERE key_id = idem_log_id('lease')}), '1|2|t',
	'idem_activity shows the claim in progress');

$node->safe_psql('postgres', 'CREATE DATABASE other');
install($node, 'other');
$node->safe_psql('other', q{SELECT idem_claim('s', 'a')});

my $reset = value('SELECT min(stats_reset) FROM idem_stats');
$node->restart;
is(counted(), $all, 'kept over a clean restart');
is(counted('other'), 'claimed 1', 'in each database');
is(value('SELECT min(stats_reset) FROM idem_stats'), $reset, 'with stats_reset');
is(value(q{SELECT last_rows FROM idem_sweep_status}), '1', 'and the last sweep');
ok(!-e $node->data_dir . '/pg_stat/idempotency.stat', 'the file is good for one start');

$node->safe_psql('postgres', 'SELECT idem_stats_reset()');
is(counted(), '', 'a reset');
is(counted('other'), 'claimed 1', 'is of this database only');
is(value(qq{SELECT bool_and(stats_reset > '$reset') FROM idem_stats WHERE datname = current_database()}),
	't', 'and sets stats_reset');

crash($node);
restart_after_crash($node);
is(counted('other'), '', 'nothing is kept over a crash');

$node->safe_psql('other', q{SELECT idem_claim('s', 'b')});
$node->stop;
my $file = $node->data_dir . '/pg_stat/idempotency.stat';
ok(-s $file, 'a clean shutdown writes the file');
open my $handle, '+<', $file or die "$file: $!";
binmode $handle;
seek $handle, 60, 0;
print $handle 'x' x 8;
close $handle;
$node->start;
is(counted('other'), '', 'a damaged file is ignored');
like(slurp_file($node->logfile), qr/ignoring invalid data in file/, 'and said to be');

# Who may see it
$node->safe_psql('postgres', q{
CREATE ROLE watcher LOGIN;
CREATE ROLE nobody_special LOGIN;
SELECT idem_grant('watcher', 'operator')});
foreach my $view (qw(idem_stats idem_activity idem_sweep_status))
{
	is(sqlstate($node, "SELECT * FROM $view", user => 'watcher'), '',
		"an operator sees $view");
	is(sqlstate($node, "SELECT * FROM $view", user => 'nobody_special'), '42501',
		"others do not see $view");
}

$node->stop;
done_testing();
