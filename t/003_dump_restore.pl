# Dump and restore into another cluster.
#
# Scenario: a database holds keys in every state, claimed by several roles
# under several policies ("default" changed, too), an audit log, a secret and
# leased work in progress; the log has partitions, with an index that somebody
# has added.  It is dumped in every format and restored into a
# cluster where the roles do not exist.  All rows are the same there, a repeat
# of a request gets the same answer byte for byte, a role that is gone is
# nobody, the audit log goes on with fresh ids, the secret has stayed at home,
# and a transaction id of the old cluster is never mistaken for our own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir;
my $source = new_node('source', extension => 0);
my $target = new_node('target', extension => 0);
my $secret = 'the secret that must not be dumped';
my $secret_hex = unpack 'H*', $secret;

$source->safe_psql('postgres', 'CREATE ROLE app_a LOGIN; CREATE ROLE app_b LOGIN');
$target->safe_psql('postgres', 'CREATE ROLE app_c LOGIN');

# The same keys in a database, with the extension in a schema
sub fill
{
	my ($database, $schema) = @_;

	$source->safe_psql('postgres', "CREATE DATABASE $database");
	$source->safe_psql($database,
		qq{CREATE SCHEMA "$schema"; CREATE EXTENSION pgcrypto;
		   CREATE EXTENSION idempotency SCHEMA "$schema"})
	  if $schema ne 'public';
	install($source, $database) if $schema eq 'public';
	$source->safe_psql(
		$database, qq{
SET search_path = "$schema", public;
SELECT idem_grant('app_a', 'app'), idem_grant('app_b', 'app'),
       idem_grant('app_b', 'auditor');
SELECT idem_secret('context', '\\x$secret_hex');
SELECT idem_policy('default', completed_ttl => '3 days', failed_ttl => '0',
                   lease => '1 h', release_statuses => '{[418,419),[503,504)}',
                   audit => true);
SELECT idem_policy('short', completed_ttl => '1 us');
SELECT idem_policy('once', on_repeat => 'reject');
SELECT idem_policy('uuids', key_format => 'uuidv4', owner_role => 'app_b',
                   max_body_bytes => 3, on_oversize => 'digest');

CREATE FUNCTION claimed(scope text, key text, policy text DEFAULT 'default')
RETURNS bigint LANGUAGE sql AS \$\$
	SELECT token FROM idem_claim(scope, key,
		jsonb_build_object('of', key), policy => policy) WHERE outcome = 'claimed'
\$\$;

-- completed: text with odd spacing, an empty body, all bytes, a large one
BEGIN;
SELECT claimed('all', 'text'), claimed('all', 'empty'), claimed('all', 'bytes'),
       claimed('all', 'large'), claimed('all', 'none');
SELECT idem_complete('all', 'text', E'{ "b" : 1,\\n\\t"a":"\\\\u0041 \\U0001f6cb",  "a":2 }'::json,
                     201, '[ {"Set-Cookie":"a=1"},  {"Set-Cookie": "b=2"} ]'),
       idem_complete('all', 'empty', ''::bytea),
       idem_complete('all', 'bytes',
           (SELECT string_agg(set_byte('\\x00', 0, i), '' ORDER BY i)
            FROM generate_series(0, 255) i)),
       idem_complete('all', 'large',
           (SELECT string_agg(sha256(i::text::bytea), '' ORDER BY i)
            FROM generate_series(1, 32768) i)),
       idem_complete('all', 'none', status_code => 204);
COMMIT;

-- by a role that will be gone, and for one
SET ROLE app_a;
BEGIN;
SELECT claimed('roles', 'a');
SELECT idem_complete('roles', 'a', '"by a"'::jsonb);
COMMIT;
SET ROLE app_b;
BEGIN;
SELECT claimed('roles', 'C56A4180-65AA-42EC-A945-5FD21DEC0538', 'uuids');
SELECT idem_complete('roles', 'c56a4180-65aa-42ec-a945-5fd21dec0538', 'oversize'::text,
                     content_type => 'text/plain');
COMMIT;
RESET ROLE;

-- every other state
SELECT claimed('states', 'leased'), claimed('states', 'over');
SELECT idem_checkpoint('states', key, token, 'paid', '{"n": 1.50}')
FROM idempotency_keys WHERE scope = 'states';
BEGIN;
SELECT claimed('states', 'retryable'), claimed('states', 'failed'),
       claimed('states', 'released'), claimed('states', 'expired', 'short'),
       claimed('states', 'once', 'once');
SELECT idem_fail('states', 'retryable', '"later"'::json, 503),
       idem_fail('states', 'failed', '"never"'::json, 400, retryable => false),
       idem_release('states', 'released'),
       idem_complete('states', 'expired'), idem_complete('states', 'once');
COMMIT;
SELECT idem_dedupe('inbox', '{a,b,c}');
SELECT idem_audit('login', 'user', 'u' || i, '{"by": "phone"}') FROM generate_series(1, 5) i;
});
	# Partitions, and an index of an administrator's that later ones get, too
	$source->safe_psql($database, qq{SET search_path = "$schema", public; SELECT idem_audit_seal()});
	$source->safe_psql($database, qq{SET search_path = "$schema", public;
DO \$\$ DECLARE p regclass; BEGIN
	FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'idempotency_audit_log'::regclass
		AND inhrelid <> 'idempotency_audit_log_default'::regclass ORDER BY inhrelid LIMIT 1
	LOOP EXECUTE format('CREATE INDEX ON %s (session_role)', p); END LOOP;
	FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'idempotency_audit_log'::regclass
		AND inhrelid <> 'idempotency_audit_log_default'::regclass ORDER BY inhrelid DESC LIMIT 1
	LOOP EXECUTE format('DROP TABLE %s', p); END LOOP;
END \$\$});
	$source->safe_psql($database, qq{SET search_path = "$schema", public; SELECT idem_audit_seal()});
	return;
}

