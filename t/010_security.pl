# Who may do what, and whose code runs as whom.
#
# Scenario: an attacker may create objects of his own, set his search_path,
# and has what one level of idem_grant gives him.  He prepares schemas before
# the extension is installed, plants operators, functions, domains and tables
# of our names, puts a trigger where a careless owner lets him, and changes
# roles within one connection.  An administrator moves things about under
# running sessions: row security, the primary key, schema names, the whole
# extension.  Nothing of the attacker's is ever called as anybody else,
# nobody sees the answer of another tenant, and everything is refused or
# goes on working.
#
# The privileges are checked for every member of the extension, so that a
# function for which nobody has decided them fails this test.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('security', extension => 0);

$node->safe_psql(
	'postgres', q{
CREATE SCHEMA crypto;
CREATE EXTENSION pgcrypto SCHEMA crypto;
CREATE ROLE mallory LOGIN;
CREATE ROLE nobody LOGIN;
CREATE ROLE app LOGIN;
CREATE ROLE operator LOGIN;
CREATE ROLE auditor LOGIN;
CREATE ROLE monitor LOGIN;
CREATE ROLE tenant_a;
CREATE ROLE tenant_b;
GRANT CREATE ON DATABASE postgres TO mallory;
});

# The message with all its parts, of a statement that fails
sub error_of
{
	my ($sql) = @_;
	my $stderr = '';

	$node->psql('postgres', $sql, stderr => \$stderr);
	return $stderr;
}

#
# Installing
#

$node->safe_psql(
	'postgres', q{
CREATE SCHEMA open_to_all;
GRANT CREATE ON SCHEMA open_to_all TO PUBLIC;
CREATE SCHEMA open_to_one;
GRANT CREATE ON SCHEMA open_to_one TO mallory;
CREATE SCHEMA usable;
GRANT USAGE ON SCHEMA usable TO PUBLIC;
});
foreach my $schema (qw(open_to_all open_to_one))
{
	my $create = "CREATE EXTENSION idempotency SCHEMA $schema";

	is(sqlstate($node, $create), '42501', "$schema is refused");
	like(error_of($create), qr/^HINT:.*CREATE SCHEMA/m,
		"$schema: a hint says what to do");
}
is( sqlstate(
		$node, 'BEGIN; CREATE EXTENSION idempotency SCHEMA usable; ROLLBACK'),
	'', 'a schema that others may only use is accepted');
is( sqlstate(
		$node,
		'GRANT CREATE ON SCHEMA public TO PUBLIC; CREATE EXTENSION idempotency'),
	'42501', 'so is public refused where all may create in it');
$node->safe_psql('postgres', 'REVOKE CREATE ON SCHEMA public FROM PUBLIC');
is( sqlstate(
		$node, 'CREATE EXTENSION idempotency SCHEMA usable', user => 'mallory'),
	'42501', 'only a superuser installs it');

# A name that would break out of quotes is refused or stays a name, and
# whatever fails leaves nothing behind.
{
	my $state = sqlstate(
		$node, q{
CREATE SCHEMA "a$b'c";
CREATE EXTENSION idempotency SCHEMA "a$b'c";
SELECT outcome FROM "a$b'c".idem_claim('s', 'k');
DROP EXTENSION idempotency});
	unlike($state, qr/^(XX|42601)/, "an odd schema name: $state");
	is( $node->safe_psql(
			'postgres', q{
SELECT count(*) FROM pg_extension WHERE extname = 'idempotency';
SELECT count(*) FROM pg_class WHERE relname LIKE 'idempotency%'}),
		"0\n0",
		'nothing is left of what failed');
}

# Objects of our names that are there already are not taken over
foreach my $planted (
	q{FUNCTION usable.idem_log_id(text) RETURNS text LANGUAGE sql AS 'SELECT $1'},
	q{TABLE usable.idempotency_keys (scope text, key text)},
	q{TYPE usable.idem_outcome AS ENUM ('claimed')},
	q{VIEW usable.idem_policy_list AS SELECT 1 AS name},
	q{SEQUENCE usable.idempotency_audit_log_id_seq})
{
	my $state = sqlstate($node,
		"BEGIN; CREATE $planted; CREATE EXTENSION idempotency SCHEMA usable");
	(my $what = $planted) =~ s/[ (]+(?:\S+ )?.*?(usable\.\w+).*/ $1/;

	like($state, qr/^(?:42(?:710|723|P07)|55000)$/, "planted $what: $state");
}

# What the attacker can make, in every place where a name might be looked up
my $hostile = q{
CREATE FUNCTION S.hostile(text, text) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile code as %', current_user USING ERRCODE = 'HACK1'; END$$;
CREATE OPERATOR S.= (LEFTARG = text, RIGHTARG = text, FUNCTION = S.hostile);
CREATE OPERATOR S.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = S.hostile);
CREATE OPERATOR S.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = S.hostile);
CREATE FUNCTION S.hostile(timestamptz, timestamptz) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE OPERATOR S.> (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = S.hostile);
CREATE OPERATOR S.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = S.hostile);
CREATE FUNCTION S.hostile("char", "char") RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE OPERATOR S.<> (LEFTARG = "char", RIGHTARG = "char", FUNCTION = S.hostile);
CREATE FUNCTION S.hostile(text, text[]) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE FUNCTION S.count() RETURNS bigint LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE FUNCTION S.unnest(text[]) RETURNS SETOF text LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE FUNCTION S.hmac(bytea, bytea, text) RETURNS bytea LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE FUNCTION S.pg_current_xact_id() RETURNS xid8 LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE FUNCTION S.current_setting(text) RETURNS text LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE FUNCTION S.pg_extension_config_dump(unknown, unknown) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
CREATE DOMAIN S.text AS pg_catalog.text CHECK (false);
CREATE DOMAIN S."integer" AS pg_catalog.int4 CHECK (false);
CREATE DOMAIN S.bytea AS pg_catalog.bytea CHECK (false);
CREATE DOMAIN S.timestamptz AS pg_catalog.timestamptz CHECK (false);
CREATE DOMAIN S.jsonb AS pg_catalog.jsonb CHECK (false);
};
$hostile =~ s/CREATE FUNCTION S\.pg_extension_config_dump.*?\$\$;\n//s;

