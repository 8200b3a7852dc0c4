# Distributing the keys, and who may.
#
# Scenario: a coordinator and two workers.  idem_distribute() refuses what it
# cannot do, and changes nothing then; keys are distributed beside tables by
# bigint, uuid, text of two collations, varchar and integer, each in the same
# cluster after DROP EXTENSION, and are where their tenant's rows are, by way of
# any node; a scope that does not begin with a value of the type is 22023.
# Owner, rights and the column are the same on all nodes.

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
my $distribute = q{SELECT idem_distribute('orders')};

pass('F1: the library and Citus are preloaded together');
is(join(' ', on_all(\@nodes, q{SELECT outcome FROM idem_claim('1', 'sesame ' || pg_backend_pid())})),
	'claimed claimed claimed', 'F1: and claims are made before anything is distributed');

#
# Refusals
#
add_application($coordinator);
is_error($coordinator, $distribute, '55000', 'there are keys', 'keys that are there');
on_all(\@nodes, q{DELETE FROM idempotency_keys});
is_error($coordinator, $distribute, '42501', 'permission denied', 'somebody else',
	params => [ '-U', 'app' ]);
$coordinator->safe_psql('postgres', q{
	GRANT USAGE ON SCHEMA idempotency TO shop_owner;
	GRANT EXECUTE ON FUNCTION idem_distribute(regclass) TO shop_owner});
is_error($coordinator, "SET ROLE shop_owner; $distribute", '42501',
	'permission denied to distribute', 'the owner of the table, who may call it');
$coordinator->safe_psql('postgres', q{REVOKE EXECUTE ON FUNCTION idem_distribute(regclass) FROM shop_owner});
is_error($coordinator, q{SELECT idem_distribute(NULL)}, '22004', 'must not be null', 'no table');
is_error($coordinator, q{CREATE TABLE local (tenant bigint); SELECT idem_distribute('local')},
	'22023', 'not distributed by a column', 'a table of one node');
is_error($coordinator, q{SELECT create_reference_table('local'); SELECT idem_distribute('local')},
	'22023', 'not distributed by a column', 'a reference table');
is_error($coordinator, "BEGIN READ ONLY; $distribute", '25006', '', 'a read-only transaction');
is_error($one, $distribute, '55000', 'this node is a worker', 'on a worker');
is_error($coordinator, q{SELECT idem_distribute_node()}, '55000', 'are not distributed',
	'a node before all');
is_error($one, q{SELECT idem_distribute_node()}, '55000', 'are not distributed',
	'a node before all, from a worker');
like($coordinator->safe_psql('postgres', q{SELECT ok, detail FROM idem_health() WHERE check_name = 'citus_distributed'}),
	qr/^f.each node has keys/, 'F4: idem_health: an undistributed key table is not ok');
like($one->safe_psql('postgres', q{SELECT ok, detail FROM idem_health() WHERE check_name = 'citus_distributed'}),
	qr/^f.each node has keys/, 'F4: on a worker, too');
is(join(' ', on_all(\@nodes, q{SELECT count(*) FROM pg_attribute
	WHERE attrelid = 'idempotency_keys'::regclass AND attname = 'tenant'})), '0 0 0',
	'what was refused has changed nothing');

#
# A coordinator that is not in the metadata
#
{
	my $alone = new_member('alone');

	$alone->safe_psql('postgres', q{
		SET client_min_messages = warning;
		CREATE SCHEMA idempotency;
		CREATE EXTENSION pgcrypto;
		CREATE EXTENSION idempotency SCHEMA idempotency;
		SELECT citus_remove_node(nodename, nodeport) FROM pg_dist_node;
		CREATE TABLE orders (tenant bigint)});
	is_error($alone, $distribute, '55000', 'not in the metadata', 'a coordinator without its host');
	$alone->stop;
}
{
	my $without = new_node('without', extension => 0);

	install($without);
	is_error($without, q{SELECT idem_distribute('pg_class')}, '55000', 'extension "citus" is not installed',
		'without Citus');
	is($without->safe_psql('postgres', q{SELECT count(*) FROM idem_health() WHERE check_name ~ 'citus'}), '0',
		'without Citus no row of idem_health speaks of it');
	$without->stop;
}

#
# Types
#
sub health_of
{
	my ($node) = @_;

	return $node->safe_psql('postgres',
		q{SELECT string_agg(check_name || ': ' || detail, '; ') FROM idem_health() WHERE NOT ok AND check_name <> 'server_version'});
}

