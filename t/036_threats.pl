# The threat model of doc/security.md, attacker by attacker.
#
# Scenario: the extension as the README installs it, with keys, answers, an
# audit log that is sealed with a secret, and an API function.  Roles that
# PostgreSQL itself defines, a web client, roles of each level, a file of
# pg_dump and a copy of the data directory try what they might, and what
# they can do is what the documentation says.  What t/010, t/033 and t/035 show
# is not shown again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# the worker is off: rows are sealed when the test says so
my $node = new_node('threats', extension => 0, conf => "shared_preload_libraries = 'idempotency'\nidempotency.worker = off\n");
my $folder = PostgreSQL::Test::Utils::tempdir;
my $secret = 'BIRDOFTHESEALS3141592653';
my $secret_hex = unpack 'H*', $secret;

sub ask
{
	my ($sql, $database) = @_;

	return $node->safe_psql($database // 'shop', $sql);
}

# What a role gets: what it is told, or the SQLSTATE
sub as
{
	my ($user, $sql, $database) = @_;
	my ($out, $state) =
	  run_psql($node, "SET search_path = idempotency, public; $sql", user => $user, database => $database // 'shop');

	return $state ne '' ? $state : $out;
}

ask( q{
CREATE ROLE db_owner LOGIN;
CREATE ROLE schema_owner LOGIN;
CREATE ROLE reader LOGIN IN ROLE pg_read_all_data;
CREATE ROLE reader_bypass LOGIN BYPASSRLS IN ROLE pg_read_all_data;
CREATE ROLE writer LOGIN IN ROLE pg_write_all_data;
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE app LOGIN;
CREATE ROLE other_app LOGIN;
CREATE ROLE operator LOGIN;
CREATE ROLE auditor LOGIN;
CREATE ROLE shop_owner NOLOGIN;
CREATE ROLE web_user NOLOGIN;
CREATE ROLE authenticator LOGIN NOINHERIT;
GRANT web_user TO authenticator;
CREATE ROLE person LOGIN;
CREATE ROLE idempotency_owner NOLOGIN;
CREATE DATABASE shop OWNER db_owner}, 'postgres');
my $install = q{
CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner};
ask(qq{
SET client_min_messages = warning; $install;
SET search_path = idempotency;
SELECT idem_grant(r, 'app') FROM unnest('{app,other_app,shop_owner}'::regrole[]) r;
SELECT idem_grant('operator', 'operator'), idem_grant('auditor', 'auditor');
SELECT idem_secret('audit', '$secret'), idem_secret('context', 'BIRDOFTHECONTEXT2718281828');
SELECT idem_policy('audited', audit => true);
SELECT idem_limiter('logins', 5, '1 min');
SET ROLE app;
BEGIN;
SELECT idem_claim('of app', 'key of app', policy => 'audited');
SELECT idem_complete('of app', 'key of app', '"answer to app"'::json);
COMMIT;
RESET ROLE});
ask(q{SELECT idempotency.idem_audit_seal()});
# and a row in each partition that the seal has made
ask(q{
INSERT INTO idempotency.idempotency_audit_log (at, xid, action, entity, entity_id, session_role, effective_role)
SELECT b[1]::timestamptz, pg_current_xact_id(), 'sold', 'order', '1', 'a', 'a'
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid, regexp_matches(pg_get_expr(relpartbound, c.oid), $$FROM \('(.*?)'\)$$) b
WHERE inhparent = 'idempotency.idempotency_audit_log'::regclass;
SELECT idempotency.idem_audit_seal()});
my @parts = split /\n/, ask(q{SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'idempotency.idempotency_audit_log'::regclass ORDER BY 1});
cmp_ok(scalar @parts, '>', 1, 'the log has partitions');
cmp_ok(ask("SELECT count(*) FROM $_"), '>', 0, "with rows: $_") foreach @parts;
my @audit = (@parts, map { "idempotency.idempotency_$_" } qw(audit_log audit_seals));
my @hidden = map { "idempotency.idempotency_$_" } qw(audit_origin secrets);

# All that is in the tables that shall not change
sub contents
{
	return join "\n", map { ask("SELECT '$_', count(*), md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM $_ t") } @audit, @hidden;
}
my $before = contents();

#
# A web client: it may call an API function, which takes the principal from
# the request, as PostgREST hands it over
#

ask(q{
CREATE FUNCTION public.answer(request jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_build_object('for', current_setting('request.jwt.claims')::json->>'sub')$$;
GRANT EXECUTE ON FUNCTION idempotency.idem_http_run TO shop_owner;
CREATE SCHEMA api AUTHORIZATION shop_owner;
SET ROLE shop_owner;
CREATE FUNCTION api.answer() RETURNS json LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	AS $$SELECT idempotency.idem_http_run('public.answer(jsonb)', '{}')$$;
REVOKE ALL ON FUNCTION api.answer() FROM PUBLIC;
GRANT USAGE ON SCHEMA api TO web_user, person;
GRANT EXECUTE ON FUNCTION api.answer() TO web_user});
my $request = q{
SET request.method = 'POST'; SET request.path = '/answer';
SET request.headers = '{"idempotency-key": "k"}';
SET request.jwt.claims = '{"sub": "NAME"}';
SELECT api.answer()};
(my $ada = $request) =~ s/NAME/ada/;
(my $bob = $request) =~ s/NAME/bob/;
is(as('authenticator', "SET ROLE web_user; $ada"), '{"for": "ada"}', 'web client: gets its answer');
is(as('authenticator', "SET ROLE web_user; $ada"), '{"for": "ada"}', 'web client: and its replay');
is(as('authenticator', "SET ROLE web_user; $bob"), '{"for": "bob"}', 'web client: another principal has keys of his own');
is(as('authenticator', "SET ROLE web_user; SELECT idempotency.idem_http_run('public.answer(jsonb)', '{}')"), '42501', 'web client: cannot choose the principal by calling idem_http_run');
is(as('authenticator', "SET ROLE web_user; SELECT idempotency.idem_claim('s', 'k')"), '42501', 'web client: cannot claim by itself');
is($node->psql('shop', 'SELECT 1', extra_params => [ '-U', 'web_user' ], stderr => \my $stderr), 2, 'web client: its role cannot log in');
is(as('person', $ada), '42501', 'a role that can log in: has no right to the API function');
is(as('person', "SET ROLE web_user; $ada"), '42501', 'a role that can log in: cannot become the one that has');
ask('GRANT EXECUTE ON FUNCTION api.answer() TO person');
is(as('person', $ada), '{"for": "ada"}', 'a role that can log in, and has EXECUTE: says it is ada, and is believed');
ask('REVOKE EXECUTE ON FUNCTION api.answer() FROM person');

#
# Level app
#

is(as('app', q{SELECT outcome FROM idem_claim('scope of anybody', 'new')}), 'claimed', 'app: claims in every scope');
is(as('other_app', qq{SELECT $_('of app', 'key of app')}), '42501', "app: not another role's key: $_") foreach qw(idem_claim idem_lookup idem_release idem_complete);
is(as('app', "TABLE $_"), '42501', "app: does not read $_") foreach map({ "idempotency_$_" } qw(keys policies limiters)), @audit, @hidden;
is(as('app', q{SELECT idem_audit('claimed', 'idempotency_key', 'x')}), '22023', 'app: writes no row about a key');
is(as('app', q{SELECT session_role || effective_role FROM (SELECT idem_audit('a', 'b', 'c')) a, LATERAL (SELECT session_user session_role, current_user effective_role) r}),
	'appapp', 'app: writes rows about other things');
is(ask(q{SELECT session_role, effective_role FROM idempotency.idempotency_audit_log WHERE action = 'a'}), 'app|app', 'app: under its own name');
is(as('app', "SELECT $_"), '42501', "app: no $_")
  foreach (q{idem_forget('of app', 'key of app')}, q{idem_end_lease('of app', 'key of app')}, q{idem_forget_scope('of app')},
	q{count(*) FROM idem_find(scope => 'of app')}, q{count(*) FROM idem_holder('of app', 'key of app')}, q{idem_policy('audited', audit => false)}, q{idem_limiter('logins', 6, '1 min')},
	'idem_sweep()', q{idem_secret('audit', '0123456789abcdef')}, q{idem_grant('app', 'operator')}, 'count(*) FROM idem_audit_verify()');

is(as('app', q{SELECT allowed FROM idem_throttle('logins', 'ada', 5)}), 't', 'app: can empty the bucket of another');
is(as('other_app', q{SELECT allowed FROM idem_throttle('logins', 'ada')}), 'f', 'app: who is refused then');
is(as('other_app', q{SELECT idem_throttle_return('logins', 'ada', 5)}), '5', 'app: can fill it again');

#
# Level operator
#

is(as('operator', q{SELECT idem_policy('audited', audit => false)}), '', 'operator: can end the auditing of keys');
ask(q{SELECT idempotency.idem_policy('audited', audit => true)});
is(as('operator', q{SELECT idem_lookup('of app', 'key of app')}), '42501', 'operator: not the answer of a role whose rights he has not');
is(as('operator', q{SELECT scope || '/' || key FROM idem_find(scope => 'of app')}), 'of app/key of app', 'operator: sees names of keys');
is(as('operator', q{BEGIN; SELECT idem_forget('of app', 'key of app'); ROLLBACK}), 't', 'operator: can forget any key');
is(ask(q{SELECT string_agg(DISTINCT action, ' ') FROM idempotency.idempotency_audit_log WHERE effective_role = 'operator'}), 'found',
	'operator: which is audited');
is(as('operator', "TABLE $_"), '42501', "operator: does not read $_") foreach map({ "idempotency_$_" } qw(keys)), @audit, @hidden;
is(as('operator', "SELECT $_"), '42501', "operator: no $_") foreach (q{idem_claim('s', 'k')}, q{idem_audit('a', 'b', 'c')}, 'count(*) FROM idem_audit_verify()');

#
# Level auditor
#

is(as('auditor', 'SELECT count(*) > 0 FROM idempotency_audit_log'), 't', 'auditor: reads the log');
is(as('auditor', 'SELECT count(*) FROM idem_audit_verify()'), '0', 'auditor: verifies it');
is(as('auditor', "TABLE $_"), '42501', "auditor: does not read $_") foreach qw(idempotency_keys idempotency_secrets idempotency_audit_origin);
is(as('auditor', "DELETE FROM $_"), '42501', "auditor: does not change $_") foreach @audit;

#
# The owner of the keys: t/010, t/033 and t/035; here, what he sees
#

is(ask(q{SET ROLE idempotency_owner; SELECT convert_from(body, 'UTF8') FROM idempotency.idempotency_keys WHERE scope = 'of app'}), '"answer to app"', 'owner of the keys: reads every answer');
is(sqlstate($node, "SET ROLE idempotency_owner; TABLE $_", database => 'shop'), '42501', "owner of the keys: does not read $_") foreach @audit, @hidden;

#
# pg_read_all_data
#

is(as('reader', q{SELECT convert_from(body, 'UTF8') FROM idempotency_keys WHERE scope = 'of app'}), '"answer to app"', 'pg_read_all_data: reads every answer');
is(as('reader', "SELECT count(*) FROM $_"), ask("SELECT count(*) FROM $_"), "pg_read_all_data: reads $_") foreach @audit;
is(as('reader', "SELECT count(*) FROM $_"), '0', "pg_read_all_data: no row of $_") foreach @hidden;
is(as('reader_bypass', "SELECT count(*) FROM idempotency_secrets"), '2', 'pg_read_all_data with BYPASSRLS: the secrets, too');
is(as('reader', "SELECT idem_$_"), '42501', "pg_read_all_data: no idem_$_") foreach (q{context('x')}, q{lookup('of app', 'key of app')}, 'audit_digest()');

# A dump by it is whole, or fails
sub dump_as
{
	my ($user, @options) = @_;
	my ($out, $err) = ('', '');

	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	my $result = IPC::Run::run([ 'pg_dump', '-U', $user, @options, 'shop' ], '>', \$out, '2>', \$err);
	$out =~ s/^(?:SET row_security = |\\(?:un)?restrict ).*\n//mg;
	return ($result, $out, $err);
}
my ($whole, $dump) = dump_as('postgres');
ok($whole, 'a dump by a superuser');
my ($result, undef, $error) = dump_as('reader');
ok(!$result, 'pg_read_all_data: its dump fails');
like($error, qr/row-level security/, 'pg_read_all_data: on row security');
($result, my $read) = dump_as('reader', '--enable-row-security');
ok($result, 'pg_read_all_data: with --enable-row-security it does not');
ok($read eq $dump, 'pg_read_all_data: and is whole');
is(ask(q{SELECT count(*) FROM pg_class c WHERE relnamespace = 'idempotency'::regnamespace AND relrowsecurity AND relispartition
	AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND polroles = '{0}' AND polcmd = 'r')}), '0', 'each partition has the policy');

#
# A backup
#

like($dump, qr/"answer to app"|\Q@{[ unpack 'H*', '"answer to app"' ]}\E/, 'dump: has keys and answers in the clear');
unlike($dump, qr/$secret_hex|$secret/i, 'dump: has no secret');
ask('CHECKPOINT');
my $file = $node->data_dir . '/' . ask(q{SELECT pg_relation_filepath('idempotency.idempotency_secrets')});
like(slurp_file($file), qr/$secret/, 'base backup: has the secrets');

#
# pg_write_all_data
#

my @columns = map { ask("SELECT attname FROM pg_attribute WHERE attrelid = '$_'::regclass AND attnum = 2 OR attrelid = '$_'::regclass AND attnum = 1 ORDER BY attnum DESC LIMIT 1") } @audit, @hidden;
foreach my $i (0 .. $#columns)
{
	my $table = (@audit, @hidden)[$i];

	is(as('writer', "INSERT INTO $table DEFAULT VALUES"), '42501', "pg_write_all_data: no row into $table");
	is(as('writer', "DELETE FROM $table"), '', "pg_write_all_data: no row out of $table");
	is(as('writer', "UPDATE $table SET $columns[$i] = DEFAULT"), '', "pg_write_all_data: no change of $table");
	is(as('writer', "TRUNCATE $table"), '42501', "pg_write_all_data: $table is not emptied");
}
ask(q{DELETE FROM idempotency.idempotency_audit_log WHERE action IN ('a', 'found')});
is(contents(), $before, 'pg_write_all_data: log, seals and secrets are as they were');
is(as('writer', "BEGIN; DELETE FROM $_; ROLLBACK"), '', "pg_write_all_data: can change $_") foreach map { "idempotency_$_" } qw(keys policies limiters);
is(as('writer', "SELECT count(*) FROM $_"), '42501', "pg_write_all_data: does not read $_") foreach @audit, 'idempotency_keys';
# nothing keeps it from the sequence
my $last = ask('SELECT last_value FROM idempotency.idempotency_audit_log_id_seq');
is(as('writer', q{SELECT setval('idempotency_audit_log_id_seq', 1)}), '1', 'pg_write_all_data: can set the sequence of the log back');
# an id is unique in its partition: of the next two, one is in this one, by now
# or a moment ago, and the one after is of the next period
my @got = map { as('app', q{SELECT idem_audit('reused', 'b', 'c')}) } 1 .. 3;
cmp_ok(scalar(grep { $_ eq '23505' } @got), '>', 0, 'pg_write_all_data: then an audited call fails');
is($got[2], '4', 'pg_write_all_data: or gets an id that is in another partition');
as('writer', q{SELECT setval('idempotency_audit_log_id_seq', 1)});
is(as('auditor', 'SELECT problem FROM idem_audit_verify()'), 'sequence_set_back', 'pg_write_all_data: which is found');
is(as('auditor', 'SELECT idem_audit_seal()'), '55000', 'pg_write_all_data: nothing is sealed then');
ask("SELECT setval('idempotency.idempotency_audit_log_id_seq', $last)");
is(as('app', q{SELECT idem_audit('a', 'b', 'c') > 4}), 't', 'pg_write_all_data: until it is set right');
ask('SELECT idempotency.idem_audit_seal()');
is(as('auditor', 'SELECT problem FROM idem_audit_verify()'), 'row_outside', 'pg_write_all_data: the row with a used id is found for ever');
ask(q{DELETE FROM idempotency.idempotency_audit_log WHERE action = 'reused'});
is(as('auditor', 'SELECT count(*) FROM idem_audit_verify()'), '0', 'pg_write_all_data: the rest is as it was sealed');

#
# pg_monitor, pg_maintain
#

ask('GRANT USAGE ON SCHEMA idempotency TO monitor');
is(as('monitor', "TABLE $_"), '42501', "pg_monitor: does not read $_") foreach @audit, @hidden, map { "idempotency_$_" } qw(keys policies limiters);
is(as('monitor', "TABLE $_"), '42501', "pg_monitor: no $_") foreach qw(idem_stats idem_activity idem_sweep_status);
is(as('monitor', "LOAD 'idempotency'"), '42501', 'pg_monitor: loads no library');
is(as('monitor', q{SELECT count(*) FROM pg_settings WHERE setting ~* '} . "$secret|$secret_hex'"), '0', 'pg_monitor: no secret in any setting');
{
	my $session = session($node, database => 'shop', user => 'app');

	$session->query(q{SELECT idempotency.idem_claim('s', 'a literal key')});
	like(as('monitor', "SELECT query FROM pg_stat_activity WHERE usename = 'app'"), qr/a literal key/, 'pg_monitor: reads the statements of others, with their literals');
	$session->quit;
}
SKIP:
{
	skip 'pg_maintain is new in 17', 9 if $node->pg_version->major < 17;
	ask('CREATE ROLE maintainer LOGIN IN ROLE pg_maintain; GRANT USAGE ON SCHEMA idempotency TO maintainer');
	is(as('maintainer', "TABLE $_"), '42501', "pg_maintain: does not read $_") foreach qw(idempotency_keys idempotency_audit_log idempotency_secrets);
	is(as('maintainer', "DELETE FROM $_"), '42501', "pg_maintain: does not change $_") foreach qw(idempotency_keys idempotency_audit_log idempotency_secrets);
	is(as('maintainer', "BEGIN; LOCK TABLE $_; ROLLBACK"), '', "pg_maintain: can lock $_") foreach qw(idempotency_keys idempotency_audit_log idempotency_secrets);
}

#
# The owner of the database
#

is(as('db_owner', "ALTER DATABASE shop SET idempotency.storage = 'sql'"), '42501', 'owner of the database: sets none of our settings');
is(as('db_owner', "DROP TABLE $parts[-1]"), '42501', 'owner of the database: drops no partition');
is(as('db_owner', 'DROP SCHEMA idempotency CASCADE'), '42501', 'owner of the database: nor the schema');
# in public, which is his
ask('CREATE DATABASE careless OWNER db_owner', 'postgres');
ask(q{
SET client_min_messages = warning;
CREATE EXTENSION idempotency CASCADE;
SELECT idem_audit('a', 'b', 'c')}, 'careless');
ask('SELECT idem_audit_seal()', 'careless');
my $part = ask(q{SELECT min(relname) FROM pg_class WHERE relispartition AND relname ~ '_log_2.*[0-9]$' AND relkind = 'r'}, 'careless');
is(ask(q{SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'public'}, 'careless'), 'pg_database_owner', 'the schema public is the owner\'s of the database');
is(as('db_owner', "DROP TABLE public.$part", 'careless'), '', 'owner of the database: in public he drops a partition');
is(as('db_owner', 'ALTER TABLE public.idempotency_audit_log DISABLE TRIGGER ALL', 'careless'), '42501', 'owner of the database: but touches nothing else of the log');

#
# Grants that come with a restore
#

ask('GRANT SELECT ON idempotency.idempotency_keys TO reader; GRANT EXECUTE ON FUNCTION idempotency.idem_audit_prune TO auditor');
{
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PGUSER} = 'postgres';

	ok(run_log([ 'pg_dump', '-Fc', '-f', "$folder/dump", 'shop' ]), 'dumped');
	ask('CREATE DATABASE restored', 'postgres');
	ask("ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO person", 'restored') foreach qw(TABLES SEQUENCES FUNCTIONS TYPES);
	ok(run_log([ 'pg_restore', '--exit-on-error', '-d', 'restored', "$folder/dump" ]), 'restored');
}
my $acls = q{
SELECT o, grantee::regrole, string_agg(privilege_type, ',' ORDER BY privilege_type) FROM (
	SELECT oid::regclass::text, relowner, relacl FROM pg_class WHERE relnamespace = 'idempotency'::regnamespace
	UNION ALL SELECT oid::regprocedure::text, proowner, proacl FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace AND proname ~ '^idem'
	UNION ALL SELECT oid::regtype::text, typowner, typacl FROM pg_type WHERE typnamespace = 'idempotency'::regnamespace AND typname ~ '^idem_'
	) v (o, owner, acl), aclexplode(acl)
-- who owns the tables of an extension is not dumped
WHERE grantee NOT IN (owner, 'idempotency_owner'::regrole) GROUP BY 1, 2 ORDER BY 1, 2};
ask(q{SET search_path = idempotency; SELECT idem_audit('restored', 'database', 'here')}, 'restored');
is(ask($acls, 'restored') , ask($acls), 'restored: all grants, and none of the default privileges of the target');
like(ask($acls), qr/idem_audit_prune.*auditor/, 'restored: those of a DBA, too');
is(as('person', "TABLE $_", 'restored'), '42501', "restored: $_") foreach qw(idempotency.idempotency_keys idempotency.idempotency_secrets), $parts[-1];

# A schema that the defaults open to others is none to install in
ask('CREATE DATABASE fresh', 'postgres');
ask('ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO person', 'fresh');
is(sqlstate($node, $install, database => 'fresh'), '42501', 'default privileges that let others create in the schema: refused');
ask('ALTER DEFAULT PRIVILEGES REVOKE CREATE ON SCHEMAS FROM person', 'fresh');
is(sqlstate($node, "DROP SCHEMA idempotency; $install", database => 'fresh'), '', 'those that let others use it: not');
is(as('person', q{SELECT idempotency.idem_scope('a', 'b') IS NOT NULL}, 'fresh'), 't', 'of the pure helpers');
is(as('person', q{SELECT idempotency.idem_claim('a', 'b')}, 'fresh'), '42501', 'and of nothing else');

# The owner of what is needed gives it away
ask('CREATE ROLE crypto_owner LOGIN; GRANT CREATE ON DATABASE fresh TO crypto_owner; DROP EXTENSION idempotency, pgcrypto', 'fresh');
is(as('crypto_owner', 'CREATE SCHEMA crypto; CREATE EXTENSION pgcrypto SCHEMA crypto', 'fresh'), '', 'owner of pgcrypto');
ask('REASSIGN OWNED BY crypto_owner TO postgres', 'fresh');
is(as('crypto_owner', 'DROP EXTENSION pgcrypto', 'fresh'), '42501', 'owner of pgcrypto: is none after REASSIGN OWNED');

#
# What looks like the extension's own, in other encodings (UTF8: sql/audit.sql)
#

my $wide = q{convert_from('\xefbd89efbd84efbd85efbd8defbd90efbd8fefbd94efbd85efbd8eefbd83efbd99', 'UTF8')};
my %entity = (
	EUC_JP => { $wide => '22023', q{convert_from('\xe6b3a8e69687e38387e383bce382bfe38399e383bce382b9e6b3a8e69687', 'UTF8')} => '' },
	LATIN1 => { q{convert_from('\x6964c3a96d706f74656e6379', 'UTF8')} => '22023', q{convert_from('\x6964656e746974c3a9', 'UTF8')} => '' },
	SQL_ASCII => { q{E'id\xe9mpotency'} => '22023', q{E'identit\xe9\xff\xfe'} => '' });
foreach my $encoding (sort keys %entity)
{
	ask("CREATE DATABASE \"$encoding\" ENCODING '$encoding' LOCALE 'C' TEMPLATE template0", 'postgres');
	ask("SET client_min_messages = warning; $install", $encoding);
	foreach my $name (sort keys %{ $entity{$encoding} })
	{
		is(sqlstate($node, "SELECT idempotency.idem_audit('claimed', $name, 'x')", database => $encoding),
			$entity{$encoding}{$name}, "$encoding: an entity that is " . ($entity{$encoding}{$name} ? 'refused' : 'taken'));
	}
}

$node->stop;

#
# What the documentation says to be shown is there
#

my $references = 0;
my @missing;
my $documentation = slurp_file("$FindBin::RealBin/../doc/security.md");
while ($documentation =~ /t\/(\d+): \*([^*|]+)\*/g)
{
	my ($number, $check) = ($1, $2);
	my ($test) = glob("$FindBin::RealBin/${number}_*.pl");

	$references++;
	push @missing, "t/$number: $check" if !defined $test || index(slurp_file($test), $check) < 0;
}
cmp_ok($references, '>', 40, 'doc/security.md names tests');
is(join("\n", @missing), '', 'which are there');

done_testing();