sub plant
{
	my ($schema) = @_;
	(my $sql = $hostile) =~ s/\bS\./$schema./g;

	is(sqlstate($node, $sql, user => 'mallory'),
		'', "the attacker has prepared $schema");
	return;
}

$node->safe_psql('postgres', 'GRANT CREATE ON SCHEMA public TO mallory');
plant('public');
$node->safe_psql('postgres', 'REVOKE CREATE ON SCHEMA public FROM mallory');
# The target once was his own
(my $planted = $hostile) =~ s/\bS\./idem./g;
$node->safe_psql('postgres',
	"CREATE SCHEMA idem; $planted");
$node->safe_psql('postgres',
	'SET search_path = public, pg_catalog; CREATE EXTENSION idempotency SCHEMA idem'
);
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = 'idem.idempotency_keys'::regclass AND a.attnum > 0
  AND t.typnamespace <> 'pg_catalog'::regnamespace;
SELECT count(*) FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid, unnest(p.proargtypes) t
JOIN pg_type ty ON ty.oid = t
WHERE d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
  AND ty.typnamespace <> 'pg_catalog'::regnamespace AND ty.typname <> 'idem_result'}),
	"0\n0",
	'no hostile type was bound');
# From now on he has a schema of his own; public is for this test
$node->safe_psql(
	'postgres', q{
DROP OWNED BY mallory;
CREATE SCHEMA evil AUTHORIZATION mallory;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
});
plant('evil');
is( sqlstate(
		$node,
		q{SET search_path = evil, pg_catalog; SELECT 'a'::pg_catalog.text = 'b'::pg_catalog.text}
	),
	'HACK1',
	'what he has planted works');

#
# Privileges of every member of the extension
#

$node->safe_psql(
	'postgres', q{
SELECT idem.idem_grant('app', 'app'), idem.idem_grant('operator', 'operator'),
       idem.idem_grant('auditor', 'auditor'), idem.idem_grant('monitor', 'monitor'),
       idem.idem_grant('tenant_a', 'app'), idem.idem_grant('tenant_b', 'app');
SELECT idem.idem_secret('context', '0123456789abcdef0123456789abcdef');
CREATE FUNCTION public.handler(jsonb) RETURNS json LANGUAGE sql AS
	$$SELECT '{"done": true}'::json$$;
});

# For each role what it may execute or select from; "all" is PUBLIC
my %decided = (
	idem_activity => 'operator monitor',
	idem_activity_values => 'operator monitor',
	idem_audit => 'app',
	idem_audit_digest => 'auditor',
	idem_audit_guard => '',
	idem_audit_prune => '',
	idem_audit_seal => 'operator auditor',
	idem_audit_verify => 'auditor',
	idem_canonical => 'all',
	idem_checkpoint => 'app',
	idem_claim => 'app',
	idem_complete => 'app',
	idem_context => 'app',
	idem_dedupe => 'app',
	idem_distribute => '',
	idem_distribute_node => '',
	idem_end_lease => 'operator',
	idem_extend => 'app',
	idem_fail => 'app',
	idem_find => 'operator',
	idem_fingerprint => 'all',
	idem_forget => 'operator',
	idem_forget_scope => 'operator',
	idem_grant => '',
	idem_health => 'operator auditor monitor',
	idem_holder => 'operator',
	idem_http_headers => 'app',
	idem_http_problem => 'app',
	idem_http_run => '',
	idem_http_time => 'app',
	idem_json => 'all',
	idem_key => 'all',
	idem_log_id => 'all',
	idem_key_lock => '',
	idem_limiter => 'operator',
	idem_limiter_changed => '',
	idem_limiter_drop => 'operator',
	idem_lookup => 'app operator',
	idem_policy => 'operator',
	idem_policy_changed => '',
	idem_policy_drop => 'operator',
	idem_policy_list => 'operator auditor',
	idem_policy_values => 'operator auditor',
	idem_recover => 'app',
	idem_release => 'app',
	idem_require => 'app',
	idem_respond => 'all',
	idem_run => 'app',
	idem_schedule => 'operator',
	idem_scope => 'all',
	idem_secret => '',
	idem_secret_drop => '',
	idem_stats => 'operator monitor',
	idem_stats_reset => 'operator',
	idem_stats_values => 'operator monitor',
	idem_sweep => 'operator',
	idem_sweep_all => 'operator',
	idem_sweep_status => 'operator monitor',
	idem_sweep_status_values => 'operator monitor',
	idem_throttle => 'app',
	idem_throttle_activity => 'operator monitor',
	idem_throttle_activity_values => 'operator monitor',
	idem_throttle_all => 'app',
	idem_throttle_peek => 'app operator',
	idem_throttle_return => 'app',
	idem_unschedule => 'operator',
	idempotency_audit_log => 'auditor',
	idempotency_audit_log_default => '',
	idempotency_audit_log_id_seq => '',
	idempotency_audit_origin => '',
	idempotency_audit_seals => 'auditor',
	idempotency_keys => '',
	idempotency_leases => '',
	idempotency_limiters => 'operator',
	idempotency_policies => '',
	idempotency_secrets => '');
