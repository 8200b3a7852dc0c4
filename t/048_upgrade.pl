# pg_upgrade from an older major.
#
# Scenario: a server preloads the library and holds keys in every state, leased
# work that can be recovered, policies, a limiter, secrets, and an audit log with
# seals; a refusal is queued when it stops.  pg_upgrade takes it to a new major,
# by copy and then by links.  All rows are the same there, a repeat gets the same
# answer byte for byte, the holder of a lease completes it with its token, the log
# verifies and goes on, contexts match, and health finds nothing.  What was in the
# queue stays behind, as doc/operations.md says.
#
# As in core's own test, oldinstall names the folder of the older server, with
# the extension in it; without one there is nothing to upgrade from.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'oldinstall names no server' if !$ENV{oldinstall};

my $path = 'SET search_path = idem, public;';

sub make_node
{
	my ($name, %params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, %params);

	# checksums are the default from 18 on, and must be the same on both sides
	$node->init(extra => [ '--encoding=UTF8', '--locale=C', $params{checksums} // () ]);
	$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'idempotency'
idempotency.sweep_interval = '1 h'
autovacuum = off
});
	return $node;
}

my $old = make_node('old', install_path => $ENV{oldinstall});
$old->start;
$old->safe_psql('postgres', q{
CREATE ROLE owner; CREATE ROLE app LOGIN; CREATE ROLE other LOGIN;
CREATE SCHEMA idem; CREATE EXTENSION idempotency SCHEMA idem CASCADE;
SET search_path = idem, public;
GRANT USAGE ON SCHEMA idem TO owner, app, other;
ALTER TABLE idempotency_keys OWNER TO owner;
ALTER TABLE idempotency_policies OWNER TO owner;
ALTER TABLE idempotency_limiters OWNER TO owner;
SELECT idem_grant('app', 'app'), idem_grant('other', 'app');
SELECT idem_secret('context', 'a secret of sixteen or more bytes'), idem_secret('audit', 'another secret of sixteen bytes');
SELECT idem_policy('default', completed_ttl => '3 days', audit => true);
SELECT idem_policy('work', recoverable => true);
SELECT idem_policy('once', on_repeat => 'reject');
SELECT idem_policy('short', completed_ttl => '1 us', on_expiry => 'reject', tombstone => '30 days');
SELECT idem_limiter('calls', 10, '1 minute');
BEGIN;
SELECT idem_claim('s', 'text', '{"of": 1}', context => idem_context('tenant'));
SELECT idem_complete('s', 'text', E'{ "b" : 1,\n\t"a": "\u00e9" }'::json, 201, '[{"Set-Cookie": "a=1"}, {"Set-Cookie": "b=2"}]');
SELECT idem_claim('s', 'bytes');
SELECT idem_complete('s', 'bytes', (SELECT string_agg(sha256(i::text::bytea), '' ORDER BY i) FROM generate_series(1, 32768) i));
SELECT idem_claim('s', 'final'), idem_fail('s', 'final', '"never"'::json, 400, retryable => false);
SELECT idem_claim('s', 'later'), idem_fail('s', 'later', '"later"'::json, 503);
SELECT idem_claim('s', 'once', policy => 'once'), idem_complete('s', 'once');
SELECT idem_claim('s', 'expired', policy => 'short'), idem_complete('s', 'expired');
COMMIT;
SELECT idem_claim('s', 'leased', lease => '1 hour');
SELECT idem_claim('s', 'over', policy => 'work', lease => '1 ms');
SELECT idem_checkpoint('s', 'leased', token, 'paid', '{"n": 1.50}') FROM idempotency_keys WHERE key = 'leased';
SELECT idem_dedupe('inbox', '{a,b}');
SELECT idem_audit('login', 'user', 'u1');
SELECT idem_audit_seal();
SET ROLE app;
SELECT idem_claim('s', 'of app', lease => '1 hour');
});

# Where somebody has locked the log, a refusal waits, over the stop
my $locker = session($old);
$locker->query("$path BEGIN; LOCK TABLE idempotency_audit_log IN SHARE MODE");
is((run_psql($old, "$path SELECT outcome FROM idem_claim('s', 'bytes', '{}')"))[0], 'mismatch', 'a refusal');

my @tables = qw(idempotency_keys idempotency_policies idempotency_limiters idempotency_leases
  idempotency_secrets idempotency_audit_log idempotency_audit_seals);
