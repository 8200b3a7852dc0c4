# The reply to a COMMIT is lost.
#
# Scenario: clients talk to the server through a proxy which now and then cuts
# the connection when it has passed on a statement marked for it, before any
# reply gets through: sometimes it lets the server answer and swallows that,
# sometimes it breaks both sides at once, or the client's alone while the
# server still works.  The client cannot know what has become of its request,
# and repeats it with the same key until it gets an answer.  In the end each
# key has had its effect exactly once, and all answers for it are the same.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = 300;
my $workers = 4;
my $node = new_node('lost');
my $folder = PostgreSQL::Test::Utils::tempdir_short;

$node->safe_psql(
	'postgres', q{
CREATE TABLE effects (key text NOT NULL);
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT json_build_object('bought', request->>'key', 'at', clock_timestamp());
$$;
});

#
# The proxy: a process for each connection
#

my $port = $node->port;
my $server_path = $node->host . "/.s.PGSQL.$port";

# Pass data between client and server until one of them ends, or the client
# sends the mark: the letter after it says how to cut.
sub relay
{
	my ($client) = @_;
	my $server = IO::Socket::UNIX->new(Peer => $server_path) or return;
	my $select = IO::Select->new($client, $server);

	for (;;)
	{
		foreach my $from ($select->can_read)
		{
			my $to = $from == $client ? $server : $client;
			my $data;

			return if !sysread $from, $data, 65536;
			my $cut =
			  $from == $client && $data =~ /cut here: (\w)/ ? $1 : '';

			# both at once: the server may find the connection broken
			return if $cut eq 'n';
			syswrite $to, $data;
			next if $cut eq '';
			return if $cut eq 'b';
			# the client's side alone; the server's goes on to the end
			close $client;
			if ($cut eq 's')
			{
				# its answer comes: the statement is through
				sysread $server, $data, 65536;
				return;
			}
			# it works on, and then finds the client gone
			shutdown $server, 1;
			1 while sysread $server, $data, 65536;
			return;
		}
	}
}

my $listener = IO::Socket::UNIX->new(
	Local => "$folder/.s.PGSQL.$port",
	Listen => 100) or die "could not listen: $!";
my $parent = $$;
my $proxy = fork // die "could not fork: $!";
if ($proxy == 0)
{
	# not the handler of the test, which would stop its server
	$SIG{TERM} = $SIG{INT} = 'DEFAULT';
	local $SIG{CHLD} = 'IGNORE';
	local $SIG{PIPE} = 'IGNORE';

	$listener->timeout(1);
	# ends with the test, whatever becomes of that
	while (kill 0, $parent)
	{
		my $client = $listener->accept or next;

		if (fork == 0)
		{
			close $listener;
			relay($client);
			POSIX::_exit(0);
		}
		close $client;
	}
	POSIX::_exit(0);
}

END
{
	# the exit status is the test's
	if ($proxy)
	{
		my $status = $?;
		kill 'TERM', $proxy;
		waitpid $proxy, 0;
		$? = $status;
	}
}

#
# The clients
#

# Two ways to make a request; CUT is where the reply may be lost
my %request = (
	atomic => q{
BEGIN;
SELECT outcome = 'claimed' AS mine, outcome, idem_json(r) AS answer
FROM idem_claim('shop', 'KEY', '{"key": "KEY"}', wait => '10 s') r \gset
\if :mine
INSERT INTO effects VALUES ('KEY');
SELECT idem_complete('shop', 'KEY', '{"bought" : "KEY"}'::json) \g /dev/null
SELECT '{"bought" : "KEY"}' AS answer \gset
\endif
COMMIT/*CUT*/;
\echo :outcome :answer
},
	run => q{
SELECT outcome, idem_json(r) FROM idem_run('buy(jsonb)', 'shop', 'KEY', '{"key": "KEY"}', wait => '10 s') r/*CUT*/;
});

