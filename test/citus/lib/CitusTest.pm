
=pod

=head1 NAME

CitusTest - what the tests on Citus share

=head1 DESCRIPTION

A coordinator and workers, each a PostgreSQL::Test::Cluster that listens on a
port of 127.0.0.1 as well, since nodes of Citus connect to each other by TCP;
and an application on them: a table of orders that is distributed by tenant, a
handler that writes one, and a function that is delegated to the node of the
tenant.

Nothing depends on time but the bound of poll().

=cut

package CitusTest;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  add_application add_node distribute is_error new_citus new_member no_word_of
  no_prepared node_of on_all orders_of tenant_on
);

# A part of each key, which no message may have.
our $SECRET = 'sesame';

# End the test where the server has no Citus.
sub require_citus
{
	my ($sharedir) = run_command([ 'pg_config', '--sharedir' ]);

	plan skip_all => 'citus: this server has no Citus'
	  if !-e "$sharedir/extension/citus.control";
	return;
}

# A server that is in no cluster yet.  Options: conf; libraries to preload, too.
sub new_member
{
	my ($name, %options) = @_;

	require_citus();
	my $node = new_node(
		$name,
		streaming => 'logical',
		extension => 0,
		conf => join "\n",
		"shared_preload_libraries = 'citus, idempotency"
		  . (defined $options{libraries} ? ", $options{libraries}'" : "'"),
		"listen_addresses = '127.0.0.1'",
		"citus.node_conninfo = 'sslmode=disable'",
		'citus.enable_statistics_collection = off',
		'citus.shard_count = 8',
		'max_connections = 80',
		'max_prepared_transactions = 50',
		'max_worker_processes = 40',
		"search_path = 'public, idempotency'",
		$options{conf} // '');

	$node->safe_psql('postgres',
		'SET client_min_messages = warning; CREATE EXTENSION citus');
	return $node;
}

sub add_node
{
	my ($coordinator, $node, $how) = @_;

	$how //= 'citus_add_node';
	$coordinator->safe_psql('postgres', "SELECT $how('127.0.0.1', " . $node->port . ')');
	return;
}

# So many nodes, the first of them the coordinator, with the extension and two
# roles.  Options as above.
sub new_citus
{
	my ($number, %options) = @_;
	my @nodes = map { new_member("citus$_", %options) } 0 .. $number - 1;
	$nodes[0]->safe_psql('postgres',
		"SELECT citus_set_coordinator_host('127.0.0.1', " . $nodes[0]->port . ')');
	add_node($nodes[0], $_) foreach @nodes[ 1 .. $#nodes ];
	$nodes[0]->safe_psql(
		'postgres', q{
		SET client_min_messages = warning;
		CREATE EXTENSION pgcrypto;
		CREATE SCHEMA idempotency;
		CREATE EXTENSION idempotency SCHEMA idempotency;
		CREATE ROLE shop_owner LOGIN;
		CREATE ROLE app LOGIN;
		GRANT USAGE ON SCHEMA idempotency TO app;
		SELECT idem_grant('app', 'app')});
	return @nodes;
}

# Tables by tenant, of this type.
sub add_application
{
	my ($coordinator, $type) = @_;

	$type //= 'bigint';
	$coordinator->safe_psql(
		'postgres', qq{
		SET client_min_messages = warning;
		CREATE TABLE orders (tenant $type, id uuid DEFAULT gen_random_uuid(),
			key text, PRIMARY KEY (tenant, id));
		GRANT CREATE ON SCHEMA public TO shop_owner;
		ALTER TABLE orders OWNER TO shop_owner;
		SELECT create_distributed_table('orders', 'tenant');
		GRANT SELECT, INSERT, UPDATE ON orders TO app});
	return;
}

# The keys beside them, and the function that is delegated.
sub distribute
{
	my ($coordinator, $type) = @_;

	$type = ($type // 'bigint') =~ s{\(.*| COLLATE.*}{}r;
	$coordinator->safe_psql(
		'postgres', qq{
		SET client_min_messages = warning;
		SELECT idem_distribute('orders');
		CREATE FUNCTION buy(body jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$
		BEGIN
			INSERT INTO orders (tenant, key) VALUES ((body->>'tenant')::$type, body->>'key');
			RETURN body;
		END \$\$;
		CREATE FUNCTION order_once(tenant $type, key text, wait interval DEFAULT NULL)
		RETURNS idempotency.idem_result LANGUAGE plpgsql AS \$\$
		DECLARE
			answer idempotency.idem_result;
		BEGIN
			SELECT * INTO answer FROM idem_run('buy(jsonb)',
				idem_scope(tenant::text, 'POST /orders'), key,
				jsonb_build_object('tenant', tenant, 'key', key), wait => wait);
			RETURN answer;
		END \$\$;
		SELECT create_distributed_function('order_once($type, text, interval)',
			'tenant', colocate_with => 'orders', force_delegation => true)});
	return;
}

# The same on each node; the answers.
sub on_all
{
	my ($nodes, $sql) = @_;

	return map { $_->safe_psql('postgres', $sql) } @$nodes;
}

# The port of the node that has the shard of a tenant.
sub node_of
{
	my ($coordinator, $tenant) = @_;

	return $coordinator->safe_psql(
		'postgres', qq{
		SELECT nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
		WHERE shardid = get_shard_id_for_distribution_column('orders', '$tenant')});
}

# The first tenants, by number, on a node.
sub tenant_on
{
	my ($coordinator, $node, $number) = @_;
	my @found;

	for (my $tenant = 1; $tenant < 1000 && @found < ($number // 1); $tenant++)
	{
		push @found, $tenant
		  if node_of($coordinator, $tenant) == $node->port;
	}
	die 'no tenant is there' if @found < ($number // 1);
	return wantarray ? @found : $found[0];
}

# How many orders of a key there are
sub orders_of
{
	my ($coordinator, $key) = @_;

	return $coordinator->safe_psql('postgres',
		"SELECT count(*) FROM orders WHERE key = '$key'");
}

# A script ends with this SQLSTATE, and says this.
sub is_error
{
	my ($node, $sql, $state, $text, $name, %options) = @_;
	my $stderr = '';

	$node->psql(
		'postgres', $sql,
		stderr => \$stderr,
		extra_params => [ '-v', 'VERBOSITY=verbose', @{ $options{params} // [] } ]);
	like($stderr, qr/ERROR:  $state: .*$text/s, $name);
	unlike($stderr, qr/\Q$SECRET\E/, '... without a key');
	return;
}

# No message, detail, hint or context in the logs of nodes has a key.  What a
# client or a node has sent, the log shows by its own setting.
sub no_word_of
{
	my ($secret, @nodes) = @_;

	foreach my $node (@nodes)
	{
		my $log = slurp_file($node->logfile);
		my @found;
		my $field = '';

		foreach my $line (split /\n/, $log)
		{
			$field = $1 if $line =~ /\b(LOG|DEBUG|NOTICE|WARNING|ERROR|FATAL|PANIC|DETAIL|HINT|CONTEXT|STATEMENT|QUERY|LOCATION):  /;
			push @found, $line
			  if $line =~ /\Q$secret\E/ && $field !~ /^(?:STATEMENT|QUERY)$/;
		}
		is(join("\n", @found), '', $node->name . ': no message has a key');
	}
	return;
}

sub no_prepared
{
	my (@nodes) = @_;

	# who has committed finishes what is prepared, or the daemon of Citus
	foreach my $node (@nodes)
	{
		poll('prepared transactions to end', sub {
			$node->safe_psql('postgres', 'SELECT recover_prepared_transactions()')
			  if $node == $nodes[0];
			return $node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts') eq '0';
		});
	}
	return pass('no transaction stays prepared');
}

1;