my $replays = join ';', map { "SELECT r.* FROM idem_claim('s', '$_->[0]', $_->[1]) r" }
	['text', q{'{"of": 1}', context => idem_context('tenant')}], ['bytes', 'NULL'], ['final', 'NULL'],
	['once', 'NULL'], ['expired', 'NULL'], ['leased', 'NULL'];

# What must be the same before and after; a time that runs is left out
sub snapshot
{
	my ($node) = @_;

	return {
		(map { $_ => $node->safe_psql('postgres', "COPY (SELECT * FROM idem.$_ ORDER BY 1, 2) TO STDOUT") } @tables),
		replays => $node->safe_psql('postgres', "$path $replays") =~ s/^(in_progress.*\|)\d+(\|409)/$1$2/mr,
		rights => $node->safe_psql('postgres', q{SELECT p.oid::regprocedure, a.grantee::regrole, a.privilege_type
			FROM pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
			WHERE pronamespace = 'idem'::regnamespace ORDER BY p.oid::regprocedure::text COLLATE "C", 2, 3}) };
}

my $before = snapshot($old);
like($before->{replays}, qr/^replayed.*^duplicate.*^expired.*^in_progress/ms, 'keys in every state');
$old->stop('fast');
$locker->quit;

my ($control) = run_command([ "$ENV{oldinstall}/bin/pg_controldata", $old->data_dir ]);
my ($help) = run_command([ 'initdb', '--help' ]);
my ($checksums) = $control =~ /checksum version:\s+[1-9]/ ? '--data-checksums' : $help =~ /(--no-data-checksums)/;

foreach my $mode ('--copy', '--link')
{
	my $new = make_node("new$mode", checksums => $checksums);
	my $folder = PostgreSQL::Test::Utils::tempdir;

	# it writes where it stands
	chdir $folder or die "chdir $folder: $!";
	command_ok(
		[
			'pg_upgrade', '--no-sync', $mode,
			'-b', "$ENV{oldinstall}/bin", '-B', $new->config_data('--bindir'),
			'-d', $old->data_dir, '-D', $new->data_dir,
			'-s', $new->host, '-p', $old->port, '-P', $new->port
		],
		"pg_upgrade $mode");
	$new->start;

	my $after = snapshot($new);
	foreach my $what (sort keys %$before)
	{
		# the rows are too long to be shown; the worker may have sealed the last
		ok(index($after->{$what}, $before->{$what}) == 0, "$mode: $what");
	}
	is($new->safe_psql('postgres', "$path SELECT count(*) FROM idem_audit_verify()"), '0', "$mode: the log verifies");
	is($new->safe_psql('postgres', "$path SELECT string_agg(check_name, ' ') FROM idem_health() WHERE NOT ok"),
		'', "$mode: health");
	is($new->safe_psql('postgres', "$path SELECT outcome FROM idem_claim('s', 'text', '{\"of\": 1}', context => idem_context('mallory'))"),
		'mismatch', "$mode: another context is another");
	is(sqlstate($new, "$path SELECT idem_claim('s', 'of app')", user => 'other'), '42501', "$mode: another role's key");
	is($new->safe_psql('postgres', "$path SELECT key, recovery_point FROM idem_recover('work')"), 'over|',
		"$mode: work whose lease is over is recovered");
	is($new->safe_psql('postgres', "$path SELECT (idem_complete('s', 'leased', token => token)).outcome
		FROM idempotency_keys WHERE key = 'leased'"), 'completed', "$mode: a holder completes with its token");
	is(sqlstate($new, "$path SELECT idem_complete('s', 'over')"), 'ID002', "$mode: a claim of before is not ours");
	is($new->safe_psql('postgres', "$path SELECT outcome, attempt FROM idem_claim('s', 'later')"), 'claimed|2',
		"$mode: what may be tried again is");
	is($new->safe_psql('postgres', "$path SELECT string_agg(first::text, ' ' ORDER BY ord) FROM idem_dedupe('inbox', '{a,c}')"),
		'false true', "$mode: an inbox");
	is($new->safe_psql('postgres', "$path SELECT idem_audit_seal() > 0; SELECT count(*) FROM idem_audit_verify()"), "t\n0",
		"$mode: the log goes on");
	is($new->safe_psql('postgres', "$path SELECT count(*) FROM idempotency_audit_log
		WHERE action = 'mismatch' AND entity_id LIKE '%' || idem_log_id('bytes')"), '0',
		"$mode: a refusal that was queued stays behind");
	$new->stop;
}

done_testing();
