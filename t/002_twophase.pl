# Two-phase commit.
#
# Scenario: transactions that hold a claim, a claim with its answer, an
# idem_run or the messages of an inbox are prepared.  Rivals are told at once
# that the key is in progress, and the sweep passes it over.  The server is
# killed and started again: nothing changes.  COMMIT PREPARED then makes
# repeats replays, ROLLBACK PREPARED frees the keys; a leased claim is
# finished afterwards with its token, and by nobody without it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('twophase', conf => "max_prepared_transactions = 20\n");

$node->safe_psql(
	'postgres', q{
CREATE TABLE effects (key text NOT NULL);
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT json_build_object('bought', request->>'key');
$$;
SELECT idem_policy('audited', audit => true);
});

# What is done before PREPARE, and what a repeat does
my %work = (
	claim => q{
SELECT idem_claim('shop', 'KEY', '{"key": "KEY"}', lease => '1 h');
INSERT INTO effects VALUES ('KEY');},
	complete => q{
SELECT idem_claim('shop', 'KEY', '{"key": "KEY"}', policy => 'audited');
INSERT INTO effects VALUES ('KEY');
SELECT idem_complete('shop', 'KEY', '{"bought" : "KEY"}'::json);},
	fail => q{
SELECT idem_claim('shop', 'KEY', '{"key": "KEY"}');
INSERT INTO effects VALUES ('KEY');
SELECT idem_fail('shop', 'KEY', '{"bought" : "KEY"}'::json, retryable => false);},
	run => q{
SELECT idem_run('buy(jsonb)', 'shop', 'KEY', '{"key": "KEY"}');},
	savepoint => q{
SELECT idem_claim('shop', 'KEY', '{"key": "KEY"}');
INSERT INTO effects VALUES ('KEY');
SAVEPOINT a;
SELECT idem_release('shop', 'KEY');
ROLLBACK TO a;
SELECT idem_complete('shop', 'KEY', '{"bought" : "KEY"}'::json);},
	dedupe => q{
INSERT INTO effects SELECT key FROM idem_dedupe('shop', '{KEY}') WHERE first;});
my $repeat = q{SELECT outcome, attempt, idem_json(r) FROM idem_claim('shop', 'KEY', REQUEST) r};

sub repeat
{
	my ($kind, $key) = @_;
	my $request = $kind eq 'dedupe' ? 'NULL' : qq{'{"key": "$key"}'};

	return $repeat =~ s/KEY/$key/r =~ s/REQUEST/$request/r;
}

# Keys that are there already: finished and expired, so that the sweep wants
# them; and one in progress that is completed in a prepared transaction.
$node->safe_psql(
	'postgres', q{
SELECT idem_dedupe('old', '{a,b,c}');
UPDATE idempotency_keys SET expires_at = now() - interval '1 h', purge_at = now() - interval '1 h'
WHERE scope = 'old';
});
my $token = $node->safe_psql('postgres',
	q{SELECT token FROM idem_claim('lease', 'k', lease => '1 h')});

foreach my $fate (qw(commit rollback))
{
	foreach my $kind (sort keys %work)
	{
		my $key = "$fate-$kind";

		is( sqlstate(
				$node,
				'BEGIN;'
				  . ($work{$kind} =~ s/KEY/$key/gr)
				  . "PREPARE TRANSACTION '$key'"),
			'', "prepared: $key");
	}
}
is( sqlstate(
		$node, q{
BEGIN;
SELECT idem_claim('old', 'a');
PREPARE TRANSACTION 'reused'}),
	'', 'prepared: a key that had expired');
is( sqlstate(
		$node, qq{
BEGIN;
SELECT idem_complete('lease', 'k', '"done"'::json, token => $token);
PREPARE TRANSACTION 'finished'}),
	'', 'prepared: a completion by token');

