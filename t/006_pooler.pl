# Through a pooler that gives each transaction another connection.
#
# Scenario: sixteen clients share two server connections through pgbouncer in
# transaction mode.  They claim and complete in one transaction, with
# idem_run, with leases over several transactions, and in batches; each key is
# used by two of them.  Statements of one client thus run in different server
# processes, and each process works for all clients.  Every key has had its
# effect once, every lease was finished by its holder, and a policy that
# changes in the middle is in force for all from then on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 16;
my $transactions = 200;
my $pool_size = 2;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" }
  (split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin');
die "this test needs pgbouncer: install it, or put it on the PATH\n"
  unless defined $pgbouncer;

my $node = new_node('pooled');
my $folder = PostgreSQL::Test::Utils::tempdir_short;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $user = getpwuid $>;

$node->safe_psql(
	'postgres', q{
CREATE TABLE effects (key text NOT NULL, pid integer NOT NULL DEFAULT pg_backend_pid());
CREATE FUNCTION buy(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT json_build_object('bought', request->>'key');
$$;
SELECT idem_policy('changing', audit => false);
});

append_to_file(
	"$folder/pgbouncer.ini", qq{
[databases]
postgres = host='@{[$node->host]}' port=@{[$node->port]} user='$user'
[pgbouncer]
pool_mode = transaction
default_pool_size = $pool_size
max_client_conn = 100
listen_port = $port
unix_socket_dir = $folder
auth_type = any
ignore_startup_parameters = extra_float_digits
logfile = $folder/pgbouncer.log
});

# In the foreground, as a child, so that it ends with the test
my $log = '';
my $pooler = IPC::Run::start([ $pgbouncer, '-q', "$folder/pgbouncer.ini" ],
	'<', \'', '>', \$log, '2>&1');

END
{
	my $status = $?;
	if (defined $pooler)
	{
		eval { $pooler->kill_kill; };
	}
	$? = $status;
}

# What a psql through the pooler says, undefined after an error; and its SQLSTATE.
sub pooled
{
	my ($sql) = @_;
	my ($stdout, $stderr) = ('', '');

	# one that cannot connect may be gone before the script is written to it
	my $works = eval {
		IPC::Run::run [
			'psql', '-XAtq', '-h', $folder, '-p', $port,
			'-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=sqlstate', '-d', 'postgres', '-f', '-'
		  ],
		  '<', \$sql, '>', \$stdout, '2>', \$stderr;
	};
	my ($state) = $stderr =~ /ERROR:\s+(\w{5})/;
	chomp $stdout;
	return ($works ? $stdout : undef, $state // '') if wantarray;
	return $works ? $stdout : undef;
}

poll(
	'pgbouncer',
	sub {
		die "pgbouncer has ended: $log\n" unless $pooler->pumpable;
		return (pooled('SELECT 1') // '') eq '1';
	});

my $begin = q{
\set n :n + 1
\set k (:client_id / 2) * 1000000 + :n
};
my @scripts = (
	$begin . q{
BEGIN;
SELECT outcome = 'claimed' AS mine FROM idem_claim('shop', 'a:k', '{"key": "a:k"}', policy => 'changing', wait => '20 s') \gset
\if :mine
INSERT INTO effects VALUES ('a:k');
SAVEPOINT s;
SELECT idem_complete('shop', 'a:k', '"undone"'::json);
ROLLBACK TO s;
SELECT idem_complete('shop', 'a:k', '{"bought" : "a:k"}'::json);
\endif
COMMIT;
SELECT 1 / (outcome = 'replayed' AND idem_json(r)::text = '{"bought" : "a:k"}')::int FROM idem_claim('shop', 'a:k', '{"key": "a:k"}') r;
}, $begin . q{
SELECT 1 / (outcome IN ('completed', 'replayed') AND idem_json(r)::text = '{"bought" : "r:k"}')::int
FROM idem_run('buy(jsonb)', 'shop', 'r:k', '{"key": "r:k"}', wait => '20 s') r;
}, $begin . q{
SELECT outcome = 'claimed' AS mine, coalesce(token, 0) AS token FROM idem_claim('lease', 'l:k', lease => '1 h') \gset
\if :mine
SELECT idem_extend('lease', 'l:k', :token, '30 min');
INSERT INTO effects VALUES ('l:k');
SELECT idem_checkpoint('lease', 'l:k', :token, 'half', '{"n": 1}');
SELECT idem_complete('lease', 'l:k', '"done"'::json, token => :token);
SELECT 1 / (outcome = 'replayed')::int FROM idem_claim('lease', 'l:k');
\endif
}, $begin . q{
INSERT INTO effects SELECT key FROM idem_dedupe('shop', ARRAY['d:k', 'e:k', 'd:k']) WHERE first;
});

my $pgbench = start_pgbench(
	$node,
	clients => $clients,
	host => $folder,
	port => $port,
	scripts => \@scripts,
	params => [ '-t', $transactions, '-D', 'n=0' ]);
poll('some work',
	sub { $node->safe_psql('postgres', 'SELECT count(*) > 50 FROM effects') eq 't' }
);
is(scalar(pooled("SELECT idem_policy('changing', audit => true)")),
	'', 'a policy is changed in the middle');
my $changed = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
$pgbench->{handle}->finish;

is($pgbench->{handle}->result(0), 0, 'all clients have ended well')
  or diag($pgbench->{err});
like(
	$pgbench->{out},
	qr{^number of transactions actually processed: (\d+)/\1$}m,
	'with all their transactions');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) > 500, count(*) - count(DISTINCT key) FROM effects;
SELECT count(*) FROM idempotency_keys k
WHERE NOT EXISTS (SELECT 1 FROM effects e WHERE e.key = k.key);
SELECT count(*) FROM effects e
WHERE NOT EXISTS (SELECT 1 FROM idempotency_keys k WHERE e.key = k.key);
SELECT count(*) FROM idempotency_keys WHERE state <> 'c' OR attempt <> 1}),
	"t|0\n0\n0\n0",
	'effects enough, doubled; keys without one; effects without a key; not completed');