my @roles = qw(nobody app operator auditor monitor);

my $members = q{
FROM pg_depend d WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')};

my @routines = split /\n/, $node->safe_psql(
	'postgres', qq{
SELECT d.objid::regprocedure, (SELECT proname FROM pg_proc WHERE oid = d.objid),
       (SELECT string_agg(role, ' ' ORDER BY n)
        FROM unnest('{@{[join ',', @roles]}}'::text[]) WITH ORDINALITY r (role, n)
        WHERE has_function_privilege(role, d.objid, 'EXECUTE'))
$members AND d.classid = 'pg_proc'::regclass ORDER BY 1});
cmp_ok(scalar(@routines), '>=', 36, 'the extension has functions');
foreach my $line (@routines)
{
	my ($routine, $name, $got) = split /\|/, $line;

	is( $got // '',
		  !exists $decided{$name}   ? 'undecided'
		: $decided{$name} eq 'all' ? "@roles"
		: $decided{$name},
		"who may call $routine");
}

# All relations, those of identity columns as well, and every privilege
my $relations = $node->safe_psql(
	'postgres', qq{
WITH r AS (
	SELECT d.objid AS oid $members AND d.classid = 'pg_class'::regclass
	UNION SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'idem'::regnamespace
	AND c.relkind IN ('r', 'v', 'm', 'S', 'p', 'f'))
SELECT c.relname, coalesce((
	SELECT string_agg(role || ' ' || p, ',' ORDER BY role, p)
	FROM unnest('{nobody,app,operator,auditor,monitor}'::text[]) role,
	     unnest(CASE c.relkind WHEN 'S' THEN '{SELECT,USAGE,UPDATE}'
	            ELSE '{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}' END::text[]) p
	WHERE CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(role, c.oid, p)
	           WHEN p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
	           THEN has_any_column_privilege(role, c.oid, p)
	           ELSE has_table_privilege(role, c.oid, p) END), '-')
FROM pg_class c JOIN r USING (oid) WHERE c.relkind IN ('r', 'v', 'm', 'S', 'p', 'f')
ORDER BY 1});
cmp_ok(scalar(split /\n/, $relations), '>=', 6, 'the extension has relations');
foreach my $line (split /\n/, $relations)
{
	my ($name, $got) = split /\|/, $line;
	my $expected = join ',',
	  map { "$_ SELECT" } sort split / /, $decided{$name} // 'undecided';

	is($got, $expected || '-', "who may do what with $name");
}
is( $node->safe_psql(
		'postgres', qq{
SELECT count(*) FROM pg_proc p WHERE p.oid IN (SELECT d.objid $members AND d.classid = 'pg_proc'::regclass)
AND (prosecdef AND proconfig IS NULL
     OR 'internal'::regtype = ANY (proargtypes) OR prorettype = 'internal'::regtype)}),
	0,
	'no function is SECURITY DEFINER without a search_path, nor takes an internal argument'
);
is( $node->safe_psql(
		'postgres', q{
LOAD 'idempotency';
SELECT count(*) > 3, count(*) FILTER (WHERE context = 'user')
FROM pg_settings WHERE name LIKE 'idempotency.%'}),
	't|0',
	'no setting can be changed by everybody');
my $load = "SELECT idem.idem_log_id('load the library');";
is(sqlstate($node, "$load SET idempotency.max_lease = '1 h'", user => 'app'),
	'42501', 'nor in fact');
is(sqlstate($node, "$load SET idempotency.made_up = '1'", user => 'app'),
	'42602', 'nor made up');
is( sqlstate(
		$node,
		"SET idempotency.max_lease = '10 d'; SELECT idem.idem_claim('s', 'early', lease => '2 days')",
		user => 'app'),
	'22023',
	'what was set before the library was there has no effect');

# And in practice
is(sqlstate($node, "SELECT idem.idem_claim('s', 'k')", user => 'nobody'),
	'42501', 'nobody claims nothing');
foreach my $user (qw(nobody app operator monitor))
{
	foreach my $table (qw(keys policies audit_log secrets))
	{
		is(sqlstate($node, "TABLE idem.idempotency_$table", user => $user),
			'42501', "$user does not read idempotency_$table");
	}
}
is(sqlstate($node, 'TABLE idem.idempotency_audit_log', user => 'auditor'),
	'', 'the auditor reads the log');
$node->safe_psql('postgres',
	'GRANT EXECUTE ON FUNCTION idem.idem_secret TO app');
is( sqlstate(
		$node,
		q{SELECT idem.idem_secret('context', '0123456789abcdef')},
		user => 'app'),
	'42501',
	'EXECUTE alone does not set a secret');
$node->safe_psql('postgres',
	'REVOKE EXECUTE ON FUNCTION idem.idem_secret FROM app');

#
# A hostile search_path and hostile tables
#

my $calls = q{
SELECT outcome FROM idem.idem_claim('s', 'K', '{"a": 1}', context => idem.idem_context('x'));
SELECT (idem.idem_complete('s', 'K', '{"b": 2}'::pg_catalog.json)).outcome IS NOT NULL;
SELECT outcome FROM idem.idem_claim('s', 'K', '{"a": 1}', context => idem.idem_context('x'));
SELECT outcome FROM idem.idem_run('public.handler(pg_catalog.jsonb)', 's', 'K-run');
SELECT pg_catalog.count(*) FROM idem.idem_dedupe('s-inbox', '{K,K,L}');
SELECT outcome FROM idem.idem_lookup('s', 'K');
SELECT idem.idem_require('s', 'K-2') > 0;
SELECT idem.idem_release('s', 'K-2');
SELECT idem.idem_audit('a', 'e', 'i') > 0;
};
my $answers =
  "claimed\nt\nreplayed\ncompleted\n3\ncompleted\nt\nt\nt";

sub all_calls
{
	my ($key, $before, %options) = @_;
	(my $sql = $calls) =~ s/K/$key/g;
	my ($stdout, $state) =
	  run_psql($node, "$before BEGIN; $sql COMMIT", %options);

	return $state . $stdout;
}

is(all_calls('plain', '', user => 'app'), $answers, 'all calls work');
my $paths = 0;
foreach my $path ('evil, pg_catalog', 'evil, public', 'evil', "''")
{
	is( all_calls(
			'path' . ++$paths, "SET search_path = $path;", user => 'app'),
		$answers, "with search_path $path");
}
is( all_calls(
		'temp', q{
CREATE TEMP TABLE idempotency_keys (scope text, key text);
CREATE TEMP TABLE idempotency_policies (name text);
CREATE TEMP TABLE idempotency_audit_log (id bigint);
CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (false);
CREATE FUNCTION pg_temp.unnest(pg_catalog.text[]) RETURNS SETOF pg_catalog.text LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = 'HACK1'; END$$;
SET search_path = pg_temp, evil;}, user => 'app'),
	$answers,
	'with temporary objects in front');
is( (   run_psql(
			$node, q{
SET search_path = evil, pg_catalog;
SELECT idem.idem_sweep() >= 0;
SELECT idem.idem_policy('p', lease => '1 min');
SELECT pg_catalog.count(*) FROM idem.idem_policy_list;
SELECT idem.idem_policy_drop('p');
CALL idem.idem_sweep_all();
SELECT pg_catalog.count(*) > 5 FROM idem.idem_health()}, user => 'operator'))[0],
	"t\n\n2\nt\nt",
	'an operator with a hostile search_path');

# The handler is the caller's, in every respect
$node->safe_psql(
	'postgres', q{
CREATE FUNCTION public.whoami(jsonb) RETURNS text LANGUAGE sql AS
	$$SELECT pg_catalog.concat_ws(' ', current_user, session_user, pg_catalog.current_setting('search_path'),
	                              pg_catalog.current_setting('enable_seqscan'))$$;
ALTER FUNCTION public.whoami OWNER TO mallory;
});
is( (   run_psql(
			$node, q{
SET search_path = evil, public;
SELECT convert_from(body, 'UTF8') FROM idem.idem_run('public.whoami(pg_catalog.jsonb)', 's', 'who', on_error => 'record');
SELECT current_user, pg_catalog.current_setting('search_path'), pg_catalog.current_setting('enable_seqscan')},
			user => 'app'))[0],
	"{\"sqlstate\": \"22P02\", \"message\": \"the response is not valid JSON\"}\napp|evil, public|on",
	'text that is no JSON is refused');
$node->safe_psql('postgres',
	q{CREATE FUNCTION public.whoami_json(r jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT pg_catalog.to_jsonb(public.whoami(r))$$}
);
is( (   run_psql(
			$node, q{
SET search_path = evil, public;
SELECT idem.idem_json(r) FROM idem.idem_run('public.whoami_json(pg_catalog.jsonb)', 's', 'who2') r;
SELECT current_user, pg_catalog.current_setting('search_path'), pg_catalog.current_setting('enable_seqscan')},
			user => 'app'))[0],
	"\"app app evil, public on\"\napp|evil, public|on",
	'the handler runs as its caller');

#
# A trigger that a careless owner has let in
#

$node->safe_psql(
	'postgres', q{
CREATE TABLE public.attempts (what text, state text);
GRANT INSERT ON public.attempts TO PUBLIC;
CREATE FUNCTION public.intruder() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	what text;
BEGIN
	FOREACH what IN ARRAY ARRAY['SET ROLE mallory', 'SET SESSION AUTHORIZATION mallory',
		'RESET ROLE', 'SET LOCAL ROLE mallory', 'CREATE TEMP TABLE loot (a int)', 'LISTEN loot',
		'DECLARE loot CURSOR WITH HOLD FOR SELECT 1']
	LOOP
		BEGIN
			EXECUTE what;
			INSERT INTO public.attempts VALUES (what, 'done');
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO public.attempts VALUES (what, sqlstate);
		END;
	END LOOP;
	INSERT INTO public.attempts VALUES ('path', current_setting('search_path'));
	RETURN NEW;
END$$;
ALTER FUNCTION public.intruder() OWNER TO mallory;
CREATE TRIGGER intruder BEFORE INSERT OR UPDATE ON idem.idempotency_keys
	FOR EACH ROW EXECUTE FUNCTION public.intruder();
});
is( all_calls('trigger', 'SET search_path = evil;', user => 'app'),
	$answers, 'a foreign trigger runs');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) > 7,
       count(*) FILTER (WHERE state = 'done'),
       string_agg(DISTINCT state, ' ' ORDER BY state) FILTER (WHERE what <> 'path'),
       string_agg(DISTINCT state, '/') FILTER (WHERE what = 'path')
FROM attempts}),
	't|0|42501|pg_catalog, pg_temp',
	'and cannot become anybody, with our search_path');
