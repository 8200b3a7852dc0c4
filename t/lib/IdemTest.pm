
=pod

=head1 NAME

IdemTest - what the TAP tests of the extension share

=head1 DESCRIPTION

A thin layer over PostgreSQL::Test::Cluster that is the same on every major:
nodes with the extension in them, errors as SQLSTATEs, sessions whose
statements can be sent without waiting for the answer, and crashes.

Nothing here sleeps to synchronise.  poll() looks again and again, and ends
the test after the time-out of PostgreSQL::Test.

The environment variable STORAGE names the way to the key table in every node:
sql, or else auto.  SLOW_SERVERS is set where a sanitizer or valgrind is in the
servers: a mass of keys is a tenth as large there, see mass(), and no bound in
seconds is one of theirs.

=cut

package IdemTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(
  crash expire_keys install is_up keys_left log_count mass new_node partition_keys
  pgbench_acknowledged poll process_bytes restart_after_crash run_client
  run_psql session sqlstate start_pgbench wait_for_sweep
);

# A started node with the extension in database "postgres".  Options: name,
# conf (text for postgresql.conf), streaming, schema, extension (false: none).
sub new_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(
		allows_streaming => $options{streaming} || 0,
		extra => [ '--encoding=UTF8', '--locale=C' ]);
	# the statements of a test are of no use in its log, and are many
	$node->append_conf('postgresql.conf',
		"log_statement = none\nautovacuum = off\n");
	$node->append_conf('postgresql.conf',
		'idempotency.storage = '
		  . (($ENV{STORAGE} || '') eq 'sql' ? 'sql' : 'auto') . "\n");
	$node->append_conf('postgresql.conf', $options{conf})
	  if defined $options{conf};
	$node->start;
	install($node) if $options{extension} // 1;
	return $node;
}

sub install
{
	my ($node, $database) = @_;

	$node->safe_psql($database // 'postgres',
		    'SET client_min_messages = warning;'
		  . 'CREATE EXTENSION idempotency CASCADE');
	return;
}

# Put the keys of a database into so many hash partitions, as a user would, or
# into none.
sub partition_keys
{
	my ($node, $number, $database) = @_;
	my $parts = join ';', map
	{
		"CREATE TABLE idempotency_keys_$_ PARTITION OF idempotency_keys
		FOR VALUES WITH (MODULUS $number, REMAINDER " . ($_ - 1) . ')'
	} 1 .. $number;

	$node->safe_psql(
		$database // 'postgres', qq{
		BEGIN;
		ALTER EXTENSION idempotency DROP TABLE idempotency_keys;
		ALTER TABLE idempotency_keys RENAME TO idempotency_keys_old;
		ALTER TABLE idempotency_keys_old DROP CONSTRAINT idempotency_keys_pkey;
		CREATE TABLE idempotency_keys (LIKE idempotency_keys_old,
			CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key))
			PARTITION BY HASH (scope, key);
		$parts;
		INSERT INTO idempotency_keys SELECT * FROM idempotency_keys_old;
		DROP TABLE idempotency_keys_old;
		CREATE INDEX idempotency_keys_purge_at ON idempotency_keys (purge_at);
		ALTER EXTENSION idempotency ADD TABLE idempotency_keys;
		COMMIT});
	return;
}

# Run a script to its first error.  Returns stdout and the SQLSTATE of the
# error, '' when there was none.  Options: user, database, params.
sub run_psql
{
	my ($node, $sql, %options) = @_;
	my @params = ('-v', 'VERBOSITY=sqlstate', @{ $options{params} || [] });
	my ($stdout, $stderr) = ('', '');

	push @params, '-U', $options{user} if defined $options{user};
	my $status = $node->psql(
		$options{database} // 'postgres', $sql,
		stdout => \$stdout,
		stderr => \$stderr,
		extra_params => \@params);
	my ($state) = $stderr =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})\b/;
	die "psql failed: $stderr" if $status != 0 && !defined $state;
	return ($stdout, $state // '');
}

