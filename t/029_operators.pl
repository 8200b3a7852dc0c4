# What operators do to a server, and what it must not do to them.
#
# Scenario: a server whose settings for all sessions are SERIALIZABLE,
# READ ONLY, DEFERRABLE and short time-outs, with a serializable transaction
# open: the launcher goes on.  A database in LATIN1 with a policy, and an error
# of the worker, that no other database can spell.  A role that is renamed.  A
# key table that is locked while CALL idem_sweep_all() runs.  A launcher that
# hangs.  A copy of a server that was stopped with refusals in its queue, which
# becomes a standby and is promoted beside the original.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $preload = q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 s'
};
my $launcher = q{SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'idempotency launcher'};
my $expire = q{SELECT idem_policy('short', completed_ttl => '1 us');
	SELECT count(*) FROM idem_dedupe('s', '{a,b,c}', 'short')};

#
# A launcher that hangs, for long: looked at last.
#
my $hung = new_node('hung', conf => $preload);
$hung->safe_psql('postgres', $expire);
poll('a sweep', sub { $hung->safe_psql('postgres', 'SELECT count(*) FROM idempotency_keys') == 0 });
my $hung_pid = $hung->safe_psql('postgres', $launcher);
kill 'STOP', $hung_pid;
my $hung_at = time;
$hung->safe_psql('postgres', $expire);
END { kill 'CONT', $hung_pid if defined $hung_pid; }

#
# Settings of the server
#
# (The launcher of logical replication of 17 does not outlive the last of them.)
my $node = new_node('settings', conf => $preload . "max_logical_replication_workers = 0\n");
my @settings = (
	'default_transaction_isolation = serializable', 'default_transaction_deferrable = on',
	'statement_timeout = 1s', 'lock_timeout = 1ms', 'idle_in_transaction_session_timeout = 1s',
	'idle_session_timeout = 1s', 'default_transaction_read_only = on',
	'transaction_timeout = 1s');
@settings = grep {
	my ($name) = /^(\w+)/;
	$node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = '$name'") == 1
} @settings;
$node->append_conf('postgresql.conf', join("\n", @settings) . "\n");

# Sessions of this test are as always, and so is the database
my $usual = join ' ', '-c default_transaction_isolation=read\\ committed',
  map { "-c $_=0" } grep { /timeout/ } map { /^(\w+)/ } @settings;
$node->safe_psql('postgres', q{ALTER DATABASE postgres SET default_transaction_read_only = off});
{
	local $ENV{PGOPTIONS} = $usual;

	$node->restart;
	poll('the launcher', sub { $node->safe_psql('postgres', $launcher) ne '' });
	my $writer = session($node);
	$writer->query('BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE; CREATE TABLE t (i int)');
	my $pid = $node->safe_psql('postgres', $launcher);
	# after it has begun: whoever waits for a safe snapshot waits for it
	for my $time (1 .. 3)
	{
		$node->safe_psql('postgres', $expire);
		ok(poll('a sweep', sub { $node->safe_psql('postgres', 'SELECT count(*) FROM idempotency_keys') == 0 }),
			"swept, whatever is set, time $time");
	}
	is($node->safe_psql('postgres', $launcher), $pid, 'by one launcher');
	$writer->query('ROLLBACK');
	is($node->safe_psql('postgres', 'SELECT last_error IS NULL FROM idem_sweep_status'), 't', 'without an error');
}
$node->stop;
unlike(slurp_file($node->logfile), qr/canceling statement|due to .*timeout/, 'nothing was cut off');

#
# Encodings
#
$node = new_node('encodings', conf => $preload . "idempotency.worker = off\n");
$node->safe_psql('postgres', q{CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0;
	CREATE DATABASE kyrillic ENCODING 'KOI8R' TEMPLATE template0;
	CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0;
	CREATE ROLE watcher; CREATE ROLE monitor IN ROLE pg_monitor});
