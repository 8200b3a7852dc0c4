# Shards that move, nodes that join and leave.
#
# Scenario: a coordinator, two workers, and a third that joins while writers go
# on; shards are moved online and with writes blocked, under writers, then the
# node is drained and leaves.  Each key has had one effect.  A session that was
# open all the time knows where a shard is after its move: the fence, the sweep,
# the list of leases and the key lock follow it.  F3: one owner, no row is lost.
# F14: owner and rights are on the node that joined.

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

add_application($coordinator);
distribute($coordinator);
$coordinator->safe_psql('postgres', q{
	SELECT idem_policy('work', recoverable => true, lease => '1 hour')});

my ($a) = tenant_on($coordinator, $one);
my ($b) = tenant_on($coordinator, $two);

# Move the shard of a tenant, and those beside it.
sub move
{
	my ($tenant, $from, $to, $mode) = @_;

	$coordinator->safe_psql('postgres', qq{
		SELECT citus_move_shard_placement(get_shard_id_for_distribution_column('orders', '$tenant'),
			'127.0.0.1', } . $from->port . q{, '127.0.0.1', } . $to->port . qq{, '$mode')});
	# else Citus does that a little later
	$coordinator->safe_psql('postgres', 'CALL citus_cleanup_orphaned_resources()');
	return;
}

#
# An open session on each node
#
my @open = map { session($_) } @nodes;

sub outcome_on
{
	my ($i, $sql) = @_;
	my $out = $open[$i]->query($sql);

	return $open[$i]->state || $out;
}

my $n = 0;

# A session that has seen the shard leave says 40001 for a minute: the first time
# for certain, later it depends.
sub claims
{
	$n++;
	return join ' ', map { outcome_on($_, "SELECT outcome FROM idem_claim('$a', 'sesame-$n-$_')") } 0 .. 2;
}

sub claims_whenever
{
	return claims() =~ s/40001/0A000/gr;
}

is(claims(), '0A000 claimed 0A000', 'the shard is on the first worker');
outcome_on(1, "SELECT idem_claim('$a', 'sesame-w', policy => 'work'); SELECT idem_end_lease('$a', 'sesame-w')");
is(outcome_on(2, q{SELECT count(*) FROM idem_recover('work', 10)}), '0', 'its lease, too');
move($a, $one, $two, 'force_logical');
is(claims(), '0A000 40001 claimed', 'moved online: open sessions know');
is(outcome_on(1, q{SELECT count(*) FROM idem_recover('work', 10)}), '0', '... the lease is no more on the first');
is(outcome_on(2, q{SELECT scope, attempt FROM idem_recover('work', 10)}), "$a|2", '... but on the second');
outcome_on(2, "SELECT idem_end_lease('$a', 'sesame-w')");
is(outcome_on(1, 'SELECT idem_sweep()'), '0', '... nothing of it is swept here');
$coordinator->safe_psql('postgres', "UPDATE idempotency_keys SET expires_at = created_at, purge_at = created_at WHERE tenant = $a AND key = 'sesame-w'");
is(outcome_on(1, 'SELECT idem_sweep()'), '0', '... also when it is due');
is(outcome_on(2, 'SELECT idem_sweep()'), '1', '... but there');
move($a, $two, $one, 'block_writes');
is(claims(), '0A000 claimed 40001', 'moved back with writes blocked: open sessions know');
move($a, $one, $two, 'block_writes');
move($a, $two, $one, 'force_logical');
is(claims_whenever(), '0A000 claimed 0A000', 'twice: open sessions know');

