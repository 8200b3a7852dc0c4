# Rate limiting: what is let through, and what is told of it.
#
# Scenario: 64 clients hammer one subject, and sixteen others beside it, then
# one with more than two million calls.  Of every call the time before and after
# is noted.  In no window of time was more let through than the bucket held plus
# what flowed in, and nothing was lost.
#
# Then one thing after the other.  What was taken stays taken, however the
# transaction ends, and is seen by others at once.  A read-only transaction
# takes as well, and leaves no trace: no transaction id, no WAL, no lock.  Each
# refusal doubles the pause, a look does not, and who stays away is forgiven.
# Limiters change and go under sessions that know them, at commit and not when
# that is rolled back.  Databases and limiters are independent.  Refusals are
# counted, and are in the audit log although the callers rolled back.  Subjects
# are canaries, and are seen nowhere.  A restart, clean or not, forgets all.
#
# A bucket that is not to refill while the test runs gets a token in 36 days.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 64;
my $calls = 500;    # of each
my @storm = (mass(40), 1000);    # statements of each, and calls of each of those

my $node = new_node('throttle', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.worker = off
idempotency.sweep_interval = '1 s'
max_connections = 100
restart_after_crash = on
});

sub value
{
	my ($sql, $database) = @_;

	return $node->safe_psql($database // 'postgres', $sql);
}

# What a call says; more of them are made by one statement
sub take
{
	my ($limiter, $subject, $cost) = @_;

	$cost //= 1;
	return "SELECT t.* FROM idem_throttle('$limiter', '$subject', $cost) t";
}

sub take_many
{
	my ($limiter, $subject, $times) = @_;

	return qq{SELECT t.* FROM generate_series(1, $times) i,
		LATERAL idem_throttle('$limiter', '$subject' || left(i::text, 0)) t};
}

sub peek
{
	my ($limiter, $subject) = @_;

	return "SELECT t.* FROM idem_throttle_peek('$limiter', '$subject') t";
}

# What a subject has left
sub left
{
	my ($limiter, $subject) = @_;

	return "SELECT remaining FROM idem_throttle_peek('$limiter', '$subject')";
}

#
# Exactness.
#

# Times are those of the server's clock, which the limiter reads in between.
value(q{
CREATE TABLE asked (limiter text, subject text, before timestamptz, after timestamptz, allowed boolean);
CREATE FUNCTION ask(limiter text, subject text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	before timestamptz := clock_timestamp();
	allowed boolean := (SELECT t.allowed FROM idem_throttle(limiter, subject) t);
	after timestamptz := clock_timestamp();
BEGIN
	INSERT INTO asked VALUES (limiter, subject, before, after, allowed);
	RETURN allowed;
END
$$;
SELECT idem_limiter('hot', 50, '1 s'), idem_limiter('some', 5, '1 s'),
	idem_limiter('storm', 300, '1 s')});

my %rules = (hot => [ 50, 1_000_000 ], some => [ 5, 1_000_000 ], storm => [ 300, 1_000_000 ]);

# Allowed calls that were all made within a window: their number, less what
# the bucket may let through in it, by 1/per of a token, in the worst window.
sub worst_excess
{
	my ($limiter, @allowed) = @_;
	my ($capacity, $per) = @{ $rules{$limiter} };
	my @by_end = sort { $a->{after} <=> $b->{after} } @allowed;
	my $worst;

	foreach my $begin (map { $_->{before} } @allowed)
	{
		my $count = 0;

		foreach my $call (@by_end)
		{
			next if $call->{before} < $begin;
			my $excess = ++$count * $per
			  - $capacity * ($per + $call->{after} - $begin);
			$worst = $excess if !defined $worst || $excess > $worst;
			return $worst if $worst > 0;
		}
	}
	return $worst;
}

# By how much fewer were allowed between two refusals, one early and one late,
# than flowed in.  At either less than a token was there.  Undefined when for
# so long nobody was refused in between that the bucket may have been full.
sub shortfall
{
	my ($limiter, $calls) = @_;
	my ($capacity, $per) = @{ $rules{$limiter} };
	my @refused = sort { $a->{before} <=> $b->{before} } grep { !$_->{allowed} } @$calls;
	my $quarter = int(@refused / 4);

	return undef if $quarter == 0;
	for my $i (1 .. $#refused)
	{
		return undef
		  if ($refused[$i]{after} - $refused[ $i - 1 ]{before}) * $capacity
		  >= $per * ($capacity - 1);
	}

	# those whose time is known best
	my ($first, $last) = map {
		(sort { $a->{after} - $a->{before} <=> $b->{after} - $b->{before} } @$_)[0]
	} ([ @refused[ 0 .. $quarter - 1 ] ], [ @refused[ -$quarter .. -1 ] ]);
	my $count = grep {
		$_->{allowed} && $_->{after} >= $first->{before} && $_->{before} <= $last->{after}
	} @$calls;
	return $capacity * ($last->{before} - $first->{after}) - $count * $per;
}

# Many calls a statement: of them, those that are allowed
my $ask_often = qq{INSERT INTO asked
SELECT 'storm', 'one', s.before, clock_timestamp(), true
FROM (SELECT clock_timestamp() AS before, i FROM generate_series(1, $storm[1]) i OFFSET 0) s,
	LATERAL idem_throttle('storm', 'one' || left(i::text, 0)) t
WHERE t.allowed;
} =~ s/\n(?=.)/ /gr;

my $bench = start_pgbench(
	$node,
	clients => $clients,
	params => [ '-t', $calls ],
	scripts => [
		"SELECT ask('hot', 'one');\n",
		"\\set i random(1, 16)\nSELECT ask('some', 's' || :i);\n" ]);
$bench->{handle}->finish;
is($bench->{err} =~ /ERROR|abort/ ? $bench->{err} : '', '', "$clients clients at once");
is(value('SELECT count(*) FROM asked'), $clients * $calls, 'each call has its answer');
$bench = start_pgbench(
	$node,
	clients => $clients,
	params => [ '-t', $storm[0] ],
	scripts => [$ask_often]);
$bench->{handle}->finish;
is($bench->{err} =~ /ERROR|abort/ ? $bench->{err} : '', '', 'and a storm of calls');

my %asked;
foreach my $line (split /\n/, value(q{
SELECT limiter, subject, (extract(epoch FROM before) * 1000000)::bigint,
	(extract(epoch FROM after) * 1000000)::bigint, allowed
FROM asked}))
{
	my ($limiter, $subject, $before, $after, $allowed) = split /\|/, $line;

	push @{ $asked{$limiter}{$subject} },
	  { before => $before, after => $after, allowed => $allowed eq 't' };
}
is(scalar(keys %{ $asked{some} }), 16, 'to each subject');
foreach my $limiter (sort keys %rules)
{
	my ($capacity, $per) = @{ $rules{$limiter} };
	my ($excess, $shortest, $judged, $few) = (-1e18, -$per, 0, 0);

	foreach my $calls (values %{ $asked{$limiter} })
	{
		my @allowed = grep { $_->{allowed} } @$calls;
		my $worst = worst_excess($limiter, @allowed);
		my $missing = shortfall($limiter, $calls);

		$excess = $worst if $worst > $excess;
		$few++ if @allowed < $capacity;
		next if !defined $missing;
		$judged++;
		$shortest = $missing if $missing > $shortest;
	}
	cmp_ok($excess, '<=', 0, "$limiter: never more in any window than there was");
	is($few, 0, "$limiter: a full bucket gives all that it has");
	cmp_ok($shortest, '<', $per, "$limiter: nothing that flows in is lost")
	  if $limiter ne 'storm';
	note(sprintf '%s: %.6f tokens below the bound, %.6f short (%d of %d subjects judged)',
		$limiter, -$excess / $per, $shortest / $per, $judged, scalar keys %{ $asked{$limiter} });
}
is(value(q{SELECT count(*) FROM (
		SELECT limiter, idem_log_id(subject), count(*) FILTER (WHERE allowed),
			count(*) FILTER (WHERE NOT allowed)
		FROM asked WHERE limiter <> 'storm' GROUP BY 1, 2
		EXCEPT SELECT limiter, subject_id, allowed, refused FROM idem_throttle_activity) d}),
	0, 'idem_throttle_activity has counted each call of each subject');
is(value(q{SELECT allowed = (SELECT count(*) FROM asked WHERE limiter = 'storm'), allowed + refused
	FROM idem_throttle_activity WHERE limiter = 'storm'}), 't|' . $clients * $storm[0] * $storm[1],
	'in the storm, too');

#
# Taken is taken.
#

value(q{SELECT idem_limiter('slow', 100, '3660 days'), idem_limiter('other', 100, '3660 days')});
my $session = session($node);
my $other = session($node);

$session->query('BEGIN; ' . take('slow', 'a'));
is($other->query(left('slow', 'a')), 99, 'seen by another session before the transaction ends');
$session->query('ROLLBACK');
is($other->query(take('slow', 'a')), 't|98|', 'kept after a rollback');
$session->query('BEGIN; SAVEPOINT s; ' . take('slow', 'a') . '; ROLLBACK TO s; COMMIT');
is($other->query(left('slow', 'a')), 97, 'kept after a rollback to a savepoint');
$session->query(q{SELECT 1 / (remaining - 96) FROM idem_throttle('slow', 'a')});
is($session->state, '22012', 'an error in the same statement');
is($other->query(left('slow', 'a')), 96, 'kept after it');
$session->query('BEGIN; ' . take('slow', 'a') . '; SELECT 1 / 0; COMMIT');
is($other->query(left('slow', 'a')), 95, 'kept after an error in the same transaction');
$session->query('DO $$BEGIN PERFORM idem_throttle(\'slow\', \'a\'); RAISE EXCEPTION \'x\';'
	  . ' EXCEPTION WHEN OTHERS THEN NULL; END$$');
is($other->query(left('slow', 'a')), 94, 'kept after an error that is caught');
$session->query('BEGIN; ' . take('slow', 'a') . '; COMMIT');
is($other->query(left('slow', 'a')), 93, 'kept after a commit');
$session->query('BEGIN ISOLATION LEVEL SERIALIZABLE; ' . take('slow', 'a') . '; ROLLBACK');
is($other->query(left('slow', 'a')), 92, 'kept after a rollback of a serializable transaction');
like($other->query(take('slow', 'a', 93)), qr/^f\|92\|.+/, 'more than is left is refused');
is($other->query(take('slow', 'a', 101)), 'f|92|', 'more than can be has no time to come back');
is($other->query(take('slow', 'a', 0)), 't|92|', 'nothing is always there');
is($other->query(take('slow', 'a', 92)), 't|0|', 'and what is left is still there after refusals');
is($session->query(left('other', 'a')), 100, 'another limiter has buckets of its own');

#
# Read only.
#

# A session that has not asked yet reads the limiter, too
my $reader = session($node);
foreach my $begin ('BEGIN READ ONLY',
	'SET default_transaction_read_only = on; BEGIN',
	'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY')
{
	my $locks = q{SELECT string_agg(DISTINCT mode, ' ') FROM pg_locks
		WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid'};

	$reader->query($begin);
	is($reader->query(take_many('slow', 'read', 3) . ' OFFSET 2'),
		value(left('slow', 'read')) =~ s/(.*)/t|$1|/r, "$begin: takes");
	is($reader->state, '', 'without an error');
	is($reader->query(left('slow', 'read')), value(left('slow', 'read')), 'and looks');
	is($reader->query(take('slow', 'read', 101)) =~ s/\|.*//r, 'f', 'and is refused');
	is($reader->query('SELECT pg_current_xact_id_if_assigned() IS NULL'), 't', 'no transaction id');
	is($reader->query("$locks AND locktype NOT IN ('relation', 'virtualxid')"), '', 'no row is locked');
	is($reader->query("$locks AND mode <> 'SIReadLock'"), 'AccessShareLock',
		'no lock on a relation that anybody minds');
	$reader->query('COMMIT; SET default_transaction_read_only = off');
}

# Others may write: then look again
my $lsn = 'SELECT pg_current_wal_insert_lsn()';
my $quiet = 0;
$reader->query(take_many('slow', 'wal', 200));
value('CHECKPOINT');
for my $time (1 .. 10)
{
	my $before = $reader->query($lsn);

	$reader->query(take_many('slow', 'wal' . $time, 10_000));
	$reader->query(take_many('slow', 'wal' . $time, 1)) for 1 .. 10;
	$quiet = $reader->query($lsn) eq $before;
	last if $quiet;
}
ok($quiet, 'no WAL is written');
$reader->quit;

#
# Back-off.
#

value(q{SELECT idem_limiter('pause', 1, '30 s', '1 min', '8 min'),
	idem_limiter('full', 10, '10 ms', '1 h'), idem_limiter('healing', 5, '5 ms', '1 ms', '4 ms')});
is($session->query(take_many('pause', 'a', 7)), join("\n", 't|0|',
		map { 'f|0|' . $_ * 60_000 } 1, 2, 4, 8, 8, 8), 'each refusal doubles the pause, to the longest');
is($session->query(take_many('pause', 'b', 2)), "t|0|\nf|0|60000", 'that of another is its own');
my $looks = q{SELECT count(*) FILTER (WHERE NOT allowed), bool_and(retry_after_ms BETWEEN 1 AND %d)
	FROM generate_series(1, 50) i, LATERAL idem_throttle_peek('pause', 'b' || left(i::text, 0)) p};
is($session->query(sprintf $looks, 60_000), '50|t', 'looks do not make it longer');
is($session->query('SELECT retry_after_ms FROM (' . take('pause', 'b') . ') t'), 120_000,
	'nor count as refusals');
is($session->query(take('pause', 'b', 2)), 'f|0|', 'nor does a cost that can never be met');
is($session->query(sprintf $looks, 120_000), '50|t', 'which leaves the pause as it is');
is($session->query('SELECT retry_after_ms FROM (' . take('pause', 'b') . ') t'), 240_000,
	'and the next is twice as long');

$session->query(take_many('full', 'a', 1000));
poll('the bucket to be full', sub { $session->query(left('full', 'a')) == 10 });
like($session->query(peek('full', 'a')), qr/^f\|10\|3[56]\d{5}$/, 'in a pause tokens are of no use');
is($session->query(take('full', 'a')), 'f|10|3600000', 'and the pause goes on');
is($session->query(q{SELECT remaining, pause_left > '59 min' FROM idem_throttle_activity
	WHERE limiter = 'full'}), '10|t', 'as idem_throttle_activity says');

$session->query(take_many('healing', 'a', 200));
cmp_ok(value(q{SELECT refused FROM idem_throttle_activity WHERE limiter = 'healing'}), '>', 0,
	'a subject that was refused');
poll('its bucket to heal', sub {
	value(q{SELECT remaining, pause_left FROM idem_throttle_activity
		WHERE limiter = 'healing'}) eq '5|00:00:00' });
is($session->query(take('healing', 'a')), 't|4|', 'is welcome after it has stayed away');

#
# Changes at run time.
#

my $define = sub {
	my ($capacity, $more) = @_;
	$more //= '';
	return "SELECT idem_limiter('change', $capacity, '3660 days'$more)";
};
value($define->(10));
is($other->query(take('change', 'a', 5)), 't|5|', 'a session that knows the limiter');
value($define->(3));
is($other->query(left('change', 'a')), 3, 'sees it lowered, which cuts what is left');
is($other->query(take('change', 'a')), 't|2|', 'for a call, too');
value($define->(100));
is($other->query(take('change', 'a', 2)), 't|0|', 'a raised one adds nothing at once');
like($other->query(take('change', 'a')), qr/^f\|0\|.+/, 'so an exhausted bucket stays exhausted');
is($other->query(take('change', 'new')), 't|99|', 'though new ones have all of it');
$other->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM idempotency_limiters');
value(q{UPDATE idempotency_limiters SET capacity = 42 WHERE name = 'change'});
is($other->query(left('change', 'fresh')), 42,
	'a direct UPDATE, by a transaction whose snapshot is older');
is($other->query('SELECT capacity FROM idempotency_limiters WHERE name = \'change\''), 100,
	'which does not see it itself');
$other->query('COMMIT');
is(value(q{SELECT capacity FROM idempotency_limiters WHERE name = 'change'}), 42, 'though it is there');
$session->query('BEGIN; ' . $define->(7));
is($session->query(left('change', 'fresh')), 7, 'a change is seen by its own transaction');
is($other->query(left('change', 'fresh')), 42, 'and not by others before it commits');
$session->query('ROLLBACK');
is($session->query(left('change', 'fresh')), 42, 'nor by anybody when it does not');
$session->query('BEGIN; SAVEPOINT s; ' . $define->(7) . '; ' . left('change', 'fresh')
	  . '; ROLLBACK TO s; COMMIT');
is($session->query(left('change', 'fresh')), 42, 'nor after a savepoint');

#
# Drops.
#

my $buckets = q{SELECT count(*) FROM idem_throttle_activity WHERE limiter = 'change'};
my $drop = q{SELECT idem_limiter_drop('change')};
my $there = value($buckets);
cmp_ok($there, '>', 1, 'there are buckets');
$session->query("BEGIN; $drop");
is($session->query(take('change', 'a')), '', 'who drops a limiter has it no more');
is($session->state, '42704', 'at once');
$session->query('ROLLBACK');
is(value($buckets), $there, 'a drop that is rolled back keeps the buckets');
is(left_of('a'), 0, 'as they are');
$session->query("BEGIN; SAVEPOINT s; $drop; ROLLBACK TO s; COMMIT");
is(value($buckets), $there, 'so does one that is rolled back to a savepoint');
$session->query("BEGIN; SAVEPOINT s; SAVEPOINT t; $drop; RELEASE t; ROLLBACK TO s; COMMIT");
is(value($buckets), $there, 'through another one');
$session->query("BEGIN; $drop; SAVEPOINT s; SELECT 1; ROLLBACK TO s; ROLLBACK");
is(value($buckets), $there, 'or around one');
$session->query("BEGIN; $drop; " . $define->(42) . '; COMMIT');
is(value($buckets), $there, 'so does one that is followed by a definition');
is(left_of('a'), 0, 'of the same');
value(q{UPDATE idempotency_limiters SET capacity = 43 WHERE name = 'change'});
is(value($buckets), $there, 'and an update');
value($drop);

foreach my $case (
	[ 'a drop', $drop ],
	[ 'one in a savepoint', "BEGIN; SAVEPOINT s; $drop; RELEASE s; COMMIT" ],
	[ 'one before a savepoint', "BEGIN; $drop; SAVEPOINT s; SELECT 1; ROLLBACK TO s; COMMIT" ],
	[ 'one before another savepoint', "BEGIN; SAVEPOINT s; $drop; RELEASE s; SAVEPOINT t; SELECT 1; ROLLBACK TO t; COMMIT" ],
	[ 'a direct DELETE', q{DELETE FROM idempotency_limiters WHERE name = 'change'} ],
	[ 'another name', q{UPDATE idempotency_limiters SET name = 'changed' WHERE name = 'change';
		DELETE FROM idempotency_limiters WHERE name = 'changed'} ])
{
	my ($what, $sql) = @$case;

	value($define->(10));
	my $before = value('SELECT count(*) FROM idem_throttle_activity');
	$other->query(take('change', $_)) for 'a', 'b';
	is(value($buckets), 2, "$what: with buckets");
	$session->query($sql);
	is($session->state, '', 'is done');
	$other->query(take('change', 'a'));
	is($other->state, '42704', 'the next call of another session finds no limiter');
	is(value('SELECT count(*) FROM idem_throttle_activity'), $before, 'and its buckets are gone')
	  or diag(value('SELECT * FROM idem_throttle_activity'));
	value($define->(10));
	is($other->query(left('change', 'a')), 10, 'when defined again it starts afresh');
	value($drop);
}

# What a session may make anew before it hears of a drop, or a TRUNCATE or a
# dropped extension leave, is gone when the limiter is defined.
value($define->(10));
value(take('change', 'a', 10));
value('TRUNCATE idempotency_limiters');
is(value('SELECT count(*) FROM idem_throttle_activity WHERE limiter IS NOT NULL'), 0,
	'after TRUNCATE there are no limiters');
value($define->(10));
is(value(left('change', 'a')), 10, 'one that is defined has no buckets of an earlier one');
value($drop);
value(q{SELECT idem_limiter('slow', 100, '3660 days')});
value(take('slow', 'a', 100));

sub left_of
{
	my ($subject) = @_;

	return value(left('change', $subject));
}

#
# Two databases.
#

value('CREATE DATABASE second');
install($node, 'second');
value(q{SELECT idem_limiter('slow', 10, '3660 days')}, 'second');
is(value(take('slow', 'a'), 'second'), 't|9|', 'another database has its own limiters and buckets');
is(value(left('slow', 'a')), 0, 'and leaves ours alone');
is(value('SELECT limiter, remaining FROM idem_throttle_activity', 'second'), 'slow|9',
	'its view has no bucket of ours');
value(q{SELECT idem_limiter_drop('slow')}, 'second');
is(value(left('slow', 'a')), 0, 'nor has its drop');

#
# What is seen of subjects.
#

my $offset = -s $node->logfile;
value('CREATE TABLE bird (subject text)');
# the only statement that has it
value(q{SET log_min_error_statement = panic; INSERT INTO bird VALUES ('canary')});
value(q{SELECT idem_limiter('seen', 3, '3660 days')});
$session->query(q{SELECT subject || n, t.* FROM bird, generate_series(1, 4) n,
	LATERAL generate_series(1, 2 * n) m, LATERAL idem_throttle('seen', subject || n || left(m::text, 0)) t});
is(value(q{SELECT a.subject_id = idem_log_id(subject || n), remaining, pause_left, allowed, refused,
		last_call BETWEEN now() - interval '10 min' AND now()
	FROM idem_throttle_activity a
	LEFT JOIN (bird CROSS JOIN generate_series(1, 4) n) ON a.subject_id = idem_log_id(subject || n)
	WHERE limiter = 'seen' ORDER BY n DESC}),
	join("\n", 't|0|00:00:00|3|5|t', 't|0|00:00:00|3|3|t', 't|0|00:00:00|3|1|t', 't|1|00:00:00|2|0|t'),
	'idem_throttle_activity knows a subject by its idem_log_id()');
my $refused = value(q{SELECT string_agg(refused::text, ' ') FROM idem_throttle_activity});
is($refused, join(' ', sort { $b <=> $a } split / /, $refused), 'who is refused most comes first');
foreach my $case (
	[ '42704', q{idem_throttle('none', subject)} ],
	[ '22023', q{idem_throttle('seen', subject, -1)} ],
	[ '22023', q{idem_throttle('seen', repeat(subject, 1000))} ],
	[ '22023', q{idem_throttle_peek('seen', repeat(subject, 1000))} ])
{
	my ($state, $call) = @$case;

	$session->query("SELECT t.* FROM bird, LATERAL $call t");
	is($session->state, $state, "$state: $call");
	unlike($session->{last_error}, qr/canary/i, 'without the subject');
}
is(value(q{SELECT count(*) FROM idem_throttle_activity a WHERE a::text ~* 'canary'}), 0,
	'no subject in the view');

#
# Counters.
#

sub throttled
{
	my ($database) = @_;

	return value(q{SELECT throttled FROM idem_stats
		WHERE datname = current_database() AND policy IS NULL}, $database);
}

value('SELECT idem_stats_reset()');
value('SELECT idem_stats_reset()', 'second');
value(q{SELECT idem_limiter('count', 10, '3660 days')});
value('BEGIN; ' . take_many('count', 'a', 25) . '; ROLLBACK');
value('BEGIN READ ONLY; ' . take_many('count', 'b', 12) . '; COMMIT');
value(take('count', 'c', 11));
is(throttled(), 15 + 2 + 1, 'each refusal is counted, whatever becomes of its transaction');
value(peek('count', 'a')) for 1 .. 3;
is(throttled(), 18, 'a look is not');
is(throttled('second') || 0, 0, 'in its database');
is(value(q{SELECT coalesce(sum(throttled), 0) FROM idem_stats WHERE policy IS NOT NULL}), 0,
	'and under no policy');

#
# Audit.
#

# What the log has of a limiter
sub logged
{
	my ($limiter) = @_;

	return value(qq{
SELECT count(*), sum((detail->>'count')::bigint)
FROM idempotency_audit_log WHERE action = 'limited' AND entity = 'idempotency_limiter'
	AND entity_id LIKE idem_log_id('$limiter') || '/%'});
}

sub set_worker
{
	my ($state) = @_;

	$node->append_conf('postgresql.conf', "idempotency.worker = $state\n");
	$node->reload;
	poll('the setting', sub { value('SHOW idempotency.worker') eq $state });
	return;
}

# Until all that was noted is written: it goes in order
my $marks = 0;
sub settle
{
	my $mark = 'mark' . ++$marks;

	value(qq{SELECT idem_run('f(jsonb)', '$mark', 'a', policy => 'once');
		SELECT idem_run('f(jsonb)', '$mark', 'a', policy => 'once')});
	poll("$mark in the log", sub {
		value(qq{SELECT count(*) FROM idempotency_audit_log WHERE action = 'duplicate'
			AND entity_id LIKE idem_log_id('$mark') || '/%'}) == 1 });
	return;
}

value(q{CREATE FUNCTION f(request jsonb) RETURNS json LANGUAGE sql AS $$SELECT '{}'::json$$;
	CREATE ROLE web LOGIN; SELECT idem_grant('web', 'app');
	GRANT SELECT ON bird TO web;
	SELECT idem_policy('once', on_repeat => 'reject', audit => true);
	SELECT idem_limiter('quiet', 1, '3660 days'), idem_limiter('loud', 1, '3660 days'),
		idem_limiter('wide', 1, '3660 days')});
value(take_many('quiet', 'a', 5));
value(q{SELECT idem_policy('default', audit => true)});
# the first of each is allowed
my $canaries = q{SELECT t.* FROM bird, generate_series(1, %d) i,
	LATERAL idem_throttle('loud', subject || %d || left(i::text, 0)) t};
run_psql($node, 'BEGIN; ' . sprintf($canaries, 8, 1) . '; ROLLBACK', user => 'web');
run_psql($node, 'BEGIN READ ONLY; ' . sprintf($canaries, 5, 2) . '; COMMIT', user => 'web');
run_psql($node, 'BEGIN; ' . sprintf($canaries, 3, 3) . '; SELECT 1 / 0', user => 'web');
value('BEGIN READ ONLY; ' . q{SELECT t.* FROM bird, LATERAL idem_throttle('loud', subject || 3) t});
value(q{SELECT t.* FROM bird, LATERAL idem_throttle_peek('loud', subject || 3) t});
set_worker('on');
settle();
is(logged('quiet'), '0|', 'without "audit" in policy "default" nothing is written');
is(logged('loud'), '4|14', 'with it each refusal is, equal ones together');
is(value(q{SELECT n, session_role, effective_role, detail, attempt, token
	FROM idempotency_audit_log
	LEFT JOIN (bird CROSS JOIN generate_series(1, 3) n)
		ON entity_id = idem_log_id('loud') || '/' || idem_log_id(subject || n)
	WHERE action = 'limited' AND session_role = 'web' ORDER BY n}) =~ s/"last_at": "[^"]*", //gr,
	join("\n", map { "$_->[0]|web|web|{\"count\": $_->[1], \"limiter\": \"loud\"}||" }
		([ 1, 7 ], [ 2, 4 ], [ 3, 2 ])),
	'a row tells of limiter, subject and caller');
foreach my $entity ('idempotency_limiter', 'idempotency_key')
{
	is(sqlstate($node, "SELECT idem_audit('x', '$entity', 'y')"), '22023',
		"nobody else writes of an $entity");
}

# Half of the queue, 512 entries, is not for rate limits
set_worker('off');
my $launcher = q{FROM pg_stat_activity WHERE backend_type LIKE 'idempotency%'};
my $pid = value("SELECT min(pid) $launcher AND backend_type = 'idempotency launcher'");
value("SELECT pg_terminate_backend($pid)");
poll('another launcher alone', sub {
	value("SELECT count(*), min(pid) <> $pid $launcher") eq '1|t' });
value('SELECT idem_stats_reset()');
value(q{SELECT count(*) FROM generate_series(1, 600) i, generate_series(1, 2) j,
	LATERAL idem_throttle('wide', i::text || left(j::text, 0)) t});
is(value('SELECT refusals_dropped, throttled FROM idem_stats WHERE datname = current_database() AND policy IS NULL'),
	'88|600', 'a flood of subjects is cut, and what is cut is counted');
value(q{SELECT idem_run('f(jsonb)', 'crowd', 'a', policy => 'once');
	SELECT idem_run('f(jsonb)', 'crowd', 'a', policy => 'once')});
set_worker('on');
settle();
is(logged('wide'), '512|512', 'the rest is in the log');
is(value(q{SELECT count(*) FROM idempotency_audit_log WHERE action = 'duplicate'
	AND entity_id LIKE idem_log_id('crowd') || '/%'}), 1, 'and has not driven out what is said of keys');
is(value(q{SELECT count(*) FROM idempotency_audit_log l WHERE l::text ~* 'canary'}), 0,
	'no subject in the audit log');
value(q{SELECT idem_policy('default', audit => false)});
set_worker('off');

#
# Restarts.
#

$_->quit for $session, $other;
my $all = 'SELECT count(*) FROM idem_throttle_activity';
cmp_ok(value($all), '>', 10, 'there are many buckets');
my $log_end = -s $node->logfile;
$bench = start_pgbench(
	$node,
	clients => 8,
	params => [ '-T', 600 ],
	scripts => [ "\\set i random(1, 100)\nSELECT allowed FROM idem_throttle('slow', 'k' || :i);\n" ]);
my $victim;
poll('the hammering', sub {
	$victim = value(q{SELECT max(pid) FROM pg_stat_activity
		WHERE query ~ '^SELECT allowed FROM idem_throttle' AND pid <> pg_backend_pid()});
	value(q{SELECT count(*) FROM idem_throttle_activity WHERE limiter = 'slow' AND refused > 0}) > 50
	  && $victim ne '' });
kill 'KILL', $victim;
$bench->{handle}->finish;
poll('the server', sub {
	slurp_file($node->logfile, $log_end) =~ /all server processes terminated; reinitializing/
	  && is_up($node) });
is(value($all), 0, 'a backend that was killed has the server forget all');
is(value(take('slow', 'a')), 't|99|', 'and everybody starts anew');
like(value(take_many('slow', 'k1', 101) . ' OFFSET 100'), qr/^f\|0\|.+/, 'to be limited again');

$node->restart;
is(value($all), 0, 'so does a clean restart');
is(value(take('slow', 'a')), 't|99|', 'the limiters are as they were');

$node->stop;
unlike(slurp_file($node->logfile, $offset), qr/canary/i, 'no subject in the log of the server');
done_testing();
