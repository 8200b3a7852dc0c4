# A standby, and its promotion.
#
# Scenario: a primary with a streaming standby.  On the standby nothing can be
# claimed or finished, whatever the key (25006, with a hint), but keys can be
# looked at and policies listed.  The primary is killed while a leased claim is
# in progress, and the standby promoted: repeats are replays there, the
# holder of the lease goes on with its token, sessions that were connected to
# the standby can write, and a later claim gets a greater token.
#
# Then a COMMIT that waits for a synchronous standby is cancelled: key and
# work are both there or both lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_node('primary', streaming => 1);

$primary->safe_psql(
	'postgres', q{
CREATE TABLE effects (key text NOT NULL);
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT json_build_object('bought', request->>'key');
$$;
SELECT idem_policy('shop', completed_ttl => '3 days', audit => true);
SELECT idem_secret('context', '0123456789abcdef0123456789abcdef');
BEGIN;
SELECT idem_claim('shop', 'done', '{"key": "done"}', context => idem_context('me'));
SELECT idem_complete('shop', 'done', E'{"a" :  "\u00e9"}'::json, 201, '{"X-A": "1"}');
COMMIT;
SELECT idem_run('buy(jsonb)', 'shop', 'run', '{"key": "run"}', policy => 'shop');
});
my $token = $primary->safe_psql('postgres',
	q{SELECT token FROM idem_claim('shop', 'leased', lease => '1 h')});
my $short = $primary->safe_psql('postgres',
	q{SELECT token FROM idem_claim('shop', 'short', lease => '1 ms')});

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;

# Comes by streaming, not with the backup
$primary->safe_psql(
	'postgres', qq{
SELECT idem_checkpoint('shop', 'leased', $token, 'half', '{"n": 1}');
SELECT idem_policy('late', lease => '5 s')});
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

my $replay = q{SELECT r.* FROM idem_claim('shop', 'done', '{"key": "done"}', context => idem_context('me')) r};
my $answer = $primary->safe_psql('postgres', $replay);
like($answer, qr/^replayed/, 'the primary replays');

# A session that will see the promotion
my $session = session($standby);

foreach my $call (
	q{idem_claim('shop', 'new')},
	q{idem_claim('shop', 'done')},
	$replay =~ s/^SELECT r.\* FROM (.*) r$/$1/r,
	q{idem_require('shop', 'new')},
	q{idem_run('buy(jsonb)', 'shop', 'run', '{"key": "run"}')},
	q{idem_dedupe('shop', '{done}')},
	q{idem_complete('shop', 'leased')},
	q{idem_fail('shop', 'leased')},
	qq{idem_extend('shop', 'leased', $token, '1 s')},
	qq{idem_checkpoint('shop', 'leased', $token, 'x')},
	q{idem_release('shop', 'none')},
	q{idem_forget('shop', 'done')},
	q{idem_forget_scope('shop')},
	q{idem_end_lease('shop', 'done')},
	q{idem_find(scope => 'shop')},
	q{idem_holder('shop', 'done')},
	q{idem_policy('p', lease => '1 s')},
	q{idem_policy_drop('none')},
	q{idem_sweep()},
	q{idem_audit('a', 'e', 'i')},
	q{idem_secret('context', '0123456789abcdef')},
	q{idem_secret_drop('context', 1)},
	q{idem_grant('pg_monitor', 'app')})
{
	$session->query("SELECT $call");
	is($session->state, '25006', "on a standby: $call");
	# in a read-only transaction of the primary, too
	is(sqlstate($primary, "BEGIN READ ONLY; SELECT $call"),
		'25006', "read only: $call");
}
is(sqlstate($standby, 'CALL idem_sweep_all()'),
	'25006', 'on a standby: idem_sweep_all');
{
	my $stderr = '';

	$standby->psql('postgres', "SELECT idem_claim('shop', 'new')",
		stderr => \$stderr);
	like($stderr, qr/^HINT:.*primary.*idem_lookup/m, 'the hint says where to go');
}

my $looks = q{
SELECT * FROM idem_lookup('shop', 'done');
SELECT * FROM idem_lookup('shop', 'run');
SELECT outcome, attempt FROM idem_lookup('shop', 'leased');
SELECT idem_lookup('shop', 'none') IS NULL;
SELECT * FROM idem_policy_list ORDER BY 1;
SELECT count(*) > 1 FROM idempotency_audit_log;
SELECT encode(idem_context('a', 'b'), 'hex'), idem_json(idem_lookup('shop', 'done'));
SELECT idem_scope('a', 'b') IS NOT NULL, idem_log_id('x'), idem_canonical('[1.0]');
};
is($session->query($looks), $primary->safe_psql('postgres', $looks),
	'a standby can be looked at as the primary');
