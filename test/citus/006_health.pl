# idem_health() on the nodes of Citus.
#
# Scenario: a coordinator and two workers that are well; then each fault is made,
# found on the nodes that it is of, and mended: a table beside the keys of
# another owner (F3), an owner who may not log in (F8), an owner or rights that
# differ on one node (F14), tables that Citus does not know and a node that does
# not flush, while claims on another node are allowed (F9, F10).  F6: it reads
# the shards of its node only, and needs no connection as the owner.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib", "$FindBin::RealBin/../../t/lib";

use CitusTest;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

# a worker sweeps once, and not while something is wrong: it would complain, too
my @nodes = new_citus(3, conf => 'idempotency.sweep_interval = 1d');
my ($coordinator, $one, $two) = @nodes;

add_application($coordinator);
# on a column, which Citus has no way to grant once a table is distributed
$coordinator->safe_psql('postgres', 'GRANT SELECT (state) ON idempotency_keys TO app');
distribute($coordinator);
is(join(' ', on_all(\@nodes, q{SELECT has_column_privilege('app', 'idempotency_keys', 'state', 'SELECT')})), 't t t',
	'F14: a right on a column is on all nodes');
$coordinator->safe_psql('postgres', "SET ROLE app; SELECT order_once($_, 'sesame')") foreach 1 .. 9;

foreach my $node (@nodes)
{
	poll('the first sweep of ' . $node->name,
		sub { $node->safe_psql('postgres', 'SELECT last_run IS NOT NULL FROM idem_sweep_status') eq 't' });
}

# What is not well on each node
sub complaints
{
	return map
	{
		$_->safe_psql('postgres', q{SELECT coalesce(string_agg(check_name || ': ' || detail, '; ' ORDER BY check_name), 'well')
			FROM idem_health() WHERE NOT ok AND check_name <> 'server_version'})
	} @nodes;
}

sub well
{
	my ($name) = @_;

	is(join(' ', complaints()), 'well well well', "$name: well");
	return;
}

sub ill
{
	my ($name, @expected) = @_;
	my @found = complaints();

	foreach my $i (0 .. 2)
	{
		like($found[$i], $expected[$i] // qr/^well$/, "$name: " . $nodes[$i]->name);
	}
	return;
}

well('F6');
is(join(' ', on_all(\@nodes, q{SELECT count(*) FROM idem_health() WHERE check_name ~ '^citus_'})), '5 5 5',
	'five checks on each node');

$coordinator->safe_psql('postgres', 'ALTER TABLE orders OWNER TO app');
ill('F3', (qr/^citus_owner: public\.orders belongs to app, and loses rows when a shard is moved online$/) x 3);
$coordinator->safe_psql('postgres', 'ALTER TABLE orders OWNER TO shop_owner');
well('F3');

$coordinator->safe_psql('postgres', 'ALTER ROLE shop_owner NOLOGIN');
ill('F8', (qr/^citus_owner: shop_owner cannot log in, and so no shard be moved$/) x 3);
is(join(' ', on_all(\@nodes, "SET ROLE app; SELECT outcome FROM order_once(1, 'sesame')")), 'replayed replayed replayed',
	'F8: calls are delegated all the same');
$coordinator->safe_psql('postgres', 'ALTER ROLE shop_owner LOGIN');
well('F8');

# rights that one node lacks, or has beyond
my $alone = 'SET citus.enable_ddl_propagation = off;';
$one->safe_psql('postgres', "$alone REVOKE EXECUTE ON FUNCTION idem_lookup(text, text) FROM app");
ill('F14', (qr/^citus_nodes: SELECT idem_distribute_node\(\); unlike the coordinator: 127\.0\.0\.1:\d+$/) x 3);
$two->safe_psql('postgres', 'SELECT idem_distribute_node()');
well('F14: mended from a worker');
$coordinator->safe_psql('postgres', q{CREATE ROLE other LOGIN; GRANT USAGE ON SCHEMA idempotency TO other;
	SELECT idem_grant('other', 'operator')});
ill('F14: a grant', (qr/^citus_nodes: /) x 3);
$coordinator->safe_psql('postgres', 'SELECT idem_distribute_node()');
well('F14: a grant');
is(join(' ', on_all(\@nodes, 'SET ROLE other; SELECT count(*) FROM idem_find()')), '9 9 9', 'F14: it is on all nodes');
$two->safe_psql('postgres', "$alone ALTER TABLE idempotency_leases OWNER TO app");
like((complaints())[2], qr/citus_nodes: /, 'F14: an owner');
$coordinator->safe_psql('postgres', 'SELECT idem_distribute_node()');
well('F14: an owner');

# where claims on another node are allowed
$coordinator->safe_psql('postgres', q{
	CREATE TABLE notes (id integer);
	ALTER TABLE notes OWNER TO shop_owner});
well('F9: no matter without remote_claims');
foreach my $node (@nodes)
{
	$node->append_conf('postgresql.conf', 'idempotency.remote_claims = on');
	$node->reload;
}
poll('the setting', sub { !grep { $_ ne 'on' } on_all(\@nodes, 'SHOW idempotency.remote_claims') });
ill('F9', qr/^citus_unknown_tables: committed apart from a claim on another node; citus_add_local_table_to_metadata\(\): public\.notes$/);
$coordinator->safe_psql('postgres', q{SELECT citus_add_local_table_to_metadata('notes')});
well('F9');
$two->append_conf('postgresql.conf', 'synchronous_commit = off');
$two->reload;
poll('the setting', sub { $two->safe_psql('postgres', 'SHOW synchronous_commit') eq 'off' });
ill('F10', undef, undef, qr/^citus_commits: synchronous_commit is off/);

# who asks needs no more than the level, and a role that cannot connect is told so
like($coordinator->safe_psql('postgres', q{SET ROLE other; SELECT count(*) FROM idem_health()}), qr/^\d\d/,
	'an operator asks');
no_word_of('sesame', @nodes);
done_testing();
