# Rivals of idem_dedupe, and what is left of them in the indexes.
#
# Scenario: somebody has added plain indexes of his own.  idem_dedupe of 300 keys
# has looked at them and waits for the row of a key before them, which is locked;
# meanwhile a rival marks every tenth.  It goes on, meets the rival, and waits;
# the rival commits, or rolls back.  An old snapshot keeps the server from forgetting
# the rows that were taken back.  Then every index has every row and amcheck is
# content, and each key was first exactly once.
#
# The same under load: clients mark the same keys in all orders, and roll back now
# and then.  No deadlock, and each key is first once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('rivals', conf => "deadlock_timeout = '100 ms'\n");
my $session = session($node);
my @indexes = qw(idempotency_keys_pkey idempotency_keys_purge_at own own_brin own_hash);
my @btrees = @indexes[0 .. 2];

$session->query('SET client_min_messages = warning; CREATE EXTENSION amcheck');
my $amcheck = $session->state eq '';
$session->query(
	q{
CREATE INDEX own ON idempotency_keys (policy, key, created_at);
CREATE INDEX own_brin ON idempotency_keys USING brin (created_at);
CREATE INDEX own_hash ON idempotency_keys USING hash (key);
CREATE TABLE marked (key text, who text);
});

sub check_indexes
{
	my ($when) = @_;
	my %condition = (
		idempotency_keys_pkey => q{scope >= ''},
		idempotency_keys_purge_at => 'purge_at > now()',
		own => q{policy = 'default'},
		own_brin => 'created_at <= now()',
		own_hash => q{key = 'k100'});
	my $set = join '; ', map { "SET LOCAL enable_${_}scan = off" } qw(seq bitmap index indexonly);

	foreach my $index (@indexes)
	{
		# by all rows and a condition that all meet, but for the hash
		my $kinds = $index =~ /brin/ ? 'bitmap' : 'index';
		my $count = sub {
			my ($on) = @_;
			return $session->query("BEGIN; $set; SET LOCAL enable_${on}scan = on;
				SELECT count(*) FROM idempotency_keys WHERE $condition{$index};
				COMMIT");
		};
		is($count->($kinds), $count->('seq'), "$when: $index has all rows");
	}
	foreach my $index (@btrees)
	{
	  SKIP:
		{
			skip 'no amcheck here', 2 if !$amcheck;
			is($session->query("SELECT bt_index_check('$index', true)")
				  . $session->state, '', "$when: $index is sound");
			# rows that are dead to all but an old snapshot count, too
			is($session->query("SELECT bt_index_parent_check('$index', true)")
				  . $session->state, '', "$when: $index is sound with the dead");
		}
	}
	return;
}

sub wait_until_blocked
{
	my ($who) = @_;
	my $pid = $who->pid;

	return poll("session $pid to wait", sub {
		$session->query("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $pid") > 0;
	});
}

my $old = session($node);
my $locker = session($node);
my $rival = session($node);
my $marker = session($node);

foreach my $end (qw(COMMIT ROLLBACK))
{
	my $scope = lc $end;
	my $keys = q{ARRAY['a'] || ARRAY(SELECT 'k' || i FROM generate_series(1, 300) i)};

	$session->query("SELECT count(*) FROM idem_dedupe('$scope', '{a}');
		UPDATE idempotency_keys SET expires_at = expires_at - interval '1 week',
			purge_at = purge_at - interval '1 week' WHERE scope = '$scope'");
	$old->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM idempotency_keys');
	$locker->query("BEGIN; SELECT FROM idempotency_keys WHERE scope = '$scope' FOR UPDATE");
	$marker->send("SELECT count(*) FILTER (WHERE first), count(*) FROM idem_dedupe('$scope', $keys)");
	wait_until_blocked($marker);
	$rival->query("BEGIN; SELECT count(*) FROM idem_dedupe('$scope',
		ARRAY(SELECT 'k' || i FROM generate_series(10, 300, 10) i))");
	$locker->query('COMMIT');
	wait_until_blocked($marker);
	$rival->query($end);
	is($marker->receive, $end eq 'COMMIT' ? '271|301' : '301|301',
		"after $end of the rival: what is first");
	is(keys_left($node, $scope), 301, "after $end: one row a key");
	is($session->query("SELECT count(*) FROM pg_locks WHERE pid = " . $marker->pid),
		0, "after $end: no lock is left");
	check_indexes("after $end");
	$old->query('COMMIT');
}
$_->quit foreach $old, $locker, $rival, $marker;

# A key is marked with its first; a transaction that rolls back takes both along
my $script = q{
\set from random(1, 200)
\set bad random(1, 4)
BEGIN;
INSERT INTO marked SELECT key, pg_backend_pid() FROM idem_dedupe('load',
	ARRAY(SELECT 'k' || i FROM generate_series(:from, :from + 400) i ORDER BY random()))
	WHERE first;
\if :bad = 1
ROLLBACK;
\else
COMMIT;
\endif
};
foreach my $storage ('auto', 'sql')
{
	$node->safe_psql('postgres', q{TRUNCATE marked; DELETE FROM idempotency_keys WHERE scope = 'load'});
	# in the second turn one half of the clients goes the other way
	local $ENV{PGOPTIONS} = '-c idempotency.storage=auto';
	my $first = start_pgbench($node, clients => 3, scripts => [$script], params => [ '-t', 25 ]);
	$ENV{PGOPTIONS} = "-c idempotency.storage=$storage";
	my $second = start_pgbench($node, clients => 3, scripts => [$script], params => [ '-t', 25 ]);

	foreach my $run ($first, $second)
	{
		$run->{handle}->finish;
		unlike($run->{err}, qr/ERROR|aborted/, "$storage: no client fails");
	}
	is( $session->query(
			q{SELECT count(*) - count(DISTINCT key) FROM marked}),
		0, "$storage: no key is first twice");
	is( $session->query(
			q{SELECT count(*) FROM marked FULL JOIN (SELECT key FROM idempotency_keys
				WHERE scope = 'load') k USING (key) WHERE marked IS NULL OR k IS NULL}),
		0, "$storage: a key is there if it was first");
	check_indexes("$storage, after the load");
}

$session->quit;
$node->stop;
done_testing();
