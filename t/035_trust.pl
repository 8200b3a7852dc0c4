# What is looked up and then run, or trusted, with more rights than the
# caller's, and whoever owns it.
#
# Scenario: the owner of a database, who is no superuser, owns pgcrypto and the
# schema that it is in.  He adds a function hmac of his own to the extension,
# and plants an operator for every pair of types.  Then a superuser installs
# the extension as the README says, and the worker, a superuser, too, seals the
# audit log with a secret.  Nothing of the attacker's is ever called, nor is
# what replaces, or surrounds, pgcrypto's own function.  Then the owner of the
# keys gives each column of his tables another type: values that are taken for
# what they are not would be addresses of his choice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'trust',
	extension => 0,
	conf => "shared_preload_libraries = 'idempotency'\nidempotency.sweep_interval = '1 s'\n");
my @shop = (database => 'shop');
my @attacker = (@shop, user => 'db_owner');

sub ask
{
	my ($sql) = @_;

	return $node->safe_psql('shop', $sql);
}

# What was called, by whom, with what
sub loot
{
	return ask('SELECT DISTINCT what, who FROM evil.loot ORDER BY 1, 2');
}

$node->safe_psql(
	'postgres', q{
CREATE ROLE db_owner LOGIN;
CREATE ROLE keeper NOLOGIN;
CREATE DATABASE shop OWNER db_owner});

#
# The attacker prepares
#

my (undef, $state) = run_psql(
	$node, q{
CREATE SCHEMA evil;
CREATE EXTENSION pgcrypto SCHEMA evil;
CREATE SCHEMA more_evil;
CREATE TABLE evil.loot (what text, who name DEFAULT current_user, secret bytea);
GRANT USAGE ON SCHEMA evil TO PUBLIC;
GRANT INSERT ON evil.loot TO PUBLIC;
CREATE FUNCTION more_evil.hmac(data bytea, key bytea, type text) RETURNS bytea LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO evil.loot (what, secret) VALUES ('hmac', key); RETURN pg_catalog.sha256(key); END$$;
ALTER EXTENSION pgcrypto ADD FUNCTION more_evil.hmac(bytea, bytea, text);
-- an operator of each name that returns a boolean, or the like, for all types
DO $do$
DECLARE
	types text[] := '{int2,int4,int8,numeric,float4,float8,text,varchar,bpchar,name,"\"char\"",bytea,bool,'
		'interval,timestamptz,timestamp,date,oid,xid8,json,jsonb,uuid,inet,int4multirange,int8multirange,"text[]"}';
	l text;
	r text;
	n integer := 0;
BEGIN
	FOREACH l IN ARRAY types LOOP
		FOREACH r IN ARRAY types LOOP
			n := n + 1;
			EXECUTE format('CREATE FUNCTION evil.b%1$s(%2$s, %3$s) RETURNS boolean LANGUAGE plpgsql AS '
				'$$BEGIN INSERT INTO evil.loot (what) VALUES (''operator''); RETURN true; END$$', n, l, r);
			EXECUTE format('CREATE FUNCTION evil.v%1$s(%2$s, %3$s) RETURNS %2$s LANGUAGE plpgsql AS '
				'$$BEGIN INSERT INTO evil.loot (what) VALUES (''operator''); RETURN $1; END$$', n, l, r);
			EXECUTE string_agg(format('CREATE OPERATOR evil.%1$s (LEFTARG = %2$s, RIGHTARG = %3$s, FUNCTION = evil.%4$s%5$s)',
				o, l, r, f, n), '; ')
			FROM unnest('{=,<>,<,<=,>,>=,~~,@>,&&,+,-,*,/,||}'::text[], '{b,b,b,b,b,b,b,b,b,v,v,v,v,v}'::text[]) u (o, f);
		END LOOP;
	END LOOP;
END
$do$;
}, @attacker);
is($state, '', 'the attacker has prepared the database');
is( ask(q{SELECT extowner::regrole FROM pg_extension WHERE extname = 'pgcrypto'}),
	'db_owner', 'and owns pgcrypto');