# All rows of the tables that are dumped
sub rows
{
	my ($node, $database, $schema) = @_;

	return join "\n--\n", map {
		$node->safe_psql($database,
			qq{COPY (SELECT * FROM "$schema".$_ ORDER BY 1, 2) TO STDOUT})
	} qw(idempotency_keys idempotency_policies idempotency_audit_log);
}

# What a repeat of the requests that were answered gets
my $repeats = q{
SELECT k, r.* FROM unnest('{text,empty,bytes,large,none}'::text[]) k,
       LATERAL idem_claim('all', k, jsonb_build_object('of', k)) r;
SELECT r.* FROM idem_claim('states', 'failed', '{"of": "failed"}') r;
SELECT r.* FROM idem_claim('roles', 'a', '{"of": "a"}') r;
SELECT r.* FROM idem_lookup('roles', 'C56A4180-65AA-42EC-A945-5FD21DEC0538') r;
SELECT r.* FROM idem_claim('states', 'once', '{"of": "once"}', policy => 'once') r;
};

sub repeat_all
{
	my ($node, $database, $schema) = @_;

	return $node->safe_psql($database,
		qq{SET search_path = "$schema", public; $repeats});
}

my $health = q{SELECT check_name, ok FROM idem_health() WHERE check_name <> 'roles' ORDER BY 1};
my $indexes = q{SELECT tablename, indexname, indexdef FROM pg_indexes
	WHERE tablename ~ '^idempotency_audit_log_2' ORDER BY 1, 2};

