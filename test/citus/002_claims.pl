# Claims: delegated, which is the documented way, and on another node, which a
# setting allows.
#
# Scenario: a coordinator and two workers.  A claim whose row is on another node
# is refused, and with idempotency.remote_claims made; each function answers
# then as on one server.  Sessions on two nodes are after one key: nobody waits
# who was told not to, and nobody sees 23505.  A transaction of another node
# with the same number is another transaction.  Transactions over two tenants,
# with savepoints, at REPEATABLE READ and SERIALIZABLE; many keys; keys of a
# policy with a limit; claims that were abandoned.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib", "$FindBin::RealBin/../../t/lib";

use CitusTest;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes = new_citus(3);
my ($coordinator, $one, $two) = @nodes;
my $remote = 'SET idempotency.remote_claims = on;';

add_application($coordinator);
distribute($coordinator);

# a tenant of each worker
my ($a) = tenant_on($coordinator, $one);
my ($b) = tenant_on($coordinator, $two);
my $key = 0;

sub new_key
{
	return 'sesame-' . ++$key;
}

# The answer of a statement, or its SQLSTATE
sub answer
{
	my ($session, $sql) = @_;
	my $out = $session->query($sql);

	unlike($session->{last_error}, qr/sesame/, 'no key in an error') if $session->state;
	return $session->state || $out;
}

# Have psql know the token: a call beside a distributed table in one statement
# would be made on the shard, and Citus refuses that.
sub token_of
{
	my ($scope, $k) = @_;

	return "SELECT token FROM idempotency_keys WHERE scope = '$scope' AND key = '$k' \\gset";
}

my $answer = q{CREATE FUNCTION answer(jsonb) RETURNS json RETURN '{"a":  1}'::json};
$coordinator->safe_psql('postgres', $answer);