# a call that was sent here before the move, whose shard is not dropped yet
{
	my $shard = $coordinator->safe_psql('postgres', qq{SELECT get_shard_id_for_distribution_column('idempotency.idempotency_keys', '$a')});

	$two->safe_psql('postgres', "SET citus.enable_ddl_propagation = off;
		CREATE TABLE idempotency.idempotency_keys_$shard (left_behind integer)");
	is_error($two, "SELECT idem_claim('$a', 'sesame')", '40001', 'have moved', 'a shard that has just moved');
	$two->safe_psql('postgres', "SET citus.enable_ddl_propagation = off; DROP TABLE idempotency.idempotency_keys_$shard");
	is(claims_whenever(), '0A000 claimed 0A000', '... and has gone');
}

# on another node, with the lock there
outcome_on($_, 'SET idempotency.remote_claims = on') foreach 0 .. 2;
move($a, $one, $two, 'force_logical');
is(outcome_on(1, "BEGIN; SELECT outcome FROM idem_claim('$a', 'sesame-r')"), 'claimed', 'from the node that it left');
is(outcome_on(2, "SELECT outcome FROM idem_claim('$a', 'sesame-r', wait => '0')"), 'in_progress', '... with the key lock of the other');
outcome_on(1, 'ROLLBACK');
move($a, $two, $one, 'force_logical');

# a node that cannot join as it is: the column is missing there
my $third = new_member('citus3');

is_error($coordinator, q{SELECT citus_add_node('127.0.0.1', } . $third->port . ')', '\w+', '',
	'a node that joins without its part is refused');
is($coordinator->safe_psql('postgres', 'SELECT count(*) FROM pg_dist_node'), '3', '... and is no member');

#
# Writers, while shards move and the node joins and leaves
#
my $keys = 60;
my $folder = PostgreSQL::Test::Utils::tempdir;

append_to_file("$folder/buy.sql", qq{\\set n random(1, $keys)
\\set tenant :n % 12 + 1
SELECT order_once(:tenant, 'sesame-b' || :n);
});

sub start_writers
{
	my @runs;

	foreach my $i (0 .. 2)
	{
		my $run = { out => '', err => '' };

		local $ENV{PGHOST} = $nodes[$i]->host;
		local $ENV{PGPORT} = $nodes[$i]->port;
		$run->{handle} = IPC::Run::start(
			[ 'pgbench', '-n', '-c', 2, '-T', 600, '--max-tries=100', '-f', "$folder/buy.sql", 'postgres' ],
			'<', \'', '>', \$run->{out}, '2>', \$run->{err},
			IPC::Run::timeout(10 * $PostgreSQL::Test::Utils::timeout_default));
		push @runs, $run;
	}
	return @runs;
}

my @writers = start_writers();

poll('writers', sub { $coordinator->safe_psql('postgres', 'SELECT count(*) FROM orders') > 3 });
move($a, $one, $two, 'force_logical');
move($b, $two, $one, 'force_logical');
add_node($coordinator, $third, 'citus_add_inactive_node');

# who holds locks on the tables of other nodes is not in its way
outcome_on($_, "RESET idempotency.remote_claims; BEGIN; SELECT count(*) FROM idempotency_keys; SELECT count(*) FROM idempotency_leases")
  foreach 0 .. 2;
$coordinator->safe_psql('postgres', 'SELECT idem_distribute_node()');
pass('idem_distribute_node() waits for nobody who works');
outcome_on($_, 'COMMIT; SET idempotency.remote_claims = on') foreach 0 .. 2;
$coordinator->safe_psql('postgres', q{SELECT citus_activate_node('127.0.0.1', } . $third->port . ')');
is($third->safe_psql('postgres', q{SELECT ok, detail FROM idem_health() WHERE check_name = 'citus_distributed'}),
	'f|policies and limiters are not on this node: SELECT replicate_reference_tables()', 'a node without the rules');
$coordinator->safe_psql('postgres', 'SELECT idem_distribute_node(); SELECT replicate_reference_tables()');
move($a, $two, $third, 'force_logical');
move($b, $one, $third, 'block_writes');
is(join(' ', on_all([ @nodes, $third ], q{SELECT string_agg(check_name || ': ' || detail, '; ') FROM idem_health()
	WHERE NOT ok AND check_name <> 'server_version'})), '   ', 'F14: idem_health() is content with each node');
is(join(' ', on_all([ @nodes, $third ], q{SELECT bool_or(has_function_privilege('app', oid, 'EXECUTE')) FROM pg_proc WHERE proname = 'idem_run'})),
	't t t t', 'F14: rights are on the node that joined');
is(join(' ', on_all([ @nodes, $third ], q{SELECT count(*) FROM idem_policy_list})), '2 2 2 2', 'policies, too');
is($third->safe_psql('postgres', "SET ROLE app; SELECT outcome FROM order_once($a, 'sesame-third')"), 'completed', 'a call through it');
is(join(' ', map { (outcome_on($_, 'RESET idempotency.remote_claims'), outcome_on($_, "SELECT outcome FROM idem_claim('$a', 'sesame-t$_')"))[1] } 0 .. 2) =~ s/40001/0A000/gr,
	'0A000 0A000 0A000', 'open sessions know that the shard is there');
is($third->safe_psql('postgres', "SELECT outcome FROM idem_claim('$a', 'sesame-t4')"), 'claimed', 'and so does the node');

# the node leaves
$coordinator->safe_psql('postgres', q{SELECT citus_drain_node('127.0.0.1', } . $third->port . q{, shard_transfer_mode => 'force_logical')});
$coordinator->safe_psql('postgres', q{SELECT citus_remove_node('127.0.0.1', } . $third->port . ')');
foreach my $run (@writers)
{
	$run->{handle}->kill_kill;
	$run->{handle}->finish;
}
no_prepared(@nodes);

# what was never done is done now, what was done is answered
$coordinator->safe_psql('postgres', "SELECT order_once($_ % 12 + 1, 'sesame-b$_')") foreach 1 .. $keys;
is($coordinator->safe_psql('postgres', q{SELECT count(*), count(DISTINCT (tenant, key)) FROM orders WHERE key ~ '^sesame-b'}),
	"$keys|$keys", 'F3: each key has had its effect once');
is($coordinator->safe_psql('postgres', q{SELECT count(*) FROM idempotency_keys WHERE key ~ '^sesame-b'}), $keys, 'F3: and no key is lost');
is(join(' ', map { log_count($_, qr/\b23505\b|duplicate key value violates unique constraint "idempotency/) } @nodes, $third), '0 0 0 0',
	'F11: no unique violation on a key');

# it joins again, with what it had
add_node($coordinator, $third, 'citus_add_inactive_node');
$coordinator->safe_psql('postgres', 'SELECT idem_distribute_node()');
$coordinator->safe_psql('postgres', q{SELECT citus_activate_node('127.0.0.1', } . $third->port . ')');
$coordinator->safe_psql('postgres', 'SELECT idem_distribute_node(); SELECT replicate_reference_tables()');
move($a, $one, $third, 'block_writes') if node_of($coordinator, $a) == $one->port;
move($a, $two, $third, 'block_writes') if node_of($coordinator, $a) == $two->port;
is($third->safe_psql('postgres', "SELECT outcome FROM order_once($a, 'sesame-third')"), 'replayed', 'it joins again');

$_->quit foreach @open;
no_word_of('sesame', @nodes, $third);
done_testing();
