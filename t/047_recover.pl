# Claims that were abandoned, completed by workers.
#
# Scenario: eight workers share out some thousand claims whose holder is gone,
# a few at a time, and some of them roll back.  Then one claim is abandoned
# among ten thousand stored keys, and among a million.
#
# No claim goes to two.  Finding one touches as many pages whatever is stored,
# but for a level of an index.  A policy that is not recoverable does not touch
# the list.  The list survives a crash, and dump and restore.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $abandoned = 3000;
my $node = new_node('recover');

$node->safe_psql('postgres', q{
SELECT idem_policy('work', recoverable => true, failed_ttl => '0'), idem_policy('plain');
CREATE TABLE taken (key text PRIMARY KEY, attempt integer, token bigint)});

#
# Eight workers
#
$node->safe_psql('postgres', qq{
SELECT count(idem_claim('s', i::text, policy => 'work', lease => '1 ms'))
FROM generate_series(1, $abandoned) i});
$node->pgbench(
	"-n -c 8 -j 2 -t 400",
	0,
	[qr{processed: 3200/3200}],
	[qr{^$}],
	'eight workers, no error',
	{   '047_worker' => q{
\set some random(1, 5)
\set fate random(1, 10)
BEGIN;
WITH r AS MATERIALIZED (SELECT * FROM idem_recover('work', :some, '1 hour'))
INSERT INTO taken SELECT key, attempt, token FROM r;
\if :fate = 1
ROLLBACK;
\else
COMMIT;
\endif
} });
is($node->safe_psql('postgres', q{
SELECT count(*), count(*) FILTER (WHERE t.attempt = 2 AND k.attempt = 2 AND t.token = k.token)
FROM taken t JOIN idempotency_keys k ON k.scope = 's' AND k.key = t.key}),
	"$abandoned|$abandoned", 'each claim to one worker, once');
is($node->safe_psql('postgres', q{SELECT count(*) FROM idem_recover('work', 10)}),
	0, 'and none is left');

#
# What it costs
#
$node->safe_psql('postgres', q{DELETE FROM idempotency_keys; DELETE FROM idempotency_leases});

sub store
{
	my ($from, $to) = @_;

	$node->safe_psql('postgres', qq{
SELECT count(*) FROM generate_series($from, $to, 10000) b,
	idem_dedupe('stored', ARRAY(SELECT i::text FROM generate_series(b, b + 9999) i))});
	$node->safe_psql('postgres', 'VACUUM ANALYZE idempotency_keys, idempotency_leases');
	return;
}

# Pages that a call touches when all plans are made; nothing is taken for good.
sub pages
{
	my $session = session($node);
	my $least;

	$session->query(q{SET jit = off});
	for (1 .. 5)
	{
		$session->query('BEGIN');
		my $plan = decode_json($session->query(
			q{EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM idem_recover('work', 1)}))->[0]{Plan};
		$session->query('ROLLBACK');
		is($plan->{'Actual Rows'} + 0, 1, 'the abandoned one is found') if $_ == 1;
		my $touched = $plan->{'Shared Hit Blocks'} + $plan->{'Shared Read Blocks'};
		$least = $touched if !defined $least || $touched < $least;
	}
	$session->quit;
	return $least;
}

store(1, 10_000);
$node->safe_psql('postgres', q{SELECT idem_claim('s', 'abandoned', policy => 'work', lease => '1 ms')});
my $few = pages();
store(10_001, mass(1_000_000));
my $many = pages();
note "$few pages with ten thousand keys, $many with " . mass(1_000_000);
cmp_ok($many, '<=', $few + 6, 'as many pages with a mass of keys, but for levels of indexes');

#
# What others pay
#
$node->safe_psql('postgres', q{SELECT pg_stat_reset()});
$node->safe_psql('postgres', q{
SELECT count(idem_claim('plain', i::text, policy => 'plain')) FROM generate_series(1, 100) i;
SELECT count(idem_extend(scope, key, token, '1 min')), count(idem_checkpoint(scope, key, token, 'p'))
FROM idempotency_keys WHERE scope = 'plain';
SELECT count(idem_complete(scope, key, token => token)) FROM idempotency_keys WHERE scope = 'plain';
CREATE FUNCTION answer(jsonb) RETURNS json LANGUAGE sql AS $$SELECT '1'::json$$;
SELECT count(idem_run('answer(jsonb)', 'plain', 'run ' || i, policy => 'plain')) FROM generate_series(1, 100) i});
poll('the counters of the tables', sub { $node->safe_psql('postgres',
	q{SELECT n_tup_ins >= 200 FROM pg_stat_user_tables WHERE relname = 'idempotency_keys'}) eq 't' });
is($node->safe_psql('postgres', q{
SELECT n_tup_ins + n_tup_upd + n_tup_del + seq_scan + coalesce(idx_scan, 0)
FROM pg_stat_user_tables WHERE relname = 'idempotency_leases'}),
	0, 'no policy but a recoverable one touches the list');

#
# What survives
#
$node->safe_psql('postgres', q{DELETE FROM idempotency_keys WHERE scope IN ('stored', 'plain')});
$node->safe_psql('postgres', q{
SET synchronous_commit = off;
SELECT idem_claim('s', 'crash', policy => 'work', lease => '1 ms')});
$node->stop('immediate');
$node->start;
my $dump = $node->basedir . '/recover.sql';
run_client($node, 'pg_dump', '-f', $dump, 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
run_client($node, 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, 'restored');
for my $database ('postgres', 'restored')
{
	is($node->safe_psql($database, q{SELECT string_agg(key, ' ' ORDER BY key) FROM idem_recover('work', 10)}),
		'abandoned crash', "$database: what was committed is found");
}

$node->stop;
done_testing();
