# The background worker: keys disappear by themselves.
#
# Scenario: a server with the library preloaded and two databases that use the
# extension.  What has expired is removed in both, by workers that say in
# pg_stat_activity what they are, and the statistics that autovacuum goes by
# know of it.  Rows that somebody has locked, and those of a prepared
# transaction, stay until they are free.
#
# The launcher is terminated twenty times, and a worker in the middle of its
# work: both come back.  While workers sweep as fast as they can, databases
# are dropped (with and without FORCE), renamed, moved to another tablespace
# and copied, and the extension is dropped and created again: nobody is held
# up, and no error is logged.  A database that is read-only, and one whose
# extension has an unknown version, are left alone, and swept again when they
# can be, with one line in the log for each change.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('worker', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 s'
max_prepared_transactions = 5
});

sub value
{
	my ($sql, $database) = @_;

	return $node->safe_psql($database // 'postgres', $sql);
}

sub log_end
{
	return -s $node->logfile;
}

my $launcher = q{SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'idempotency launcher'};

#
# Sweeping.
#

poll('the launcher', sub { value($launcher) ne '' });
is(value(qq{SELECT datname IS NULL AND state = 'idle' FROM pg_stat_activity WHERE pid = ($launcher)}),
	't', 'the launcher is connected to no database, and says that it is idle');

$node->safe_psql('postgres', 'CREATE DATABASE other');
install($node, 'other');
expire_keys($node, 'here', 1000);
expire_keys($node, 'there', 1000, 'other');
$node->safe_psql('postgres', q{SELECT idem_claim('here', 'live')});
wait_for_sweep($node, 'there', 'other');
poll('expired keys to be swept', sub { keys_left($node, 'here') == 1 });
pass('what has expired is removed in both databases, and nothing else');

is(value(q{SELECT last_rows >= 0 AND last_run > now() - interval '1 min'
	AND last_duration >= '0' AND last_error IS NULL AND lag < '1 min'
	FROM idem_sweep_status}), 't', 'idem_sweep_status tells of it');
is(value(q{SELECT swept FROM idem_stats WHERE datname = 'other' AND policy = 'short'}),
	'1000', 'idem_stats counts what was swept, by database and policy');
poll('statistics', sub {
	value(q{SELECT n_tup_del >= 1000 FROM pg_stat_user_tables
		WHERE relname = 'idempotency_keys'}, 'other') eq 't' });
pass('autovacuum can see what was removed');
is(value(q{SELECT ok || ' ' || detail FROM idem_health() WHERE check_name = 'worker'}),
	'true running', 'idem_health sees the worker');

# Neither locks nor prepared transactions are waited for.
my $holder = session($node);
$holder->query(q{BEGIN; SELECT idem_policy('short', completed_ttl => '1 ms');
	SELECT count(*) FROM idem_dedupe('locked', '{a}', 'short'); COMMIT;
	BEGIN; SELECT 1 FROM idempotency_keys WHERE scope = 'locked' FOR UPDATE});
$node->safe_psql('postgres', q{BEGIN;
	SELECT count(*) FROM idem_dedupe('prepared', '{a}', 'short');
	PREPARE TRANSACTION 'p'});
expire_keys($node, 'beside', 10);
wait_for_sweep($node, 'beside');
is(keys_left($node, 'locked'), 1, 'a locked row is passed over');
$holder->query('ROLLBACK');
$node->safe_psql('postgres', q{COMMIT PREPARED 'p'});
$node->safe_psql('postgres', 'CALL idem_sweep_all()');
is(keys_left($node, 'locked') + keys_left($node, 'prepared'), 0, 'it is removed when it is free');

#
# Termination.
#

my $pid = value($launcher);
for my $time (1 .. 20)
{
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	my $last = $pid;
	poll("launcher after termination $time", sub {
		$pid = value($launcher);
		$pid ne '' && $pid ne $last });
}
expire_keys($node, 'after', 10);
wait_for_sweep($node, 'after');
pass('the launcher comes back twenty times');

#
# In nobody's way.
#

# Many small batches without a pause: a worker is at it all the time.
$node->append_conf('postgresql.conf',
	"idempotency.sweep_batch = 1\nidempotency.sweep_delay = 0\n");
$node->reload;

my $sweeping = q{SELECT count(*) FROM pg_stat_activity
	WHERE backend_type = 'idempotency sweep' AND datname = 'DB'};

sub busy
{
	my ($database) = @_;

	expire_keys($node, 'busy', 20000, $database);
	poll("a worker in database $database", sub {
		value($sweeping =~ s/DB/$database/r) > 0 });
	return;
}

my $folder = PostgreSQL::Test::Utils::tempdir;
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$folder'");
$node->safe_psql('postgres', 'CREATE DATABASE unrelated');

# A worker terminated in mid-work is started again
busy('other');
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid)
	FROM pg_stat_activity WHERE backend_type = 'idempotency sweep'});
