# Crashes of nodes.
#
# Scenario: a coordinator and two workers that do not flush at COMMIT.  F10: a
# claim that is committed in progress is flushed on the node of its row, when it
# was made there, by the delegated function or from another node, and survives a
# kill of that node with SIGKILL right after COMMIT.  What needs no flush causes
# none.  F9: a claim and what a transaction does elsewhere are committed
# together, by two phases; a coordinator that dies leaves no half.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib", "$FindBin::RealBin/../../t/lib";

use CitusTest;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @nodes = new_citus(3, conf => join "\n",
	'synchronous_commit = off',
	'wal_writer_delay = 10s',
	'wal_writer_flush_after = 0',
	'fsync = on');
my ($coordinator, $one, $two) = @nodes;
my $key = 0;

add_application($coordinator);
distribute($coordinator);

my ($a) = tenant_on($coordinator, $one);
my ($b) = tenant_on($coordinator, $two);

$coordinator->safe_psql(
	'postgres', q{
	SET client_min_messages = warning;
	CREATE FUNCTION open_claim(tenant bigint, key text) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		RETURN (idem_claim(tenant::text, key)).outcome;
	END $$;
	SELECT create_distributed_function('open_claim(bigint, text)', 'tenant', colocate_with => 'orders',
		force_delegation => true)});

# A change that nobody flushes, on each node
foreach my $node (@nodes)
{
	$node->safe_psql('postgres', 'SET citus.enable_ddl_propagation = off; CREATE TABLE noise (id integer)');
}

# Whether a commit flushes what a node has written before it.  The WAL writer may
# do that now and then of itself: so "not always" counts when it is seen once in
# some attempts, while "always" must be seen every time.
sub flushed
{
	my ($node, $from, @statements) = @_;
	my $session = session($from);

	$session->query('SET idempotency.remote_claims = on');
	for (1 .. 20)
	{
		my $k = 'sesame-' . ++$key;

		my $end = $node->safe_psql('postgres', q{INSERT INTO noise VALUES (1); SELECT pg_current_wal_insert_lsn()});
		$session->query('BEGIN');
		foreach my $statement (@statements)
		{
			$session->query($statement =~ s/KEY/$k/gr);
			die $session->{last_error} if $session->state;
		}
		$session->query('COMMIT');
		die $session->{last_error} if $session->state;
		if ($node->safe_psql('postgres', "SELECT pg_current_wal_flush_lsn() < '$end'") eq 't')
		{
			$session->quit;
			return 'not always';
		}
	}
	$session->quit;
	return 'always';
}

my $claim = "SELECT idem_claim('$a', 'KEY')";

is(flushed($one, $one, $claim), 'always', 'F10: an open claim is flushed, on its node');
is(flushed($one, $coordinator, "SELECT open_claim($a, 'KEY')"), 'always', 'F10: delegated');
is(flushed($one, $coordinator, $claim), 'always', 'F10: from another node');
is(flushed($one, $two, $claim), 'always', 'F10: from another worker');
is(flushed($one, $coordinator, 'COMMIT', $claim), 'always', 'F10: from another node, without a transaction block');
is(flushed($one, $coordinator, 'SAVEPOINT s', $claim, 'RELEASE s'), 'always', 'F10: in a savepoint');
is(flushed($one, $coordinator, "SELECT order_once($a, 'KEY')"), 'not always', 'F10: an executed request is not, delegated');

#
# A kill right after COMMIT
#
my @killed;
foreach my $from ([ $coordinator, "SELECT open_claim($a, 'KEY')", 'delegated' ],
	[ $coordinator, "SET idempotency.remote_claims = on; SELECT idem_claim('$a', 'KEY')", 'from another node' ],
	[ $one, "SELECT idem_claim('$a', 'KEY')", 'on its node' ])
{
	my ($node, $sql, $name) = @$from;
	my $k = 'sesame-' . ++$key;

	$node->safe_psql('postgres', $sql =~ s/KEY/$k/gr);
	crash($one);
	restart_after_crash($one);
	is($one->safe_psql('postgres', "SELECT outcome FROM idem_lookup('$a', '$k')"), 'in_progress',
		"F10: it survives a crash ($name)");
}

#
# F9: a claim here and work there are one
#
sub both
{
	my ($k) = @_;

	return join ' ', $coordinator->safe_psql('postgres', qq{SELECT count(*) FROM idempotency_keys WHERE key = '$k'}),
		orders_of($coordinator, $k);
}

foreach my $victim ($one, $two, $coordinator)
{
	my @keys = map { "sesame-c$_-" . ++$key } 1 .. 3;
	my $session = session($coordinator);

	foreach my $k (@keys)
	{
		$session->query("BEGIN; SELECT order_once($a, '$k'); SELECT order_once($b, '$k')");
		if ($k eq $keys[1])
		{
			# between the work and COMMIT
			crash($victim);
		}
		$session->query('COMMIT');
		restart_after_crash($victim) if $k eq $keys[1];
		if ($k eq $keys[1])
		{
			$session->quit;
			$session = session($coordinator);
		}
	}
	$session->quit;
	no_prepared(@nodes);
	is(both($keys[0]), '2 2', 'F9: two tenants, before a crash of ' . $victim->name);
	is(both($keys[1]), '0 0', 'F9: in the crash, none');
	is(both($keys[2]), '2 2', 'F9: and after it');
	foreach my $k (@keys)
	{
		$coordinator->safe_psql('postgres', "SELECT order_once($_, '$k')") foreach $a, $b;
		is(both($k), '2 2', 'F9: repeated, each has its effect once');
	}
}

# COMMIT fails on one node
{
	my $k = 'sesame-' . ++$key;
	my $session = session($coordinator);

	$coordinator->safe_psql('postgres', q{
		SET client_min_messages = warning;
		CREATE TABLE known (id integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, key text);
		SELECT citus_add_local_table_to_metadata('known');
		ALTER TABLE known OWNER TO shop_owner;
		GRANT USAGE ON SCHEMA idempotency TO shop_owner;
		SELECT idem_grant('shop_owner', 'app');
		INSERT INTO known VALUES (1, 'x')});
	# one role for all: else Citus refuses (F8)
	$session->query("SET idempotency.remote_claims = on; SET ROLE shop_owner; BEGIN; SELECT idem_run('buy(jsonb)', '$a', '$k',
		'{\"tenant\": $a, \"key\": \"$k\"}'); INSERT INTO known VALUES (1, '$k'); COMMIT");
	is($session->state, '23505', 'F9: a table that Citus knows, and whose COMMIT fails');
	is(both($k), '0 0', '... takes the claim of another node with it');
	$session->quit;
}

no_prepared(@nodes);
no_word_of('sesame', @nodes);
done_testing();