sub try_type
{
	my ($type, @tenants) = @_;

	add_application($coordinator, $type) if $type ne 'bigint';
	distribute($coordinator, $type);
	is($coordinator->safe_psql('postgres',
		q{SELECT count(DISTINCT colocationid) FROM pg_dist_partition
		WHERE logicalrelid::text IN ('orders', 'idempotency_keys', 'idempotency_leases')}),
		'1', "$type: keys are beside the orders");
	is(health_of($_), '', "$type: " . $_->name . ' is healthy') foreach @nodes;
	foreach my $tenant (@tenants)
	{
		my @answers = on_all(\@nodes, qq{SET ROLE app;
			SELECT outcome, body FROM order_once('$tenant', 'sesame $tenant')});
		my %bodies = map { s/^\w+\|//r => 1 } @answers;

		is(join(' ', map { /^(\w+)/ } @answers), 'completed replayed replayed',
			"$type: once, through any node");
		is(scalar(keys %bodies), 1, "$type: and the same answer, byte for byte");
		is(orders_of($coordinator, "sesame $tenant"), 1, "$type: one effect");
	}
	is($coordinator->safe_psql('postgres', q{
		SELECT count(*) FROM orders o FULL JOIN idempotency_keys k
		ON (o.tenant, o.key) = (k.tenant, k.key) WHERE o.key IS NULL OR k.key IS NULL}), '0',
		"$type: each key has the tenant of its effect");
	is(join(' ', on_all(\@nodes, q{SELECT count(*) FROM idem_find()})),
		join(' ', (scalar(@tenants)) x 3), "$type: idem_find() finds them from any node");
	is_error($coordinator, "$distribute", '55000', 'distributed already', "$type: not twice");
	return;
}

# DROP EXTENSION goes with CASCADE, and the shards with the schema: Citus leaves those of the
# tables of an extension where they are.
sub start_anew
{
	$coordinator->safe_psql('postgres', q{
		SET client_min_messages = warning;
		DROP FUNCTION order_once, buy;
		DROP EXTENSION idempotency CASCADE;
		DROP SCHEMA idempotency CASCADE;
		DROP TABLE orders});
	is(join(' ', on_all(\@nodes, q{SELECT count(*) FROM pg_class WHERE relname ~ '^idempotency_'})),
		'0 0 0', 'F16: nothing is left of it');
	$coordinator->safe_psql('postgres', q{
		CREATE SCHEMA idempotency;
		CREATE EXTENSION idempotency SCHEMA idempotency;
		GRANT USAGE ON SCHEMA idempotency TO app;
		SELECT idem_grant('app', 'app')});
	return;
}

# sessions that have made claims before, and know nothing of it
my @open = map { session($_) } @nodes;
foreach my $session (@open)
{
	$session->query(q{SELECT idem_claim('1', 'x'); SELECT * FROM idem_dedupe('1', '{y}'); SELECT idem_forget('1', 'x');
		SELECT idem_forget('1', 'y'); SELECT idem_sweep()});
	is($session->state, '', 'a session that has made claims before');
}
try_type('bigint', 1 .. 4, -7);
is(join(' ', map { $_->query(q{SET idempotency.remote_claims = on; SELECT outcome FROM idem_claim('5', 'sesame-open')}) } @open),
	'claimed in_progress in_progress', '... knows where keys are now');
is(join(' ', map { $_->query(q{SELECT first FROM idem_dedupe('5', '{sesame-many}')}) } @open), 't f f', '... many, too');
$_->quit foreach @open;
$coordinator->safe_psql('postgres', q{SET idempotency.remote_claims = on; SELECT idem_forget_scope('5'); SELECT idem_end_lease('5', 'sesame-open'); SELECT idem_forget('5', 'sesame-open')});
is_error($coordinator, qq{SET idempotency.remote_claims = on;
	SELECT outcome FROM idem_claim($_, 'sesame')}, '22023',
	'the first component of the scope is no value of type bigint', "a scope $_ is no tenant")
  foreach (q{'sesame'}, q{idem_scope('x', '1')}, q{'99999999999999999999'}, q{' '});
is($coordinator->safe_psql('postgres', qq{SET idempotency.remote_claims = on;
	SELECT outcome FROM idem_claim(idem_scope('1', 'sesame', 'x'), 'sesame')}), 'claimed',
	'a scope of any number of parts');
is_error($coordinator, q{SELECT undistribute_table('idempotency_keys')}, 'XX000',
	'extension depends on it', 'F16: undistribute_table() is refused by Citus');
start_anew();
try_type('uuid', '00000000-0000-0000-0000-000000000001', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11');
is_error($coordinator, q{SET idempotency.remote_claims = on; SELECT outcome FROM idem_claim('sesame', 'k')}, '22023',
	'is no value of type uuid', 'no uuid');
start_anew();
try_type('text COLLATE "C"', 'ann', "o''neill", 'ünï');
start_anew();
try_type('text', 'ann', 'Ann');
start_anew();
try_type('varchar', 'ann', 'Zoë');
start_anew();

# PL/pgSQL cuts values to the length of the column: Citus sees no tenant in that,
# and delegates no such statement of the application's
add_application($coordinator, 'varchar(20)');
distribute($coordinator, 'varchar(20)');
is($coordinator->safe_psql('postgres', q{SET idempotency.remote_claims = on;
	SELECT outcome FROM idem_claim(repeat('x', 20), 'sesame')}), 'claimed', 'varchar(20)');
is_error($coordinator, q{SET idempotency.remote_claims = on; SELECT outcome FROM idem_claim(repeat('sesame', 20), 'k')}, '22023',
	'is no value of type character varying', 'too long for varchar(20)');
start_anew();
try_type('integer', 1, 2147483647);

no_word_of('sesame', @nodes);
done_testing();
