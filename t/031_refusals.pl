# Refusals are in the audit log, although the refused caller rolled back.
#
# Scenario: a server with the library preloaded, and keys under a policy with
# "audit" and under one without.  Callers are refused in every way there is,
# by every function that names a key, at every isolation level, in savepoints,
# as results and as errors, and roll back.  The worker writes it down: once for
# each call, equal ones together.
#
# Then: more refusals than the queue has room for, with nobody writing them
# down; a log that is locked, and one that refuses the rows; databases and
# extensions that are dropped; thousands of refusals while workers, and the
# launcher, are terminated in the middle of writing; a clean restart, and a
# crash.  Nothing is lost or doubled that should not be, and callers notice
# nothing.  On a server without preload there are lines in its log.  Scopes
# and keys are canaries, and are seen nowhere.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $room = 1024;    # entries of the queue

# streaming, for a commit to wait for a standby
my $node = new_node('refusals', streaming => 1, conf => q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 s'
listen_addresses = '127.0.0.1'
});

sub value
{
	my ($sql, $database) = @_;

	return $node->safe_psql($database // 'postgres', $sql);
}

my $launcher = q{FROM pg_stat_activity WHERE backend_type = 'idempotency launcher'};
my $sweeps = q{FROM pg_stat_activity WHERE backend_type = 'idempotency sweep'};

# Off means that none is left, and none will be started
sub set_worker
{
	my ($state) = @_;

	$node->append_conf('postgresql.conf', "idempotency.worker = $state\n");
	$node->reload;
	poll('the setting', sub { value('SHOW idempotency.worker') eq $state });
	return if $state eq 'on';

	poll('the launcher', sub { value("SELECT count(*) $launcher") == 1 });
	my $pid = value("SELECT pid $launcher");
	value("SELECT pg_terminate_backend($pid)");
	poll('another launcher', sub { value("SELECT pid $launcher") !~ /^($pid)?$/ });
	poll('the workers to end', sub { value("SELECT count(*) $sweeps") == 0 });
	return;
}

# Policies, roles, and the canaries: statements call s() and k()
my $setup = q{
CREATE FUNCTION s(name text) RETURNS text LANGUAGE sql AS
	$$SELECT prefix || 'scope-' || name FROM bird$$;
CREATE FUNCTION k(name text) RETURNS text LANGUAGE sql AS
	$$SELECT prefix || 'key-' || name FROM bird$$;
CREATE FUNCTION f(request jsonb) RETURNS json LANGUAGE sql AS $$SELECT '{}'::json$$;
CREATE FUNCTION error_of(sql text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE sql;
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
SELECT idem_policy('audited', audit => true);
SELECT idem_policy('once', audit => true, on_repeat => 'reject');
SELECT idem_policy('gone', audit => true, on_expiry => 'reject', tombstone => '1 d',
	completed_ttl => '1 us');
SELECT idem_policy('boss', audit => true, owner_role => 'boss');
SELECT idem_policy('quiet', on_repeat => 'reject');
GRANT SELECT ON bird TO PUBLIC};

sub set_up
{
	my ($server, $database) = @_;

	$server->safe_psql($database, 'CREATE TABLE bird (prefix text)');
	# the only statement that has them
	$server->safe_psql($database, q{SET log_min_error_statement = panic;
		INSERT INTO bird VALUES ('canary')});
	$server->safe_psql($database, $setup);
	return;
}

# What the log has of a scope: actions with the sum of their counts
sub logged
{
	my ($scope, $database) = @_;

	return value(qq{
SELECT string_agg(action || ' ' || n, ', ' ORDER BY action)
FROM (SELECT action, sum((detail->>'count')::bigint) AS n
	FROM idempotency_audit_log
	WHERE entity = 'idempotency_key' AND detail ? 'count'
		AND entity_id LIKE idem_log_id(s('$scope')) || '/%'
	GROUP BY action) l}, $database);
}

my $marks = 0;

# Until all that is queued for a database has been written: it goes in order
sub settle
{
	my ($database) = @_;
	my $mark = 'mark' . ++$marks;

	value(qq{SELECT idem_claim(s('$mark'), k('a'), policy => 'once');
		SELECT idem_complete(s('$mark'), k('a'), token => (SELECT token
			FROM idempotency_keys WHERE scope = s('$mark')));
		SELECT idem_claim(s('$mark'), k('a'))}, $database);
	poll("$mark in the log", sub { logged($mark, $database) eq 'duplicate 1' });
	return;
}

sub dropped
{
	return value('SELECT sum(refusals_dropped) FROM idem_stats');
}

# Until a refusal finds room
sub make_room
{
	poll('room in the queue', sub {
		my $before = dropped();
		value(q{SELECT idem_claim(s('two'), k('1'))});
		dropped() == $before });
	return;
}

# Finished keys, from 1 on
sub finish
{
	my ($scope, $keys, $policy, $database) = @_;

	value(qq{SELECT count(idem_run('f(jsonb)', s('$scope'), k(i::text), '{"a": 1}', '$policy'))
		FROM generate_series(1, $keys) i}, $database);
	return;
}

value('CREATE ROLE web LOGIN; CREATE ROLE clerk; GRANT clerk TO web; CREATE ROLE boss');
set_up($node, 'postgres');
value(q{SELECT idem_grant('web', 'app'), idem_grant('web', 'operator');
	SELECT idem_grant('clerk', 'app')});

#
# Every action.
#

finish('each', 1, 'audited');
my $other = q{idem_claim(s('each'), k('1'), '{"a": 2}')};
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	is(value("BEGIN ISOLATION LEVEL $level; SELECT outcome FROM $other; ROLLBACK"),
		'mismatch', "refused in $level");
}
value("BEGIN; SAVEPOINT a; SELECT $other; ROLLBACK TO a; COMMIT");
is(value(q{SELECT error_of($$SELECT idem_require(s('each'), k('1'), '{"a": 2}')$$)}),
	'ID005', 'refused with an error, which is caught');
is(sqlstate($node, q{SELECT idem_require(s('each'), k('1'), '{"a": 2}')}),
	'ID005', 'and one that is not');
value(q{BEGIN; SELECT idem_run('f(jsonb)', s('each'), k('1'), '{"a": 2}'); ROLLBACK});

finish('each', 2, 'gone');
value(q{BEGIN; SELECT idem_claim(s('each'), k('2'), '{"a": 1}'); ROLLBACK});
is(sqlstate($node, q{SELECT idem_require(s('each'), k('2'), '{"a": 1}')}), 'ID006', 'expired');

value(q{SELECT idem_run('f(jsonb)', s('each'), k('3'), '{"a": 1}', 'once')});
value(q{BEGIN; SELECT idem_claim(s('each'), k('3')); ROLLBACK});
is(sqlstate($node, q{SELECT idem_require(s('each'), k('3'))}), 'ID007', 'duplicate');

# a repeat of a message is nobody's fault, and a replay is no refusal
value(q{BEGIN; SELECT idem_dedupe(s('each'), ARRAY[k('3'), k('3')], 'once'); ROLLBACK});
value(q{SELECT idem_run('f(jsonb)', s('each'), k('1'), '{"a": 1}')});

value(q{SELECT idem_claim(s('each'), k('lost'), policy => 'audited')});
foreach my $call (
	q{idem_complete(s('each'), k('lost'))},
	q{idem_complete(s('each'), k('lost'), token => 1)},
	q{idem_fail(s('each'), k('lost'), token => 1)},
	q{idem_extend(s('each'), k('lost'), 1, '1 min')},
	q{idem_checkpoint(s('each'), k('lost'), 1, 'a')},
	q{idem_release(s('each'), k('lost'), 1)},
	q{idem_complete(s('each'), k('1'), token => 1)})
{
	is(sqlstate($node, "SELECT $call"), 'ID002', "lost: $call");
}
settle();
is(logged('each'), 'duplicate 2, expired 2, lost 7, mismatch 7', 'each call is in the log');

value(q{SELECT idem_claim(s('theirs'), k('a'), policy => 'audited')});
my @calls = (
	q{idem_claim(s('theirs'), k('a'))},
	q{idem_require(s('theirs'), k('a'))},
	q{idem_run('f(jsonb)', s('theirs'), k('a'))},
	q{idem_dedupe(s('theirs'), ARRAY[k('b'), k('a')])},
	q{idem_complete(s('theirs'), k('a'), token => 1)},
	q{idem_fail(s('theirs'), k('a'), token => 1)},
	q{idem_extend(s('theirs'), k('a'), 1, '1 min')},
	q{idem_checkpoint(s('theirs'), k('a'), 1, 'a')},
	q{idem_release(s('theirs'), k('a'), 1)},
	q{idem_lookup(s('theirs'), k('a'))});
foreach my $call (@calls)
{
	is(sqlstate($node, "SELECT $call", user => 'web'), '42501', "forbidden: $call");
}
is(sqlstate($node, q{SELECT idem_claim(s('theirs'), k('b'), policy => 'boss')}, user => 'web'),
	'42501', 'forbidden: a key that would be the owner_role\'s');
is(sqlstate($node, q{BEGIN READ ONLY; SELECT idem_lookup(s('theirs'), k('a'))}, user => 'web'),
	'42501', 'forbidden in a read-only transaction');
settle();
is(logged('theirs'), 'forbidden 11', 'each call is in the log, but for the one that was read-only');

# What a row says
my $port = $node->port;
run_command([ $node->installed_command('psql'), '-XAtq', '-d', "host=127.0.0.1 port=$port dbname=postgres user=web application_name=shop",
	'-c', q{BEGIN; SET LOCAL ROLE clerk; SELECT idem_lookup(s('theirs'), k('a'))} ]);
settle();
is(value(q{SELECT action, entity, attempt, token, session_role, effective_role, client_addr,
		application_name, detail, at BETWEEN now() - interval '1 min' AND now()
	FROM idempotency_audit_log WHERE effective_role = 'clerk'}),
	'forbidden|idempotency_key|||web|clerk|127.0.0.1|shop|{"count": 1, "policy": "audited"}|t',
	'a row tells of the session that was refused');
is(value(q{SELECT bool_and(client_addr IS NULL AND session_role = current_user)
	FROM idempotency_audit_log WHERE action = 'lost'}), 't', 'nothing of that of the worker');

#
# Equal ones together; other policies nothing.
#

set_worker('off');
finish('equal', 2, 'audited');
value(q{BEGIN; SELECT count(idem_claim(s('equal'), k('1'), '{"a": 2}')) FROM generate_series(1, 50); ROLLBACK});
value(q{BEGIN; SELECT count(idem_claim(s('equal'), k('2'), '{"a": 2}')) FROM generate_series(1, 7); ROLLBACK});
finish('quiet', 1, 'quiet');
value(q{SELECT idem_claim(s('quiet'), k('1')), idem_claim(s('quiet'), k('2'), policy => 'quiet');
	SELECT error_of($$SELECT idem_complete(s('quiet'), k('2'), token => 1)$$)});
is(sqlstate($node, q{SELECT idem_claim(s('quiet'), k('1'))}, user => 'web'), '42501',
	'refused under a policy without "audit"');
set_worker('on');
settle();
is(value(q{SELECT detail->>'count', (detail->>'last_at')::timestamptz > at,
		detail->>'last_at' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$'
	FROM idempotency_audit_log WHERE entity_id LIKE idem_log_id(s('equal')) || '/%'
		AND detail ? 'count' ORDER BY id}),
	"50|t|t\n7|t|t", 'one row for equal ones, oldest first');
is(logged('quiet'), '', 'no row under a policy without "audit"');
is(dropped(), 0, 'nothing was dropped so far');

#
# Two databases, and what goes.
#

value('CREATE DATABASE other');
install($node, 'other');
set_up($node, 'other');
finish('two', 1, 'once', 'other');
finish('two', 1, 'once');
value(q{SELECT count(idem_claim(s('two'), k('1'))) FROM generate_series(1, 3)}, 'other');
value(q{SELECT count(idem_claim(s('two'), k('1'))) FROM generate_series(1, 2)});
settle();
settle('other');
is(logged('two') . ', ' . logged('two', 'other'), 'duplicate 2, duplicate 3',
	'each database has its own');

set_worker('off');
finish('dropped', $room, 'once', 'other');
value(qq{SELECT count(idem_claim(s('dropped'), k(i::text))) FROM generate_series(1, $room) i}, 'other');
value(q{SELECT idem_claim(s('two'), k('1'))});
is(dropped(), 1, 'a queue that is full of another database');
value('DROP EXTENSION idempotency; CREATE EXTENSION idempotency', 'other');
value(q{SELECT idem_policy('once', audit => true, on_repeat => 'reject')}, 'other');
set_worker('on');
make_room();
finish('new', 1, 'once', 'other');
value(q{SELECT idem_claim(s('new'), k('1'))}, 'other');
settle('other');
is(logged('new', 'other') . logged('dropped', 'other'), 'duplicate 1',
	'those of an extension that was dropped are not in the log of the next');

set_worker('off');
finish('dropped', $room, 'once', 'other');
value(qq{SELECT count(idem_claim(s('dropped'), k(i::text))) FROM generate_series(1, $room) i}, 'other');
value('DROP DATABASE other');
my $before = dropped();
value(q{SELECT idem_claim(s('two'), k('1'))});
cmp_ok(dropped(), '>', $before, 'they are there while nobody looks');
set_worker('on');
make_room();
settle();
pass('those of a database that was dropped make room');

#
# Full.
#

set_worker('off');
finish('full', 3 * $room, 'once');
value('SELECT idem_stats_reset()');
my $refuse = q{SELECT count(*) FROM generate_series(%d, %d) i, idem_claim(s('full'), k(i::text)) c
	WHERE c.outcome = 'duplicate'};
my @times = (time);
is(value(sprintf $refuse, 1, $room), $room, 'as many as there is room for');
push @times, time;
is(dropped(), 0, 'none is dropped');
is(value(sprintf $refuse, $room + 1, 2 * $room), $room, 'as many again: the callers do not notice');
push @times, time;
is(dropped(), $room, 'the queue is full: each is dropped, and counted');
is(value(sprintf $refuse, 1, $room), $room, 'refusals that are in the queue already');
is(dropped(), $room, 'are counted there');
cmp_ok($times[2] - $times[1], '<', 3 * ($times[1] - $times[0]) + 1, 'a full queue slows nobody');
note(sprintf '%.3f s with room, %.3f s without', $times[1] - $times[0], $times[2] - $times[1]);
set_worker('on');
settle();
is(logged('full'), 'duplicate ' . 2 * $room, 'what was not dropped is in the log');
is(value(q{SELECT refusals_dropped FROM idem_stats WHERE policy = 'once' AND datname = 'postgres'}),
	$room, 'the counter is that of the policy');

#
# A log that cannot be written.
#

finish('stuck', 1, 'once');
my $start = -s $node->logfile;
value(q{ALTER TABLE idempotency_audit_log ADD CONSTRAINT no CHECK (action <> 'duplicate') NOT VALID});
value(q{SELECT idem_claim(s('stuck'), k('1'))});
poll('the error in idem_sweep_status', sub {
	value(q{SELECT last_error LIKE '%constraint "no"%' FROM idem_sweep_status}) eq 't' });
value(q{SELECT idem_claim(s('stuck'), k('1'))});
my $last_run = value('SELECT last_run FROM idem_sweep_status');
poll('another try', sub { value('SELECT last_run FROM idem_sweep_status') ne $last_run });
value('ALTER TABLE idempotency_audit_log DROP CONSTRAINT no');
settle();
is(logged('stuck'), 'duplicate 2', 'nothing is lost');
poll('the recovery in the log', sub { log_count($node, qr/are written to the audit log again/, $start) == 1 });
is(log_count($node, qr/refusals of database "postgres" cannot be written/, $start), 1, 'one line for the error');
is(log_count($node, qr/cannot be swept/, $start), 0, 'which is not one of the sweep');

my $holder = session($node);
$holder->query('BEGIN; LOCK TABLE idempotency_audit_log IN SHARE MODE');
value(q{SELECT idem_claim(s('stuck'), k('1'))});
value(q{SELECT idem_policy('short', completed_ttl => '1 ms');
	SELECT count(*) FROM idem_dedupe(s('short'), ARRAY[k('a')], 'short')});
poll('the sweep to go on', sub {
	value(q{SELECT count(*) FROM idempotency_keys WHERE policy = 'short'}) == 0 });
poll('the time-out in idem_sweep_status', sub {
	value(q{SELECT last_error = 'the audit log is locked' FROM idem_sweep_status}) eq 't' });
is(value(q{SELECT outcome FROM idem_claim(s('stuck'), k('1'))}), 'duplicate',
	'a locked log holds up nobody');
$holder->query('ROLLBACK');
settle();
is(logged('stuck'), 'duplicate 4', 'and loses nothing');

#
# Terminations.
#

# A slow log, so that the worker is found at it
value(q{
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_sleep(0.003);
	RETURN NEW;
END
$$;
CREATE TRIGGER zzz BEFORE INSERT ON idempotency_audit_log FOR EACH ROW
	WHEN (NEW.detail ? 'count') EXECUTE FUNCTION slow()});
finish('many', 700, 'once');
value('SELECT idem_stats_reset()');
my $bench = start_pgbench(
	$node,
	clients => 4,
	params => [ '-t', 1500, '-R', 300 ],
	scripts => [
		q{\set i random(1, 300)
BEGIN;
SELECT outcome FROM idem_claim(s('many'), k((:i)::text));
ROLLBACK;
} ]);
my $writing = "$sweeps
	AND query = 'writing refusals to the audit log' AND wait_event = 'PgSleep'";
my $end_launcher = "SELECT count(pg_terminate_backend(pid)) $launcher";
my $more = q{SELECT count(idem_claim(s('many'), k(i::text))) FROM generate_series(1, 700) i};
for my $time (1 .. 10)
{
	value($more);
	poll("a worker to write, time $time", sub {
		value("SELECT count(pg_terminate_backend(pid)) $writing") > 0 });
	# a new one does not wait longer after each failure
	value($end_launcher);
}
my $beside = 0;
for my $time (1 .. 3)
{
	value($more);
	my $pid = '';
	poll("a worker to write beside another, time $time", sub {
		($pid) = split /\n/, value("SELECT pid $writing");
		defined $pid });
	my $now = value('SELECT clock_timestamp()');
	value($end_launcher);

	# the one that the next launcher starts has been and gone
	my $both = qq{SELECT last_run > '$now' AND EXISTS (SELECT $writing AND pid = $pid)
		FROM idem_sweep_status};
	poll('either to end', sub {
		$beside++ if value($both) eq 't';
		value(qq{SELECT last_run > '$now' FROM idem_sweep_status}) eq 't' });
}
note("a worker ended beside one that was writing: $beside of 3 times");
$bench->{handle}->finish;
is($bench->{err} =~ /ERROR|abort/ ? $bench->{err} : '', '', 'no caller was in trouble');
value('DROP TRIGGER zzz ON idempotency_audit_log');
settle();
is(logged('many'), 'duplicate ' . (4 * 1500 + 13 * 700),
	'workers terminated while they write neither lose nor double a refusal');
is(dropped(), 0, 'and none was dropped');
is(value(q{SELECT bool_and(at <= COALESCE((detail->>'last_at')::timestamptz, at))
	FROM idempotency_audit_log WHERE detail ? 'count'}), 't', 'times are in order');

# Between the commit and its leaving the queue: it waits for a standby
finish('commit', 20, 'once');
sub set_standby
{
	my ($name) = @_;

	$node->append_conf('postgresql.conf', "synchronous_standby_names = '$name'\n");
	$node->reload;
	poll('the setting', sub { value('SHOW synchronous_standby_names') eq $name });
	return;
}
set_standby('nobody');
value(q{SELECT count(idem_claim(s('commit'), k(i::text))) FROM generate_series(1, 20) i});
poll('a worker to wait at its commit', sub {
	value("SELECT count(pg_terminate_backend(pid)) $sweeps AND wait_event = 'SyncRep'") > 0 });
poll('its end', sub { value("SELECT count(*) $sweeps") == 0 });
set_standby('');
settle();
is(logged('commit'), 'duplicate 20', 'nor does one that is terminated while it commits');

#
# A restart, and a crash.
#

set_worker('off');
finish('restart', 2, 'once');
value(q{SELECT count(idem_claim(s('restart'), k('1'))) FROM generate_series(1, 5);
	SELECT idem_claim(s('restart'), k('2'))});
$node->stop;
my $file = $node->data_dir . '/pg_stat/idempotency.refusals';
ok(-s $file, 'a clean shutdown keeps the queue in a file');
unlike(slurp_file($file), qr/canary/, 'which names no scope and no key');
$node->start;
ok(!-e $file, 'good for one start');
value(q{SELECT idem_claim(s('restart'), k('2'))});
set_worker('on');
settle();
is(logged('restart'), 'duplicate 7', 'a clean restart loses nothing');

set_worker('off');
value(q{SELECT idem_claim(s('restart'), k('2'))});
$node->stop;
open my $handle, '+<', $file or die "$file: $!";
binmode $handle;
seek $handle, 60, 0;
print $handle 'x' x 8;
close $handle;
$node->start;
like(slurp_file($node->logfile), qr/ignoring invalid data in file "pg_stat\/idempotency.refusals"/,
	'a damaged file is ignored');

value(q{SELECT idem_claim(s('restart'), k('2'))});
crash($node);
restart_after_crash($node);
value(q{SELECT idem_claim(s('restart'), k('1'))});
set_worker('on');
settle();
is(logged('restart'), 'duplicate 8', 'a crash loses what was queued, and no more');

is(value(q{SELECT count(*) FROM idempotency_audit_log l WHERE l::text ~ 'canary'}), 0,
	'no scope or key in the audit log');
$node->stop;
unlike(slurp_file($node->logfile), qr/canary/, 'nor in the log of the server');

#
# Without preload.
#

my $plain = new_node('plain');
$plain->safe_psql('postgres', 'CREATE ROLE web LOGIN; CREATE ROLE boss');
set_up($plain, 'postgres');
$plain->safe_psql('postgres', q{SELECT idem_grant('web', 'app');
SELECT idem_run('f(jsonb)', s('a'), k('a'), '{}', 'once');
SELECT idem_run('f(jsonb)', s('a'), k('b'), '{}', 'quiet');
BEGIN; SELECT idem_claim(s('a'), k('a')), idem_claim(s('a'), k('b')); ROLLBACK});
is(sqlstate($plain, q{SELECT idem_lookup(s('a'), k('a'))}, user => 'web'), '42501', 'without preload');
my $id = $plain->safe_psql('postgres', q{SELECT idem_log_id(s('a')) || '/' || idem_log_id(k('a'))});
my $log = slurp_file($plain->logfile);
my @lines = $log =~ /LOG:  (idempotency key .*)\n.*DETAIL:  (.*)\n/g;
my $owner = $plain->safe_psql('postgres', 'SELECT current_user');
is_deeply(\@lines, [
	"idempotency key $id refused: duplicate",
	qq{Session role "$owner", effective role "$owner".},
	"idempotency key $id refused: forbidden",
	q{Session role "web", effective role "web".} ],
	'each refusal is a line in the log of the server');
# whose statement would be the next line
unlike($log, qr/refused: .*\n.*DETAIL: .*\n.*STATEMENT:.*duplicate/, 'without its statement');
$plain->safe_psql('postgres', q{SELECT idem_run('f(jsonb)', 'canary', 'canary', '{}', 'once');
	DO $$BEGIN PERFORM idem_claim('canary', 'canary'); END$$});
is(scalar(() = slurp_file($plain->logfile) =~ /LOG:  idempotency key/g), 3,
	'in a statement that names the key');
unlike(slurp_file($plain->logfile), qr/canary/, 'no scope or key in it');
is($plain->safe_psql('postgres', q{SELECT count(*) FROM idempotency_audit_log WHERE detail ? 'count'}),
	0, 'and nothing in the audit log');
$plain->stop;

done_testing();