#
# The fence
#
{
	my $k = new_key();

	is($one->safe_psql('postgres', "SELECT outcome FROM idem_claim('$a', '$k')"), 'claimed',
		'a claim on the node of its row');
	foreach my $call (
		"idem_claim('$a', 'sesame')", "idem_claim('$a', '$k')", "idem_require('$a', 'sesame')",
		"idem_run('buy(jsonb)', '$a', 'sesame')", "idem_complete('$a', '$k')",
		"idem_fail('$a', '$k')", "idem_release('$a', '$k')",
		"idem_extend('$a', '$k', 1, '1 min')", "idem_checkpoint('$a', '$k', 1, 'x')",
		"idem_dedupe('$a', '{sesame}')", "idem_end_lease('$a', '$k')", "idem_forget('$a', '$k')",
		"idem_forget_scope('$a')")
	{
		is_error($coordinator, "SELECT $call", '0A000', 'keys of this scope are on another node.*HINT:',
			$call =~ s/\(.*//r . '() of another node');
	}
	is_error($two, "SELECT idem_claim('$a', 'sesame')", '0A000', '', 'on another worker, too');
	is(join(' ', on_all(\@nodes, "SELECT outcome FROM idem_lookup('$a', '$k')")),
		'in_progress in_progress in_progress', 'idem_lookup() reads anywhere');
	is(join(' ', on_all(\@nodes, "SELECT key FROM idem_find(scope => '$a')")), "$k $k $k",
		'idem_find() reads anywhere');
	is_error($coordinator, "SET ROLE app; $remote", '42501', 'permission denied', 'who may say otherwise');
}

#
# Each function, as on one server
#
my $script = q{
	SELECT outcome, attempt FROM idem_claim(:'t', :'k', '{"a": 1}', lease => '1 hour');
	SELECT outcome FROM idem_claim(:'t', :'k', '{"a": 1}');
	SELECT outcome FROM idem_claim(:'t', :'k', '{"a": 2}');
	SELECT token AS tk FROM idempotency_keys WHERE scope = :'t' AND key = :'k' \gset
	SELECT idem_extend(:'t', :'k', :tk, '2 hours') > now() + interval '1 hour';
	SELECT idem_checkpoint(:'t', :'k', :tk, 'half', '{"x": 1}') IS NOT NULL;
	SELECT outcome, recovery_point, checkpoint FROM idem_lookup(:'t', :'k');
	SELECT outcome, body FROM idem_complete(:'t', :'k', '{"b":  "ü"}', 201, '{"h": "v"}', 'application/json', :tk);
	SELECT outcome, status_code, headers, content_type, body FROM idem_claim(:'t', :'k', '{"a": 1}');
	SELECT outcome FROM idem_claim(:'t', :'k', '{"a": 3}');
	SELECT idem_require(:'t', :'k' || '2') > 0;
	SELECT token AS tk FROM idempotency_keys WHERE scope = :'t' AND key = :'k' || '2' \gset
	SELECT outcome FROM idem_fail(:'t', :'k' || '2', '"no"', token => :tk);
	SELECT outcome, attempt FROM idem_claim(:'t', :'k' || '2');
	SELECT token AS tk FROM idempotency_keys WHERE scope = :'t' AND key = :'k' || '2' \gset
	SELECT idem_release(:'t', :'k' || '2', :tk);
	SELECT outcome, attempt FROM idem_claim(:'t', :'k' || '2');
	SELECT idem_end_lease(:'t', :'k' || '2');
	SELECT outcome, attempt FROM idem_claim(:'t', :'k' || '2');
	SELECT outcome FROM idem_run('answer(jsonb)', :'t', :'k' || '0', '1');
	SELECT ord, first FROM idem_dedupe(:'t', ARRAY[:'k' || '3', :'k' || '4', :'k' || '3']);
	SELECT ord, first FROM idem_dedupe(:'t', ARRAY[:'k' || '5', :'k' || '4']);
	SELECT count(*) FROM idem_find(scope => :'t', state => 'completed');
	BEGIN;
	SELECT outcome FROM idem_claim(:'t', :'k' || '6');
	SAVEPOINT s;
	SELECT outcome FROM idem_claim(:'t', :'k' || '7');
	SELECT outcome FROM idem_complete(:'t', :'k' || '7');
	ROLLBACK TO s;
	SELECT outcome FROM idem_claim(:'t', :'k' || '7');
	SELECT outcome FROM idem_complete(:'t', :'k' || '6', '"6"');
	SELECT idem_release(:'t', :'k' || '7');
	COMMIT;
	SELECT outcome, body FROM idem_lookup(:'t', :'k' || '6');
	SELECT outcome FROM idem_lookup(:'t', :'k' || '7');
	BEGIN ISOLATION LEVEL REPEATABLE READ;
	SELECT outcome FROM idem_claim(:'t', :'k' || '8');
	SELECT outcome FROM idem_complete(:'t', :'k' || '8');
	COMMIT;
	BEGIN ISOLATION LEVEL SERIALIZABLE;
	SELECT outcome FROM idem_claim(:'t', :'k' || '8');
	SELECT outcome FROM idem_claim(:'t', :'k' || '9');
	SELECT outcome FROM idem_complete(:'t', :'k' || '9');
	COMMIT;
	BEGIN READ ONLY;
	SELECT outcome FROM idem_lookup(:'t', :'k' || '9');
	COMMIT;
	SELECT idem_forget(:'t', :'k');
	SELECT outcome FROM idem_lookup(:'t', :'k');
	SELECT idem_forget_scope(:'t', 2);
	SELECT idem_forget_scope(:'t');
	SELECT count(*) FROM idem_find(scope => :'t')};

# a server without Citus says what is right
my $single = new_node('single', extension => 0);
$single->safe_psql('postgres', q{
	SET client_min_messages = warning;
	CREATE EXTENSION idempotency CASCADE});
$single->safe_psql('postgres', $answer);

my $scripts = 0;

sub run_script
{
	my ($node, $tenant, $before) = @_;
	my ($out, $err) = ('', '');

	$node->psql('postgres', "$before\n$script",
		stdout => \$out, stderr => \$err, on_error_stop => 0,
		extra_params => [ '-v', "t=$tenant\x1e" . ++$scripts, '-v', 'k=sesame', '-v', 'VERBOSITY=sqlstate' ]);
	return "$out\n$err" =~ s/^psql:<stdin>:\d+: //mgr;
}

my $expected = run_script($single, $a, '');
like($expected, qr/half/, 'a server without Citus');
is(run_script($one, $a, ''), $expected, 'all functions on the node of the rows');
is(run_script($coordinator, $a, $remote), $expected, 'all functions from the coordinator');
is(run_script($two, $a, $remote), $expected, 'all functions from another worker');
is(run_script($coordinator, $a, "$remote SET force_parallel_mode = on;"), $expected,
	'all functions, with plans that are parallel where they may be');
is(run_script($coordinator, $a, "$remote SET citus.enable_local_execution = off;"), $expected,
	'all functions, by a connection to itself');
is(run_script($one, $a, 'SET force_parallel_mode = on;'), $expected, 'on the node of the rows, in parallel plans');

#
# The delegated function
#
{
	my $k = new_key();
	my $session = session($coordinator, user => 'app');

	is(answer($session, "SELECT outcome, convert_from(body, 'UTF8') FROM order_once($a, '$k')"),
		qq{completed|{"key": "$k", "tenant": $a}}, 'delegated: a call');
	foreach my $node (@nodes)
	{
		my $other = session($node, user => 'app');

		is(answer($other, "SELECT outcome, convert_from(body, 'UTF8') FROM order_once($a, '$k')"),
			qq{replayed|{"key": "$k", "tenant": $a}}, 'delegated: its repeat through ' . $node->name);
		answer($other, 'PREPARE p (bigint, text) AS SELECT outcome FROM order_once($1, $2)');
		is(join(' ', map { answer($other, "EXECUTE p ($a, '$k')") } 1 .. 7),
			join(' ', ('replayed') x 7), 'delegated: prepared');
		$other->quit;
	}
	is(orders_of($coordinator, $k), '1', 'delegated: one effect');

	# in blocks, with savepoints
	my ($x, $y, $z) = (new_key(), new_key(), new_key());
	answer($session, "BEGIN; SELECT order_once($a, '$x'); SAVEPOINT s; SELECT order_once($a, '$y'); ROLLBACK TO s;");
	is(answer($session, "SELECT outcome FROM order_once($a, '$x')"), 'replayed', 'delegated: its own key, in a block');
	answer($session, "SELECT order_once($a, '$z'); COMMIT");
	is(join(' ', map { orders_of($coordinator, $_) } $x, $y, $z), '1 0 1', 'delegated: savepoints');
	is(answer($session, "SELECT outcome FROM order_once($a, '$y')"), 'completed', 'delegated: what was rolled back is new');

	# two tenants
	($x, $y) = (new_key(), new_key());
	answer($session, "BEGIN; SELECT order_once($a, '$x'); SELECT order_once($b, '$x'); ROLLBACK");
	is(orders_of($coordinator, $x), '0', 'two tenants, rolled back');
	answer($session, "BEGIN; SELECT order_once($a, '$x'); SELECT order_once($b, '$x'); COMMIT");
	is(orders_of($coordinator, $x), '2', 'two tenants, committed');
	is(answer($session, "SELECT outcome FROM order_once($a, '$x'); SELECT outcome FROM order_once($b, '$x')"),
		"replayed\nreplayed", 'two tenants, repeated');
	no_prepared(@nodes);

	# the scope of another tenant
	$coordinator->safe_psql('postgres', qq{
		SET client_min_messages = warning;
		CREATE FUNCTION stray(tenant bigint, other text) RETURNS text LANGUAGE plpgsql AS \$\$
		BEGIN
			RETURN (idem_claim(other, 'sesame')).outcome;
		END \$\$;
		SELECT create_distributed_function('stray(bigint, text)', 'tenant', colocate_with => 'orders',
			force_delegation => true)});
	is(answer($session, "SELECT stray($a, '$b')"), '0A000', 'delegated: the scope of another node');
	$session->quit;
}

#
# A role that may not connect
#
$coordinator->safe_psql('postgres', q{CREATE ROLE nobody NOLOGIN; GRANT app TO nobody;});
{
	my $k = new_key();
	my $session = session($coordinator);

	answer($session, 'SET ROLE nobody');
	like(answer($session, "SELECT outcome FROM order_once($a, '$k')"), qr/^(?:08\w{3}|28\w{3})$/,
		'a role that may not log in is refused by the node');
	is(orders_of($coordinator, $k), '0', '... without an effect');
	$session->quit;
}

#
# F12, F11: two nodes after one key
#
my ($near, $far) = map { session($_) } $one, $two;
my $third = session($coordinator);
answer($_, $remote) foreach $near, $far, $third;

# A gate on each node, for a handler there
my @gates = map { session($_) } @nodes;
$coordinator->safe_psql('postgres', q{
	CREATE FUNCTION slowly(jsonb) RETURNS json LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(1);
		RETURN '{}';
	END $$});

foreach my $pair ([ $near, $far, 'near, far' ], [ $far, $near, 'far, near' ], [ $far, $third, 'far, far' ])
{
	my ($first, $second, $name) = @$pair;
	my $k = new_key();

	answer($first, "BEGIN; SELECT idem_claim('$a', '$k')");
	is(answer($second, "SELECT outcome FROM idem_claim('$a', '$k', wait => '0')"), 'in_progress',
		"F12: wait = 0 ($name): a new key that is being claimed");
	answer($first, 'ROLLBACK');
	is(answer($second, "SELECT outcome FROM idem_claim('$a', '$k', wait => '0')"), 'claimed',
		"F12: wait = 0 ($name): and free again");
	answer($first, token_of($a, $k));
	answer($first, "BEGIN; SELECT idem_complete('$a', '$k', '1', token => :token)");
	is(answer($second, "SELECT outcome FROM idem_claim('$a', '$k', wait => '0')"), 'in_progress',
		"F12: wait = 0 ($name): a row that is being changed");
	answer($first, 'COMMIT');
	is(answer($second, "SELECT outcome FROM idem_claim('$a', '$k', wait => '0')"), 'replayed',
		"F12: wait = 0 ($name): and is done");

	# the same without a transaction block: a handler that waits
	$k = new_key();
	answer($_, 'SELECT pg_advisory_lock(1)') foreach @gates;
	$first->send("SELECT outcome FROM idem_run('slowly(jsonb)', '$a', '$k')");
	poll('the handler to run', sub {
		grep { $_ ne '0' } on_all(\@nodes, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) });
	is(answer($second, "SELECT outcome FROM idem_run('slowly(jsonb)', '$a', '$k', wait => '0')"), 'in_progress',
		"F12: wait = 0 ($name): while a handler runs");
	answer($_, 'SELECT pg_advisory_unlock(1)') foreach @gates;
	is($first->receive, 'completed', "F12: ... which ends ($name)");

	# waiting ends with the other's transaction
	$k = new_key();
	answer($first, "BEGIN; SELECT idem_claim('$a', '$k'); SELECT idem_complete('$a', '$k', '1')");
	$second->send("SELECT outcome FROM idem_claim('$a', '$k', wait => '1 min')");
	poll('a claim to wait', sub {
		grep { $_->safe_psql('postgres', "SELECT 1 FROM pg_stat_activity WHERE wait_event IN ('IdempotencyClaim', 'Extension')
			AND query ~ '$k'") } @nodes });
	answer($first, 'COMMIT');
	is($second->receive, 'replayed', "waiting ($name)");
	$k = new_key();
	answer($first, "BEGIN; SELECT idem_claim('$a', '$k')");
	is(answer($second, "SELECT outcome FROM idem_claim('$a', '$k', wait => '100 ms')"), 'in_progress',
		"waiting in vain ($name)");
	answer($second, "SET statement_timeout = '500ms'");
	is(answer($second, "SELECT outcome FROM idem_claim('$a', '$k', wait => '1 min')"), '57014',
		"waiting ends with statement_timeout ($name)");
	answer($second, 'RESET statement_timeout');
	answer($first, 'ROLLBACK');

	# a snapshot that is older than the rival's row; on another node our statements
	# have one of their own, from the first on
	foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
	{
		$k = new_key();
		answer($second, "BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM idem_lookup('$a', 'y')");
		answer($first, "SELECT idem_claim('$a', '$k')");
		is(answer($second, "SELECT outcome FROM idem_claim('$a', '$k')"), '40001',
			"F11: a rival that the snapshot of $level does not show is 40001 ($name)");
		answer($second, 'ROLLBACK');
	}

	# dedupe
	$k = new_key();
	answer($first, "BEGIN; SELECT ord, first FROM idem_dedupe('$a', '{$k}')");
	answer($second, "SET lock_timeout = '1min'");
	$second->send("SELECT ord, first FROM idem_dedupe('$a', '{$k,$k-2}')");
	poll('idem_dedupe to wait', sub {
		$one->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE NOT granted}) ne '0' });
	answer($first, 'COMMIT');
	is($second->receive, "1|f\n2|t", "idem_dedupe waits for a rival's keys ($name)")
	  or note($second->{last_error});
}

#
# F15: the number of a transaction on another node
#
{
	my $k = new_key();
	my $sql = q{UPDATE idempotency_keys SET claim_xid = '%s'::xid8 WHERE scope = '%s' AND key = '%s'};
	my $xid = answer($near, "BEGIN; SELECT idem_claim('$a', '$k'); SELECT pg_current_xact_id()") =~ s/.*\n//sr;
	my $stored = answer($near, "SELECT claim_xid FROM idempotency_keys WHERE scope = '$a' AND key = '$k'");

	isnt($stored, $xid, 'F15: claim_xid is not the number alone');
	answer($near, sprintf($sql, $xid, $a, $k));
	is(answer($near, "SELECT outcome FROM idem_complete('$a', '$k')"), 'ID002',
		'F15: a transaction of another node with the same number may not finish')
	  or note($near->{last_error});
	answer($near, 'ROLLBACK');
	$xid = answer($near, "BEGIN; SELECT idem_claim('$a', '$k'); SELECT pg_current_xact_id()");
	is(answer($near, "SELECT outcome FROM idem_complete('$a', '$k')"), 'completed', 'F15: this one may');
	answer($near, 'ROLLBACK');
}

#
# F5: many keys, and policies with a limit
#
$coordinator->safe_psql('postgres', q{
	SELECT idem_policy('few', max_live_keys => 2);
	SELECT idem_policy('work', recoverable => true, lease => '1 hour');
	SELECT idem_policy('all', on_unfinished => 'error')});
foreach my $session ($near, $far, $third)
{
	my $k = new_key();
	my $scope = "idem_scope('$a', '$k')";

	is(join(' ', map { answer($session, "SELECT outcome FROM idem_claim($scope, '$k-$_', policy => 'few')") } 1, 2, 3),
		'claimed claimed ID009', 'F5: max_live_keys');
	is(answer($session, "SELECT count(*) FILTER (WHERE first), count(*) FROM idem_dedupe('$a', ARRAY(SELECT '$k' || i % 50 FROM generate_series(1, 100) i))"),
		'50|100', 'F5: idem_dedupe');
	is(answer($session, "BEGIN; SELECT outcome FROM idem_claim('$a', '$k', policy => 'all')"), 'claimed', 'a guarded claim');
	is(answer($session, 'COMMIT'), 'ID011', '... must be finished before COMMIT');
}

#
# Claims that were abandoned: recovered where their rows are
#
{
	my $k = new_key();

	answer($third, "SELECT idem_claim('$_', '$k', policy => 'work')") foreach ($a, $b);
	is($coordinator->safe_psql('postgres', q{SELECT count(*) FROM idempotency_leases}), '2', 'two leases');
	is(answer($third, "SELECT idem_end_lease('$_', '$k')"), 't', "a lease ends ($_)") foreach ($a, $b);
	is(answer($third, q{SELECT count(*) FROM idem_recover('work', 10)}), '0', 'idem_recover() on the coordinator finds none');
	is(answer($near, q{SELECT scope, attempt FROM idem_recover('work', 10)}), "$a|2", '... on a worker its own');
	is(answer($far, q{SELECT scope, attempt FROM idem_recover('work', 10)}), "$b|2", '... on the other, too');
	is(answer($near, q{SELECT count(*) FROM idem_recover('work', 10)}), '0', '... once');
	answer($near, token_of($a, $k));
	is(answer($near, "SELECT outcome FROM idem_complete('$a', '$k', token => :token)"),
		'completed', '... and completes it');
	is(answer($third, "SELECT count(*) FROM idempotency_leases WHERE scope = '$a'"), '0', 'its lease is gone');
}

#
# Who has a key, and what is in progress: each node tells of its own
#
{
	my $k = new_key();
	my $pid = $near->pid;

	answer($near, "BEGIN; SELECT idem_claim('$a', '$k')");
	is($one->safe_psql('postgres', "SELECT pid, how FROM idem_holder('$a', '$k')"), "$pid|row",
		'idem_holder() on the node of the row');
	is($two->safe_psql('postgres', "SELECT count(*) FROM idem_holder('$a', '$k')"), '0', '... elsewhere it finds nobody');
	answer($near, 'ROLLBACK');
	answer($near, "SELECT idem_claim('$a', '$k')");
	is(join(' ', on_all(\@nodes, "SELECT count(*) FROM idem_activity WHERE key_id = idem_log_id('$k')")), '0 1 0',
		'idem_activity has the claims of the node');
	answer($near, "SELECT idem_forget('$a', '$k')");
}

$_->quit foreach $near, $far, $third, @gates;
no_prepared(@nodes);
is(join(' ', map { log_count($_, qr/\b23505\b|duplicate key value/) } @nodes), '0 0 0', 'F11: no unique violation in any log');
no_word_of('sesame', @nodes);
done_testing();
