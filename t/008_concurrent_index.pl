# Indexes are rebuilt while clients work.
#
# Scenario: clients claim, run and deduplicate, two of them on every key,
# while the primary key is rebuilt, further indexes come and go, unique ones
# among them, and the table is vacuumed, rewritten and analyzed.  ON CONFLICT
# then may raise a unique violation for an index that it was not told of, and
# the server's message would show the key.  Clients may see 40001 and nothing
# else, no key has its effect twice, and no message has a key in it.  The way
# to the table changes with it, in the middle of transactions, too.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = 10;
my $clients = 8;
my $folder = PostgreSQL::Test::Utils::tempdir;
my $node = new_node(
	'indexes', conf => q{
log_min_error_statement = panic
log_error_verbosity = verbose
deadlock_timeout = 100ms
});

$node->safe_psql(
	'postgres', q{
CREATE TABLE effects (key text NOT NULL);
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT json_build_object('bought', request->>'key');
$$;
});

my $begin = q{
\set n :n + 1
\set k (:client_id / 2) * 1000000 + :n
};
my @scripts = (
	$begin . q{
BEGIN;
SELECT outcome = 'claimed' AS mine FROM idem_claim('shop', 'CANARY:k', '{"key": "CANARY:k"}', wait => '1 min') \gset
\if :mine
INSERT INTO effects VALUES ('CANARY:k');
SELECT idem_complete('shop', 'CANARY:k', '{"bought": "CANARY:k"}'::json);
\endif
COMMIT;
}, $begin . q{
SELECT outcome FROM idem_run('buy(jsonb)', 'shop', 'CANARY:k', '{"key": "CANARY:k"}', wait => '1 min');
});

# A batch takes no key lock, so that only the index decides.  All clients try
# to be the first with the keys of the present 5 ms.
push @scripts, (q{
INSERT INTO effects SELECT key FROM idem_dedupe('inbox', ARRAY(
	SELECT 'CANARY-d' || (extract(epoch FROM clock_timestamp()) * 200)::bigint || '-' || i
	FROM generate_series(1, 5) i)) WHERE first;
}) x 4;

# Claims of the same keys, which have a key lock against one another, but none
# against a batch.
push @scripts, (q{
\set i random(1, 5)
SELECT 'CANARY-d' || (extract(epoch FROM clock_timestamp()) * 200)::bigint || '-' || :i AS key \gset
BEGIN;
SELECT outcome = 'claimed' AS mine FROM idem_claim('inbox', ':key') \gset
\if :mine
INSERT INTO effects VALUES (':key');
SELECT idem_complete('inbox', ':key');
\endif
COMMIT;
}) x 2;

# An index that is being built and not yet valid is what makes trouble: as
# often as can be
my @changes = (
	'REINDEX INDEX CONCURRENTLY idempotency_keys_pkey',
	'CREATE UNIQUE INDEX CONCURRENTLY another ON idempotency_keys (scope, key)',
	'REINDEX INDEX CONCURRENTLY idempotency_keys_pkey',
	'DROP INDEX CONCURRENTLY IF EXISTS another',
	'REINDEX TABLE CONCURRENTLY idempotency_keys',
	'CREATE INDEX CONCURRENTLY by_policy ON idempotency_keys (policy, scope)',
	'DROP INDEX CONCURRENTLY IF EXISTS by_policy',
	'VACUUM idempotency_keys',
	'ANALYZE idempotency_keys',
	'VACUUM FULL idempotency_keys');

my $pgbench = start_pgbench(
	$node,
	clients => $clients,
	folder => $folder,
	scripts => \@scripts,
	params => [
		'-T', $seconds, '-D', 'n=0', '--max-tries=1000', '-l',
		"--log-prefix=$folder/log"
	]);
my $session = session($node);
my ($rounds, $failed) = (0, '');

while ($pgbench->{handle}->pumpable)
{
	foreach my $change (@changes)
	{
		$session->query($change);
		# a build may be the victim of a deadlock, as of any other client
		$failed .= "$change: " . $session->state . "\n"
		  if $session->state !~ /^(?:|40P01|40001)$/;
		$pgbench->{handle}->pump_nb;
		last if !$pgbench->{handle}->pumpable;
	}
	$rounds++;
}
$pgbench->{handle}->finish;
is($failed, '', 'indexes are rebuilt');
cmp_ok($rounds, '>=', 1, "in $rounds rounds");

is($pgbench->{handle}->result(0), 0, 'pgbench ended well');
like($pgbench->{out}, qr/^number of failed transactions: 0 /m,
	'no client has failed');
unlike($pgbench->{err}, qr/aborted|CANARY/, 'nor seen a key')
  or diag(substr $pgbench->{err}, 0, 2000);

# entries, of several lines each
my @log = split /\n(?!\t)/, slurp_file($node->logfile);
my %errors;
foreach my $line (@log)
{
	$errors{$1}++ if $line =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})/;
}
note map { "$_: $errors{$_}\n" } sort keys %errors;
is(join(' ', grep { !/^(?:40001|40P01|57014)$/ } sort keys %errors),
	'', 'no error but what is to be repeated');
# the server shows the statements of a deadlock, which are the client's own
my @keys = grep { /CANARY/ && !/DETAIL:\s+Process \d+ waits for / } @log;
is(scalar(@keys), 0, 'no key in the log')
  or diag($keys[0]);

my $acknowledged = 0;
my $counts = pgbench_acknowledged("$folder/log");
$acknowledged += $_ foreach values %$counts;
cmp_ok($acknowledged, '>', 100, 'enough was done');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) FROM (SELECT 1 FROM effects GROUP BY key HAVING count(*) > 1) x;
SELECT count(*) FROM idempotency_keys k
WHERE NOT EXISTS (SELECT 1 FROM effects e WHERE e.key = k.key);
SELECT count(*) FROM effects e
WHERE NOT EXISTS (SELECT 1 FROM idempotency_keys k WHERE e.key = k.key);
SELECT count(*) FROM idempotency_keys WHERE state <> 'c'}),
	"0\n0\n0\n0",
	'effects that are double; keys without one; effects without a key; stuck');

# Nothing of it is left
$session->query('DROP INDEX IF EXISTS another, by_policy');
is( $session->query(
		q{SELECT count(*) FROM pg_index WHERE indrelid = 'idempotency_keys'::regclass
          AND NOT indisvalid}),
	0,
	'all indexes are valid');
is( $session->query(
		q{SELECT ok FROM idem_health() WHERE check_name = 'primary_key'}),
	't',
	'the primary key is what it was');
$session->quit;
$node->stop;

done_testing();