# The name as bytes of that encoding
sub policy
{
	my ($database, $name) = @_;

	install($node, $database);
	$node->safe_psql($database, qq{SET client_encoding = 'UTF8'; SELECT idem_policy('$name');
		SELECT outcome FROM idem_claim('s', 'k', policy => '$name');
		SELECT idem_grant('watcher', 'operator'), idem_grant('monitor', 'operator')});
	return;
}
my $french = "command\xc3\xa9";
my $russian = "\xd0\xb7\xd0\xb0\xd0\xba\xd0\xb0\xd0\xb7";
policy('latin', $french);
policy('kyrillic', $russian);
policy('bytes', $french);
$node->safe_psql('postgres', q{SELECT idem_claim('s', 'k'); SELECT idem_grant('watcher', 'operator'), idem_grant('monitor', 'operator')});
my $seen = q{SET client_encoding = 'UTF8'; SELECT string_agg(datname || ' ' || policy, ', ' ORDER BY datname, policy)
	FROM idem_stats WHERE policy <> 'default'};
is($node->safe_psql('postgres', $seen), "bytes command??, kyrillic $russian, latin $french",
	'policies of other databases, in the encoding of this one');
is($node->safe_psql('latin', $seen), "bytes command??, kyrillic ?????, latin $french",
	'or with what stands for a letter that it has not');
is($node->safe_psql('kyrillic', $seen), "bytes command??, kyrillic $russian, latin command?",
	'in another one');
is($node->safe_psql('latin', "SET ROLE watcher; $seen"), "latin $french", 'an operator sees his own database');
is($node->safe_psql('latin', "SET ROLE monitor; $seen"), "bytes command??, kyrillic ?????, latin $french",
	'and with pg_monitor all');
is($node->safe_psql('postgres', q{SET ROLE watcher; SELECT DISTINCT datname FROM idem_stats}), 'postgres',
	'of his own, not those of others');

# The worker's error is cut between characters
foreach my $database ('latin', 'postgres')
{
	$node->safe_psql($database, q{SET client_encoding = 'UTF8';
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION '%', repeat('é', 300) USING ERRCODE = '55000'; END$$;
CREATE TRIGGER fail BEFORE DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION fail();
} . $expire);
}
$node->append_conf('postgresql.conf', "idempotency.worker = on\n");
$node->reload;
foreach my $case ([ 'latin', 255 ], [ 'postgres', 127 ])
{
	my ($database, $length) = @$case;

	poll("the error in $database", sub {
		$node->safe_psql($database, 'SELECT last_error IS NOT NULL FROM idem_sweep_status') eq 't' });
	is($node->safe_psql($database, q{SET client_encoding = 'UTF8';
SELECT last_error = repeat('é', length(last_error)), length(last_error) FROM idem_sweep_status}),
		"t|$length", "$database: an error is cut between two characters");
	is($node->safe_psql($database, q{SELECT ok FROM idem_health() WHERE check_name = 'worker'}), 'f',
		"$database: health knows of it");
}
$node->append_conf('postgresql.conf', "idempotency.worker = off\n");
$node->reload;
$node->safe_psql('postgres', 'DROP TRIGGER fail ON idempotency_keys; SELECT idem_sweep()');

#
# A role that is renamed
#
$node->safe_psql('postgres', q{CREATE ROLE shop; SELECT idem_grant('shop', 'app');
	SET ROLE shop; SELECT count(*) FROM idem_dedupe('renamed', '{a,b}')});
my $repeat = q{SET ROLE store; SELECT outcome FROM idem_claim('renamed', 'a')};
$node->safe_psql('postgres', 'ALTER ROLE shop RENAME TO store');
is(sqlstate($node, $repeat), '42501', 'a role with another name has not its keys');
{
	my $stderr = '';

	$node->psql('postgres', $repeat, stderr => \$stderr);
	like($stderr, qr/HINT:.*renamed.*idem_health/, 'and is told where to look');
}
is($node->safe_psql('postgres', q{SELECT ok FROM idem_health() WHERE check_name = 'roles'}), 'f', 'health sees it');
my ($statement) = slurp_file("$FindBin::RealBin/../doc/operations.md") =~ /^(UPDATE .*claimed_by.*;)$/m;
$statement =~ s/idempotency\.//;
$node->safe_psql('postgres', $statement);
is($node->safe_psql('postgres', $repeat), 'replayed', 'until one statement gives them back');
is($node->safe_psql('postgres', q{SELECT ok FROM idem_health() WHERE check_name = 'roles'}), 't', 'and health says so');

