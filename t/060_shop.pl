# The furniture shop when its server is killed in the middle of purchases.
#
# Scenario: eight clients buy in examples/furnitureops, every key is sent by
# two of them.  Most purchases are one statement, some a transaction that
# dawdles between the work and COMMIT; and each client ends in a transaction
# that it would not finish for minutes, so that purchases are under way
# whenever the blow falls.  When some hundred are sold, the server dies: in one
# round postmaster and children get SIGKILL, in the next a single backend,
# which makes the postmaster restart the others, in the last it is an immediate
# shutdown.
#
# After recovery both clients of every key send it again, at the same time;
# then it is sent once more, alone.  Whatever happened: every key is sold
# exactly once, every answer that a client ever got for a key is the same to
# the byte, stock + sold is constant, every purchase has its audit rows, and no
# key is stuck.

use strict;
use warnings;

use File::Spec;
use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 8;
my $keys = 600;			# of each round
my $enough = 150;		# sold when the server dies
my $articles = 10;
my $stock = 100_000;
my $folder = PostgreSQL::Test::Utils::tempdir;
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

my $node = new_node(
	'shop',
	conf => "restart_after_crash = on\n",
	extension => 0);
$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->safe_psql('shop', slurp_file('examples/furnitureops/schema.sql'));
$node->safe_psql('shop', "INSERT INTO shop.stock (sku, quantity)
	SELECT 'chair-' || n, $stock FROM generate_series(0, $articles - 1) n");

# However slow the machine, no key may expire here.
$node->safe_psql('shop',
	q{SELECT idempotency.idem_policy('furnitureops', completed_ttl => '1 h')});

# Every answer that a client got: $answers{key}{answer}.
my %answers;

# Buy for a key.  The answer is printed on one line, marked with $mark.
sub buy
{
	my ($key, $mark) = @_;
	my ($number) = $key =~ /(\d+)$/;
	my $sku = 'chair-' . $number % $articles;
	my $quantity = 1 + $number % 3;

	return <<SQL;
SELECT '$mark', '$key', outcome, http_status, headers, content_type, encode(body, 'hex')
	FROM shop.buy('ada', '$key', '{"sku": "$sku", "quantity": $quantity, "reference": "$key"}');
SQL
}

# The same in a transaction that dawdles.  An answer is worth nothing before
# the commit, so it is believed only when "acknowledged" follows.
sub buy_slowly
{
	my ($key, $seconds) = @_;

	return "BEGIN;\n" . buy($key, 'uncommitted')
	  . "SELECT FROM pg_sleep($seconds);\nCOMMIT;\n\\echo acknowledged|$key\n";
}

# Run one script per client at the same time.  Through files, since nobody
# would serve pipes while we look at the server.
sub start_clients
{
	my @scripts = @_;
	my @running;

	foreach my $script (@scripts)
	{
		my $file = "$folder/client" . @running;
		my %client = (out => "$file.out", err => "$file.err");

		unlink "$file.sql";
		append_to_file("$file.sql", $script);
		$client{handle} = IPC::Run::start(
			[
				$node->installed_command('psql'), '-XqAt', '-F', '|',
				'-d', $node->connstr('shop') . ' user=shop_web',
				'-f', "$file.sql"
			],
			'<', File::Spec->devnull, '>', $client{out}, '2>', $client{err},
			IPC::Run::timeout($timeout));
		push @running, \%client;
	}
	return @running;
}

# Wait for them to end, and note what they were told.
sub finish_clients
{
	my @running = @_;

	foreach my $client (@running)
	{
		my %uncommitted;

		$client->{handle}->finish;
		$client->{$_} = slurp_file($client->{$_}) foreach qw(out err);
		foreach my $line (split /\n/, $client->{out})
		{
			my ($mark, $key, $outcome, @answer) = split /\|/, $line;
			next unless defined $key;
			if ($mark eq 'acknowledged')
			{
				$answers{$key}{ $uncommitted{$key} } = 1
				  if defined $uncommitted{$key};
				next;
			}
			next unless $outcome =~ /^(?:completed|replayed)$/;
			if ($mark eq 'uncommitted' && $outcome eq 'completed')
			{
				$uncommitted{$key} = "@answer";
				next;
			}
			$answers{$key}{"@answer"} = 1;
		}
	}
	return;
}

# How many rows there are of what should, or should not, be there.
sub count
{
	my ($what) = @_;
	return $node->safe_psql('shop', "SELECT count(*) FROM $what");
}

# Ways to die.  After a crash the server must be started, or starts itself.
my %die = (
	'SIGKILL of all' => sub {
		my @children = split /\n/,
		  $node->safe_psql('postgres',
			'SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
		crash($node);
		kill 'KILL', @children;
	},
	'SIGKILL of a backend' => sub {
		my $victim = $node->safe_psql('postgres',
			"SELECT min(pid) FROM pg_stat_activity WHERE usename = 'shop_web'");
		kill 'KILL', $victim;
	},
	'immediate shutdown' => sub { $node->stop('immediate') });
my %recover = (
	'SIGKILL of all' => sub { restart_after_crash($node) },
	'SIGKILL of a backend' => sub {
		$node->poll_query_until('postgres', 'SELECT true')
		  or die 'the server does not come back';
	},
	'immediate shutdown' => sub { $node->start });

my $round = 0;
foreach my $how ('SIGKILL of all', 'SIGKILL of a backend', 'immediate shutdown')
{
	$round++;
	my @keys = map { "$round-$_" } 1 .. $keys;
	my @sent = map { [] } 1 .. $clients;

	# Two neighbours send the same keys, in the same order.
	foreach my $number (0 .. $#keys)
	{
		push @{ $sent[ $number % $clients ] }, $keys[$number];
		push @{ $sent[ ($number + 1) % $clients ] }, $keys[$number];
	}
	my @held = map { "$round-held-" . $_ } 1 .. $clients;

	my @running = start_clients(
		map {
			my $client = $_;
			my $count = 0;
			join('',
				(map { $count++ % 5 ? buy($_, 'said') : buy_slowly($_, 0.01) }
					@{ $sent[$client] }),
				buy_slowly($held[$client], 600))
		} 0 .. $clients - 1);
	my $ready = $node->poll_query_until('shop',
		"SELECT count(*) >= $enough FROM shop.sales WHERE reference LIKE '$round-%'");
	die 'no purchases are made' unless $ready;
	$die{$how}->();
	finish_clients(@running);
	is(scalar(grep { $_->{handle}->result == 2 } @running),
		$clients, "$how: every client has lost its connection");
	$recover{$how}->();

	push @keys, @held;
	# A client can have paid for one purchase at most that it knows nothing of.
	my $acknowledged = grep { $answers{$_} } @keys;
	cmp_ok($acknowledged, '>=', $enough - $clients,
		"$how: purchases were acknowledged");
	my $sold = count("(SELECT DISTINCT reference FROM shop.sales WHERE reference LIKE '$round-%') s");
	cmp_ok($sold, '>=', $acknowledged,
		"$how: no acknowledged purchase is lost");
	is(count("shop.sales WHERE reference LIKE '$round-held-%'"),
		0, "$how: nothing is left of uncommitted ones");

	my @again = map { [ @{ $sent[$_] }, @held ] } 0 .. $clients - 1;
	my @retries = start_clients(map { join '', map { buy($_, 'said') } @$_ } @again);
	finish_clients(@retries);
	my @last = start_clients(join '', map { buy($_, 'said') } @keys);
	finish_clients(@last);
	is(join('', map { $_->{err} } @retries, @last),
		'', "$how: no retry is an error");

	my $replays = () = $last[0]{out} =~ /^said\|[^|]*\|replayed\|201\|/mg;
	is($replays, scalar @keys, "$how: after retries every key has its answer");
	is(scalar(grep { keys %{ $answers{$_} } != 1 } @keys),
		0, "$how: nobody ever got another answer for a key");
	is(count("(SELECT FROM shop.sales GROUP BY reference HAVING count(*) > 1) s"),
		0, "$how: nothing is sold twice");
	is(count("(SELECT DISTINCT reference FROM shop.sales WHERE reference LIKE '$round-%') s"),
		scalar @keys, "$how: every key is sold");
	is(count("shop.stock WHERE sku LIKE 'chair-%' AND quantity + sold <> $stock"),
		0, "$how: stock + sold is constant");
	is(count("shop.stock s WHERE sold <>
			(SELECT coalesce(sum(quantity), 0) FROM shop.sales x WHERE x.sku = s.sku)"),
		0, "$how: sold is the sum of the sales");
	is(count("shop.sales s FULL JOIN
			(SELECT detail FROM idempotency.idempotency_audit_log WHERE action = 'sale') a
			ON (a.detail ->> 'sale')::bigint = s.id
			WHERE s.id IS NULL OR a.detail IS NULL"),
		0, "$how: every sale has its audit row, and no row is without");
	is(count("(SELECT entity_id FROM idempotency.idempotency_audit_log
			WHERE entity = 'idempotency_key' GROUP BY entity_id
			HAVING string_agg(action, ' ' ORDER BY id) <> 'claimed completed') a"),
		0, "$how: every key was claimed and completed once");
	is(count("idempotency.idempotency_keys WHERE state <> 'c'"),
		0, "$how: no key is stuck");
	is(count('idempotency.idempotency_keys'),
		count('shop.sales'), "$how: as many keys as sales");
}

$node->stop;
done_testing();
