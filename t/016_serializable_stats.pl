# What the direct way owes to the rest of the server: the conflicts of
# SERIALIZABLE, statistics, and no trace of a replay.
#
# Scenario: two or three transactions look at keys and change them in every
# order that matters, at the levels SERIALIZABLE and REPEATABLE READ.  Each
# interleaving is run by sessions in the direct way, in the SQL way, and by one
# in each.  Every step must end with the same outcome or SQLSTATE in all, and
# where no serial order exists one transaction must fail with 40001.  What a
# look leaves in pg_locks is no more than it must.  A rival that takes no key lock
# inserts a key after a claim has looked for it, and while a handler runs.
#
# Then the same work is done in both ways on an empty table, and the counters
# of pg_stat are compared: rows inserted, updated, HOT and not, removed, dead.
# The numbers of index scans differ, since the ways look differently often; in
# both they are counted.  At last replays: no transaction id, no WAL; and a
# plan of idem_dedupe that was made while the table was empty.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# No process besides our sessions may have a snapshot: what can be pruned is
# counted.  The launcher of logical replication has one now and then.
my $node = new_node('serializable',
	conf => "lock_timeout = '10 s'\nmax_logical_replication_workers = 0\n");

# Whatever way the rest of the suite goes
$node->safe_psql('postgres',
	q{ALTER DATABASE postgres SET idempotency.storage = 'auto'});
$node->safe_psql(
	'postgres', q{
CREATE TABLE t (n integer);
CREATE FUNCTION note(request jsonb) RETURNS json LANGUAGE sql AS
	$$INSERT INTO t VALUES (1); SELECT '"noted"'::json$$;
CREATE FUNCTION slow(request jsonb) RETURNS json LANGUAGE sql AS
	$$INSERT INTO t VALUES (1); SELECT pg_advisory_xact_lock(1);
	SELECT '"slow"'::json$$;
CREATE FUNCTION answer(request jsonb) RETURNS json LANGUAGE sql AS
	$$SELECT '"answer"'::json$$;
SELECT idem_policy('once', on_repeat => 'reject');
SELECT idem_policy('late', completed_ttl => '1 us', on_expiry => 'reject',
	tombstone => '1 day');
});

#
# Conflicts
#

# What is there at the beginning of each interleaving
my $setup = q{
TRUNCATE t;
DELETE FROM idempotency_keys;
BEGIN;
SELECT idem_claim('s', 'done');
SELECT idem_complete('s', 'done', '"done"'::json);
SELECT idem_claim('s', 'once', policy => 'once');
SELECT idem_complete('s', 'once');
SELECT idem_claim('s', 'late', policy => 'late');
SELECT idem_complete('s', 'late');
COMMIT;
SELECT idem_claim('s', 'open', lease => '1 h');
SELECT idem_claim('s', 'ended', lease => '1 us');
UPDATE idempotency_keys SET token = 1 WHERE key = 'open'};

# What sessions do, by name
my %steps = (
	snapshot => 'SELECT count(*) * 0 FROM t',
	count => 'SELECT count(*) FROM t',
	insert => 'INSERT INTO t VALUES (1) RETURNING n',
	commit => 'COMMIT',
	rollback => 'ROLLBACK',
	map({
		my $key = $_;
		(   "claim $key" => "SELECT outcome FROM idem_claim('s', '$key')",
			"mismatch $key" =>
			  "SELECT outcome FROM idem_claim('s', '$key', '{}')",
			"look $key" => "SELECT outcome FROM idem_lookup('s', '$key')",
			"complete $key" =>
			  "SELECT (idem_complete('s', '$key')).expires_at > '-infinity'",
			"finish $key" =>
			  "SELECT (idem_complete('s', '$key', token => 1)).expires_at > '-infinity'",
			"extend $key" =>
			  "SELECT idem_extend('s', '$key', 1, '2 h') > '-infinity'",
			"forget $key" => "SELECT idem_forget('s', '$key')",
			"expire $key" => "UPDATE idempotency_keys
				SET expires_at = created_at WHERE key = '$key' RETURNING key",
			"run $key" =>
			  "SELECT outcome FROM idem_run('answer(jsonb)', 's', '$key')",
			"note $key" =>
			  "SELECT outcome FROM idem_run('note(jsonb)', 's', '$key')",
			"dedupe $key" => "SELECT first FROM idem_dedupe('s', '{$key}')",
			"plain $key" => "INSERT INTO idempotency_keys (scope, key, state,
				attempt, token, claim_xid, created_at, finished_at, lease_until,
				expires_at, purge_at, ttl, status_code, owner, policy, claimed_by)
				SELECT scope, '$key', state, attempt, token, claim_xid,
				created_at, finished_at, lease_until, expires_at, purge_at, ttl,
				status_code, owner, policy, claimed_by FROM idempotency_keys
				WHERE key = 'done' RETURNING key")
	} qw(x y z done once late open ended)));