is( $node->safe_psql('postgres',
		q{SELECT ok FROM idem.idem_health() WHERE check_name = 'triggers'}),
	'f',
	'idem_health sees it');
# A trigger that fails leaves the caller what he was
$node->safe_psql(
	'postgres', q{
CREATE OR REPLACE FUNCTION public.intruder() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'TRIGG'; END$$});
{
	my $session = session($node, user => 'app');

	$session->query('SET search_path = evil');
	$session->query("SELECT idem.idem_claim('s', 'fails')");
	is($session->state, 'TRIGG', 'an error in a trigger');
	is( $session->query(
			"SELECT current_user, pg_catalog.current_setting('search_path'), pg_catalog.current_setting('enable_seqscan')"
		),
		'app|evil|on',
		'leaves user and settings as they were');
	$session->query('SAVEPOINT a') if $session->query('BEGIN') eq '';
	$session->query("SELECT idem.idem_claim('s', 'fails')");
	$session->query('ROLLBACK TO a');
	is( $session->query(
			"SELECT current_user, pg_catalog.current_setting('search_path')"),
		'app|evil',
		'so it does in a savepoint');
	$session->quit;
}
$node->safe_psql('postgres',
	'DROP TRIGGER intruder ON idem.idempotency_keys');

#
# Owner without a login, row security forced
#

