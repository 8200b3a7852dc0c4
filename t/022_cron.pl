# Sweeping by pg_cron, the real one.
#
# Scenario: a role that is no superuser, with the level operator and the right
# to use pg_cron, schedules the sweep, changes the schedule, and removes it.
# The job runs as that role and removes what has expired.  Another role's job
# is another one.  Where pg_cron is not, 55000 with a hint.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);
plan skip_all => "there is no pg_cron in $libdir" unless -e "$libdir/pg_cron.so";

my $node = PostgreSQL::Test::Cluster->new('cron');
$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'pg_cron'
cron.database_name = 'postgres'
cron.use_background_workers = on
});
$node->start;
install($node);

is(sqlstate($node, 'SELECT idem_schedule()'), '55000', 'no pg_cron in this database');
is(sqlstate($node, 'SELECT idem_unschedule()'), '55000', 'the same for its removal');

$node->safe_psql('postgres', q{
CREATE EXTENSION pg_cron;
CREATE ROLE sweeper LOGIN;
CREATE ROLE outsider LOGIN;
SELECT idem_grant('sweeper', 'operator');
SELECT idem_grant('outsider', 'operator');
GRANT USAGE ON SCHEMA cron TO sweeper});
my $version = $node->safe_psql('postgres',
	q{SELECT extversion FROM pg_extension WHERE extname = 'pg_cron'});
note("pg_cron $version");

sub as_sweeper
{
	my ($sql) = @_;

	my ($out, $state) = run_psql($node, $sql, user => 'sweeper');
	return $state eq '' ? $out : $state;
}

is(sqlstate($node, 'SELECT idem_schedule()', user => 'outsider'), '42501',
	'a role that may not use pg_cron');
is(as_sweeper('SELECT idem_unschedule()'), 'f', 'nothing to remove');
my $job = as_sweeper('SELECT idem_schedule()');
like($job, qr/^\d+$/, 'a job');
is(as_sweeper(q{SELECT jobname, schedule, command, username, active FROM cron.job}),
	'idempotency-sweep|* * * * *|CALL public.idem_sweep_all()|sweeper|t', 'as it should be');
is(as_sweeper(q{SELECT idem_schedule('*/5 * * * *')}), $job, 'a repeated call changes the one job');
is(as_sweeper('SELECT count(*), min(schedule) FROM cron.job'), '1|*/5 * * * *', 'and makes no other');
isnt(as_sweeper(q{SELECT idem_schedule('nonsense')}), $job, 'a schedule that is none');
is(as_sweeper('SELECT idem_schedule(NULL)'), '22004', 'or null');
is(as_sweeper('SELECT schedule FROM cron.job'), '*/5 * * * *', 'changes nothing');
is($node->safe_psql('postgres', 'SELECT idem_unschedule()'), 'f',
	q{a superuser does not remove another role's});
is(as_sweeper(q{SELECT ok FROM idem_health() WHERE check_name = 'pg_cron'}), 't', 'idem_health sees the job');

# A function of pg_cron's name that is not its own is never called, though a
# superuser calls us, and has let others create in its schema.
foreach my $case ([ 'schedule(text, text, text)', 'idem_schedule()' ], [ 'unschedule(bigint)', 'idem_unschedule()' ])
{
	my ($function, $call) = @$case;
	my $planted = qq{
BEGIN;
GRANT CREATE ON SCHEMA cron TO outsider;
ALTER FUNCTION cron.$function RENAME TO was_there;
SET ROLE outsider;
CREATE FUNCTION cron.$function RETURNS bigint LANGUAGE plpgsql AS
	'BEGIN RAISE EXCEPTION USING ERRCODE = ''HACK1''; END';
RESET ROLE};

	is(sqlstate($node, "$planted; SELECT $call"), '55000', "$call: not what somebody has planted");
	is(sqlstate($node, "$planted; ALTER EXTENSION pg_cron ADD FUNCTION cron.$function; SELECT $call"), '55000',
		"$call: nor when it is a member");
}

# It does its work.
as_sweeper($version < 1.5 ? 'SELECT idem_schedule()' : q{SELECT idem_schedule('1 second')});
$node->safe_psql('postgres', q{
SELECT idem_policy('short', completed_ttl => '1 ms');
SELECT count(*) FROM idem_dedupe('s', ARRAY(SELECT i::text FROM generate_series(1, 100) i), 'short');
SELECT idem_claim('s', 'live')});
poll('the job', sub {
	$node->safe_psql('postgres', 'SELECT count(*) FROM idempotency_keys') == 1 });
pass('the job removes what has expired');
poll('the end of the job', sub {
	$node->safe_psql('postgres', q{SELECT count(*) > 0 FROM cron.job_run_details
		WHERE status = 'succeeded' AND username = 'sweeper'}) eq 't' });
pass('as the role that scheduled it');

is(as_sweeper('SELECT idem_unschedule()'), 't', 'removed');
is(as_sweeper('SELECT idem_unschedule()'), 'f', 'once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cron.job'), '0', 'no job is left');

# A role that sees no job cannot tell; it can tell whether one is missed.
my $check = q{SELECT ok, detail FROM idem_health() WHERE check_name = 'pg_cron'};
is(as_sweeper($check), 't|no job of this role calls idem_sweep(); no key is long due', 'no job, and none missed');
$node->safe_psql('postgres', q{UPDATE idempotency_keys SET purge_at = now() - interval '11 min'});
is(as_sweeper($check), 'f|no job of this role calls idem_sweep()', 'a job is missed');

$node->stop;
done_testing();