# Name, level, steps as "session: step", what all of it must come to: how many
# transactions fail with 40001.  The others must commit.
my @interleavings = (
	[ 'two claims unless the other is there', 'SERIALIZABLE', 1,
		'1: look y', '1: claim x', '2: look x', '2: claim y',
		'1: commit', '2: commit' ],
	[ 'the same, looked at late', 'SERIALIZABLE', 1,
		'1: claim x', '2: claim y', '1: look y', '2: look x',
		'1: commit', '2: commit' ],
	[ 'the same, the second ends first', 'SERIALIZABLE', 1,
		'1: look y', '2: look x', '1: claim x', '2: claim y',
		'2: commit', '1: commit' ],
	[ 'the same, in one go', 'SERIALIZABLE', 1,
		'1: look y', '2: look x', '1: run x', '2: run y',
		'1: commit', '2: commit' ],
	[ 'the same, one after the other', 'SERIALIZABLE', 0,
		'1: look y', '1: claim x', '1: commit',
		'2: look x', '2: claim y', '2: commit' ],
	[ 'a claim of a key that is inserted', 'SERIALIZABLE', 1,
		'1: snapshot', '2: plain x', '2: commit', '1: claim x' ],
	[ 'a claim of a key that is claimed', 'SERIALIZABLE', 1,
		'1: snapshot', '2: claim x', '2: commit', '1: claim x' ],
	[ 'a run of a key that is run', 'SERIALIZABLE', 1,
		'1: snapshot', '2: run x', '2: commit', '1: run x' ],
	[ 'a message that is marked', 'SERIALIZABLE', 1,
		'1: snapshot', '2: dedupe x', '2: commit', '1: dedupe x' ],
	[ 'a claim of a key that is marked', 'SERIALIZABLE', 1,
		'1: snapshot', '2: dedupe x', '2: commit', '1: claim x' ],
	[ 'a claim of a key whose claim is undone', 'SERIALIZABLE', 0,
		'1: snapshot', '2: claim x', '2: rollback', '1: claim x',
		'1: commit' ],
	[ 'a claim of a key that is being claimed', 'SERIALIZABLE', 0,
		'1: claim x', '2: claim x', '1: commit', '2: commit' ],
	[ 'a refusal by an open claim, and a count', 'SERIALIZABLE', 1,
		'1: claim x', '1: count', '2: claim x', '2: insert',
		'1: commit', '2: commit' ],
	map({
		my $change = $_;
		(   [ "a replay, then work; $change done", 'SERIALIZABLE', 1,
				'1: claim done', '2: count', "2: $change done",
				'1: insert', '1: commit', '2: commit' ],
			[ "a look, then work; $change done", 'SERIALIZABLE', 1,
				'1: look done', '2: count', "2: $change done",
				'1: insert', '1: commit', '2: commit' ],
			[ "a mismatch, then work; $change done", 'SERIALIZABLE', 1,
				'1: mismatch done', '2: count', "2: $change done",
				'1: insert', '1: commit', '2: commit' ],
			[ "a replayed run, then work; $change done", 'SERIALIZABLE', 1,
				'1: run done', '2: count', "2: $change done",
				'1: insert', '1: commit', '2: commit' ],
			[ "a duplicate, then work; $change once", 'SERIALIZABLE', 1,
				'1: claim once', '2: count', "2: $change once",
				'1: insert', '1: commit', '2: commit' ],
			[ "a replay, then work; $change done before", 'SERIALIZABLE', 0,
				"2: count", "2: $change done", '2: commit',
				'1: claim done', '1: insert', '1: commit' ])
	} qw(forget expire)),
	[ 'a tombstone, then work; forget', 'SERIALIZABLE', 1,
		'1: claim late', '2: count', '2: forget late',
		'1: insert', '1: commit', '2: commit' ],
	[ 'in progress, then work; complete', 'SERIALIZABLE', 1,
		'1: claim open', '2: count', '2: finish open',
		'1: insert', '1: commit', '2: commit' ],
	[ 'in progress, then work; extend', 'SERIALIZABLE', 1,
		'1: claim open', '2: count', '2: extend open',
		'1: insert', '1: commit', '2: commit' ],
	[ 'nothing there, then work; claim', 'SERIALIZABLE', 1,
		'1: look x', '2: count', '2: claim x',
		'1: insert', '1: commit', '2: commit' ],
	[ 'nothing there, then work; run', 'SERIALIZABLE', 1,
		'1: look x', '2: count', '2: run x',
		'1: insert', '1: commit', '2: commit' ],
	[ 'nothing to forget, then work; claim', 'SERIALIZABLE', 1,
		'1: forget x', '2: count', '2: claim x',
		'1: insert', '1: commit', '2: commit' ],
	[ 'a run that works; a look', 'SERIALIZABLE', 1,
		'2: look x', '1: note x', '2: insert', '1: count',
		'1: commit', '2: commit' ],
	[ 'a reader between two writers', 'SERIALIZABLE', 1,
		'2: look open', '1: finish open', '1: commit',
		'3: look open', '3: look x', '3: commit',
		'2: claim x', '2: commit' ],
	[ 'a take-over of what is completed', 'SERIALIZABLE', 1,
		'1: snapshot', '2: claim ended', '2: commit', '1: claim ended' ],
	[ 'a completion of what has changed', 'SERIALIZABLE', 1,
		'1: snapshot', '2: extend open', '2: commit', '1: finish open' ],
	[ 'a heartbeat of what has changed', 'SERIALIZABLE', 1,
		'1: snapshot', '2: finish open', '2: commit', '1: extend open' ],
	[ 'a removal of what is removed', 'SERIALIZABLE', 1,
		'1: snapshot', '2: forget done', '2: commit', '1: forget done' ],
	[ 'a replay of what is removed', 'SERIALIZABLE', 0,
		'1: snapshot', '2: forget done', '2: commit', '1: claim done',
		'1: commit' ]);