$node->safe_psql(
	'postgres', q{
CREATE ROLE keeper NOLOGIN;
GRANT USAGE ON SCHEMA idem TO keeper;
ALTER TABLE idem.idempotency_keys OWNER TO keeper;
ALTER TABLE idem.idempotency_policies OWNER TO keeper;
ALTER TABLE idem.idempotency_limiters OWNER TO keeper;
ALTER TABLE idem.idempotency_audit_log OWNER TO keeper;
ALTER TABLE idem.idempotency_secrets OWNER TO keeper;
});
is(all_calls('keeper', '', user => 'app'),
	$answers, 'with a NOLOGIN owner');
$node->safe_psql(
	'postgres', q{
ALTER TABLE idem.idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY none ON idem.idempotency_keys USING (false) WITH CHECK (false);
});
is(all_calls('forced', '', user => 'app'),
	$answers, 'with row security forced');
is( (   run_psql(
			$node, "SET row_security = off; SELECT outcome FROM idem.idem_claim('s', 'keeper', '{\"a\": 1}', context => idem.idem_context('x'))",
			user => 'app'))[0],
	'replayed',
	'an older key is replayed');
$node->safe_psql('postgres',
	'ALTER TABLE idem.idempotency_keys DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY; DROP POLICY none ON idem.idempotency_keys'
);
foreach my $change (
	'DELETE FROM idem.idempotency_audit_log',
	"UPDATE idem.idempotency_audit_log SET action = 'x'",
	'TRUNCATE idem.idempotency_audit_log',
	q{INSERT INTO idem.idempotency_audit_log SELECT * FROM idem.idempotency_audit_log LIMIT 1})
{
	is(sqlstate($node, "SET ROLE keeper; $change"),
		'42501', "the owner cannot: $change");
}

#
# Tenants
#