# The SQLSTATE of the first error of a script, '' when there is none.
sub sqlstate
{
	my ($node, $sql, %options) = @_;
	my (undef, $state) = run_psql($node, $sql, %options);

	return $state;
}

# Until the condition holds.
sub poll
{
	my ($what, $condition) = @_;
	my $tries = 20 * $PostgreSQL::Test::Utils::timeout_default;

	for (1 .. $tries)
	{
		return 1 if $condition->();
		usleep(50_000);
	}
	die "gave up waiting: $what\n";
}

# Kill the postmaster with SIGKILL.  Its children end when they notice.
sub crash
{
	my ($node) = @_;
	my ($pid) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	$node->kill9;
	poll('end of the postmaster', sub { !kill(0, $pid) });
	return;
}

# Start a node whose postmaster was killed.  While one of its old children
# lives, its shared memory is in use and a start is refused.
sub restart_after_crash
{
	my ($node) = @_;

	poll('start after a crash', sub { $node->start(fail_ok => 1) });
	return;
}

# Whether a server can be asked.  A psql that cannot connect may be gone before
# its script is written to it, of which IPC::Run dies.
sub is_up
{
	my ($node) = @_;
	my $stderr = '';

	return eval { $node->psql('postgres', 'SELECT 1', stderr => \$stderr) == 0 };
}

# How often a pattern is in the log of a server, from an offset on.
sub log_count
{
	my ($node, $pattern, $offset) = @_;
	my $log = substr(slurp_file($node->logfile), $offset // 0);

	return scalar(() = $log =~ /$pattern/g);
}

# A program that connects to a server, and must succeed.
sub run_client
{
	my ($node, @command) = @_;

	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	ok(run_log(\@command), "$command[0] works") or die;
	return;
}

# What a process has of its own; shared memory counts when it is first touched,
# so that is left out.  Nothing where the system does not tell, and where a
# sanitizer or valgrind keeps what is freed.
sub process_bytes
{
	my ($pid) = @_;
	my $file = "/proc/$pid/smaps_rollup";

	return undef if !-r $file;
	return undef if slurp_file("/proc/$pid/maps") =~ /libasan|vgpreload/;
	my ($anonymous) = slurp_file($file) =~ /^Anonymous:\s+(\d+) kB/m;
	return $anonymous * 1024;
}

# So many, or a tenth of it where servers are slow, as under valgrind.  For what
# is there to be much, not for what a test compares with a number.
sub mass
{
	my ($number) = @_;

	return $ENV{SLOW_SERVERS} ? int($number / 10) : $number;
}

# Leave so many keys that have expired in a scope.
sub expire_keys
{
	my ($node, $scope, $number, $database) = @_;

	$node->safe_psql(
		$database // 'postgres', qq{
SELECT idem_policy('short', completed_ttl => '1 ms');
SELECT count(*) FROM idem_dedupe('$scope', ARRAY(
	SELECT i::text FROM generate_series(1, $number) i), 'short')});
	return;
}

sub keys_left
{
	my ($node, $scope, $database) = @_;

	return $node->safe_psql($database // 'postgres',
		"SELECT count(*) FROM idempotency_keys WHERE scope = '$scope'");
}

sub wait_for_sweep
{
	my ($node, $scope, $database) = @_;

	return poll("keys of scope $scope to be swept",
		sub { keys_left($node, $scope, $database) == 0 });
}

