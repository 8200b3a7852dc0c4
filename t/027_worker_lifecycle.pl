# The worker and what becomes of databases, extensions and roles.
#
# Scenario: while the launcher idles, and while a worker sweeps, a database
# that has the extension and one that has not are moved to another tablespace,
# renamed, copied, and dropped with and without FORCE.  Each of these takes less
# than two seconds more than without a worker, also while a worker sleeps between
# two batches, which it does as long as it is told to.
#
# An upgrade of the extension, its removal, and its creation, and an index that
# is moved, each in a transaction that stays open: the worker neither waits nor
# complains, sweeps other databases meanwhile, and this one when it can; nor
# does a sweep by hand wait.  An upgrade that commits
# is said once, with growing pauses between the tries, and once when it is
# undone.  A schema named idempotency is not an extension.  Roles that own the
# tables or have claimed keys are dropped while a worker sweeps.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What waits for a lock longer than deadlock_timeout is logged
my $node = new_node('lifecycle', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 h'
idempotency.sweep_batch = 1
idempotency.sweep_delay = 0
log_line_prefix = '%m [%p] %b: '
log_lock_waits = on
deadlock_timeout = '10 ms'
});
my $observer = session($node);
my $folder = PostgreSQL::Test::Utils::tempdir;

$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$folder'");

sub set
{
	$node->append_conf('postgresql.conf', join("\n", @_) . "\n");
	$node->reload;
	return;
}

sub workers
{
	my ($database) = @_;

	return $observer->query(
		"SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'idempotency sweep' AND datname = '$database'");
}

# A worker that has something to do for a while
my $n = 0;

sub busy
{
	my ($database) = @_;

	expire_keys($node, 'busy' . $n++, 20000, $database)
	  if $node->safe_psql($database, 'SELECT count(*) FROM idempotency_keys') < 10000;
	poll("a worker in database $database", sub { workers($database) > 0 });
	return;
}

my $log_start = -s $node->logfile;

# What workers and launcher have to say since they were last asked, or all
# that the log has of a kind
sub said
{
	my ($pattern) = @_;
	my $log = substr(slurp_file($node->logfile), $log_start);

	$pattern //= qr/idempotency (?:sweep|launcher): /;
	return join "\n", grep { /$pattern/ } split /\n/, $log;
}

sub listen_anew
{
	$log_start = -s $node->logfile;
	return;
}

#
# Databases.
#

# What each statement takes where no worker is: on a busy machine it is more than
# the two seconds that a worker may add.
my %usual;

sub timed
{
	my ($sql, $state) = @_;
	my $kind = $sql =~ s/\b[a-z]+\b//gr;
	my $before = time;

	is(sqlstate($node, $sql), '', "$state: $sql");
	my $took = time - $before;
	note(sprintf '%.2f s', $took);
	if ($state eq 'no worker')
	{
		$usual{$kind} = $took;
		return;
	}
	SKIP:
	{
		skip 'servers are slow', 1 if $ENV{SLOW_SERVERS};
		cmp_ok($took, '<=', 2 + 2 * $usual{$kind}, 'within two seconds, and what it takes anyhow');
	}
	return;
}

# The life of a database; before each change the worker is made to be where it
# is to be.
sub live
{
	my ($name, $state, $worker) = @_;
	my @statements = (
		[ $name, "ALTER DATABASE $name SET TABLESPACE elsewhere" ],
		[ $name, "ALTER DATABASE $name RENAME TO renamed" ],
		[ 'renamed', 'CREATE DATABASE copy TEMPLATE renamed' ],
		[ 'copy', 'DROP DATABASE copy WITH (FORCE)' ],
		[ 'renamed', 'DROP DATABASE renamed' ]);

	foreach (@statements)
	{
		my ($database, $sql) = @$_;

		$worker->($database);
		timed($sql, $state);
	}
	return;
}

my $idle = sub {
	poll('the launcher to be idle', sub {
		$observer->query(q{SELECT string_agg(backend_type || ' ' || state, ', ')
			FROM pg_stat_activity WHERE backend_type LIKE 'idempotency%'})
		  eq 'idempotency launcher idle' });
};