# One attempt: the answer, undef when there was none
sub attempt
{
	my ($kind, $key, $cut) = @_;
	my $sql = $request{$kind} =~ s/KEY/$key/gr;
	my ($stdout, $stderr) = ('', '');

	$cut = $cut eq '' ? '' : "cut here: $cut";
	$sql =~ s/CUT/$cut/;
	my @command = (
		'psql', '-XAtq', '-F', ' ', '-v', 'ON_ERROR_STOP=1', '-h', $folder,
		'-p', $port, '-d', 'postgres', '-f', '-');
	my $ok = IPC::Run::run \@command, '<', \$sql, '>', \$stdout, '2>',
	  \$stderr;
	return undef if !$ok;
	chomp $stdout;
	return $stdout;
}

# A worker takes every n-th key, and writes what it was told
sub work
{
	my ($worker) = @_;
	my @cuts = ('s', 'b', 's', 'n', 'l', 's', '');
	my $text = '';

	for (my $i = $worker; $i < $keys; $i += $workers)
	{
		my $kind = $i % 2 ? 'atomic' : 'run';
		my $key = "$kind$i";
		my $attempts = 0;
		my $answer;

		# the first attempts are cut, one of them or two
		foreach my $cut ($cuts[ $i % @cuts ], $i % 3 ? '' : 's', '', '')
		{
			$attempts++;
			$answer = attempt($kind, $key, $cut);
			last if defined $answer;
		}
		$text .= "$key $attempts " . ($answer // 'none') . "\n";
		# somebody else asks, too
		$text .= "$key 0 " . (attempt($kind, $key, '') // 'none') . "\n"
		  if $i % 10 == 0;
	}
	return $text;
}

my @pids;
foreach my $worker (0 .. $workers - 1)
{
	my $pid = fork // die "could not fork: $!";

	if ($pid == 0)
	{
		my $text = eval { work($worker) } // "died: $@";
		open my $out, '>', "$folder/worker$worker" or POSIX::_exit(1);
		print $out $text;
		close $out;
		POSIX::_exit(0);
	}
	push @pids, $pid;
}
waitpid $_, 0 foreach @pids;

my (%answers, %attempts, %first);
my $lines = 0;
foreach my $worker (0 .. $workers - 1)
{
	foreach my $line (split /\n/, slurp_file("$folder/worker$worker"))
	{
		my ($key, $attempts, $outcome, $answer) = split / /, $line, 4;

		$lines++;
		$answers{$key}{ $answer // '' }++;
		next if $attempts == 0;
		$attempts{$key} = $attempts;
		$first{$outcome}++;
	}
}

cmp_ok($lines, '>', $keys, 'every request was made, and some again');
is(scalar(keys %answers), $keys, 'for every key');
is(scalar(grep { keys %{ $answers{$_} } != 1 } keys %answers),
	0, 'with one answer for each');
is(scalar(grep { exists $answers{$_}{''} } keys %answers),
	0, 'and no attempt was in vain');
note "first answers: ", explain(\%first);
cmp_ok(scalar(grep { $_ > 1 } values %attempts),
	'>', $keys / 2, 'many replies were lost');
cmp_ok($first{replayed} // 0, '>', 50, 'after which many got a replay');
cmp_ok(($first{claimed} // 0) + ($first{completed} // 0),
	'>', 20, 'and some ran for the first time');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*), count(DISTINCT key) FROM effects;
SELECT count(*), count(*) FILTER (WHERE state = 'c') FROM idempotency_keys}),
	"$keys|$keys\n$keys|$keys",
	'effects, distinct keys; keys, completed');

# What the clients were told is what is stored
my $told = join ',', map {
	my ($answer) = keys %{ $answers{$_} };
	$answer =~ s/'/''/g;
	"('$_', '$answer')"
} keys %answers;
is( $node->safe_psql(
		'postgres', qq{
SELECT count(*) FROM (VALUES $told) v (key, answer)
WHERE idem_json(idem_lookup('shop', key))::text = answer}),
	$keys,
	'all were told what is stored');

kill 'TERM', $proxy;
waitpid $proxy, 0;
$proxy = 0;
$node->stop;

done_testing();