sub check_restored
{
	my ($from, $to, $schema, $what) = @_;
	my $path = qq{SET search_path = "$schema", public;};
	my @at = (database => $to);

	# the rows are too long to be shown
	ok(rows($target, $to, $schema) eq rows($source, $from, $schema),
		"$what: all rows are the same");
	is( $target->safe_psql(
			$to, "$path SELECT count(*) FROM idempotency_secrets"),
		0, "$what: no secret");
	is(sqlstate($target, "$path SELECT idem_context('x')", @at),
		'55000', "$what: no context without one");

	my $expected = repeat_all($source, $from, $schema);
	ok($expected =~ /^large\|replayed.*^duplicate/ms,
		"$what: the source replays");
	ok(repeat_all($target, $to, $schema) eq $expected,
		"$what: replays are the same byte for byte");
	is( $target->safe_psql($to, "$path SELECT * FROM idem_policy_list ORDER BY 1"),
		$source->safe_psql($from, "$path SELECT * FROM idem_policy_list ORDER BY 1"),
		"$what: policies are the same");
	is($target->safe_psql($to, "$path $health"),
		$source->safe_psql($from, "$path $health"),
		"$what: health is as before");
	is( $target->safe_psql(
			$to, "$path SELECT ok FROM idem_health() WHERE check_name = 'roles'"),
		'f', "$what: but that roles are gone");
	is( $target->safe_psql($to, $indexes),
		$source->safe_psql($from, $indexes),
		"$what: partitions have their indexes");

	# Names that are gone are nobody
	$target->safe_psql($to, "$path SELECT idem_grant('app_c', 'app')");
	my @as_c = (@at, user => 'app_c');
	foreach my $call (
		q{idem_claim('roles', 'a', '{"of": "a"}')},
		q{idem_lookup('roles', 'a')},
		q{idem_complete('roles', 'a')},
		q{idem_lookup('all', 'text')},
		q{idem_dedupe('inbox', '{a}')})
	{
		is(sqlstate($target, "$path SELECT $call", @as_c),
			'42501', "$what: not another role's: $call");
	}
	is( sqlstate(
			$target,
			qq{$path SELECT idem_claim('new', gen_random_uuid()::text, policy => 'uuids')},
			@as_c),
		'42501',
		"$what: nobody has the rights of an owner_role that is gone");
	$target->safe_psql('postgres', 'CREATE ROLE app_a; GRANT app_a TO app_c');
	is( (   run_psql(
				$target,
				qq{$path SELECT outcome, idem_json(r) FROM idem_claim('roles', 'a', '{"of": "a"}') r},
				@as_c))[0],
		'replayed|"by a"',
		"$what: a role of the old name has its keys");
	$target->safe_psql('postgres', 'DROP ROLE app_a');

	# The transaction id of a restored row may by chance be our own
	my $collide = qq{$path BEGIN;
UPDATE idempotency_keys SET claim_xid = pg_current_xact_id()
WHERE scope = 'states' AND key IN ('leased', 'over');};
	is(sqlstate($target, "$path SELECT idem_complete('states', 'leased')", @at),
		'ID002', "$what: a restored claim is not ours");
	is( sqlstate(
			$target, "$collide SELECT idem_complete('states', 'leased')", @at),
		'ID002',
		"$what: nor when the transaction ids are the same");
	is(sqlstate($target, "$collide SELECT idem_fail('states', 'leased')", @at),
		'ID002', "$what: not to fail");
	is(sqlstate($target, "$collide SELECT idem_release('states', 'leased')", @at),
		'ID002', "$what: not to release");
	is( $target->safe_psql(
			$to,
			qq{$collide UPDATE idempotency_keys SET lease_until = now()
WHERE scope = 'states' AND key = 'over';
SELECT outcome, attempt FROM idem_claim('states', 'leased', '{"of": "leased"}');
SELECT outcome, attempt, recovery_point, checkpoint
FROM idem_claim('states', 'over', '{"of": "over"}')}),
		"in_progress|1\nclaimed|2|paid|{\"n\": 1.50}",
		"$what: the lease goes on, and ends");
	is( $target->safe_psql(
			$to, qq{$path
SELECT (idem_complete('states', 'leased', token => token)).expires_at > now()
FROM idempotency_keys WHERE scope = 'states' AND key = 'leased'}),
		't',
		"$what: its holder completes it with the token");
	is( $target->safe_psql(
			$to, qq{$path
SELECT outcome, attempt FROM unnest('{retryable,released,expired}'::text[]) k,
LATERAL idem_claim('states', k, jsonb_build_object('of', k))}),
		"claimed|2\nclaimed|2\nclaimed|1",
		"$what: keys that are free can be claimed");

	# The log goes on after its last id
	my $last = $source->safe_psql($from,
		qq{SELECT max(id) FROM "$schema".idempotency_audit_log});
	cmp_ok($last, '>', 5, "$what: there is a log");
	is( $target->safe_psql(
			$to, qq{$path
SELECT idem_audit('restored', 'database', 'here') > $last;
SELECT count(*) = count(DISTINCT id) FROM idempotency_audit_log}),
		"t\nt",
		"$what: audit ids go on");
	return;
}