wait_for_sweep($node, 'busy', 'other');
pass('a worker that was terminated comes back');

my $start = log_end();
my @statements = (
	[ 'ALTER DATABASE other SET TABLESPACE elsewhere', 'other' ],
	[ 'ALTER DATABASE other RENAME TO renamed', 'renamed' ],
	[ 'CREATE DATABASE copy TEMPLATE renamed', 'renamed' ],
	[ 'DROP DATABASE copy WITH (FORCE)', 'renamed' ],
	[ 'ALTER DATABASE unrelated RENAME TO unrelated2', 'renamed' ],
	[ 'CREATE DATABASE copy2 TEMPLATE unrelated2', 'renamed' ],
	[ 'DROP DATABASE unrelated2', 'renamed' ],
	[ 'DROP DATABASE renamed', undef ]);
my $database = 'other';
foreach my $case (@statements)
{
	my ($sql, $then) = @$case;

	busy($database);
	my $before = time;
	is(sqlstate($node, $sql), '', $sql . ' while a worker sweeps');
	note(sprintf '%s: %.2f s', $sql, time - $before);
	$database = $then;
}
# the template's keys were copied with it, and are swept there, too
is(log_count($node, qr/ERROR|PANIC/, $start), 0, 'and no error in the log');

# The extension goes in the middle of the work, again and again.
$node->safe_psql('postgres', 'CREATE DATABASE coming');
$start = log_end();
for my $time (1 .. 5)
{
	install($node, 'coming');
	busy('coming');
	is(sqlstate($node, 'DROP EXTENSION idempotency', database => 'coming'),
		'', "DROP EXTENSION while a worker sweeps, time $time");
}
install($node, 'coming');
expire_keys($node, 'again', 10, 'coming');
wait_for_sweep($node, 'again', 'coming');
is(log_count($node, qr/ERROR|FATAL|PANIC/, $start), 0,
	'no error in the log, and swept again where it is created again');

#
# What cannot be swept is said once.
#

$start = log_end();
$node->safe_psql('coming', q{ALTER DATABASE coming SET default_transaction_read_only = on});
$node->safe_psql('coming', q{SET default_transaction_read_only = off;
	SELECT count(*) FROM idem_dedupe('stuck', '{a}', 'short')});
poll('an error in idem_sweep_status', sub {
	value(q{SELECT last_error IS NOT NULL FROM idem_sweep_status}, 'coming') eq 't' });
expire_keys($node, 'one', 10);
wait_for_sweep($node, 'one');
is(keys_left($node, 'stuck', 'coming'), 1, 'a read-only database is left alone, others are not');
$node->safe_psql('coming', q{SET default_transaction_read_only = off;
	ALTER DATABASE coming RESET default_transaction_read_only});
wait_for_sweep($node, 'stuck', 'coming');
poll('the recovery in the log', sub { log_count($node, qr/are swept again/, $start) == 1 });
is(log_count($node, qr/cannot be swept/, $start), 1, 'one line for the error');

$start = log_end();
$node->safe_psql('coming', q{UPDATE pg_extension SET extversion = '9.9' WHERE extname = 'idempotency'});
poll('the version in idem_sweep_status', sub {
	value(q{SELECT last_error LIKE '%9.9%' FROM idem_sweep_status}, 'coming') eq 't' });
expire_keys($node, 'stuck', 10, 'coming');
$node->safe_psql('coming', q{UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'idempotency'});
wait_for_sweep($node, 'stuck', 'coming');
is(log_count($node, qr/cannot be swept/, $start), 1, 'an unknown version is left alone, with one line');

#
# Settings without a restart.
#

$node->append_conf('postgresql.conf', "idempotency.worker = off\n");
$node->reload;
is(value(q{SELECT detail FROM idem_health() WHERE check_name = 'worker'}),
	'idempotency.worker is off; no key is long due', 'idem_health knows that it is off');
$node->append_conf('postgresql.conf',
	"idempotency.worker = on\nidempotency.databases = 'postgres, nonsense'\n");
$node->reload;
expire_keys($node, 'named', 10);
expire_keys($node, 'unnamed', 10, 'coming');
wait_for_sweep($node, 'named');
expire_keys($node, 'named', 10);
wait_for_sweep($node, 'named');
is(keys_left($node, 'unnamed', 'coming'), 10, 'only the databases that are named are swept');

$holder->quit;
$start = log_end();
$node->stop;
# a worker that is at work then says that it was terminated, as autovacuum does,
# and so does our session, if it was not quick to go
my $error = qr/ERROR|PANIC|FATAL(?!:  terminating (?:background worker|autovacuum|connection))/;
is(log_count($node, $error, $start), 0, 'a shutdown is no error')
  or diag(substr slurp_file($node->logfile), $start);
done_testing();
