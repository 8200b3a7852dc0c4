# The library as a guest of the server.
#
# Scenario: what the library exports; the same library preloaded; an update
# to the version that is installed; no subtransaction on the way of a claim;
# parallel query forced on everything; and a replay that leaves no trace: no
# transaction id, no WAL, no row lock.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Hint bits are no WAL in this cluster, as by default
my $node = new_node('versions');

$node->safe_psql(
	'postgres', q{
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS
	$$SELECT json_build_object('bought', request->>'key')$$;
});

#
# Exports
#

SKIP:
{
	my $pkglibdir = $node->config_data('--pkglibdir');
	my ($symbols, $stderr) = ('', '');
	my $ran = eval {
		IPC::Run::run [ 'nm', '-D', '--defined-only',
			"$pkglibdir/idempotency.so" ],
		  '>', \$symbols, '2>', \$stderr;
	};

	skip 'no nm here', 3 unless $ran;

	my @names = map { (split)[-1] } split /\n/, $symbols;
	my @others = grep {
		!/^(?:idem_\w+|pg_finfo_idem_\w+|Pg_magic_func|_PG_init|_init|_fini)$/
	} @names;
	cmp_ok(scalar(@names), '>', 60, 'the library has symbols');
	is("@others", '', 'none but ours');

	# every function is called by SQL, by the install script, or as the main
	# function of a background worker
	my @unused = grep {
		!$node->safe_psql('postgres',
			"SELECT count(*) FROM pg_proc WHERE prosrc = '$_'")
	} grep { /^idem_/ && !/^idem_(?:schema_check|install_own|launcher_main|worker_main)$/ } @names;
	is("@unused", '', 'none that SQL does not call');
}

#
# Updates
#

is(sqlstate($node, 'ALTER EXTENSION idempotency UPDATE'),
	'', 'an update to the same version');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) FROM pg_extension_update_paths('idempotency') WHERE path IS NOT NULL AND source = target;
SELECT extversion = (SELECT default_version FROM pg_available_extensions WHERE name = 'idempotency')
FROM pg_extension WHERE extname = 'idempotency'}),
	"0\nt",
	'is none');
if ($node->pg_version->major >= 18)
{
	is( $node->safe_psql(
			'postgres', q{
SELECT idem_log_id('load') IS NOT NULL;
SELECT version = (SELECT extversion FROM pg_extension WHERE extname = 'idempotency')
FROM pg_get_loaded_modules() WHERE module_name = 'idempotency'}),
		"t\nt",
		'the library says its version');
}

#
# No subtransaction
#

my $session = session($node);

$session->query('BEGIN');
$session->query(q{
SELECT count(idem_claim('sub', i::text)), count(idem_complete('sub', i::text))
FROM generate_series(1, 1000) i;
SELECT count(idem_claim('sub', i::text)) FROM generate_series(1, 1000) i;
SELECT idem_run('buy(jsonb)', 'sub', 'run', '{}');
SELECT idem_dedupe('sub', '{1,2,x}')});
is($session->state, '', 'a thousand claims in a transaction');
# All keys were written by the one transaction itself
is( $session->query(
		q{SELECT count(*), count(DISTINCT xmin::text), min(xmin::text) = (pg_current_xact_id()::text::bigint % (1::bigint << 32))::text
          FROM idempotency_keys WHERE scope = 'sub'}),
	'1002|1|t',
	'use no subtransaction');
if ($node->pg_version->major >= 16)
{
	is( $node->safe_psql(
			'postgres', q{
SELECT s.subxact_count, s.subxact_overflowed FROM pg_stat_get_backend_idset() b,
LATERAL pg_stat_get_backend_subxact(b) s WHERE pg_stat_get_backend_pid(b) = } . $session->pid),
		'0|f',
		'and the server counts none');
}
$session->query('COMMIT');

#
# A replay leaves no trace
#

$session->query(q{VACUUM idempotency_keys; CHECKPOINT});
my $replays = q{SELECT count(*) FROM generate_series(1, 1000) i,
	LATERAL idem_claim('sub', i::text) r WHERE r.outcome = 'replayed'};
