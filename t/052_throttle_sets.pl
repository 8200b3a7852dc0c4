# Rate limiting: several limits at once, and giving back.
#
# Scenario: one thing after the other first: a set is taken from all or from
# none, who refuses is named and has refused, and nobody else.  Then 64 clients
# take sets of overlapping buckets in any order, and single ones among them: no
# one waits for ever, each call that was allowed has charged all of its buckets,
# and none that was refused has charged any.  Then they guess, a token each,
# which is given back to who is right: there are as many wrong guesses as there
# were tokens, and no more.  At last a memory that is too small for all of a set.
#
# A bucket that is not to refill while the test runs gets a token in days.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 64;
my $node = new_node('sets', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.worker = off
idempotency.sweep_interval = '1 s'
max_connections = 100
});

sub value
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# A call for [ limiter, subject, cost ], ...
sub set
{
	my @members = @_;
	my ($limiters, $subjects, $costs) = map {
		my $i = $_;
		'ARRAY[' . join(', ', map { $i < 2 ? "'$_->[$i]'" : $_->[$i] // 1 } @members) . ']'
	} 0 .. 2;

	return "SELECT t.* FROM idem_throttle_all($limiters, $subjects, $costs) t";
}

sub left
{
	my ($limiter, $subject) = @_;

	return value("SELECT remaining FROM idem_throttle_peek('$limiter', '$subject')");
}

sub give
{
	my ($limiter, $subject, $cost) = @_;

	return "SELECT idem_throttle_return('$limiter', '$subject', " . ($cost // 1) . ')';
}

# The same of an answer that has a time to come back in it
sub without_time
{
	my ($answer) = @_;

	return $answer =~ s/\|[1-9]\d*$/|later/r;
}

#
# All or none.
#

value(q{SELECT idem_limiter('ten', 10, '3660 days'), idem_limiter('three', 3, '3660 days'),
	idem_limiter('day', 3, '3 days'), idem_limiter('pause', 1, '5 min', '10 min', '40 min'),
	idem_limiter('tired', 1, '1 us', '10 min'), idem_limiter('tick', 1, '1500 us')});
is(value(set([ 'ten', 'a' ], [ 'three', 'a' ])), 't|three|2|', 'told is the one with the least left');
is(value(set([ 'three', 'a' ], [ 'ten', 'a', 9 ])), 't|ten|0|', 'after the call');
is(value(q{SELECT t.* FROM idem_throttle_all('{three,ten}', '{unsaid,unsaid}') t}), 't|three|2|', 'costs are 1, unless told');
is(without_time(value(set([ 'ten', 'a' ], [ 'three', 'a', 2 ]))), 'f|three|1|later',
	'all refuse: told is the longest wait, which is for a third of ten years');
is(without_time(value(set([ 'ten', 'a' ], [ 'ten', 'b', 3 ], [ 'three', 'b', 2 ]))), 'f|ten|0|later', 'one refuses');
is(left('ten', 'b') . left('three', 'b'), '103', 'and none is charged');
is(value(q{SELECT limiter, refused FROM idem_throttle_activity
	WHERE subject_id IN (idem_log_id('a'), idem_log_id('b')) ORDER BY limiter}), "ten|2\nthree|1",
	'nor has another refused, or a bucket');
value(set([ 'three', 'c', 3 ], [ 'day', 'c', 3 ]));
is(without_time(value(set([ 'day', 'c' ], [ 'three', 'c' ]))), 'f|three|0|later', 'of two waits the longer is told');
is(value(set([ 'three', 'c' ], [ 'day', 'c', 4 ])), 'f|day|0|', 'and what can never be before any');
like(value(set([ 'day', 'c' ], [ 'day', 'd' ])), qr/^f\|day\|0\|(863\d{5}|86400000)$/, 'in milliseconds');
is(value(set([ 'ten', 'e', 0 ])), 't|ten|10|', 'a set of one, of nothing');
is(value(set(map { [ 'ten', "many $_" ] } 1 .. 32)), 't|ten|9|', 'a set of the most');
is(left('ten', 'many 1') . left('ten', 'many 32'), '99', 'takes from each');
is(value(q{SELECT t.* FROM idem_throttle_all('[0:1]={ten,ten}', '[7:8]={f,g}', '[2:3]={1,2}') t}), 't|ten|8|',
	'the bounds of an array do not matter');

# The same bucket twice
is(value(set([ 'ten', 'twice', 3 ], [ 'ten', 'twice', 4 ])), 't|ten|3|', 'costs of one bucket add up');
is(without_time(value(set([ 'ten', 'twice', 2 ], [ 'three', 'twice' ], [ 'ten', 'twice', 2 ]))), 'f|ten|3|later',
	'where each alone would be allowed');
is(value(set([ 'ten', 'twice', 6 ], [ 'ten', 'twice', 6 ])), 'f|ten|3|', 'a sum above the capacity can never be');
is(value(set((map { [ 'ten', 'twice', 2147483647 ] } 1 .. 3), [ 'ten', 'twice', 0 ])), 'f|ten|3|', 'however large');
is(left('ten', 'twice') . left('three', 'twice'), '33', 'and takes nothing');

# Back-off
value(set([ 'pause', 'a' ], [ 'ten', 'p' ]));
is(join(' ', map { value(set([ 'ten', 'p' ], [ 'pause', 'a' ])) } 1 .. 4),
	join(' ', map { 'f|pause|0|' . $_ * 600_000 } 1, 2, 4, 4), 'a refusal is a strike');
value(q{SELECT idem_throttle('tired', 'a')});
is(value(set([ 'tired', 'a' ], [ 'pause', 'a' ])), 'f|pause|0|2400000', 'of the one that refuses');
is(value(q{SELECT pause_left, refused FROM idem_throttle_activity WHERE limiter = 'tired'}), '00:00:00|0',
	'and of no other');
is(left('ten', 'p') . left('tired', 'a'), '91', 'from which nothing was taken');

# What has been taken is taken
my $session = session($node);
$session->query('BEGIN; ' . set([ 'ten', 'kept' ], [ 'three', 'kept' ]) . '; ROLLBACK');
is(left('ten', 'kept') . left('three', 'kept'), '92', 'kept after a rollback');
$session->query('BEGIN READ ONLY');
is($session->query(set([ 'ten', 'kept' ], [ 'three', 'kept' ])), 't|three|1|', 'a read-only transaction takes as well');
is($session->query(give('three', 'kept')), 2, 'and gives back');
is($session->query('SELECT pg_current_xact_id_if_assigned() IS NULL'), 't', 'without a transaction id');
$session->query('ROLLBACK');
is(left('ten', 'kept') . left('three', 'kept'), '82', 'which stays so, too');

# Errors take nothing
foreach my $case ([ '42704', [ 'ten', 'err' ], [ 'none', 'err' ] ], [ '22023', [ 'ten', 'err' ], [ 'ten', 'err', -1 ] ])
{
	my ($state, @members) = @$case;

	$session->query(set(@members));
	is($session->state, $state, "$state of the second");
	is(left('ten', 'err'), 10, 'takes nothing from the first');
}

# Never told to come back at once
is(value(q{SELECT min(retry_after_ms), max(retry_after_ms), bool_and((retry_after_ms IS NULL) = allowed)
	FROM generate_series(1, 100000) i, LATERAL idem_throttle('tick', 'a' || left(i::text, 0))}),
	'1|2|t', 'milliseconds are rounded up, and null where nothing was refused');
value(q{SELECT idem_throttle('ten', 'peek', 4)});
is(value(q{SELECT t.* FROM idem_throttle_peek('ten', 'peek', 6) t}), 't|6|', 'a look at a cost');
is(without_time(value(q{SELECT t.* FROM idem_throttle_peek('ten', 'peek', 7) t})), 'f|6|later', 'above what is left');
is(value(q{SELECT t.* FROM idem_throttle_peek('ten', 'peek', 11) t}), 'f|6|', 'and above what can be');

#
# Giving back.
#

is(value(give('ten', 'nobody', 5)), 10, 'a subject without a bucket has all there can be');
is(value(q{SELECT count(*) FROM idem_throttle_activity WHERE subject_id = idem_log_id('nobody')}), 0, 'and gets none by it');
value(set([ 'ten', 'back', 7 ]));
is(value(give('ten', 'back', 2)), 5, 'what is given back is there');
is(value(give('ten', 'back', 0)), 5, 'nothing is nothing');
is(value(give('ten', 'back', 6)), 10, 'never more than the capacity');
is(value(give('ten', 'back', 2147483647)), 10, 'whatever is given');
is(value(set([ 'ten', 'back', 10 ])), 't|ten|0|', 'that can be taken');
is(value(q{SELECT allowed, refused FROM idem_throttle_activity WHERE subject_id = idem_log_id('back')}), '2|0',
	'calls stay counted');
is(value(give('pause', 'a')), 1, 'to one in a pause, too');
like(value(set([ 'pause', 'a' ])), qr/^f\|pause\|1\|\d+$/, 'which goes on');

#
# Counters and the audit log.
#

my $throttled = q{SELECT throttled FROM idem_stats WHERE datname = current_database() AND policy IS NULL};
value(q{SELECT idem_stats_reset(), idem_policy('default', audit => true)});
value(set([ 'three', 'a', 2 ], [ 'ten', 'a' ], [ 'ten', 'fresh' ])) for 1 .. 3;
value(set([ 'ten', 'fresh' ]));
is(value($throttled), 3, 'a call that is refused counts once');
$node->append_conf('postgresql.conf', "idempotency.worker = on\n");
$node->reload;
my $logged = q{SELECT split_part(entity_id, '/', 2) = idem_log_id('a'), detail->>'count'
	FROM idempotency_audit_log WHERE action = 'limited'};
poll('the log', sub { value($logged) =~ /\n/ });
is(value($logged), "t|3\nt|3", 'each limiter that refused is in the audit log, and no other');
value(q{SELECT idem_policy('default', audit => false)});
$node->append_conf('postgresql.conf', "idempotency.worker = off\n");
$node->reload;

#
# Exact, and no deadlock.
#

# Of each call, what it asked for and what it got; one statement makes many
value(q{
SELECT idem_limiter('x', 1000, '3660 days'), idem_limiter('y', 1500, '3660 days'), idem_limiter('z', 3000, '3660 days');
CREATE TABLE asked (limiters text[], subjects text[], costs integer[], allowed boolean, told text, remaining integer)});
my @orders = ("'{x,y,z}'", "'{z,y,x}'", "'{y,z,x,y}'", "'{z,x,x,z}'");
my @scripts = map { qq{INSERT INTO asked
SELECT s.limiters, s.subjects, s.costs, t.allowed, t.limiter, t.remaining
FROM (SELECT l.limiters, ARRAY(SELECT 's' || (1 + random() * 15)::integer + 0 * i FROM unnest(l.limiters) u) AS subjects,
	ARRAY(SELECT (random() * 3)::integer + 0 * i FROM unnest(l.limiters) u) AS costs
	FROM (SELECT $_\::text[] AS limiters) l, generate_series(1, 100) i OFFSET 0) s,
	LATERAL idem_throttle_all(s.limiters, s.subjects, s.costs) t;
} =~ s/\n(?=.)/ /gr } @orders;
# all at once, in either order
push @scripts, map { qq{INSERT INTO asked
SELECT s.limiters, s.subjects, NULL, t.allowed, t.limiter, t.remaining
FROM (SELECT array_fill('z'::text, '{16}') AS limiters, (SELECT array_agg('s' || n ORDER BY n $_) FROM generate_series(1, 16) n)
	AS subjects FROM generate_series(1, 5) i OFFSET 0) s,
	LATERAL idem_throttle_all(s.limiters, s.subjects) t;
} =~ s/\n(?=.)/ /gr } ('', 'DESC');
# one
push @scripts, q{INSERT INTO asked
SELECT ARRAY[s.limiter], ARRAY[s.subject], '{1}', t.allowed, s.limiter, t.remaining
FROM (SELECT (ARRAY['x', 'y', 'z'])[1 + (random() * 2)::integer] AS limiter, 's' || (1 + random() * 15)::integer AS subject
	FROM generate_series(1, 50) i OFFSET 0) s, LATERAL idem_throttle(s.limiter, s.subject) t;
} =~ s/\n(?=.)/ /gr;

sub hammer
{
	my ($what, $times, @texts) = @_;
	my $bench = start_pgbench(
		$node,
		clients => $clients,
		params => [ '-t', $times ],
		scripts => \@texts);

	$bench->{handle}->finish;
	is($bench->{err} =~ /ERROR|abort/ ? $bench->{err} : '', '', $what);
	return;
}

hammer("$clients clients at once, in all orders", 12, @scripts);
note(value(q{SELECT allowed, count(*) FROM asked GROUP BY 1 ORDER BY 1}));
is(value(q{SELECT count(*) FILTER (WHERE allowed) > 3000, count(*) FILTER (WHERE NOT allowed) > 3000 FROM asked}), 't|t',
	'calls are allowed, and refused');
value(q{
CREATE VIEW charged AS
SELECT limiter, subject, sum(cost) FILTER (WHERE allowed) AS taken, count(DISTINCT call) FILTER (WHERE allowed) AS calls
FROM (SELECT a.allowed, a.ctid AS call, m.limiter, m.subject, coalesce(m.cost, 1) AS cost
	FROM asked a, LATERAL unnest(limiters, subjects, costs) m (limiter, subject, cost)) a
GROUP BY 1, 2});
is(value(q{SELECT count(*), count(*) FILTER (WHERE l.capacity - c.taken IS DISTINCT FROM p.remaining), min(p.remaining) >= 0
	FROM charged c JOIN idempotency_limiters l ON l.name = c.limiter,
		LATERAL idem_throttle_peek(c.limiter, c.subject) p}), '48|0|t',
	'an allowed call has charged all of its buckets, a refused one none');
is(value(q{SELECT count(*) FROM charged c LEFT JOIN idem_throttle_activity a
	ON a.limiter = c.limiter AND a.subject_id = idem_log_id(c.subject) WHERE a.allowed IS DISTINCT FROM c.calls}), 0,
	'as idem_throttle_activity has counted');
is(value(q{SELECT count(*) FROM asked WHERE told <> ALL (limiters) OR told IS NULL}), 0, 'told is a limiter of the call');

#
# Only failures count.
#

# One in ten is right; each wrong one is noted.  In two limits at once, as a
# login has them.
value(q{
SELECT idem_limiter('account', 100, '3660 days'), idem_limiter('address', 100000, '3660 days');
CREATE TABLE guesses (number integer, correct boolean);
CREATE FUNCTION guess(number integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF NOT (SELECT allowed FROM idem_throttle_all('{address,account}', '{here,ada}')) THEN
		RETURN NULL;
	END IF;
	INSERT INTO guesses VALUES (number, number % 10 = 0);
	IF number % 10 = 0 THEN
		PERFORM idem_throttle_return('account', 'ada'), idem_throttle_return('address', 'here');
	END IF;
	RETURN number % 10 = 0;
END
$$});
hammer('guesses in parallel', 100, "\\set n random(1, 1000)\nSELECT guess(:n);\n");
is(value('SELECT count(*) FROM guesses WHERE NOT correct'), 100, 'as many wrong ones as there were tokens');
cmp_ok(value('SELECT count(*) FROM guesses WHERE correct'), '>', 0, 'and right ones beside them');
is(left('account', 'ada'), 0, 'then no token is left');
is(left('address', 'here'), 100000 - 100, 'of the other limit just those are gone');

$session->quit;
$node->stop;

#
# A small memory: half for a limiter, three quarters for the database.
#

$node = new_node('small', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.worker = off
idempotency.max_buckets = 16
});
my $buckets = 'SELECT count(*) FROM idem_throttle_activity';
value(q{SELECT idem_limiter('shut', 5, '3660 days'), idem_limiter('deep', 5, '3660 days'),
	idem_limiter('open', 5, '3660 days', when_full => 'allow')});
value(q{SELECT count(*) FROM generate_series(1, 8) i, LATERAL idem_throttle('shut', 's' || i)});
value(q{SELECT count(*) FROM generate_series(1, 3) i, LATERAL idem_throttle('deep', 'd' || i)});
is(value($buckets), 11, 'a memory with room for one more');
for my $time (1 .. 3)
{
	is(without_time(value(set([ 'deep', 'n1' ], [ 'deep', 'd1' ], [ 'deep', 'n2' ]))), 'f|deep|0|later',
		'no room for all of a set');
	is(value($buckets), 11, 'is not taken for some of them');
}
is(left('deep', 'd1'), 4, 'nor is a token of who has a bucket');
is(value($throttled), 3, 'each is counted');
is(value(set([ 'deep', 'n1' ], [ 'deep', 'd1' ])), 't|deep|3|', 'there is room for one');
is(value($buckets), 12, 'which it has then');
is(without_time(value(set([ 'deep', 'd1' ], [ 'shut', 'new' ]))), 'f|shut|0|later', 'one without room refuses for all');
is(value(set([ 'open', 'new' ], [ 'deep', 'd1' ])), 't|deep|2|', 'or is allowed, as its limiter says');
is(value(set([ 'open', 'new', 5 ], [ 'deep', 'd1' ])), 't|open|0|', 'each time anew');
is(value(set([ 'open', 'new', 6 ], [ 'deep', 'd1' ])), 'f|open|5|', 'but a cost that nobody can have');
is(left('deep', 'd1'), 1, 'taken from the others is just what was allowed');
is(left('open', 'new'), 5, 'a look at one without a bucket');
is(value(q{SELECT t.* FROM idem_throttle_peek('open', 'new', 6) t}), 'f|5|', 'at any cost');
is(value(give('open', 'new', 3)), 5, 'to which nothing can be given');
is(value(give('deep', 'd2')), 5, 'a bucket that is full by what was given back');
is(without_time(value(set([ 'deep', 'd2' ], [ 'deep', 'n2' ]))), 'f|deep|0|later', 'is not forgotten for its own set');
is(value(set([ 'deep', 'n2' ])), 't|deep|4|', 'but for another');
is(value($buckets), 12, 'as many as before');
$node->stop;

done_testing();