# One backend becomes one tenant and the other in turn, a thousand times; now
# and then one is let in, and put out again.
$node->safe_psql(
	'postgres', q{
SET ROLE tenant_a;
BEGIN;
SELECT idem.idem_claim('shared', 'of a');
SELECT idem.idem_complete('shared', 'of a', '"secret of a"'::json);
COMMIT;
SET ROLE tenant_b;
BEGIN;
SELECT idem.idem_claim('shared', 'of b');
SELECT idem.idem_complete('shared', 'of b', '"secret of b"'::json);
COMMIT;
});
my $switch = q{
DO $$
DECLARE
	me text;
	other text;
	member boolean := false;
	answer text;
	state text;
	wrong bigint := 0;
	seen bigint := 0;
BEGIN
	FOR i IN 1..1000 LOOP
		me := CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END;
		other := CASE i % 2 WHEN 0 THEN 'b' ELSE 'a' END;
		IF i % 10 = 3 THEN
			EXECUTE 'GRANT tenant_a TO tenant_b';
			member := true;
		ELSIF i % 10 = 7 THEN
			EXECUTE 'REVOKE tenant_a FROM tenant_b';
			member := false;
		END IF;
		EXECUTE 'SET LOCAL ROLE tenant_' || me;
		SELECT idem.idem_json(r)::text INTO answer
		FROM idem.idem_claim('shared', 'of ' || me) r;
		IF answer IS DISTINCT FROM '"secret of ' || me || '"' THEN
			wrong := wrong + 1;
		END IF;
		BEGIN
			state := '';
			answer := NULL;
			CASE i % 4
				WHEN 0, 1 THEN
					SELECT idem.idem_json(r)::text INTO answer
					FROM idem.idem_claim('shared', 'of ' || other) r;
				ELSE
					SELECT idem.idem_json(r)::text INTO answer
					FROM idem.idem_lookup('shared', 'of ' || other) r;
			END CASE;
		EXCEPTION WHEN insufficient_privilege THEN
			state := sqlstate;
		END;
		IF me = 'b' AND member THEN
			seen := seen + 1;
			IF answer IS DISTINCT FROM '"secret of a"' THEN
				wrong := wrong + 1;
			END IF;
		ELSIF state <> '42501' OR answer IS NOT NULL THEN
			wrong := wrong + 1;
		END IF;
		RESET ROLE;
	END LOOP;
	EXECUTE 'REVOKE tenant_a FROM tenant_b';
	PERFORM set_config('idem_test.result', wrong || ' wrong, ' || (seen > 100), false);
END$$;
SELECT current_setting('idem_test.result');
};
is($node->safe_psql('postgres', $switch),
	'0 wrong, true', 'tenants within one backend');
{
	my $session = session($node, user => 'app');
	my @got;

	$node->safe_psql('postgres', 'GRANT tenant_b TO app');
	foreach my $round (1 .. 10)
	{
		$node->safe_psql('postgres', 'GRANT tenant_a TO app');
		push @got, $session->query(
			"SELECT idem.idem_json(r) FROM idem.idem_claim('shared', 'of a') r");
		$node->safe_psql('postgres', 'REVOKE tenant_a FROM app');
		$session->query("SELECT idem.idem_claim('shared', 'of a')");
		push @got, $session->state;
	}
	is( "@got",
		join(' ', ('"secret of a" 42501') x 10),
		'rights come and go from outside');
	$session->quit;
}

# The documented way for roles that do not trust each other
$node->safe_psql(
	'postgres', q{
CREATE FUNCTION public.my_claim(key text) RETURNS idem.idem_result
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN idem.idem_claim(idem.idem_scope(session_user::text), key);
ALTER FUNCTION public.my_claim OWNER TO app;
});
is( (run_psql($node, "SELECT outcome FROM my_claim('k')", user => 'nobody'))[0]
	  . (run_psql($node, "SELECT outcome FROM my_claim('k')", user => 'mallory'))[0],
	'claimedclaimed',
	'a wrapper computes the scope');
is(sqlstate($node, "SELECT idem.idem_claim('nobody', 'k')", user => 'mallory'),
	'42501', 'and is the only way');

#
# Nulls in every argument of every function
#

my %values = (
	at => "'2000-01-01'", backoff_base => "'1 s'", backoff_max => 'NULL', before => "'2000-01-01'", capacity => '1', cost => '1',
	action => "'a'", code => "'rate_limited'", body => "'b'", checkpoint => "'{}'", content_type => "'text/plain'",
	colocate_with => "'pg_catalog.pg_class'", components => "ARRAY['c']", context => "'\\x00'", data => "'{}'", detail => "'{}'",
	entity => "'e'", entity_id => "'i'", fingerprint => 'NULL', handler => "'public.handler(pg_catalog.jsonb)'",
	header => "'\"k\"'", key_id => "'0000000000000001'", headers => "'{}'", key => "'nulls'", keys => "'{nulls}'",
	limiter => "'nulls'", limiters => "'{nulls}'", lease => "'1 min'", level => "'app'", max_duration => "'1 s'",
	max_keys => '1', max_rows => '1',
	name => "'nulls'", on_error => "'raise'", per => "'1 s'", owner => 'gen_random_uuid()', policy => "'default'",
	principal => "'p'",
	purpose => "'context'", recovery_point => "'r'", request => "'{}'", response => "'\"r\"'",
	result => 'ROW(NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL)',
	retryable => 'true', role => "'app'", scope => "'nulls'",
	secret => "'0123456789abcdef'", status_code => '200', token => '1', ttl => "'1 min'",
	subject => "'s'", subjects => "'{s}'", value => "'{}'", wait => "'0'", when_full => "'refuse'");