# pgbench as a child.  Options: clients, scripts (texts), folder, params.
# Finish it with finish() of what this returns.
sub start_pgbench
{
	my ($node, %options) = @_;
	my $folder = $options{folder} // PostgreSQL::Test::Utils::tempdir;
	my @command = (
		'pgbench', '-n', '-c', $options{clients}, '-j', 2,
		@{ $options{params} || [] });
	my $n = 0;

	foreach my $script (@{ $options{scripts} })
	{
		my $file = "$folder/script" . $n++ . '.sql';

		unlink $file;
		append_to_file($file, $script);
		push @command, '-f', $file;
	}
	push @command, 'postgres';

	my $run = { out => '', err => '' };
	local $ENV{PGHOST} = $options{host} // $node->host;
	local $ENV{PGPORT} = $options{port} // $node->port;
	local $ENV{PGUSER} = $options{user} if defined $options{user};
	$run->{handle} = IPC::Run::start(
		\@command, '<', \'', '>', \$run->{out}, '2>', \$run->{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $run;
}

# How many transactions of each client pgbench knows to be committed, by its
# log files with this prefix (params -l and --log-prefix).
sub pgbench_acknowledged
{
	my ($prefix) = @_;
	my %count;

	foreach my $file (glob "$prefix.*")
	{
		foreach my $line (split /\n/, slurp_file($file))
		{
			# a line that was cut off has fewer fields
			$count{$1}++ if $line =~ /^(\d+) \d+ \d+ \d+ \d+ \d+/;
		}
	}
	return \%count;
}

# A psql session of its own.
sub session
{
	my ($node, %options) = @_;

	return IdemTest::Session->new($node, %options);
}

package IdemTest::Session;

use IPC::Run;

# Options: user, database, params.
sub new
{
	my ($class, $node, %options) = @_;
	my $self = bless {
		in => '',
		out => '',
		err => '',
		sent => 0,
		received => 0
	}, $class;
	my @command = (
		$node->installed_command('psql'), '-XAtq',
		'-v', 'VERBOSITY=sqlstate',
		'-d', $node->connstr($options{database} // 'postgres'),
		@{ $options{params} || [] });

	push @command, '-U', $options{user} if defined $options{user};
	$self->{timeout} =
	  IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
	$self->{run} = IPC::Run::start(
		[ @command, '-f', '-' ],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err},
		$self->{timeout});
	$self->{pid} = $self->query('SELECT pg_backend_pid()');
	return $self;
}

# Process id of its server process.
sub pid
{
	my ($self) = @_;

	return $self->{pid};
}

# Send statements and do not wait.
sub send
{
	my ($self, $sql) = @_;
	my $mark = '--answer-' . ++$self->{sent} . '--';

	$self->{in} .= "$sql\n;\n\\echo $mark\n\\warn $mark\n";
	# the pipe may be gone with the server
	eval { $self->{run}->pump_nb; };
	return;
}

# What the oldest statements without an answer have printed; their first
# error is in state(), all that was said about it in {last_error}.
sub receive
{
	my ($self) = @_;
	my $mark = '--answer-' . ++$self->{received} . '--';

	$self->{timeout}->start($PostgreSQL::Test::Utils::timeout_default);
	until ($self->{out} =~ /^$mark$/m && $self->{err} =~ /$mark/)
	{
		last if !eval { $self->{run}->pump; 1 };
	}
	die "session timed out\n" if $self->{timeout}->is_expired;

	my ($out, $err) = ($self->{out}, $self->{err});
	if ($out =~ s/^$mark\n(.*)//ms)
	{
		$self->{out} = $1;
		$err =~ s/$mark\n(.*)//s;
		$self->{err} = $1 // '';
	}
	($self->{state}) = $err =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})\b/;
	$self->{state} //= $err =~ /connection to server was lost|terminat/
	  ? 'lost' : '';
	$self->{last_error} = $err;
	chomp $out;
	return $out;
}

# Both at once.
sub query
{
	my ($self, $sql) = @_;

	$self->send($sql);
	return $self->receive;
}

# The SQLSTATE of the first error in the last answer: '' when there was none,
# 'lost' when the connection broke without a word.
sub state
{
	my ($self) = @_;

	return $self->{state};
}

sub quit
{
	my ($self) = @_;

	eval {
		$self->{in} .= "\\q\n";
		$self->{run}->finish;
	};
	return;
}

1;