sub check_rivals
{
	my ($when) = @_;

	foreach my $fate (qw(commit rollback))
	{
		foreach my $kind (sort keys %work)
		{
			next if $kind eq 'dedupe';
			is($node->safe_psql('postgres', repeat($kind, "$fate-$kind")),
				'in_progress||', "$when: rival of $fate-$kind");
		}
		# a writer without a key lock: the SQL way waits for it, bounded by
		# lock_timeout
		is( sqlstate(
				$node,
				"SET idempotency.storage = 'sql'; SET lock_timeout = '50ms'; "
				  . repeat('dedupe', "$fate-dedupe")),
			'55P03',
			"$when: rival of $fate-dedupe in the SQL way");
		is( $node->safe_psql(
				'postgres',
				"SET idempotency.storage = 'auto'; "
				  . repeat('dedupe', "$fate-dedupe")),
			'in_progress||',
			"$when: rival of $fate-dedupe in the direct way");
	}
	is( $node->safe_psql(
			'postgres', q{
SELECT outcome FROM idem_run('buy(jsonb)', 'shop', 'commit-run', '{"key": "commit-run"}', wait => '0.1 s')}),
		'in_progress',
		"$when: an idem_run waits for a time");
	is( $node->safe_psql(
			'postgres', q{SELECT outcome FROM idem_claim('old', 'a')}),
		'in_progress',
		"$when: the key that had expired");
	is( $node->safe_psql(
			'postgres', q{SELECT outcome FROM idem_claim('lease', 'k')}),
		'in_progress',
		"$when: the leased key");
	is( $node->safe_psql(
			'postgres',
			q{SELECT outcome FROM idem_lookup('lease', 'k');
			  SELECT idem_lookup('shop', 'commit-claim') IS NULL}),
		"in_progress\nt",
		"$when: a look at them");
	# by the row, by the key lock as well, and by a row of a savepoint
	foreach my $key (qw(commit-claim rollback-run commit-savepoint rollback-dedupe))
	{
		is( $node->safe_psql(
				'postgres',
				"SELECT pid IS NULL, since < now(), how FROM idem_holder('shop', '$key')"),
			"t|t|prepared transaction '$key'",
			"$when: who has $key");
	}
	return;
}

check_rivals('prepared');
is($node->safe_psql('postgres', 'SELECT idem_sweep()'),
	2, 'the sweep passes over what is locked');

crash($node);
restart_after_crash($node);

is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
	14, 'all are there after a crash');
check_rivals('after a crash');
is($node->safe_psql('postgres', 'SELECT idem_sweep()'),
	0, 'the sweep still passes over them');

foreach my $kind (sort keys %work)
{
	$node->safe_psql('postgres',
		"COMMIT PREPARED 'commit-$kind'; ROLLBACK PREPARED 'rollback-$kind'");
}
$node->safe_psql('postgres',
	"ROLLBACK PREPARED 'reused'; COMMIT PREPARED 'finished'");

my %after = (
	claim => 'in_progress|1|',
	complete => 'replayed|1|{"bought" : "commit-complete"}',
	fail => 'replayed|1|{"bought" : "commit-fail"}',
	run => 'replayed|1|{"bought" : "commit-run"}',
	savepoint => 'replayed|1|{"bought" : "commit-savepoint"}',
	dedupe => 'replayed|1|');

foreach my $kind (sort keys %work)
{
	is($node->safe_psql('postgres', repeat($kind, "commit-$kind")),
		$after{$kind}, "committed: $kind");
	is($node->safe_psql('postgres', repeat($kind, "rollback-$kind")),
		'claimed|1|', "rolled back: $kind");
	is( $node->safe_psql(
			'postgres', qq{
SELECT count(*) FILTER (WHERE key = 'commit-$kind'),
       count(*) FILTER (WHERE key = 'rollback-$kind') FROM effects}),
		'1|0',
		"effects: $kind");
}
is( $node->safe_psql(
		'postgres', q{
SELECT string_agg(action, ' ' ORDER BY id) FROM idempotency_audit_log
WHERE entity_id = idem_log_id('shop') || '/' || idem_log_id('commit-complete');
SELECT count(*) FROM idempotency_audit_log
WHERE entity_id = idem_log_id('shop') || '/' || idem_log_id('rollback-complete')}),
	"claimed completed\n0",
	'the log shares their fate');

# The leased ones
is(sqlstate($node, q{SELECT idem_complete('shop', 'commit-claim')}),
	'ID002', 'a claim that was prepared is not ours');
is( $node->safe_psql(
		'postgres', q{
SELECT (idem_complete('shop', 'commit-claim', token => token)).expires_at > now() FROM idempotency_keys
WHERE scope = 'shop' AND key = 'commit-claim';
SELECT outcome FROM idem_claim('shop', 'commit-claim', '{"key": "commit-claim"}')}),
	"t\nreplayed",
	'its token finishes it');
is( $node->safe_psql(
		'postgres', q{
SELECT outcome, idem_json(r) FROM idem_claim('lease', 'k') r;
SELECT outcome, attempt FROM idem_claim('old', 'a')}),
	"replayed|\"done\"\nclaimed|1",
	'a prepared completion is one');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
	0, 'none is left');

# After PREPARE the session that made the claim is a rival like any other
{
	my $session = session($node);

	$session->query(q{
BEGIN;
SELECT idem_claim('shop', 'same');
PREPARE TRANSACTION 'same'});
	is($session->query(q{SELECT outcome FROM idem_claim('shop', 'same')}),
		'in_progress', 'the same session');
	$session->query('SET lock_timeout = 50');
	$session->query(q{SELECT idem_complete('shop', 'same')});
	like($session->state, qr/^55P03$/, 'cannot finish it');
	$session->query(q{ROLLBACK PREPARED 'same'});
	is($session->query(q{SELECT outcome FROM idem_claim('shop', 'same')}),
		'claimed', 'until it is rolled back');
	$session->quit;
}

$node->stop;

done_testing();