my $arguments = $node->safe_psql(
	'postgres', qq{
SELECT p.oid::regprocedure, p.prokind, p.proisstrict, a.n, a.name, format_type(a.type, NULL),
       p.pronargs, coalesce(pg_get_function_arg_default(p.oid, a.n::int), '-'),
       CASE WHEN p.provariadic <> 0 THEN 'VARIADIC ' ELSE '' END,
       p.oid::regproc
FROM pg_proc p, unnest(p.proargtypes::oid[], p.proargnames[1:p.pronargs]) WITH ORDINALITY a (type, name, n)
WHERE p.oid IN (SELECT d.objid $members AND d.classid = 'pg_proc'::regclass)
ORDER BY p.oid::regprocedure::text, a.n});
my %functions;
foreach my $line (split /\n/, $arguments)
{
	my ($function, $kind, $strict, $n, $name, $type, $count, $default,
		$variadic, $call) = split /\|/, $line;

	$functions{$function}{kind} = $kind;
	$functions{$function}{strict} = $strict eq 't';
	$functions{$function}{variadic} = $variadic;
	$functions{$function}{call} = $call;
	push @{ $functions{$function}{arguments} },
	  {
		name => $name,
		type => $type,
		default => $default,

		# an optional limiter would want shared memory
		value => $name eq 'limiter' && $default ne '-' ? 'NULL' : $values{$name}
	  };
}
cmp_ok(scalar(keys %functions), '>=', 32, 'functions with arguments');