$primary->safe_psql('postgres', "SELECT idem_policy('late', lease => '6 s')");
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is( $session->query(
		"SELECT lease FROM idem_policy_list WHERE name = 'late'"),
	'00:00:06',
	'a changed policy is seen by a running session');
is( $session->query('SELECT count(*) > 8, bool_and(ok OR check_name IN (\'worker\', \'server_version\')) FROM idem_health()'),
	't|t',
	'health works on a standby')
  or diag($session->query('SELECT * FROM idem_health() WHERE NOT ok'));
$session->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
is( $session->query("SELECT outcome FROM idem_lookup('shop', 'done')"),
	'completed', 'a look with a snapshot of the transaction');
$session->query('COMMIT');

#
# Promotion
#

$primary->safe_psql('postgres', "INSERT INTO effects VALUES ('last')");
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
crash($primary);
$standby->promote;
$standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()')
  or die 'not promoted';

is($session->query($replay), $answer,
	'after promotion: a replay, in a session from before');
is($standby->safe_psql('postgres', $replay), $answer, 'and in a new one');
is( $session->query(
		q{SELECT outcome, idem_json(r) FROM idem_run('buy(jsonb)', 'shop', 'run', '{"key": "run"}', policy => 'shop') r}
	),
	'replayed|{"bought" : "run"}',
	'a replay of idem_run');
is( $session->query(
		q{SELECT outcome, idem_json(r) FROM idem_run('buy(jsonb)', 'shop', 'new', '{"key": "new"}', policy => 'shop') r}
	),
	'completed|{"bought" : "new"}',
	'a new key');
is($session->query(q{SELECT outcome, attempt FROM idem_claim('shop', 'leased')}),
	'in_progress|1', 'the lease goes on');
is( $session->query(
		q{SELECT outcome, attempt, token > } . $short
		  . q{ FROM idem_claim('shop', 'short')}),
	'claimed|2|t',
	'a lease that has ended is taken over, with a greater token');
$session->query("SELECT idem_complete('shop', 'short', token => $short)");
is($session->state, 'ID002', 'its first holder has lost it');
is($session->query("SELECT idem_complete('shop', 'leased')"),
	'', 'no completion without a token');
is($session->state, 'ID002', 'which is lost');
is( $session->query(
		"SELECT (idem_complete('shop', 'leased', '\"done\"'::json, token => $token)).expires_at > now()"
	),
	't',
	'the holder of the lease finishes');
is( $session->query(
		q{SELECT outcome, idem_json(r) FROM idem_claim('shop', 'leased') r}),
	'replayed|"done"',
	'and is replayed');
is($session->query('SELECT idem_sweep()'), 0, 'the sweep runs');
is( $session->query(
		q{SELECT id > (SELECT max(id) FROM idempotency_audit_log) AND id > 2
          FROM idem_audit('a', 'e', 'i') id}),
	't',
	'the log goes on with a new id');
$session->quit;

#
# A COMMIT that waits for a standby which is not there
#

$standby->append_conf('postgresql.conf',
	"synchronous_standby_names = 'gone'");
$standby->reload;
$standby->poll_query_until('postgres', 'SHOW synchronous_standby_names',
	'gone')
  or die 'no reload';
$session = session($standby);
$session->query(q{BEGIN;
SELECT idem_claim('shop', 'sync', '{"key": "sync"}');
INSERT INTO effects VALUES ('sync');
SELECT idem_complete('shop', 'sync')});
$session->send('COMMIT');
$standby->poll_query_until('postgres',
	'SELECT wait_event = \'SyncRep\' FROM pg_stat_activity WHERE pid = '
	  . $session->pid)
  or die 'does not wait';
# known to the client as an unknown outcome; a repeat then finds out
is($standby->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')'),
	't', 'the wait is cancelled');
$session->receive;
is( $standby->safe_psql(
		'postgres', q{
SET synchronous_commit = local;
SELECT (SELECT count(*) FROM effects WHERE key = 'sync'),
       (SELECT outcome FROM idem_claim('shop', 'sync', '{"key": "sync"}'))}),
	'1|replayed',
	'key and work are both there');
$session->quit;
$standby->stop;

# The old primary comes back on its own: it never heard of it
restart_after_crash($primary);
is( $primary->safe_psql(
		'postgres', q{
SELECT (SELECT count(*) FROM effects WHERE key = 'sync'),
       (SELECT outcome FROM idem_claim('shop', 'sync', '{"key": "sync"}'))}),
	'0|claimed',
	'or both are not');
$primary->stop;

done_testing();