is( ask(q{SELECT count(*) FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.deptype = 'e' AND p.proname = 'hmac' AND pronargs = 3 AND d.classid = 'pg_proc'::regclass
AND p.oid::regprocedure::text ~ 'bytea,bytea'}), '2', 'which has two functions that could be meant');
is(sqlstate($node, q{SELECT more_evil.hmac('x', 'y', 'sha256'), 1::numeric OPERATOR(evil.=) 1}, @shop), '', 'what he has planted works');
is(loot(), "hmac|postgres\noperator|postgres", 'and shows who called it');
ask('TRUNCATE evil.loot');
# what would do him good, but for which he is not allowed
foreach my $sql (
	q{CREATE FUNCTION more_evil.hmac2(bytea, bytea, text) RETURNS bytea AS '$libdir/pgcrypto', 'pg_hmac' LANGUAGE C},
	q{CREATE OR REPLACE FUNCTION evil.hmac(bytea, bytea, text) RETURNS bytea LANGUAGE plpgsql AS 'BEGIN END'},
	q{ALTER FUNCTION evil.hmac(bytea, bytea, text) SECURITY DEFINER},
	q{ALTER EXTENSION pgcrypto DROP FUNCTION evil.hmac(bytea, bytea, text)},
	q{SET dynamic_library_path = '/tmp'},
	q{ALTER DATABASE shop SET dynamic_library_path = '/tmp'},
	q{CREATE FUNCTION evil.e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION evil.e()})
{
	is(sqlstate($node, $sql, @attacker), '42501', 'not allowed: ' . substr $sql, 0, 60);
}

#
# The superuser installs, and the worker seals
#

ask(q{
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
GRANT USAGE ON SCHEMA idem TO keeper;
ALTER TABLE idem.idempotency_keys OWNER TO keeper;
ALTER TABLE idem.idempotency_policies OWNER TO keeper;
ALTER TABLE idem.idempotency_limiters OWNER TO keeper});
is(loot(), '', 'installing calls nothing of the attacker\'s');
is( ask(q{
SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend
WHERE (refclassid = 'pg_operator'::regclass AND refobjid IN (SELECT oid FROM pg_operator WHERE oprnamespace = 'evil'::regnamespace)
	OR refclassid = 'pg_proc'::regclass AND refobjid IN (SELECT oid FROM pg_proc WHERE pronamespace IN ('evil'::regnamespace, 'more_evil'::regnamespace)))
AND classid NOT IN ('pg_operator'::regclass, 'pg_extension'::regclass)}),
	'', 'nor is anything of it bound');

# Everything that the extension itself evaluates
my $use = q{
SELECT idem.idem_policy('p', completed_ttl => '1 min', failed_ttl => '1 min', lease => '1 min', wait => '1 s', tombstone => '1 min',
	max_key_bytes => 9, mismatch_status => 409, max_body_bytes => 9, owner_role => 'keeper', max_live_keys => 9, audit => true);
SELECT idem.idem_limiter('l', 5, '1 min', '1 s', '1 min', 'allow');
SELECT count(*) FROM idem.idem_stats, idem.idem_activity, idem.idem_policy_list, idem.idem_sweep_status, idem.idem_throttle_activity;
SELECT count(*) FROM idem.idem_health();
SELECT outcome FROM idem.idem_claim('s', 'k', policy => 'p');
SELECT count(*) FROM idem.idem_dedupe('s', '{a,b}');
SELECT idem.idem_sweep();
SELECT idem.idem_audit('a', 'b', 'c');
SELECT idem.idem_audit_seal();
SELECT count(*) FROM idem.idem_audit_verify();
SELECT * FROM idem.idem_throttle('l', 's')};
is(sqlstate($node, $use, @shop), '', 'everything is used');
is(sqlstate($node, "SET search_path = evil, pg_catalog; $use", @shop), '', 'also with a hostile search_path');
is(loot(), '', 'nothing of the attacker\'s was called');

ask(q{SELECT idem.idem_secret('audit', '0123456789abcdef0123456789abcdef'); SELECT idem.idem_audit('sold', 'order', '1')});
my $sealed = q{SELECT count(*) > 0 FROM idem.idempotency_audit_seals WHERE hmac IS NOT NULL AND kind = 's'};
poll('the worker to seal', sub { ask($sealed) eq 't' });
is(ask('SELECT idem.idem_context($$x$$) IS NOT NULL, count(*) FROM idem.idem_audit_verify()'), 't|0', 'sealed with the secret');
is(loot(), '', 'which the attacker has not seen');