fill('one', 'public');
fill('two', 'My keys');
is($source->safe_psql('one', q{SELECT count(DISTINCT tablename), count(*) FROM pg_indexes
	WHERE tablename ~ '^idempotency_audit_log_2'}), '2|6', 'two partitions, with three indexes each');

# An index of the whole log would make a dump that cannot be restored
foreach my $index (
	'CREATE INDEX ON idempotency_audit_log (action)',
	'CREATE INDEX ON ONLY idempotency_audit_log (action)',
	'ALTER TABLE idempotency_audit_log ADD PRIMARY KEY (id, at)')
{
	is(sqlstate($source, "SELECT idem_log_id('loads the library'); $index", database => 'one'),
		'0A000', "refused: $index");
}
is(sqlstate($source, q{SELECT idem_log_id('x'); CREATE TABLE idempotency_audit_log_mine (LIKE idempotency_keys INCLUDING ALL);
	CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.idempotency_audit_log (i int PRIMARY KEY) PARTITION BY RANGE (i);
	CREATE INDEX ON elsewhere.idempotency_audit_log (i); DROP TABLE idempotency_audit_log_mine; DROP SCHEMA elsewhere CASCADE},
		database => 'one'), '', 'no other index is');

# Plain text, with the grants to roles that are gone
{
	my $file = "$folder/plain.sql";
	my ($stdout, $stderr);

	run_client($source, 'pg_dump', '-f', $file, 'one');
	my $text = slurp_file($file);
	unlike($text, qr/idempotency_secrets|$secret_hex|\Q$secret\E/,
		'plain: the dump does not mention the secret');
	like($text, qr/COPY public\.idempotency_keys /, 'plain: it has the keys');
	$target->safe_psql('postgres', 'CREATE DATABASE plain');
	$target->psql(
		'plain', $text,
		stdout => \$stdout,
		stderr => \$stderr,
		on_error_stop => 0);
	my @errors = grep { /ERROR/ } split /\n/, $stderr;
	is( scalar(grep { !/role "app_[ab]" does not exist/ } @errors), 0,
		'plain: restored but for grants to roles that are gone')
	  or diag($stderr);
	check_restored('one', 'plain', 'public', 'plain');
}

# Custom, and a directory by two processes
foreach my $case (
	[ 'custom', 'one', 'public', [], ['--exit-on-error'] ],
	[ 'directory', 'two', 'My keys', [ '-j', 2 ], [ '-j', 2 ] ])
{
	my ($format, $from, $schema, $dump, $restore) = @$case;
	my $what = join ' ', $format, @$dump;

	run_client($source, 'pg_dump', '-x', '-F', $format, @$dump,
		'-f', "$folder/$format", $from);
	$target->safe_psql('postgres', "CREATE DATABASE $format");
	run_client($target, 'pg_restore', @$restore, '-d', $format,
		"$folder/$format");
	check_restored($from, $format, $schema, $what);
}

# Without data: an empty extension that works
{
	my $file = "$folder/schema.sql";

	run_client($source, 'pg_dump', '-x', '--schema-only', '-f', $file, 'one');
	$target->safe_psql('postgres', 'CREATE DATABASE empty');
	run_client($target, 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1',
		'-f', $file, 'empty');
	is( $target->safe_psql(
			'empty', q{
SELECT count(*) FROM idempotency_keys;
SELECT outcome FROM idem_claim('all', 'text')}),
		"0\nclaimed",
		'schema only: keys are data');
}

$source->stop;
$target->stop;

done_testing();
