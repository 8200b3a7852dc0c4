# The snippets of doc/web-applications.md work.
#
# Scenario: the servers in Flask, FastAPI and Express are taken out of the page
# and started, each with a user of its own.  Of each: the first request makes an
# order; its repeat gets the same bytes and makes none; another body under the
# key is refused, and so are a missing key and a body that is no JSON; an answer
# of 4xx leaves nothing, so that another body may come under that key; of many
# repeats at the same time one makes an order, and nobody else is told so.
#
# Where a framework is not installed, the snippet's syntax is checked, and its
# statements are prepared.

use strict;
use warnings;

use FindBin;
use HTTP::Tiny;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Debian's, which has Debian's modules
my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';
my $page = slurp_file("$FindBin::RealBin/../doc/web-applications.md");
my %snippet = $page =~ /^```\w+ (flask|fastapi|express)\n(.*?)^```$/msg;
my $folder = PostgreSQL::Test::Utils::tempdir;
my ($modules) = grep { -e "$_/express" && -e "$_/pg" }
  split(/:/, $ENV{NODE_PATH} // ''), '/usr/share/nodejs';

is(join(' ', sort keys %snippet), 'express fastapi flask', 'there are three servers');

my $node = new_node('web', extension => 0, conf => "max_connections = 100\n");
$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->safe_psql('shop', 'CREATE SCHEMA idempotency; CREATE EXTENSION idempotency SCHEMA idempotency CASCADE');
$node->safe_psql('shop', $_) foreach $page =~ /^```sql\b.*?\n(.*?)^```$/msg;
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

my %file = (
	flask => "$folder/flask_server.py",
	fastapi => "$folder/fastapi_server.py",
	express => "$folder/express_server.mjs");
append_to_file($file{$_}, $snippet{$_}) foreach keys %file;
symlink($modules, "$folder/node_modules") or die "$folder: $!" if defined $modules;

my %server = (
	flask => sub { [ $python, '-m', 'flask', '--app', $file{flask}, 'run', '--port', $_[0] ] },
	fastapi => sub {
		[ $python, '-m', 'uvicorn', '--app-dir', $folder, 'fastapi_server:app', '--port', $_[0] ]
	},
	express => sub { [ 'env', "PORT=$_[0]", 'node', $file{express} ] });
my %complete = (
	flask => run_log([ $python, '-c', 'import flask, psycopg_pool' ]),
	fastapi => run_log([ $python, '-c', 'import fastapi, uvicorn, psycopg_pool' ]),
	express => defined $modules);

my @running;
END { $_->kill_kill foreach @running }

sub orders
{
	my ($user) = @_;

	return $node->safe_psql('shop', "SELECT count(*) FROM orders WHERE customer = '$user'");
}

sub check_server
{
	my ($name) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $log = "$folder/$name.log";
	my $http = HTTP::Tiny->new(timeout => $PostgreSQL::Test::Utils::timeout_default);
	my $server = IPC::Run::start($server{$name}->($port), '<', \undef, '>', $log, '2>', $log);
	push @running, $server;
	my $send = sub {
		my ($key, $body) = @_;

		return $http->post(
			"http://127.0.0.1:$port/orders",
			{
				content => $body,
				headers => {
					'Content-Type' => 'application/json',
					'X-User' => $name,
					defined $key ? ('Idempotency-Key' => qq{"$key"}) : ()
				}
			});
	};
	my $order = '{"sku": "chair", "quantity": 1}';
	my ($first, $repeat, $many, $answer);

	poll("the server in $name", sub { $send->(undef, $order)->{status} == 400 });
	$first = $send->('order-1', $order);
	is($first->{status}, 201, "$name: the first request makes an order");
	like($first->{content}, qr/"order": ?\d+/, "$name: and says which");
	$repeat = $send->('order-1', $order);
	is($repeat->{status}, 201, "$name: a repeat gets the status");
	is($repeat->{content}, $first->{content}, "$name: and the same bytes");
	is($repeat->{headers}{'content-type'}, $first->{headers}{'content-type'}, "$name: of the same type");
	is($repeat->{headers}{'idempotency-replayed'}, 'true', "$name: and is told so");
	is(orders($name), 1, "$name: there is one order");

	$answer = $send->('order-1', '{"sku": "sofa", "quantity": 1}');
	is($answer->{status}, 422, "$name: another body under the key is refused");
	like($answer->{content}, qr/idempotency_key_reused/, "$name: with the problem");
	is($answer->{headers}{'content-type'} =~ s/;.*//r,
		'application/problem+json', "$name: and its type");
	is($send->('order-2', '{"sku"')->{status}, 400, "$name: a body that is no JSON is refused");

	$many = $send->('order-3', '{"sku": "chair", "quantity": 101}');
	is($many->{status}, 409, "$name: the work can say no");
	is($send->('order-3', $order)->{status}, 201, "$name: which leaves the key free");
	is($send->('order-4', '{"sku": "chair", "quantity": 0}')->{status},
		500, "$name: so does an error of the database");
	is(orders($name), 2, "$name: there are two orders");

	# repeats at the same time, by as many processes
	my @clients = map {
		my $n = $_;
		open(my $pipe, '-|') // die "fork: $!" or do
		{
			my $status = $send->('order-5', $order)->{status};
			syswrite(STDOUT, "$status\n");
			require POSIX;
			POSIX::_exit(0);
		};
		$pipe
	} 1 .. 8;
	my @statuses = map { my $status = readline($_); chomp $status; close $_; $status } @clients;
	is(join(' ', grep { $_ ne '201' && $_ ne '409' } @statuses),
		'', "$name: of many at the same time, each has the answer or is to ask again");
	is($send->('order-5', $order)->{status}, 201, "$name: which it then gets");
	is(orders($name), 3, "$name: and there is one order more");

	$server->kill_kill;
	note(slurp_file($log)) if !Test::More->builder->is_passing;
	return;
}

# The statements of a snippet, with $1 for what they call a parameter
sub check_statements
{
	my ($name) = @_;
	my %statement = $snippet{$name} =~ /^(?:const )?(CLAIM|COMPLETE) = (?:"""|`)\n(.*?)(?:"""|`)/msg;

	is(join(' ', sort keys %statement), 'CLAIM COMPLETE', "$name: has its statements");
	foreach my $sql (sort keys %statement)
	{
		my $n = 0;

		(my $text = $statement{$sql}) =~ s/%s/'$' . ++$n/ge;
		is($node->psql('shop', "SET ROLE web_app; PREPARE s AS $text"), 0, "$name: $sql can be prepared");
	}
	return;
}

foreach my $name (sort keys %snippet)
{
	check_statements($name);
	if ($complete{$name})
	{
		check_server($name);
		next;
	}
	note("$name is not installed here: only its syntax is checked");
	command_ok(
		$name eq 'express' ? [ 'node', '--check', $file{$name} ]
		: [ $python, '-m', 'py_compile', $file{$name} ],
		"$name: syntax");
}

$node->stop;
done_testing();