$node->safe_psql('postgres', 'CREATE DATABASE unrelated');
$node->safe_psql('postgres', 'CREATE DATABASE ours');
install($node, 'ours');
expire_keys($node, 'early', 10, 'ours');
expire_keys($node, 'early', 10, 'postgres');
set('idempotency.worker = off');
$node->safe_psql('postgres', 'CREATE DATABASE plain');
live('plain', 'no worker', $idle);
set('idempotency.worker = on');
live('ours', 'idle', $idle);
live('unrelated', 'idle, unrelated', $idle);

set(q{idempotency.sweep_interval = '1 s'});
$node->safe_psql('postgres', 'CREATE DATABASE unrelated');
live('unrelated', 'sweeping, unrelated', sub { busy('postgres') });
$node->safe_psql('postgres', 'CREATE DATABASE ours');
install($node, 'ours');
live('ours', 'sweeping', \&busy);

# When workers in a database began to rest: its process id and the time
sub rests
{
	return $observer->query(
		q{SELECT pid, extract(epoch FROM state_change) FROM pg_stat_activity
		WHERE backend_type = 'idempotency sweep' AND state = 'idle'
		AND datname = 'ours'});
}

set(q{idempotency.sweep_delay = '3 s'});
$node->safe_psql('postgres', 'CREATE DATABASE ours');
install($node, 'ours');
busy('ours');
my %rests;
my ($before, $after);
poll('a worker to rest twice', sub {
	my ($pid, $time) = split /\|/, rests();
	return 0 if !defined $pid;
	$rests{$pid}{$time} = 1;
	($before, $after) = sort keys %{ $rests{$pid} };
	return defined $after; });
cmp_ok($after - $before, '>=', 3, 'a worker rests as long as sweep_delay says');

# DROP DATABASE waits five seconds for others to leave, and then fails
set(q{idempotency.sweep_delay = '10 s'});
my $rest = rests();
poll('the worker to rest', sub { rests() !~ /^(?:\Q$rest\E)?$/ });
timed('DROP DATABASE ours', 'resting');
set('idempotency.sweep_delay = 0');
is(said(qr/ERROR|PANIC/), '', 'no error in the log');

#
# The extension, in transactions that stay open.
#

$node->safe_psql('postgres', 'CREATE DATABASE ours');
install($node, 'ours');
set('idempotency.sweep_batch = 1000');
wait_for_sweep($node, "busy$_", 'postgres') foreach 0 .. $n - 1;
listen_anew();

# Another database has its sweeps; this one has been tried in between
sub others_go_on
{
	foreach (1 .. 2)
	{
		expire_keys($node, "other$_", 10, 'ours');
		wait_for_sweep($node, "other$_", 'ours');
	}
	return;
}

my $holder = session($node);

sub hold
{
	my ($name, $database, $sql, $end) = @_;

	$holder = session($node, database => $database);
	$holder->query("BEGIN; $sql");
	is($holder->state, '', "$name: the transaction is open");
	is(sqlstate($node, q{SET lock_timeout = '1 s'; SELECT idem_sweep()}), '',
		"$name: a sweep by hand does not wait")
	  if $database eq 'postgres';
	others_go_on();
	$holder->query($end);
	is($holder->state, '', "$name: it has not been disturbed");
	is(said(), '', "$name: the worker neither waits nor complains");
	listen_anew();
	return;
}

sub goes_on
{
	my ($name, $database) = @_;

	expire_keys($node, 'next', 10, $database);
	wait_for_sweep($node, 'next', $database);
	is(said(), '', "$name: and goes on when it is over");
	$holder->quit;
	return;
}

my $upgrade = q{
ALTER EXTENSION idempotency UPDATE TO '1.0';
ALTER EXTENSION idempotency DROP FUNCTION idem_log_id(text);
ALTER EXTENSION idempotency ADD FUNCTION idem_log_id(text);
COMMENT ON EXTENSION idempotency IS 'newer';
ALTER TABLE idempotency_keys ADD COLUMN newer text;
CREATE OR REPLACE VIEW idem_sweep_status AS SELECT * FROM idem_sweep_status_values();
UPDATE pg_extension SET extversion = '9.9' WHERE extname = 'idempotency'};