# It is the HMAC that it should be: of a key that is derived from the secret
is( ask(q{
SELECT substr(idem.idem_context('x'), 9) = evil.hmac('\x0000000178', evil.hmac(convert_to('idempotency 1 context', 'UTF8'),
	'0123456789abcdef0123456789abcdef', 'sha256'), 'sha256')}), 't', 'and by pgcrypto');

#
# Others that could be taken for it
#

my $context = ask(q{SELECT idem.idem_context('x')});

# A superuser has given the function away: a new body, settings
ask(q{ALTER FUNCTION evil.hmac(bytea, bytea, text) OWNER TO db_owner});
is( sqlstate($node, q{ALTER FUNCTION evil.hmac(bytea, bytea, text) SECURITY DEFINER SET search_path = evil SET work_mem = '1 MB'}, @attacker),
	'', 'its owner puts settings around it');
is(ask(q{SELECT idem.idem_context('x')}), $context, 'which make no difference');
is( sqlstate(
		$node, q{CREATE OR REPLACE FUNCTION evil.hmac(bytea, bytea, text) RETURNS bytea LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO evil.loot (what, secret) VALUES ('replaced', $2); RETURN '\x00'::bytea; END$$}, @attacker),
	'', 'its owner replaces it');
is(sqlstate($node, q{SELECT idem.idem_context('x')}, @shop), '55000', 'then there is none');
is(sqlstate($node, q{SELECT idem.idem_audit('sold', 'order', '2'); SELECT * FROM idem.idem_audit_verify()}, @shop), '55000', 'nor for the seals');
is( ask(q{SELECT ok FROM idem.idem_health() WHERE check_name = 'pgcrypto'}), 'f', 'which idem_health tells');
# Members in C, but another library or another function of the same
ask(q{
CREATE SCHEMA c1; CREATE FUNCTION c1.hmac(bytea, bytea, text) RETURNS bytea AS '$libdir/pgcrypto', 'pg_digest' LANGUAGE C;
CREATE SCHEMA c2; CREATE FUNCTION c2.hmac(bytea, bytea, text) RETURNS bytea AS '$libdir/plpgsql', 'plpgsql_call_handler' LANGUAGE C;
ALTER EXTENSION pgcrypto ADD FUNCTION c1.hmac(bytea, bytea, text);
ALTER EXTENSION pgcrypto ADD FUNCTION c2.hmac(bytea, bytea, text)});
is(sqlstate($node, q{SELECT idem.idem_context('x')}, @shop), '55000', 'another C function is none either');
# The right one, but no member
ask(q{CREATE SCHEMA c3; CREATE FUNCTION c3.hmac(bytea, bytea, text) RETURNS bytea AS '$libdir/pgcrypto', 'pg_hmac' LANGUAGE C});
is(sqlstate($node, q{SELECT idem.idem_context('x')}, @shop), '55000', 'nor the right one outside of the extension');
ask('ALTER EXTENSION pgcrypto ADD FUNCTION c3.hmac(bytea, bytea, text)');
is(ask(q{SELECT idem.idem_context('x')}), $context, 'but within');
poll('the worker to seal again', sub { ask(q{SELECT count(*) = 0 FROM idem.idem_health() WHERE check_name = 'audit_seals' AND detail <> 'all rows are sealed'}) eq 't' });
is(loot(), '', 'and nothing of the attacker\'s was called');

#
# The owner of the keys
#