my (@bad, @undecided);
my $calls_made = 0;
my $caller = session($node);
# A request, for idem_http_run
$caller->query(
	q{SET request.method = 'POST'; SET request.path = '/nulls';
SET request.headers = '{"idempotency-key": "nulls-http"}';
SET request.jwt.claims = '{"sub": "nulls"}'});
foreach my $function (sort keys %functions)
{
	my $f = $functions{$function};
	my @arguments = @{ $f->{arguments} };

	push @undecided, map { "$function $_->{name}" }
	  grep { !defined $_->{value} && $_->{default} eq '-' } @arguments;
	foreach my $null (0 .. $#arguments, -1)
	{
		# -1: all of them are null
		my $list = join ', ', map {
			my $a = $arguments[$_];
			my $value = $null == $_ || $null == -1 ? 'NULL' : $a->{value} // 'NULL';

			(       $f->{variadic} && $_ == $#arguments ? $f->{variadic}
				  : '')
			  . "${value}::$a->{type}"
		} 0 .. $#arguments;
		my $sql = "$f->{call}($list)";
		if ($f->{kind} eq 'p')
		{
			$caller->query("CALL $sql");
		}
		else
		{
			$caller->query("BEGIN; SELECT idem.idem_claim('nulls', 'nulls')");
			$caller->query("SELECT $sql");
		}
		my $state = $caller->state;
		$caller->query('ROLLBACK') if $f->{kind} ne 'p';
		# all of them: the first one that must be given
		my ($first) = grep { $arguments[$_]{default} !~ /^NULL/ } 0 .. $#arguments;
		my $argument = $arguments[ $null == -1 ? $first // 0 : $null ];

		$calls_made++;
		my $expected =
		    $f->{strict} ? qr/^$/
		  # a limiter that is not there, of whatever cost
		  : $argument->{name} eq 'costs' ? qr/^42704$/
		  : $argument->{default} =~ /^NULL/
		  || $argument->{name} eq 'response' && $null >= 0
		  ? qr/^(?:|ID00[24]|55000)$/
		  : $argument->{name} =~ /^(?:key|header)$/ ? qr/^ID012$/
		  : qr/^22004$/;
		push @bad, "$sql: $state" if $state !~ $expected;
	}
}
$caller->quit;
is("@undecided", '', 'the test knows a value for each argument');
cmp_ok($calls_made, '>', 150, 'calls with nulls were made');
is(join("\n", @bad), '', 'nulls are refused or have a meaning');

#
# Changes under a running session
#

sub new_outcome
{
	my ($session, $schema, $key) = @_;

	return $session->query(
		"SELECT outcome FROM $schema.idem_claim('moves', '$key')");
}

{
	my $session = session($node, user => 'app');
	my $other = session($node);

	$session->query(q{
BEGIN;
SELECT idem.idem_claim('moves', 'k');
SELECT idem.idem_complete('moves', 'k', '"here"'::json);
COMMIT});
	is(new_outcome($session, 'idem', 'k'), 'replayed', 'a session with plans');

	$other->query(q{
ALTER SCHEMA idem RENAME TO moved;
CREATE SCHEMA idem;
CREATE TABLE idem.idempotency_keys (LIKE moved.idempotency_keys);
CREATE TABLE idem.idempotency_policies (LIKE moved.idempotency_policies)});
	is($other->state, '', 'the schema is renamed and another takes its name');
	is(new_outcome($session, 'moved', 'k'), 'replayed', 'replay after it');
	is(new_outcome($session, 'moved', 'k2'), 'claimed', 'claim after it');
	is($other->query('SELECT count(*) FROM idem.idempotency_keys'),
		0, 'nothing is written to the impostor');

	$session->query('BEGIN');
	is(new_outcome($session, 'moved', 'k3'), 'claimed', 'in a transaction');
	$other->query('DROP SCHEMA idem CASCADE; ALTER SCHEMA moved RENAME TO idem');
	$session->query("SELECT idem.idem_complete('moves', 'k3')");
	is($session->state, '', 'renamed between claim and completion');
	$session->query('COMMIT');
	is(new_outcome($session, 'idem', 'k3'), 'replayed', 'completed');

	isnt(sqlstate($node, 'ALTER EXTENSION idempotency SET SCHEMA public'),
		'', 'the extension is not relocatable');

	$other->query('ALTER TABLE idem.idempotency_keys OWNER TO CURRENT_USER');
	is(new_outcome($session, 'idem', 'k'), 'replayed', 'with another owner');
	$other->query(
		'ALTER TABLE idem.idempotency_keys OWNER TO keeper; REVOKE USAGE ON SCHEMA idem FROM keeper'
	);
	# the direct way runs no statement as the owner
	my $pinned = session($node);
	$pinned->query("SET idempotency.storage = 'sql'; SET ROLE app");
	new_outcome($pinned, 'idem', 'k');
	is($pinned->state, '42501', 'an owner without rights on the schema');
	$pinned->quit;
	$other->query('GRANT USAGE ON SCHEMA idem TO keeper');
	is(new_outcome($session, 'idem', 'k'), 'replayed', 'and with them again');

	#
	# Without the primary key nothing is promised, and nothing is guessed
	#
	$other->query(q{
ALTER TABLE idem.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey;
INSERT INTO idem.idempotency_keys SELECT * FROM idem.idempotency_keys
WHERE scope = 'moves' AND key = 'k'});
	is($other->state, '', 'twins');
	foreach my $call (
		"idem_claim('moves', 'k')", "idem_claim('moves', 'fresh')",
		"idem_lookup('moves', 'k')", "idem_require('moves', 'k')",
		"idem_complete('moves', 'k')", "idem_fail('moves', 'k')",
		"idem_extend('moves', 'k', 1, '1 s')",
		"idem_checkpoint('moves', 'k', 1, 'r')",
		"idem_release('moves', 'k')",
		"idem_dedupe('moves', '{k}')",
		"idem_dedupe('moves', '{fresh}')",
		"idem_run('public.handler(pg_catalog.jsonb)', 'moves', 'k')",
		"idem_run('public.handler(pg_catalog.jsonb)', 'moves', 'fresh')")
	{
		$session->query("SELECT idem.$call");
		is($session->state, 'XX001', "twins: $call");
	}
	is(sqlstate($node, "SELECT idem.idem_forget('moves', 'k')"),
		'XX001', 'twins: idem_forget');
	is( $node->safe_psql(
			'postgres',
			q{SELECT ok FROM idem.idem_health() WHERE check_name = 'primary_key'}
		),
		'f',
		'idem_health sees it');
	$other->query(q{
DELETE FROM idem.idempotency_keys k WHERE ctid <> (
	SELECT min(ctid) FROM idem.idempotency_keys j
	WHERE j.scope = k.scope AND j.key = k.key);
ALTER TABLE idem.idempotency_keys ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key)});
	is($other->state, '', 'the key is restored');
	is(new_outcome($session, 'idem', 'k'), 'replayed', 'replay again');
	is(new_outcome($session, 'idem', 'fresh'), 'claimed', 'claim again');

	#
	# The extension goes and comes back
	#
	$other->query('DROP FUNCTION public.my_claim; DROP EXTENSION idempotency');
	is($other->state, '', 'the extension is dropped');
	new_outcome($session, 'idem', 'k');
	is($session->state, '42883', 'there is no function any more');
	$other->query(q{
CREATE EXTENSION idempotency SCHEMA idem;
SELECT idem.idem_grant('app', 'app')});
	is($other->state, '', 'and created anew');
	is(new_outcome($session, 'idem', 'k'), 'claimed', 'an empty one');
	is($session->query("SELECT count(*) FROM idem.idem_dedupe('moves', '{a,b}')"),
		2, 'dedupe');
	is( $session->query(
			"SELECT outcome FROM idem.idem_run('public.handler(pg_catalog.jsonb)', 'moves', 'r')"),
		'completed',
		'run');
	is( $session->query(
			"SELECT idem.idem_json(r) FROM idem.idem_run('public.handler(pg_catalog.jsonb)', 'moves', 'r') r"
		),
		'{"done": true}',
		'replay');
	$session->quit;
	$other->quit;
}

$node->stop;

done_testing();