is( $node->safe_psql(
		'postgres', qq{
SELECT count(*) > 0, count(*) FILTER (WHERE (
	SELECT string_agg(action, ' ' ORDER BY id) FROM idempotency_audit_log
	WHERE entity_id = idem_log_id('shop') || '/' || idem_log_id(k.key))
	IS DISTINCT FROM 'claimed completed')
FROM idempotency_keys k
WHERE policy = 'changing' AND created_at > '$changed'}),
	't|0',
	'the changed policy was in force at once');
cmp_ok(
	$node->safe_psql('postgres', 'SELECT count(DISTINCT pid) FROM effects'),
	'<=', $pool_size, "over $pool_size connections");

# Nothing of one client is left for the next
is(scalar(pooled('SHOW search_path')), '"$user", public', 'no search_path is left');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'}),
	0,
	'nor a lock');

# A claim that must not stay unfinished: one client's COMMIT is refused, and is no
# concern of whoever has the connection next
$node->safe_psql('postgres', q{SELECT idem_policy('form', on_unfinished => 'error')});
my $unfinished = q{BEGIN; SELECT outcome FROM idem_claim('form', 'k', policy => 'form'); COMMIT};
my @refused = map { (pooled($unfinished))[1] } 1 .. 2 * $pool_size;
is("@refused", join(' ', ('ID011') x @refused), 'a COMMIT without the answer is refused');
my @others = map { (pooled(q{SELECT outcome FROM idem_claim('lease', 'other ' || clock_timestamp())}))[0] // 'error' } @refused;
is("@others", join(' ', ('claimed') x @others), 'and no other after it');
is(scalar(pooled(q{BEGIN; SELECT outcome FROM idem_claim('form', 'k', policy => 'form');
SELECT (idem_complete('form', 'k')).outcome; COMMIT})), "claimed\ncompleted", 'the key was free');

$pooler->signal('INT');
eval { $pooler->finish; };
undef $pooler;
$node->stop;

done_testing();