# the first ones may set hint bits and prune
$session->query($replays);
$session->query('BEGIN');
my $before = $session->query('SELECT pg_current_wal_insert_lsn()');
is($session->query($replays), 1000, 'a thousand replays');
is( $session->query(
		q{SELECT count(*) FROM generate_series(1, 200) i,
	      LATERAL idem_run('buy(jsonb)', 'sub', i::text) r WHERE r.outcome = 'replayed'}
	),
	200,
	'and by idem_run');
is( $session->query(
		q{SELECT count(*) FILTER (WHERE r.outcome = 'mismatch') FROM generate_series(1, 200) i,
	      LATERAL idem_claim('sub', i::text, '{"other": 1}') r}),
	200,
	'and mismatches');
is($session->query('SELECT pg_current_xact_id_if_assigned() IS NULL'),
	't', 'take no transaction id');
is( $session->query("SELECT pg_current_wal_insert_lsn() - '$before'::pg_lsn"),
	0, 'write no WAL');
is( $session->query(
		q{SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()
          AND (locktype IN ('tuple', 'transactionid', 'advisory')
               OR locktype = 'relation' AND mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock'))}
	),
	0,
	'hold no lock on a row or a key');
# what locks nothing lets others lock
is( $node->safe_psql(
		'postgres',
		q{SELECT count(*) FROM (SELECT FROM idempotency_keys WHERE scope = 'sub' FOR UPDATE NOWAIT) x}
	),
	1002,
	'nor keep others from one');
$session->query('COMMIT');
$session->quit;

#
# Parallel query, and preloading
#

sub check_all
{
	my ($what) = @_;
	my ($stdout, $stderr);

	# the first use in a session is what looks things up
	foreach my $first (
		"SELECT outcome FROM idem_lookup('first', 'done')",
		"SELECT count(*) > 0 FROM idem_policy_list",
		"SELECT length(idem_context('x')) > 0")
	{
		is($node->psql('postgres', $first), 0, "$what: $first");
	}
	$node->psql(
		'postgres', q{
BEGIN;
SELECT outcome FROM idem_claim('all', 'k', '{"a": 1}');
SELECT (idem_complete('all', 'k', '"x"'::json)).expires_at > now();
COMMIT;
SELECT outcome, idem_json(r) FROM idem_claim('all', 'k', '{"a": 1}') r;
SELECT outcome FROM idem_lookup('all', 'k');
SELECT outcome FROM idem_run('buy(jsonb)', 'all', 'r', '{"key": "r"}');
SELECT string_agg(first::text, ' ' ORDER BY ord) FROM idem_dedupe('all', '{a,b,a,k}');
SELECT count(*) FROM idem_policy_list;
SELECT count(*) > 5 FROM idem_health();
SELECT idem_canonical('{"b": 1, "a": [1.0]}'), idem_scope('a', 'b') = E'a\x1eb', idem_key('"k"'), length(idem_fingerprint('1'));
SELECT idem_sweep() >= 0;
SELECT idem_forget('all', 'k') AND idem_forget('all', 'r') AND idem_forget('all', 'a') AND idem_forget('all', 'b')},
		stdout => \$stdout,
		stderr => \$stderr,
		on_error_stop => 0);
	is($stderr, '', "no error $what");
	is( $stdout,
		q{claimed
t
replayed|"x"
completed
completed
true true false false
1
t
{"a":[1],"b":1}|t|k|32
t
t},
		"everything works $what");
	return;
}

my $setup = q{
SELECT idem_dedupe('first', '{done}');
SELECT idem_secret('context', '0123456789abcdef0123456789abcdef');
};
$node->safe_psql('postgres', $setup);
check_all('as it is');
my $forced =
  $node->pg_version->major >= 16 ? 'debug_parallel_query' : 'force_parallel_mode';
$node->append_conf('postgresql.conf', "$forced = regress");
$node->reload;
$node->poll_query_until('postgres', "SHOW $forced", 'regress')
  or die 'no reload';
check_all('with parallel query forced');
$node->append_conf('postgresql.conf',
	"$forced = off\nshared_preload_libraries = 'idempotency'");
$node->restart;
check_all('preloaded');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) > 3 FROM pg_settings WHERE name LIKE 'idempotency.%'}),
	't',
	'its settings are known before the first call');
$node->safe_psql('postgres', 'DROP EXTENSION idempotency');
install($node);
$node->safe_psql('postgres', $setup);
check_all('created anew while preloaded');

$node->stop;

done_testing();