expire_keys($node, 'upgrade', 10, 'postgres');
hold('an upgrade', 'postgres', $upgrade, 'ROLLBACK');
goes_on('an upgrade', 'postgres');
hold('a removal', 'postgres', 'DROP EXTENSION idempotency', 'ROLLBACK');
goes_on('a removal', 'postgres');
hold('an index', 'postgres',
	'ALTER INDEX idempotency_keys_purge_at SET TABLESPACE elsewhere', 'ROLLBACK');
goes_on('an index', 'postgres');
hold('a comment', 'postgres', q{COMMENT ON EXTENSION idempotency IS 'ours'}, 'COMMIT');
goes_on('a comment', 'postgres');

$node->safe_psql('postgres', 'CREATE DATABASE coming');
hold('a creation', 'coming', 'SET LOCAL client_min_messages = warning;
	CREATE EXTENSION idempotency CASCADE', 'COMMIT');
# nobody else is there to tell that it has come
$holder->query(q{SELECT idem_claim('next', 'a', ttl => '1 ms', lease => '1 ms');
	SELECT idem_complete('next', 'a', token => token) FROM idempotency_keys});
is($holder->state, '', 'a creation: it is there');
$holder->query(q{UPDATE idempotency_keys SET purge_at = now()});
wait_for_sweep($node, 'next', 'coming');
goes_on('a creation', 'coming');

# An upgrade that commits
$node->safe_psql('postgres', q{UPDATE pg_extension SET extversion = '9.9' WHERE extname = 'idempotency'});
my @runs = ('');
poll('pauses to grow', sub {
	my $run = $observer->query(q{SELECT extract(epoch FROM last_run)
		FROM idem_sweep_status WHERE last_error IS NOT NULL});
	push @runs, $run if $run ne $runs[-1];
	return @runs > 3 && $runs[-1] - $runs[-2] > 1.5; });
cmp_ok(scalar @runs, '<', 6, 'soon');
my $lines = () = said(qr/idempotency sweep: LOG/) =~ /\n?.*cannot be swept/g;
is($lines, 1, 'an upgrade that commits: said once');
$node->safe_psql('postgres', q{UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'idempotency'});
expire_keys($node, 'undone', 10, 'postgres');
wait_for_sweep($node, 'undone', 'postgres');
poll('it to be said', sub { said() =~ /are swept again/ });
$lines = () = said(qr/idempotency sweep: LOG/) =~ /^/mg;
is($lines, 2, 'and once when it is undone');

# No extension at all
listen_anew();
$node->safe_psql('postgres', 'CREATE DATABASE empty');
$node->safe_psql('empty', 'CREATE SCHEMA idempotency; CREATE TABLE idempotency.idempotency_keys ()');
others_go_on();
is(said(), '', 'a schema without an extension is nothing to talk of');

#
# Roles.
#

$node->safe_psql('postgres', q{
CREATE ROLE keeper;
CREATE ROLE clerk LOGIN;
SELECT idem_grant('clerk', 'app');
SELECT idem_policy('clerks', completed_ttl => '1 ms', owner_role => 'clerk');
ALTER TABLE idempotency_keys OWNER TO keeper;
ALTER TABLE idempotency_policies OWNER TO keeper;
ALTER TABLE idempotency_limiters OWNER TO keeper});
set('idempotency.sweep_batch = 1');
$node->safe_psql('postgres', q{SELECT count(*) FROM idem_dedupe('clerks', ARRAY(
	SELECT i::text FROM generate_series(1, 10000) i), 'clerks')});
busy('postgres');
is(sqlstate($node, 'DROP OWNED BY clerk; DROP ROLE clerk'), '',
	'a role that has keys is dropped');
busy('postgres');
is(sqlstate($node, 'REASSIGN OWNED BY keeper TO postgres; DROP OWNED BY keeper; DROP ROLE keeper'), '',
	'the owner of the keys is dropped');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM idempotency_keys'), '>', 0,
	'while a worker sweeps');
set('idempotency.sweep_batch = 10000');
poll('all to be swept', sub { $node->safe_psql('postgres',
	'SELECT count(*) FROM idempotency_keys') == 0 });
is(said(), '', 'which has nothing to say');

$_->quit foreach $observer, $holder;
is(said(qr/ERROR|FATAL|PANIC/), '', 'nor has anybody else');
$node->stop;
done_testing();