my %shape;
foreach my $table (qw(keys leases policies limiters))
{
	ask("ALTER TABLE idem.idempotency_$table DROP CONSTRAINT $_")
	  foreach split /\n/, ask("SELECT quote_ident(conname) FROM pg_constraint WHERE conrelid = 'idem.idempotency_$table'::regclass AND contype = 'c'");
	$shape{$table} = [ split /\n/, ask("SELECT quote_ident(attname) || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
		WHERE attrelid = 'idem.idempotency_$table'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum") ];
}
is("@{[ map { scalar @{ $shape{$_} } } sort keys %shape ]}", '25 7 6 20', 'columns of four tables');
ask(q{
SELECT idem.idem_policy('default', completed_ttl => '1 h', on_repeat => 'replay', audit => false, recoverable => true);
BEGIN;
SELECT idem.idem_claim('types', 'k');
SELECT idem.idem_complete('types', 'k', '{"a": 1}'::json, headers => '{"a": "b"}');
COMMIT;
SELECT idem.idem_claim('types', 'open');
GRANT CREATE ON SCHEMA public TO keeper;
SET ROLE keeper;
CREATE DOMAIN public.texts AS text;
RESET ROLE});
my @calls = (
	q{idem_claim('types', 'k')}, q{idem_claim('types', 'open', wait => '0')}, q{idem_lookup('types', 'k')},
	q{idem_extend('types', 'open', (SELECT token FROM idem.idempotency_keys WHERE key = 'open'), '1 min')}, q{idem_claim('types', 'new')},
	q{idem_dedupe('types', '{k,n}')}, q{idem_activity_values()}, q{idem_find(scope => 'types')}, q{idem_policy_values()},
	q{idem_sweep_status_values()}, q{idem_throttle('l', 's')}, q{idem_policy('p', lease => '2 min')}, q{idem_limiter('l', 6, '1 min')},
	q{idem_sweep()}, q{idem_recover('default')}, q{idem_health()});
my %states;
foreach my $storage (qw(auto sql))
{
	my $session = session($node, @shop);
	my @lost;

	$session->query("SET idempotency.storage = $storage");
	foreach my $column (map { my $t = $_; map { [ $t, split / /, $_, 2 ] } @{ $shape{$t} } } sort keys %shape)
	{
		my ($table, $name, $type) = @$column;

		foreach my $other ('bigint USING 4660', q{bytea USING decode(repeat('ff', 100), 'hex')}, $type eq 'text' ? ('public.texts') : ())
		{
			$session->query("BEGIN; ALTER TABLE idem.idempotency_$table ALTER COLUMN $name TYPE $other");
			foreach my $call ($session->state eq '' ? @calls : ())
			{
				$session->query("SAVEPOINT a; SELECT * FROM idem.$call");
				my $state = $session->state;
				$states{$state}++;
				push @lost, "$table $name $other: $call: $state"
				  if $state eq 'lost' || ($state ne '' && $other eq 'public.texts');
				last if $state eq 'lost';
				$session->query('ROLLBACK TO a');
			}
			$session->query('ROLLBACK');
			next if $session->state ne 'lost';
			$session->quit;
			poll('recovery', sub { is_up($node) });
			$session = session($node, @shop);
		}
	}
	is(join("\n", @lost), '', "a column of another type is refused, storage = $storage");
	$session->quit;
}
note(join ' ', map { ($_ || 'ok') . ": $states{$_}" } sort keys %states);
cmp_ok($states{42804} // 0, '>', 50, 'by its type');
is(ask(q{SELECT outcome FROM idem.idem_claim('types', 'k')}), 'replayed', 'all is as before');

# Who may create in the schema, too, can put a view in the place of a table: it
# runs as he, and what it shows is looked at like a table
foreach my $body ('body', '4660::bigint AS body')
{
	my $columns = ask(q{SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'idem.idempotency_keys'::regclass AND attnum > 0});

	$columns =~ s/\bbody\b/$body/;
	my ($out, $state) = run_psql($node, qq{
GRANT CREATE ON SCHEMA idem TO keeper;
CREATE FUNCTION public.who() RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
BEGIN;
SET LOCAL ROLE keeper;
ALTER TABLE idem.idempotency_keys RENAME TO mine;
CREATE VIEW idem.idempotency_keys AS SELECT $columns FROM idem.mine WHERE public.who() = 'keeper';
RESET ROLE;
SELECT outcome FROM idem.idem_claim('types', 'k')}, @shop);
	is($out . $state, $body eq 'body' ? 'replayed' : '42804', "a view in the place of the keys: $body");
	ask('REVOKE CREATE ON SCHEMA idem FROM keeper; DROP FUNCTION public.who');
}

$node->stop;

done_testing();