# The same at REPEATABLE READ, where only changes of the same row conflict
push @interleavings,
  map {
	my ($name, undef, $fails, @work) = @$_;
	[ $name, 'REPEATABLE READ', $fails, @work ]
  }
  grep {
		 $_->[0] =~ / of (?:a key|what) /
	  && $_->[0] !~ /being|nothing/
	  || $_->[0] =~ /^a message/
  } @interleavings;
push @interleavings, map {
	[ $_->[0], 'REPEATABLE READ', 0, @$_[ 3 .. $#$_ ] ]
} grep { $_->[0] =~ /unless|^a replay, then/ } @interleavings;

# Returns the outcomes of all steps, and how many transactions have failed.
sub interleave
{
	my ($ways, $level, @work) = @_;
	my @sessions = map { session($node) } @$ways;
	my (@log, %failed, %ended);

	$sessions[0]->query($setup);
	die "setup failed: $sessions[0]{last_error}" if $sessions[0]->state ne '';
	foreach my $i (0 .. $#$ways)
	{
		$sessions[$i]->query(
			"SET idempotency.storage = $ways->[$i];
			BEGIN ISOLATION LEVEL $level");
	}
	foreach (@work)
	{
		my ($i, $step) = /^(\d): (.*)/;
		my $session = $sessions[ $i - 1 ];

		die "no step $step" if !exists $steps{$step};
		next if $ended{$i};
		my $answer = $session->query($steps{$step});
		my $state = $session->state;
		push @log, "$i: $step: " . ($state ne '' ? $state : $answer);
		next if $state eq '';
		$failed{$i} = $state;
		$ended{$i} = 1;
		$session->query('ROLLBACK');
	}
	$_->quit foreach @sessions;
	my $failed = grep { $_ eq '40001' } values %failed;
	$failed = join ' ', 'failed:', values %failed
	  if $failed != keys %failed;
	return (join("\n", @log), $failed);
}

foreach (@interleavings)
{
	my ($name, $level, $expected, @work) = @$_;
	my $number = (sort map { /^(\d)/ } @work)[-1];

	$name = "$level: $name";
	my ($log, $failed) = interleave([ ('auto') x $number ], $level, @work);
	is($failed, $expected, "$name: $expected must be repeated")
	  or diag($log);
	my ($sql) = interleave([ ('sql') x $number ], $level, @work);
	is($log, $sql, "$name: as in the SQL way");
	# a session in the SQL way waits for one in the direct way
	my @mixed = [ 'sql', ('auto') x ($number - 1) ];
	unshift @mixed, [ 'auto', ('sql') x ($number - 1) ]
	  if "@work" !~ /1: claim x.*2: claim x/;
	is((interleave($_, $level, @work))[0],
		$sql, "$name: with one in the ${$_}[0] way")
	  foreach @mixed;
}

my $session = session($node);
my $other = session($node);
my $table = 'idempotency_keys';

# What the snapshot cannot see cannot be finished, released or forgotten
foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $call ('idem_complete', 'idem_fail', 'idem_release',
		'idem_forget')
	{
		$session->query($setup);
		my $before = $session->query("SELECT * FROM $table ORDER BY key");

		foreach my $way ('auto', 'sql')
		{
			$session->query(
				"SET idempotency.storage = $way;
				BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM t");
			$other->query(q{SELECT idem_claim('s', 'x')});
			$session->query("SELECT $call('s', 'x')");
			is($session->state, '40001',
				"$level: $call of what cannot be seen, $way");
			$session->query('ROLLBACK; RESET idempotency.storage');
			is($other->query(q{SELECT idem_forget('s', 'x')}),
				't', "$level: it is still there");
		}
		is($session->query("SELECT * FROM $table ORDER BY key"),
			$before, "$level: $call has done nothing");
	}
}

# A key that is marked by another while the handler runs: 40001 for all of it
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $way ('auto', 'sql')
	{
		my $name = "$level, $way: a key that another marks during the run";

		$session->query($setup);
		$session->query("SET idempotency.storage = $way");
		$other->query('SELECT pg_advisory_lock(1)');
		$session->send(
			"BEGIN ISOLATION LEVEL $level;
			SELECT idem_run('slow(jsonb)', 's', 'x')");
		poll('the handler waits',
			sub {
				$other->query('SELECT count(*) FROM pg_locks WHERE NOT granted
					AND pid = ' . $session->pid);
			});
		is( $other->query(
				q{SELECT first FROM idem_dedupe('s', '{x}')}),
			't', "$name: it is the first");
		$other->query('SELECT pg_advisory_unlock(1)');
		$session->receive;
		is($session->state, '40001', "$name: to be repeated");
		$session->query('ROLLBACK; RESET idempotency.storage');
		is( $session->query(
				q{SELECT count(*) FROM t;
				SELECT count(*) FROM idempotency_keys WHERE key = 'x'}),
			"0\n1",
			"$name: nothing half done");
		is( $session->query(
				q{SELECT outcome FROM idem_run('slow(jsonb)', 's', 'x')}),
			'replayed',
			"$name: then a repetition");
	}
}

# A key that is inserted between the look of a claim and its own insertion,
# which a lock on the table holds up: the index alone decides.
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $way ('auto', 'sql')
	{
		my $name = "$level, $way: a key that another inserts meanwhile";

		$session->query($setup);
		$session->query("SET idempotency.storage = $way");
		# who makes a plan opens more than who uses it
		$session->query(q{BEGIN; SELECT idem_claim('s', 'y'); ROLLBACK});
		foreach my $end ('COMMIT', 'ROLLBACK')
		{
			$other->query("BEGIN; LOCK TABLE $table IN SHARE MODE");
			$session->send("BEGIN ISOLATION LEVEL $level;
				SELECT outcome FROM idem_claim('s', '$end')");
			poll('the insertion waits',
				sub {
					$other->query(
						q{SELECT count(*) FROM pg_locks WHERE NOT granted
						AND mode = 'RowExclusiveLock' AND pid = }
						  . $session->pid);
				});
			$other->query(
				qq{SELECT first FROM idem_dedupe('s', '{$end}'); $end});
			my $answer = $session->receive;
			is($session->state || $answer,
				$end eq 'ROLLBACK' ? 'claimed'
				: $level eq 'READ COMMITTED' ? 'replayed'
				: '40001',
				"$name: $end");
			$session->query(
				"SELECT idem_complete('s', '$end', '\"done\"'::json)");
			is( $session->state,
				$end eq 'ROLLBACK' ? ''
				: $level eq 'READ COMMITTED' ? 'ID002'
				: '25P02',
				"$name: what can be done then");
			$session->query('COMMIT');
			is( $session->query(
					"SELECT outcome, body FROM idem_claim('s', '$end')"),
				$end eq 'ROLLBACK' ? 'replayed|\\x22646f6e6522' : 'replayed|',
				"$name: then a replay");
			is( $session->query(
					"SELECT count(*) FROM $table WHERE key = '$end'"),
				1,
				"$name: one row");
		}
		$session->query('RESET idempotency.storage');
	}
}

# A look sees what its statement sees, a claim what there is
foreach my $way ('auto', 'sql')
{
	$session->query($setup);
	$session->query(
		"SET idempotency.storage = $way;
		BEGIN;
		DECLARE looks CURSOR FOR SELECT (idem_lookup('s', key)).outcome
		FROM (VALUES ('open'), ('x'), ('done')) k (key);
		DECLARE claims CURSOR FOR SELECT (idem_claim('s', key)).outcome
		FROM (VALUES ('open'), ('x'), ('done')) k (key)");
	$other->query(
		q{SELECT idem_complete('s', 'open', token => 1);
		SELECT idem_claim('s', 'x');
		SELECT idem_forget('s', 'done')});
	is($session->query('FETCH ALL FROM looks'),
		"in_progress\n\ncompleted", "$way: a look is as old as its statement");
	is( $session->query('FETCH ALL FROM claims'),
		"replayed\nin_progress\nclaimed",
		"$way: a claim is not");
	$session->query('ROLLBACK; RESET idempotency.storage');
}
$other->quit;

# What was read, as SERIALIZABLE remembers it
sub read_locks
{
	my ($way, $call) = @_;

	$session->query("SET idempotency.storage = $way;
		BEGIN ISOLATION LEVEL SERIALIZABLE; $call; ROLLBACK;
		BEGIN ISOLATION LEVEL SERIALIZABLE; $call");
	my $locks = $session->query(
		q{SELECT string_agg(DISTINCT relation::regclass || ' ' || locktype, ', '
			ORDER BY relation::regclass || ' ' || locktype)
		FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'SIReadLock'});
	$session->query('ROLLBACK; RESET idempotency.storage');
	return $locks;
}

# Enough for the planner, and more than a page
$session->query(
	$setup . q{;
SELECT count(*) FROM idem_dedupe('many',
	ARRAY(SELECT i::text FROM generate_series(1, 1000) i))});
# A row that is there needs no more than its own lock, where we need no statement
# to read it; a place in the index is remembered where a key's absence was all
# that was found out, and not where it was claimed: its uniqueness will tell.
my %read = (
	row => [ "$table tuple", "$table tuple, ${table}_pkey page" ],
	absence => [ "${table}_pkey page", "${table}_pkey page" ],
	nothing => [ '', '' ]);
foreach (
	[ 'a replay', q{SELECT idem_claim('s', 'done')}, 'row' ],
	[ 'a look', q{SELECT idem_lookup('s', 'done')}, 'row' ],
	[ 'a mismatch', q{SELECT idem_claim('s', 'done', '{}')}, 'row' ],
	[ 'a replayed run',
		q{SELECT idem_run('answer(jsonb)', 's', 'done')}, 'row' ],
	[ 'in progress', q{SELECT idem_claim('s', 'open')}, 'row' ],
	[ 'a look in vain', q{SELECT idem_lookup('s', 'x')}, 'absence' ],
	[ 'nothing to forget', q{SELECT idem_forget('s', 'x')}, 'absence' ],
	[ 'a claim', q{SELECT idem_claim('s', 'x')}, 'nothing' ],
	[ 'a run', q{SELECT idem_run('answer(jsonb)', 's', 'x')}, 'nothing' ],
	[ 'a mark', q{SELECT idem_dedupe('s', '{x}')}, 'nothing' ])
{
	my ($name, $call, $read) = @$_;
	my ($direct, $sql) = @{ $read{$read} };

	is(read_locks('auto', $call), $direct, "$name: $read remembered, direct");
	is(read_locks('sql', $call), $sql, "$name: $read remembered, SQL");
}

#
# Statistics
#

# Work, each call in a transaction of its own unless said otherwise
my $calls = 100;
my @work = (
	[ 'runs', q{SELECT idem_run('answer(jsonb)', 's', 'run%n')} ],
	[ 'runs again', q{SELECT idem_run('answer(jsonb)', 's', 'run%n')} ],
	[ 'claims', q{SELECT idem_claim('s', 'claim%n', lease => '1 h')} ],
	[ 'claims again', q{SELECT idem_claim('s', 'claim%n')} ],
	[ 'completions', qq{SELECT idem_complete('s', 'claim%n', '"done"'::json,
		token => token) FROM $table WHERE scope = 's' AND key = 'claim%n'} ],
	[ 'replays', q{SELECT idem_claim('s', 'claim%n')} ],
	[ 'claims and completions in one', q{BEGIN;
		SELECT idem_claim('s', 'both%n');
		SELECT idem_complete('s', 'both%n', '"done"'::json);
		COMMIT} ],
	[ 'looks', q{SELECT idem_lookup('s', 'both%n')} ],
	[ 'claims undone', q{BEGIN; SELECT idem_claim('s', 'undone%n'); ROLLBACK} ],
	[ 'failures', q{BEGIN;
		SELECT idem_claim('s', 'fail%n');
		SELECT idem_fail('s', 'fail%n', '"failed"'::json);
		COMMIT} ],
	[ 'claims after failures', q{SELECT idem_claim('s', 'fail%n')} ],
	[ 'removals', q{SELECT idem_forget('s', 'fail%n')} ],
	[ 'messages', q{SELECT idem_dedupe('s', '{d%n,e%n}')} ],
	[ 'messages again', q{SELECT idem_dedupe('s', '{d%n,e%n}')} ]);
my %counted;

# A session tells what it has done up to ten seconds later, or when it ends.
poll('the others to be gone', sub {
	$session->query(q{SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'client backend'}) == 1 });

sub counters
{
	$session->query('SELECT pg_stat_force_next_flush()');
	return $session->query(
		qq{SELECT n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del, n_live_tup,
			n_dead_tup, i.idx_scan, i.idx_tup_fetch
		FROM pg_stat_user_tables t JOIN pg_stat_user_indexes i USING (relid)
		WHERE t.relname = '$table' AND i.indexrelname = '${table}_pkey'});
}

foreach my $way ('auto', 'sql')
{
	$session->query(
		qq{SET idempotency.storage = $way;
		TRUNCATE $table;
		SELECT pg_stat_force_next_flush();
		SELECT pg_stat_reset()});
	my @before = split /\|/, counters();
	foreach (@work)
	{
		my ($name, $statement) = @$_;

		$session->query(join ";\n", map { $statement =~ s/%n/$_/gr }
			  1 .. $calls);
		die "$name: $session->{last_error}" if $session->state ne '';
		my @after = split /\|/, counters();
		$counted{$way}{$name} = [ map { $after[$_] - $before[$_] } 0 .. 7 ];
		@before = @after;
	}
	$session->query('RESET idempotency.storage');
}
foreach (@work)
{
	my ($name) = @$_;
	my @direct = @{ $counted{auto}{$name} };
	my @sql = @{ $counted{sql}{$name} };

	note "$name: direct @direct, SQL @sql";
	# 19 prunes a page also where a statement only reads it, and so has fewer dead
	my $last = $node->pg_version->major < 19 ? 5 : 4;
	is("@direct[0 .. $last]", "@sql[0 .. $last]",
		"$name: inserted, updated, HOT, removed, live, dead");
	cmp_ok($direct[6], '>=', $calls, "$name: scans are counted");
	cmp_ok($sql[6], '>=', $calls, "$name: in the SQL way, too");
	is($direct[7] > 0, $sql[7] > 0, "$name: rows found are counted");
}
is("@{ $counted{auto}{runs} }[0 .. 5]",
	"$calls 0 0 0 $calls 0", 'a run is one row, and no dead one');
is( "@{ $counted{auto}{'claims and completions in one'} }[0 .. 2]",
	"$calls $calls $calls",
	'a claim and its completion are a row and a HOT update');
is("@{ $counted{auto}{$_} }[0 .. 4]", '0 0 0 0 0', "$_ write no row")
  foreach ('runs again', 'claims again', 'replays', 'looks');

#
# No trace
#
foreach my $way ('auto', 'sql')
{
	my $replays = join ";\n", map {
		(   "SELECT outcome FROM idem_claim('s', 'claim$_')",
			"SELECT outcome FROM idem_run('answer(jsonb)', 's', 'run$_')",
			"SELECT outcome FROM idem_lookup('s', 'both$_')",
			"SELECT outcome FROM idem_claim('s', 'both$_', '{}')")
	} 1 .. $calls;
	my $trace = q{SELECT pg_current_wal_insert_lsn(),
		pg_snapshot_xmax(pg_current_snapshot())};

	$session->query("SET idempotency.storage = $way");
	# hints and pruning are not the doing of a replay
	$session->query("VACUUM $table; CHECKPOINT; $replays");
	my $before = $session->query($trace);
	my $outcomes = $session->query($replays);
	is($session->query($trace),
		$before, "$way: replays take no transaction id and write no WAL");
	my %count;
	$count{$_}++ foreach split /\n/, $outcomes;
	is( join(' ', map { "$_ $count{$_}" } sort keys %count),
		"completed $calls mismatch $calls replayed " . 2 * $calls,
		"$way: and are replays");
	is( $session->query(
			q{BEGIN;
			SELECT outcome FROM idem_claim('s', 'claim1');
			SELECT pg_current_xact_id_if_assigned() IS NULL;
			SELECT count(*) FROM pg_locks
			WHERE pid = pg_backend_pid() AND locktype = 'transactionid';
			SELECT xmax FROM idempotency_keys WHERE key = 'claim1'
			FOR UPDATE SKIP LOCKED;
			COMMIT}) =~ s/\d+\Z/row/r,
		"replayed\nt\n0\nrow",
		"$way: nor in a transaction of their own");
	$session->query('RESET idempotency.storage');
}

# A plan that is older than all rows, and all statistics, must not read the
# whole scope
$session->quit;
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
install($node, 'fresh');
is( $node->safe_psql(
		'fresh',
		qq{SELECT count(*) FROM idem_dedupe('inbox', '{first}');
		SELECT count(*) FROM idem_dedupe('inbox',
			ARRAY(SELECT g::text FROM generate_series(1, 1000) g));
		BEGIN;
		SELECT first FROM idem_dedupe('inbox', '{first}');
		SELECT idx_tup_fetch <= 1 FROM pg_stat_xact_user_tables
		WHERE relid = '$table'::regclass;
		COMMIT}),
	"1\n1000\nf\nt",
	'idem_dedupe reads no row but that of its key');

unlike(slurp_file($node->logfile), qr/WARNING:.*(?:leak|not closed)/,
	'nothing was left open');
$node->stop;

done_testing();
