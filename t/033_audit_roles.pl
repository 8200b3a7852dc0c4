# Who can do what to the audit log.
#
# Scenario: the extension is created by a superuser who is none afterwards, in
# a schema of the role that owns the keys, in a database of a third one, with
# pgcrypto of a fourth one; default privileges give all that is made to a role
# that shall have nothing.  Each role tries each action on each object of the
# audit log, in transactions that are rolled back.  Nobody but a superuser can
# write, empty, drop or redefine any of it; what PostgreSQL cannot hold is
# named.  Then a key for seals is used under the most talkative settings, and
# is seen nowhere.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('roles', extension => 0);
my $at = 'shop';

$node->safe_psql(
	'postgres', q{
CREATE ROLE creator LOGIN SUPERUSER;
CREATE ROLE db_owner LOGIN;
CREATE ROLE idempotency_owner LOGIN;
CREATE ROLE ordinary LOGIN;
CREATE ROLE app LOGIN;
CREATE ROLE operator LOGIN;
CREATE ROLE auditor LOGIN;
CREATE ROLE crypto_owner LOGIN;
CREATE ROLE web LOGIN;
CREATE DATABASE shop OWNER db_owner;
GRANT CREATE ON DATABASE shop TO crypto_owner});
is(sqlstate($node, 'CREATE SCHEMA crypto; GRANT USAGE ON SCHEMA crypto TO PUBLIC; CREATE EXTENSION pgcrypto SCHEMA crypto',
		database => $at, user => 'crypto_owner'), '', 'pgcrypto is trusted');
# of who creates the extension, and of who makes the partitions
foreach my $maker (qw(creator postgres))
{
	$node->safe_psql($at, join ';', map {
		("ALTER DEFAULT PRIVILEGES FOR ROLE $maker GRANT ALL ON $_ TO web WITH GRANT OPTION",
			"ALTER DEFAULT PRIVILEGES FOR ROLE $maker REVOKE ALL ON $_ FROM $maker")
	} qw(TABLES SEQUENCES FUNCTIONS TYPES));
}
my (undef, $state) = run_psql(
	$node, q{
SET client_min_messages = warning;
CREATE SCHEMA idempotency AUTHORIZATION idempotency_owner;
CREATE EXTENSION idempotency SCHEMA idempotency;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner;
GRANT USAGE ON SCHEMA idempotency TO PUBLIC;
SET search_path = idempotency;
SELECT idem_grant('app', 'app'), idem_grant('operator', 'operator'), idem_grant('auditor', 'auditor');
ALTER ROLE creator NOSUPERUSER;
}, database => $at, user => 'creator');
is($state, '', 'the extension is there');
$node->safe_psql($at, q{
SET search_path = idempotency;
ALTER DATABASE shop SET search_path = idempotency, public;
SELECT idem_secret('audit', '0123456789abcdef');
SELECT idem_audit('a', 'b', 'c');
SELECT idem_audit_seal()});
my ($made) = split /\n/, $node->safe_psql($at,
	q{SELECT relname FROM pg_class WHERE relname ~ '^idempotency_audit_log_2.*_[0-9]+$' AND relkind = 'r' ORDER BY 1});