#
# A table that is locked
#
$node->safe_psql('postgres', $expire);
my $holder = session($node);
foreach my $lock ('LOCK TABLE idempotency_keys IN SHARE MODE', 'ALTER INDEX idempotency_keys_purge_at SET TABLESPACE pg_default')
{
	my $stderr = '';

	$holder->query("BEGIN; $lock");
	$node->psql('postgres', 'CALL idem_sweep_all()', stderr => \$stderr, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($stderr, qr/WARNING:  55P03: .*locked/, "idem_sweep_all says so: $lock");
	$holder->query('ROLLBACK');
}
{
	my $stderr = '';

	$node->psql('postgres', 'CALL idem_sweep_all()', stderr => \$stderr);
	is($stderr, '', 'and nothing when it is not');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM idempotency_keys WHERE scope = 's' AND policy = 'short'}), 0,
		'when all is gone');
}
$node->stop;

#
# A copy beside the original
#
my $primary = new_node('primary', streaming => 1, conf => $preload . "idempotency.worker = off\n");
$primary->safe_psql('postgres', q{SELECT idem_policy('audited', audit => true);
	SELECT idem_claim('s', 'k', '1', policy => 'audited')});
$primary->safe_psql('postgres', q{SELECT idem_claim('s', 'k', '2', policy => 'audited')}) for 1 .. 3;
my $refused = q{SELECT coalesce(sum((detail ->> 'count')::int), 0) FROM idempotency_audit_log WHERE action = 'mismatch'};
my $counted = q{SELECT coalesce(sum(mismatch), 0) FROM idem_stats WHERE policy = 'audited'};
my $kept = 'pg_stat/idempotency.refusals';

$primary->stop;
ok(-s $primary->data_dir . "/$kept", 'the queue is kept');
$primary->backup_fs_cold('copy');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($primary, 'copy', has_streaming => 1);
ok(-s $copy->data_dir . "/$kept", 'and copied');
$primary->start;
$copy->start;
ok(!-e $copy->data_dir . "/$kept", 'a standby drops it');
is($copy->safe_psql('postgres', $counted), 0, 'and counts anew');
is($primary->safe_psql('postgres', $counted), 3, 'the original goes on');
$copy->promote;
foreach my $server ($primary, $copy)
{
	$server->append_conf('postgresql.conf', "idempotency.worker = on\n");
	$server->reload;
}
poll('the refusals', sub { $primary->safe_psql('postgres', $refused) == 3 });
# what the copy had would be written before the keys are swept once more
$copy->safe_psql('postgres', $expire);
poll('a sweep of the copy', sub {
	$copy->safe_psql('postgres', q{SELECT count(*) FROM idempotency_keys WHERE policy = 'short'}) == 0 });
$copy->safe_psql('postgres', $expire);
poll('another one', sub {
	$copy->safe_psql('postgres', q{SELECT count(*) FROM idempotency_keys WHERE policy = 'short'}) == 0 });
is($copy->safe_psql('postgres', $refused), 0, 'what was refused is written once');
like(slurp_file($copy->logfile), qr/dropping file.*idempotency\.refusals/, 'and the log of the copy says so');
$copy->stop;

# A standby that is stopped and started with its own counters, and the primary
$primary->safe_psql('postgres', q{SELECT idem_claim('s', 'k', '2', policy => 'audited')});
$primary->restart;
is($primary->safe_psql('postgres', $counted), 4, 'a primary keeps its counters over a restart');
$primary->stop;

#
# The launcher that hangs
#
my $limit = 2 * 60 + 2;
sleep 1 while time - $hung_at < $limit + 2;
like($hung->safe_psql('postgres', q{SELECT ok || ' ' || detail FROM idem_health() WHERE check_name = 'worker'}),
	qr/^false running, but it has not come to this database for \d+ s/, 'a launcher that does not come');
kill 'CONT', $hung_pid;
poll('health', sub { $hung->safe_psql('postgres',
	q{SELECT ok || ' ' || detail FROM idem_health() WHERE check_name = 'worker'}) eq 'true running' });
pass('until it comes');
$hung->stop;
undef $hung_pid;

done_testing();