like($made // '', qr/^idempotency_audit_log_2/, 'and a partition');

# The level, or place, of each role
my @roles = qw(ordinary web app operator auditor idempotency_owner creator crypto_owner db_owner postgres);

my %objects = (
	log => 'idempotency_audit_log',
	default => 'idempotency_audit_log_default',
	made => $made,
	seals => 'idempotency_audit_seals',
	origin => 'idempotency_audit_origin',
	secrets => 'idempotency_secrets',
	sequence => 'idempotency_audit_log_id_seq',
	guard => 'idem_audit_guard()',
	whole => 'idempotency');

# % is the object
my @on_tables = (
	[ 'SELECT', 'SELECT * FROM %' ],
	[ 'INSERT', 'INSERT INTO % SELECT (jsonb_populate_record(NULL::%, to_jsonb(t))).* FROM (VALUES (99, 99)) t (id, segment)' ],
	[ 'UPDATE', 'UPDATE % SET tableoid = tableoid' ],
	[ 'DELETE', 'DELETE FROM %' ],
	[ 'TRUNCATE', 'TRUNCATE %' ],
	[ 'COPY', "\\copy % FROM '/dev/null'" ],
	[ 'LOCK', 'LOCK TABLE %' ],
	[ 'DISABLE TRIGGER', 'ALTER TABLE % DISABLE TRIGGER ALL' ],
	[ 'CREATE TRIGGER', 'CREATE TRIGGER t BEFORE INSERT ON % EXECUTE FUNCTION suppress_redundant_updates_trigger()' ],
	[ 'CREATE RULE', 'CREATE RULE r AS ON DELETE TO % DO ALSO NOTHING' ],
	[ 'CREATE INDEX', 'CREATE INDEX ON % ((1))' ],
	[ 'CREATE POLICY', 'CREATE POLICY p ON %' ],
	[ 'DISABLE RLS', 'ALTER TABLE % DISABLE ROW LEVEL SECURITY' ],
	[ 'ADD COLUMN', 'ALTER TABLE % ADD COLUMN added integer' ],
	[ 'OWNER', 'ALTER TABLE % OWNER TO CURRENT_USER' ],
	[ 'RENAME', 'ALTER TABLE % RENAME TO renamed' ],
	# who has a privilege, but cannot grant it, gets a warning only
	[ 'GRANT', q{GRANT ALL ON % TO ordinary; SELECT 1 / has_table_privilege('ordinary', '%', 'INSERT')::integer} ],
	[ 'DROP', 'DROP TABLE % CASCADE' ]);
my %more = (
	log => [
		[ 'DROP TRIGGER', 'DROP TRIGGER idempotency_audit_guard_row ON %' ],
		[ 'DROP POLICY', 'DROP POLICY idempotency_audit_read ON %' ],
		[ 'DETACH', "ALTER TABLE % DETACH PARTITION $made" ],
		[ 'DETACH default', 'ALTER TABLE % DETACH PARTITION idempotency_audit_log_default' ],
		[ 'ATTACH', 'CREATE TABLE public.p PARTITION OF % FOR VALUES FROM (\'2000-01-01\') TO (\'2000-01-02\')' ],
		[ 'INHERIT', 'CREATE TABLE public.p () INHERITS (%)' ],
		[ 'LEAVE', 'ALTER EXTENSION idempotency DROP TABLE %' ]
	],
	seals => [
		[ 'DROP TRIGGER', 'DROP TRIGGER idempotency_audit_guard_row ON %' ],
		[ 'DROP POLICY', 'DROP POLICY idempotency_audit_read ON %' ],
		[ 'LEAVE', 'ALTER EXTENSION idempotency DROP TABLE %' ]
	],
	made => [ [ 'DROP TRIGGER', 'DROP TRIGGER idempotency_audit_guard_truncate ON %' ] ],
	default => [ [ 'DROP TRIGGER', 'DROP TRIGGER idempotency_audit_guard_truncate ON %' ] ],
	sequence => [
		[ 'SELECT', 'SELECT * FROM %' ],
		[ 'nextval', "SELECT nextval('%')" ],
		[ 'setval', "SELECT setval('%', 1)" ],
		[ 'ALTER', 'ALTER SEQUENCE % RESTART' ],
		[ 'OWNER', 'ALTER SEQUENCE % OWNER TO CURRENT_USER' ],
		[ 'DROP', 'DROP SEQUENCE % CASCADE' ]
	],
	guard => [
		[ 'REPLACE', 'GRANT CREATE ON SCHEMA idempotency TO CURRENT_USER; CREATE OR REPLACE FUNCTION % RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$' ],
		[ 'OWNER', 'ALTER FUNCTION % OWNER TO CURRENT_USER' ],
		[ 'RENAME', 'ALTER FUNCTION % RENAME TO renamed' ],
		[ 'DROP', 'DROP FUNCTION % CASCADE' ]
	],
	whole => [
		[ 'idem_audit', "SELECT idem_audit('a', 'b', 'c')" ],
		[ 'idem_audit_seal', 'SELECT idem_audit_seal()' ],
		[ 'idem_audit_verify', 'SELECT * FROM idem_audit_verify()' ],
		[ 'idem_audit_digest', 'SELECT idem_audit_digest()' ],
		[ 'idem_audit_prune', "SELECT idem_audit_prune('-infinity')" ],
		[ 'idem_secret', "SELECT idem_secret('audit', '0123456789abcdef')" ],
		[ 'DROP EXTENSION', 'DROP EXTENSION %' ],
		[ 'DROP SCHEMA', 'DROP SCHEMA % CASCADE' ],
		[ 'DROP pgcrypto', 'DROP EXTENSION pgcrypto CASCADE' ],
		[ 'DROP its schema', 'DROP SCHEMA crypto CASCADE' ],
		[ 'ALTER function', 'ALTER FUNCTION idem_claim SECURITY DEFINER' ],
		[ 'REPLACE function', q{GRANT CREATE ON SCHEMA idempotency TO CURRENT_USER;
			CREATE OR REPLACE FUNCTION idem_log_id(value text) RETURNS text IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS 'SELECT $1'} ],
		[ 'ALTER type', 'ALTER TYPE idem_result ADD ATTRIBUTE added integer' ],
		[ 'ALTER view', 'ALTER VIEW idem_stats OWNER TO CURRENT_USER' ],
		[ 'REPLACE hmac', 'CREATE OR REPLACE FUNCTION crypto.hmac(bytea, bytea, text) RETURNS bytea LANGUAGE plpgsql AS $$BEGIN RETURN $1; END$$' ],
		[ 'replica role', 'SET session_replication_role = replica' ]
	]);

# What is allowed, besides the superuser, to whom: 'object action'; and other
# errors than 42501
my %allowed = (
	app => { 'whole idem_audit' => 'ok' },
	operator => { 'whole idem_audit_seal' => 'ok' },
	auditor => {
		'log SELECT' => 'ok',
		'log GRANT' => '22012',
		'seals GRANT' => '22012',
		'seals SELECT' => 'ok',
		'whole idem_audit_seal' => 'ok',
		'whole idem_audit_verify' => 'ok',
		'whole idem_audit_digest' => 'ok'
	},
	# the owner of a schema can drop what is in it, though not members of an
	# extension by themselves
	idempotency_owner => {
		(map { ("$_ DROP" => '2BP01') } qw(log default seals origin secrets guard)),
		'made DROP' => 'ok',
		'sequence DROP' => '2BP01',
		'whole DROP SCHEMA' => 'ok'
	},
	# as a whole it belongs to who created it
	creator => { 'whole DROP EXTENSION' => 'ok' },
	# what it needs goes, and so does the extension
	crypto_owner => { 'whole DROP pgcrypto' => 'ok', 'whole DROP its schema' => 'ok' },
	# may create tables in public, not of these
	db_owner => { 'log INHERIT' => '42809' },
	postgres => {
		(map { ("$_ DROP" => '2BP01') } qw(log default seals origin secrets sequence guard)),
		'log INSERT' => '23502',
		'made INSERT' => '23502',
		'default INSERT' => '23502',
		'seals INSERT' => '23502',
		'origin INSERT' => '23502',
		'secrets INSERT' => '23502',
		'log INHERIT' => '42809',
		'log CREATE INDEX' => '0A000',
		'made ADD COLUMN' => '42809',
		'default ADD COLUMN' => '42809'
	});

my %session = map { $_ => session($node, database => $at, user => $_) } @roles;
my @matrix;
my @wrong;
foreach my $object (qw(log default made seals origin secrets sequence guard whole))
{
	my @actions = ((grep { $object !~ /^(?:sequence|guard|whole)$/ } @on_tables), @{ $more{$object} || [] });

	foreach my $case (@actions)
	{
		my ($action, $sql) = @$case;
		my @line;

		$sql =~ s/UPDATE % SET tableoid = tableoid/UPDATE % SET @{[ first_column($object) ]}/;
		$sql =~ s/%/$objects{$object}/g;
		foreach my $role (@roles)
		{
			my $session = $session{$role};
			$session->query('BEGIN');
			$session->query($sql);
			my $state = $session->state || 'ok';
			$session->query('ROLLBACK');
			my $expected = $allowed{$role}{"$object $action"} // ($role eq 'postgres' ? 'ok' : '42501');
			push @line, $state eq '42501' ? '-' : $state;
			push @wrong, "$role: $object $action: $state, expected $expected" if $state ne $expected;
		}
		push @matrix, sprintf('%-9s %-17s' . ' %-9s' x @roles, $object, $action, @line);
	}
}
$_->quit foreach values %session;

sub first_column
{
	my ($object) = @_;
	my $column = { seals => 'rows', origin => 'first_id', secrets => 'purpose' }->{$object} // 'action';

	return "$column = $column";
}

note(sprintf('%-9s %-17s' . ' %-9s' x @roles, 'object', 'action', map { substr $_, 0, 9 } @roles));
note($_) foreach @matrix;
cmp_ok(scalar @matrix, '>', 130, 'the matrix is large');
is(join("\n", @wrong), '', 'each role can do what it may, and nothing else');
is($node->safe_psql($at, 'SELECT problem FROM idem_audit_verify()'), '', 'nothing came of it');

# What default privileges have given to anybody but the owner, of all that the
# extension has and makes; types are for everyone
my $given = q{
SELECT o, grantee::regrole, privilege_type FROM (
	SELECT oid::regclass::text, relowner, relacl FROM pg_class WHERE relnamespace = 'idempotency'::regnamespace
	UNION ALL SELECT oid::regprocedure::text, proowner, proacl FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace
	UNION ALL SELECT oid::regtype::text, typowner, typacl FROM pg_type
		WHERE typnamespace = 'idempotency'::regnamespace AND typcategory <> 'A' AND typname ~ '^idem_(outcome|response|result)$'
	) v (o, owner, acl), aclexplode(acl)
WHERE grantee <> owner AND grantee <> 0 AND grantee::regrole NOT IN ('app', 'operator', 'auditor')};
is($node->safe_psql($at, $given), '', 'default privileges have given nothing away');
is( $node->safe_psql(
		$at, q{
SELECT count(*) FILTER (WHERE has_table_privilege(relowner, c.oid, 'SELECT') AND relacl::text ~ (relowner::regrole || '=(arwdDxtm?|rwU)/')) - count(*)
FROM pg_class c WHERE relnamespace = 'idempotency'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')}),
	'0', 'and nothing away from the owners');
is(sqlstate($node, $_, database => $at, user => 'web'), '42501', "by default privileges: $_")
  foreach (map({ "TABLE idempotency.$_" } qw(idempotency_keys idempotency_policies idempotency_limiters idem_policy_list idem_stats)),
	q{SELECT idempotency.idem_claim('s', 'k')}, q{SELECT nextval('idempotency.idempotency_audit_log_id_seq')},
	q{SELECT idempotency.idem_grant('web', 'app')});

# A database goes with its owner
$node->safe_psql('postgres', 'CREATE DATABASE gone TEMPLATE shop OWNER db_owner');
is(sqlstate($node, 'DROP DATABASE gone', user => $_), '42501', "$_ cannot drop the database")
  foreach (qw(ordinary auditor creator idempotency_owner));
is(sqlstate($node, 'DROP DATABASE gone', user => 'db_owner'), '', 'its owner can');

# What runs as the owner of the log belongs to that owner
is( $node->safe_psql(
		$at, q{
SELECT count(DISTINCT p.proowner), min(p.proowner::integer) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid IN ('idempotency_audit_log'::regclass, 'idempotency_audit_seals'::regclass)}),
	'1|10', 'the function of the triggers belongs to the bootstrap superuser');
is( $node->safe_psql(
		$at, q{
SELECT relname FROM pg_class WHERE relname ~ '^idempotency_(audit|secrets)' AND relkind IN ('r', 'p', 'S') AND relowner <> 10}),
	'', 'so do the tables');
# the extension's owner with all that the schema's owner could give
$node->safe_psql($at, 'GRANT CREATE ON SCHEMA idempotency TO creator');
is( sqlstate(
		$node,
		'CREATE OR REPLACE FUNCTION idempotency.idem_audit_guard() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$',
		database => $at, user => 'creator'),
	'42501', 'nobody else puts another function in its place');
$node->safe_psql($at, 'REVOKE CREATE ON SCHEMA idempotency FROM creator');

#
# The key is seen nowhere
#
my $canary = 'CANARYSECRETOFSEALS';
my $canary_hex = unpack 'H*', $canary;
my $have_stat = $node->safe_psql($at, q{SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'});
my $have_explain = -e ($node->config_data('--pkglibdir') . '/auto_explain.so');

$node->append_conf(
	'postgresql.conf', q{
log_min_messages = debug2
log_error_verbosity = verbose
log_min_error_statement = debug1
log_statement = all
log_min_duration_statement = 0
log_parameter_max_length_on_error = -1
});
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track = all\n") if $have_stat;
$node->restart;
# the secret comes out of a table: its literal would be in the log
$node->safe_psql($at, qq{SET log_statement = none; SET log_min_duration_statement = -1; SET log_min_messages = error;
CREATE TABLE public.bird AS SELECT '\\x$canary_hex'::bytea AS secret});
$node->safe_psql($at, 'CREATE EXTENSION pg_stat_statements SCHEMA public; SELECT public.pg_stat_statements_reset()') if $have_stat;
my $offset = -s $node->logfile;
my $explain = $have_explain ? q{
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_nested_statements = on;
SET auto_explain.log_analyze = on;
SET auto_explain.log_verbose = on;} : '';
$explain .= 'SET auto_explain.log_parameter_max_length = -1;' if $have_explain && $node->pg_version->major >= 16;
my ($out, $err) = ('', '');
$node->psql(
	$at, qq{$explain
SET client_min_messages = debug2;
SET debug_print_plan = on;
SET debug_print_parse = on;
SELECT idem_secret('audit', secret) FROM bird;
SELECT idem_audit('a', 'b', i::text) FROM generate_series(1, 5) i;
SELECT idem_audit_seal();
SELECT * FROM idem_audit_verify();
UPDATE idempotency_audit_log SET action = 'x' WHERE entity_id = '3';
UPDATE idempotency_audit_seals SET hmac = '\\x00' WHERE key_id = 2;
SELECT * FROM idem_audit_verify();
SELECT idem_audit_prune('infinity');
SELECT idem_audit_digest();
ALTER EXTENSION pgcrypto DROP FUNCTION crypto.hmac(bytea, bytea, text);
DROP FUNCTION crypto.hmac(bytea, bytea, text);
SELECT * FROM idem_audit_verify();
SELECT idem_audit('a', 'b', 'c');
SELECT idem_audit_seal();
}, stdout => \$out, stderr => \$err, on_error_stop => 0);
like($out, qr/rows_changed.*signature_wrong|signature_wrong.*rows_changed/s, 'the key was used');
like($err, qr/ERROR:\s+function hmac\(bytea, bytea, text\) of extension "pgcrypto" not found/, 'and missed');
my $log = substr slurp_file($node->logfile), $offset;
like($log, qr/Query Text: INSERT INTO idempotency.idempotency_audit_seals/, 'nested statements are logged') if $have_explain;
my $statements = $have_stat ? $node->safe_psql($at, 'SELECT query FROM pg_stat_statements') : '';
like($statements, qr/idem_audit_seal/, 'statements are recorded') if $have_stat;
foreach my $place ([ 'the log', $log ], [ 'what the client is told', "$out$err" ], [ 'pg_stat_statements', $statements ])
{
	my ($what, $text) = @$place;

	is(scalar(grep { /$canary|$canary_hex/i } split /\n/, $text), 0, "the key is not in $what")
	  or diag((grep { /$canary|$canary_hex/i } split /\n/, $text)[0]);
}

$node->stop;

done_testing();
