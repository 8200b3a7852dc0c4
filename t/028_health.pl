# What idem_health() says of an installation that is not as it should be.
#
# Scenario: an installation with everything in it: keys of several roles, an
# audit log with partitions and seals, a secret, limiters, all levels granted
# as the documentation has it.  All is green.  Then one thing after the other
# is broken, as operators do by a slip, by a tool or by a half restore: the
# row that is about it turns, and no other that is not named beside it; and
# all is green again when it is mended.  Nothing ever raises.
#
# Under each setting that a client may have, the answers are the same.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);
my $has_cron = -e "$libdir/pg_cron.so";

my $node = new_node('health', extension => 0, conf => qq{
shared_preload_libraries = 'idempotency@{[ $has_cron ? ', pg_cron' : '' ]}'
@{[ $has_cron ? "cron.database_name = 'postgres'\ncron.use_background_workers = on" : '' ]}
idempotency.worker = off
idempotency.sweep_interval = '1 s'
max_worker_processes = 20
wal_level = logical
});

sub psql
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

psql(q{
CREATE ROLE keyowner NOLOGIN;
CREATE ROLE mallory;
CREATE ROLE shop;
CREATE ROLE clerk;
CREATE SCHEMA idem;
CREATE EXTENSION pgcrypto;
CREATE EXTENSION idempotency SCHEMA idem;
ALTER DATABASE postgres SET search_path = idem, public;
GRANT USAGE ON SCHEMA idem TO keyowner;
ALTER TABLE idem.idempotency_keys OWNER TO keyowner;
ALTER TABLE idem.idempotency_policies OWNER TO keyowner;
ALTER TABLE idem.idempotency_limiters OWNER TO keyowner;
});
psql('CREATE EXTENSION pg_cron') if $has_cron;
psql(q{
SELECT idem_grant('shop', 'app'), idem_grant('clerk', 'operator'), idem_grant('clerk', 'auditor'), idem_grant('clerk', 'monitor');
GRANT SELECT (policy, state, created_at, lease_until, expires_at, purge_at) ON idempotency_keys TO clerk;
SELECT idem_secret('audit', gen_random_bytes(32));
SELECT idem_policy('audited', audit => true);
SELECT idem_limiter('slow', 10, '1 min');
SET ROLE shop;
SELECT count(*) FROM idem_dedupe('s', '{a,b,c}', 'audited');
SELECT idem_audit('shipped', 'order', '42')});
psql('SELECT idem_audit_seal()');
psql('SELECT idem_audit_seal()');
my $partition = psql(q{SELECT min(c.oid::regclass::text) FROM pg_class c
	WHERE c.relispartition AND c.relkind = 'r' AND c.relname ~ 'log_2'});

# Checks that are not passed, but for that of the server's release
my $red = q{SELECT coalesce(string_agg(check_name, ' ' ORDER BY check_name), '')
	FROM idem.idem_health() WHERE NOT ok AND check_name <> 'server_version'};
is(psql($red), '', 'all is well')
  or diag(psql('SELECT * FROM idem.idem_health() WHERE NOT ok'));
my $rows = psql('SELECT count(*) FROM idem_health()');

my $tested = 0;

sub check_red
{
	my ($what, $turns, $may, $found) = @_;
	my %found = map { $_ => 1 } split / /, $found;
	my %allowed = map { $_ => 1 } split(/ /, "$turns $may");

	is(join(' ', grep { !$found{$_} } split / /, $turns), '', "$what: $turns");
	is(join(' ', grep { !$allowed{$_} && $may ne '*' } sort keys %found), '', "$what: nothing else")
	  or diag(psql('SELECT * FROM idem.idem_health() WHERE NOT ok'));
	$tested++;
	return;
}

# Broken in a transaction, which rolls back.  A state is: what it is, the rows
# that turn, those that may turn with them ('*': all), how it is made.
sub check_states
{
	foreach my $state (@_)
	{
		my ($what, $turns, $may, $make) = @$state;

		# a psql of its own, as a health check from outside is; the last line
		my $found = psql("BEGIN; $make; SELECT count(*) FROM idem.idem_health(); $red; ROLLBACK");
		my @lines = split /\n/, $found, -1;

		check_red($what, $turns, $may, pop @lines);
		# a check that has nothing to say, as of pg_cron where there is none,
		# may have an error to tell
		cmp_ok(pop @lines, '>=', $rows, "$what: all rows are there") if $turns ne 'no_rows';
		is(psql($red), '', "$what: mended");
	}
	return;
}

my $log = 'idem.idempotency_audit_log';
my $keys = 'idem.idempotency_keys';
my $nothing = q{CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'};

check_states(
	# Whose it is
	[ 'CREATE for a role', 'schema_safe', '', 'GRANT CREATE ON SCHEMA idem TO mallory' ],
	[ 'CREATE for all', 'schema_safe', '', 'GRANT CREATE ON SCHEMA idem TO PUBLIC' ],
	[ 'schema of no superuser', 'schema_safe audit_owner', '', 'ALTER SCHEMA idem OWNER TO mallory' ],
	[ 'schema of the owner of the database', 'schema_safe audit_owner', '',
		'ALTER SCHEMA idem OWNER TO pg_database_owner; ALTER DATABASE postgres OWNER TO mallory' ],
	[ 'extension of no superuser', 'audit_owner', '',
		q{UPDATE pg_extension SET extowner = 'mallory'::regrole WHERE extname = 'idempotency'} ],
	[ 'log of no superuser', 'audit_owner', '', "ALTER TABLE $log OWNER TO mallory" ],
	[ 'default partition of no superuser', 'audit_owner', '', "ALTER TABLE ${log}_default OWNER TO mallory" ],
	[ 'partition of no superuser', 'audit_owner', '', "ALTER TABLE $partition OWNER TO mallory" ],
	[ 'seals of no superuser', 'audit_owner', 'audit_seals audit_ids audit_partitions',
		'ALTER TABLE idem.idempotency_audit_seals OWNER TO mallory' ],
	[ 'secrets of no superuser', 'audit_owner', '', 'ALTER TABLE idem.idempotency_secrets OWNER TO mallory' ],
	[ 'origin of no superuser', 'audit_owner', '', 'ALTER TABLE idem.idempotency_audit_origin OWNER TO mallory' ],
	[ 'guard of no superuser', 'audit_owner objects', '', 'ALTER FUNCTION idem.idem_audit_guard() OWNER TO mallory' ],
	[ 'function of no superuser', 'objects', '', 'ALTER FUNCTION idem.idem_lookup(text, text) OWNER TO mallory' ],
	[ 'superuser that is none any more', 'audit_owner schema_safe', '',
		q{CREATE ROLE boss SUPERUSER; ALTER TABLE idem.idempotency_secrets OWNER TO boss;
		ALTER SCHEMA idem OWNER TO boss; ALTER ROLE boss NOSUPERUSER} ],
	[ 'tables of two owners', 'owner', 'owner_access roles', 'ALTER TABLE idem.idempotency_policies OWNER TO mallory' ],
	[ 'owner without the schema', 'owner_access', 'sweep_lag worker pg_cron roles',
		'REVOKE USAGE ON SCHEMA idem FROM keyowner' ],
	[ 'keys given to who has not the schema', 'owner_access', 'sweep_lag worker pg_cron roles owner',
		'REASSIGN OWNED BY keyowner TO mallory' ],
	[ 'owner who may not delete', 'owner_access', '', "REVOKE DELETE ON $keys FROM keyowner" ],
	[ 'owner who may not read policies', 'owner_access', 'roles',
		'REVOKE ALL ON idem.idempotency_policies FROM keyowner' ],

	# What is granted
	[ 'keys for a reader', 'grants', '', "GRANT SELECT ON $keys TO mallory" ],
	[ 'answers for a reader', 'grants', '', "GRANT SELECT (body) ON $keys TO mallory" ],
	[ 'keys for a writer', 'grants', '', "GRANT UPDATE (state) ON $keys TO mallory" ],
	[ 'policies for a writer', 'grants', '', 'GRANT INSERT ON idem.idempotency_policies TO mallory' ],
	[ 'secrets for a reader', 'grants', '', 'GRANT SELECT ON idem.idempotency_secrets TO mallory' ],
	[ 'secrets for all', 'grants', '', 'GRANT SELECT (secret) ON idem.idempotency_secrets TO PUBLIC' ],
	[ 'log for a writer', 'grants', '', "GRANT INSERT ON $log TO mallory" ],
	[ 'log for all', 'grants', '', "GRANT SELECT ON $log TO PUBLIC" ],
	[ 'partition for a reader', 'grants', '', "GRANT SELECT ON $partition TO mallory" ],
	[ 'sequence of the log', 'grants', '', 'GRANT UPDATE ON SEQUENCE idem.idempotency_audit_log_id_seq TO mallory' ],
	[ 'view for all', 'grants', '', 'GRANT SELECT ON idem.idem_activity TO PUBLIC' ],
	[ 'function for all', 'grants', '',
		'GRANT EXECUTE ON FUNCTION idem.idem_lookup(text, text) TO PUBLIC' ],
	[ 'superuser\'s function', 'grants', '', 'GRANT EXECUTE ON FUNCTION idem.idem_secret(text, bytea) TO mallory' ],
	[ 'what all functions are granted', 'grants', '', 'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA idem TO mallory' ],
	[ 'what all tables are granted', 'grants', '', 'GRANT SELECT ON ALL TABLES IN SCHEMA idem TO mallory' ],

	# Tables
	[ 'no primary key', 'primary_key', '', "ALTER TABLE $keys DROP CONSTRAINT idempotency_keys_pkey" ],
	[ 'deferred primary key', 'primary_key', '',
		"ALTER TABLE $keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (scope, key) DEFERRABLE" ],
	[ 'primary key with another column', 'primary_key', '',
		"ALTER TABLE $keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (scope, key, claimed_by)" ],
	[ 'invalid primary key', 'primary_key indexes', '',
		"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idem.idempotency_keys_pkey'::regclass" ],
	[ 'no index for the sweep', 'purge_index', '', 'DROP INDEX idem.idempotency_keys_purge_at' ],
	[ 'partial index for the sweep', 'purge_index', '', "DROP INDEX idem.idempotency_keys_purge_at;
		CREATE INDEX ON $keys (purge_at) WHERE state = 'c'" ],
	[ 'left of a rebuild, valid', 'indexes', '',
		"CREATE UNIQUE INDEX idempotency_keys_pkey_ccnew ON $keys (scope, key)" ],
	[ 'left of a rebuild, not valid', 'indexes', '',
		"CREATE INDEX idempotency_keys_purge_at_ccold1 ON $keys (purge_at);
		UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idem.idempotency_keys_purge_at_ccold1'::regclass" ],
	[ 'another unique index', 'indexes', '', "CREATE UNIQUE INDEX mine ON $keys (key, scope)" ],
	[ 'unique index of the seals', 'indexes', '',
		'CREATE UNIQUE INDEX mine ON idem.idempotency_audit_seals (seal)' ],
	[ 'CHECK', 'constraints', '', "ALTER TABLE $keys ADD CHECK (key <> 'x')" ],
	[ 'foreign key to the keys', 'constraints', '',
		"CREATE TABLE public.child (scope text COLLATE \"C\", key text COLLATE \"C\", FOREIGN KEY (scope, key) REFERENCES $keys)" ],
	[ 'foreign key of the log', 'constraints', '',
		"CREATE TABLE public.actions (action text PRIMARY KEY); INSERT INTO public.actions SELECT DISTINCT action FROM $log;
		ALTER TABLE ${log}_default ADD FOREIGN KEY (action) REFERENCES public.actions" ],
	[ 'exclusion', 'constraints indexes', '',
		"ALTER TABLE idem.idempotency_limiters ADD EXCLUDE USING btree (capacity WITH =)" ],
	[ 'foreign trigger', 'triggers', '',
		"$nothing; CREATE TRIGGER mine BEFORE INSERT ON $keys FOR EACH ROW EXECUTE FUNCTION public.nothing()" ],
	[ 'deferred trigger', 'triggers constraints', '',
		"$nothing; CREATE CONSTRAINT TRIGGER mine AFTER INSERT ON $keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.nothing()" ],
	[ 'trigger that is gone', 'triggers', '', 'DROP TRIGGER idempotency_policies_changed ON idem.idempotency_policies' ],
	[ 'trigger that is off', 'triggers', '', "ALTER TABLE $log DISABLE TRIGGER idempotency_audit_guard_row" ],
	[ 'trigger for origins only', 'triggers', '',
		'ALTER TABLE idem.idempotency_limiters ENABLE TRIGGER idempotency_limiters_changed' ],
	[ 'rule', 'rules', '', "CREATE RULE mine AS ON INSERT TO $keys DO INSTEAD NOTHING" ],
	[ 'table without WAL', 'tables_logged', '', 'ALTER TABLE idem.idempotency_limiters SET UNLOGGED' ],
	[ 'column that is gone', 'key_columns', '', "ALTER TABLE $keys DROP COLUMN checkpoint" ],
	[ 'column that all is about', 'key_columns', 'sweep_lag worker pg_cron roles purge_index',
		"ALTER TABLE $keys DROP COLUMN purge_at" ],
	[ 'column of another type', 'key_columns', '', "ALTER TABLE $keys ALTER COLUMN body_size TYPE int4" ],
	[ 'column of another collation', 'key_columns', '', "ALTER TABLE $keys ALTER COLUMN key TYPE text COLLATE \"POSIX\"" ],
	[ 'column of policies that is gone', 'other_columns', '', 'ALTER TABLE idem.idempotency_policies DROP COLUMN audit' ],
	[ 'column of the seals that is gone', 'other_columns', 'audit_seals',
		'ALTER TABLE idem.idempotency_audit_seals DROP COLUMN id_to' ],
	[ 'column that must be given', 'other_columns', '', 'ALTER TABLE idem.idempotency_audit_origin ADD COLUMN mine int;
		ALTER TABLE idem.idempotency_audit_origin ALTER COLUMN mine SET DEFAULT 1; UPDATE idem.idempotency_audit_origin SET mine = 1;
		ALTER TABLE idem.idempotency_audit_origin ALTER COLUMN mine SET NOT NULL, ALTER COLUMN mine DROP DEFAULT' ],
	[ 'table that inherits', 'inheritance', '', "CREATE TABLE public.heir () INHERITS ($keys)" ],
	[ 'table that is gone', 'version', '*', 'ALTER TABLE idem.idempotency_limiters RENAME TO gone' ],

	# Functions
	[ 'function that is gone', 'objects', '',
		'ALTER EXTENSION idempotency DROP FUNCTION idem.idem_log_id(text); DROP FUNCTION idem.idem_log_id(text)' ],
	[ 'overload that is gone', 'objects', '', q{
		UPDATE pg_proc SET proname = 'gone' WHERE oid = (SELECT min(oid) FROM pg_proc WHERE proname = 'idem_complete')} ],
	[ 'view that is gone', 'objects', '',
		'ALTER EXTENSION idempotency DROP VIEW idem.idem_stats; DROP VIEW idem.idem_stats' ],
	[ 'guard of somebody else\'s', 'objects', '',
		q{CREATE OR REPLACE FUNCTION idem.idem_audit_guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'} ],
	[ 'SECURITY DEFINER', 'objects', '', 'ALTER FUNCTION idem.idem_lookup(text, text) SECURITY DEFINER' ],
	[ 'settings of a function', 'objects', '', 'ALTER FUNCTION idem.idem_lookup(text, text) SET work_mem = 64' ],
	[ 'another version', 'version', '', q{UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'idempotency'} ],
	[ 'pgcrypto without hmac', 'pgcrypto', '', 'ALTER EXTENSION pgcrypto DROP FUNCTION hmac(bytea, bytea, text)' ],

	# What is in them
	[ 'role renamed', 'roles', '', 'ALTER ROLE shop RENAME TO store' ],
	[ 'role of a policy', 'roles', '', q{UPDATE idem.idempotency_policies SET owner_role = 'gone'} ],
	[ 'key due, and nobody sweeps', 'worker', $has_cron ? 'pg_cron' : '', "UPDATE $keys SET purge_at = now() - interval '1 s'" ],
	[ 'key long due', 'worker sweep_lag', $has_cron ? 'pg_cron' : '', "UPDATE $keys SET purge_at = now() - interval '11 min'" ],
	[ 'schema for web clients', 'http_exposed', '', q{ALTER DATABASE postgres SET pgrst.db_schemas = 'api, idem'} ],

	# The log
	[ 'log without row security', 'row_security', '', "ALTER TABLE $log DISABLE ROW LEVEL SECURITY" ],
	[ 'partition without row security', 'row_security', '', "ALTER TABLE $partition DISABLE ROW LEVEL SECURITY" ],
	[ 'partition that a reader\'s dump would leave out', 'row_security', '', "DROP POLICY idempotency_audit_read ON $partition" ],
	[ 'secrets without row security', 'row_security', '', 'ALTER TABLE idem.idempotency_secrets DISABLE ROW LEVEL SECURITY' ],
	[ 'secrets with a policy', 'row_security', '', 'CREATE POLICY p ON idem.idempotency_secrets USING (true)' ],
	[ 'row that nobody seals', 'audit_seals', 'audit_partitions', "INSERT INTO $log (at, xid, action, entity, entity_id, session_role, effective_role)
		VALUES (now() - interval '2 h', pg_current_xact_id(), 'a', 'b', 'c', 'd', 'e')" ],
	[ 'index of the whole log', 'audit_indexes', '', "SET LOCAL allow_system_table_mods = on; CREATE INDEX ON $log (action)" ],
	[ 'partition without the index', 'audit_indexes', '', "DROP INDEX ${log}_default_entity" ],
	[ 'partition without a primary key', 'audit_indexes', '',
		"ALTER TABLE ${log}_default DROP CONSTRAINT idempotency_audit_log_default_pkey" ],
	[ 'default partition detached', 'audit_partitions', 'triggers', "ALTER TABLE $log DETACH PARTITION ${log}_default" ],
	[ 'nobody makes partitions', 'audit_partitions', 'audit_seals', qq{DO \$\$ DECLARE p regclass; BEGIN
		FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = '$log'::regclass AND inhrelid <> '${log}_default'::regclass
		LOOP EXECUTE 'DROP TABLE ' || p; END LOOP; END \$\$;
		INSERT INTO $log (at, xid, action, entity, entity_id, session_role, effective_role)
		VALUES (now() - interval '2 h', pg_current_xact_id(), 'a', 'b', 'c', 'd', 'e')} ],
	[ 'secrets published', 'publications', '', 'CREATE PUBLICATION mine FOR TABLE idem.idempotency_secrets' ],
	[ 'partitions published', 'publications', '', "CREATE PUBLICATION mine FOR TABLE $log" ],
	[ 'schema published', 'publications', '', 'CREATE PUBLICATION mine FOR TABLES IN SCHEMA idem' ],
	[ 'all published', 'publications', '', 'CREATE PUBLICATION mine FOR ALL TABLES' ],
);

# Every function and view of ours is missed
is(psql(q{
CREATE FUNCTION public.unmissed() RETURNS TABLE (name text) LANGUAGE plpgsql AS $$
DECLARE
	member record;
	noticed boolean;
BEGIN
	FOR member IN SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS what FROM pg_depend d
		WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency') AND d.deptype = 'e'
		AND (d.classid = 'pg_proc'::regclass OR d.objid IN (SELECT oid FROM pg_class WHERE relkind = 'v'))
	LOOP
		BEGIN
			UPDATE pg_proc SET proname = 'gone' WHERE oid = member.objid AND proname <> 'idem_health';
			UPDATE pg_class SET relname = 'gone' WHERE oid = member.objid;
			SELECT NOT ok INTO noticed FROM idem.idem_health() WHERE check_name = 'objects';
			RAISE EXCEPTION 'undo' USING ERRCODE = 'UNDO1';
		EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
		END;
		name := member.what;
		IF NOT noticed THEN
			RETURN NEXT;
		END IF;
	END LOOP;
END $$;
BEGIN;
SELECT * FROM public.unmissed();
ROLLBACK;
DROP FUNCTION public.unmissed()}), 'function idem_health()', 'every function and view is missed when it is gone');

# What is no fault
foreach my $sound (
	[ 'log published as a whole', "CREATE PUBLICATION mine FOR TABLE $log WITH (publish_via_partition_root = true)" ],
	[ 'plain index', "CREATE INDEX mine ON $keys (policy)" ],
	[ 'column of somebody else\'s', "ALTER TABLE $keys ADD COLUMN mine text" ],
	[ 'partition for an auditor', "GRANT SELECT ON $partition TO clerk" ],
	[ 'superuser', "CREATE ROLE boss SUPERUSER; GRANT ALL ON $keys TO boss; GRANT CREATE ON SCHEMA idem TO boss" ],
	[ 'keys in partitions', qq{ALTER EXTENSION idempotency DROP TABLE $keys; ALTER TABLE $keys RENAME TO whole;
		CREATE TABLE $keys (LIKE idem.whole) PARTITION BY HASH (scope, key); ALTER TABLE $keys ADD PRIMARY KEY (scope, key);
		CREATE INDEX ON $keys (purge_at); ALTER TABLE $keys OWNER TO keyowner;
		CREATE TABLE idem.part0 PARTITION OF $keys FOR VALUES WITH (MODULUS 2, REMAINDER 0);
		CREATE TABLE idem.part1 PARTITION OF $keys FOR VALUES WITH (MODULUS 2, REMAINDER 1);
		INSERT INTO $keys SELECT * FROM idem.whole; DROP TABLE idem.whole} ],
	[ 'index of each partition', "CREATE INDEX ON ${log}_default (action)" ])
{
	is(psql("BEGIN; $sound->[1]; $red; ROLLBACK"), '', "no fault: $sound->[0]");
}

# The operator sees the same as a superuser does
is(psql("SELECT count(*) FROM (SELECT check_name, ok FROM idem_health() EXCEPT
	SELECT check_name, ok FROM idem_health()) d"), '0', 'asked twice');
is(psql("SET ROLE clerk; $red"), '', 'asked by an operator')
  or diag(psql('SET ROLE clerk; SELECT * FROM idem.idem_health() WHERE NOT ok'));

# The hint where a claim fails
{
	my $stderr = '';

	$node->psql('postgres', q{BEGIN; REVOKE USAGE ON SCHEMA idem FROM keyowner;
		SELECT idem_claim('s', 'k')}, stderr => \$stderr, extra_params => ['-v', 'VERBOSITY=verbose']);
	like($stderr, qr/42501.*keyowner.*HINT:.*GRANT USAGE ON SCHEMA idem TO keyowner/s,
		'a claim says what its owner lacks');
}

#
# What cannot be rolled back
#
sub check_state
{
	my ($what, $turns, $may, $make, $undo) = @_;

	$make->();
	check_red($what, $turns, $may, psql($red));
	$undo->();
	is(psql($red), '', "$what: mended");
	return;
}

sub set
{
	my ($setting, $value) = @_;

	psql(defined $value ? "ALTER SYSTEM SET $setting = $value" : "ALTER SYSTEM RESET $setting");
	$node->reload;
	poll("$setting to be set", sub {
		psql("SELECT setting = @{[ $value // qq{'off'} ]} FROM pg_settings WHERE name = '$setting'") eq 't' })
	  if defined $value;
	return;
}

my $sequence = psql('SELECT last_value FROM idem.idempotency_audit_log_id_seq');
check_state('sequence behind the log', 'audit_ids', 'audit_seals',
	sub { psql("SELECT setval('idem.idempotency_audit_log_id_seq', 1)") },
	sub { psql("SELECT setval('idem.idempotency_audit_log_id_seq', $sequence)") });

# Refused, and nobody writes that down
check_state('refusals wait', 'audit_refusals', '',
	sub { psql(q{SELECT idem_claim('t', 'm', '1', policy => 'audited'); SELECT idem_claim('t', 'm', '2', policy => 'audited')}) },
	sub { set('idempotency.worker', "'on'");
		poll('the refusal', sub { psql(qq{SELECT count(*) FROM $log WHERE action = 'mismatch'}) == 1 });
		poll('the queue', sub { psql($red) eq '' }); });

is(psql(q{SELECT ok, detail FROM idem_health() WHERE check_name = 'worker'}), 't|running', 'the worker runs');

# No partition can be made: the log is sealed, and it is said at once
check_state('event trigger that refuses tables', 'audit_partitions', '',
	sub {
		# at once: the worker is quick to make them again
		psql(qq{BEGIN;
DO \$\$ DECLARE p regclass; BEGIN
	FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = '$log'::regclass AND inhrelid <> '${log}_default'::regclass
	LOOP EXECUTE 'DROP TABLE ' || p; END LOOP; END \$\$;
CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS
	'BEGIN RAISE EXCEPTION ''no tables today''; END';
CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.refuse();
SELECT idem_audit('refused', 'table', '1'); COMMIT});
		poll('the seal', sub { psql(q{SELECT (SELECT max(id) FROM idem.idempotency_audit_log)
			<= (SELECT max(id_to) FROM idem.idempotency_audit_seals)}) eq 't' });
		poll('health', sub { psql($red) ne '' });
		# a worker that cannot have the lock has not succeeded
		my $reader = session($node);
		$reader->query("BEGIN; LOCK TABLE ${log}_default IN ACCESS SHARE MODE");
		for (1 .. 2)
		{
			my $last = psql('SELECT last_run FROM idem.idem_sweep_status');
			poll('a run of the worker', sub { psql('SELECT last_run FROM idem.idem_sweep_status') ne $last });
		}
		is(psql($red), 'audit_partitions', 'a lock does not end the error');
		$reader->quit;
		my $stderr = '';
		$node->psql('postgres', q{SELECT idem_audit('by hand', 'table', '1'); SELECT idem_audit_seal()},
			stderr => \$stderr, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
		like($stderr, qr/WARNING:  P0001: .*no tables today/, 'a call of idem_audit_seal says why');
		like(psql(q{SELECT detail FROM idem_health() WHERE check_name = 'audit_partitions'}),
			qr/no tables today/, 'health says why');
	},
	sub {
		psql('DROP EVENT TRIGGER refuse; DROP FUNCTION public.refuse()');
		poll('partitions', sub { psql($red) eq '' });
	});

# Jobs of pg_cron
SKIP:
{
	skip 'there is no pg_cron', 8 if !$has_cron;

	psql('SELECT idem_schedule()');
	is(psql($red), '', 'a job is no fault');
	check_state('job of a schema that has another name', 'pg_cron', '',
		sub { psql(q{UPDATE cron.job SET command = 'CALL gone.idem_sweep_all()'}) },
		sub { psql(q{SELECT idem_schedule()}) });
	check_state('job that fails', 'pg_cron', '',
		sub { psql(q{INSERT INTO cron.job_run_details (jobid, runid, database, username, command, status, return_message)
			SELECT jobid, 1000000, database, username, command, 'failed', 'ERROR: no such role' FROM cron.job}) },
		sub { psql('DELETE FROM cron.job_run_details') });
	psql('ALTER SCHEMA idem RENAME TO "other one"');
	is(psql(q{SELECT ok FROM "other one".idem_health() WHERE check_name = 'pg_cron'}), 'f',
		'the schema of the extension has another name');
	psql('SELECT "other one".idem_schedule()');
	is(psql(q{SELECT ok FROM "other one".idem_health() WHERE check_name = 'pg_cron'}), 't',
		'the job made anew');
	psql('ALTER SCHEMA "other one" RENAME TO idem; SELECT idem.idem_unschedule()');
}

# Locked: who waits no longer is told so
{
	my $holder = session($node);

	$holder->query("BEGIN; LOCK TABLE $keys");
	like(psql("SET lock_timeout = '100ms'; $red"), qr/\bsweep_lag\b/, 'a table that is locked');
	is(psql("SET lock_timeout = '100ms'; SELECT count(*) FROM idem.idem_health()"), $rows, 'and nothing is raised');
	is(sqlstate($node, "SET statement_timeout = '100ms'; SELECT count(*) FROM idem.idem_health()"), '57014',
		'but a cancel');
	$holder->query('ROLLBACK');
	$holder->quit;
}

#
# The same answers under every setting of the client
#
psql(q{INSERT INTO idem.idempotency_policies (name, owner_role) VALUES ('o''dd', 'go"ne\\x');
	ALTER ROLE shop RENAME TO "Store"; CREATE RULE "o'dd" AS ON UPDATE TO idem.idempotency_limiters DO ALSO NOTHING;
	GRANT SELECT ON idem.idempotency_keys TO mallory});
my $answers = q{SELECT check_name, ok, regexp_replace(detail, '[0-9]+', 'N', 'g') FROM idem.idem_health()};
my $expected = psql($answers);
like($expected, qr/roles\|f\|.*Store|roles\|f\|.*shop/, 'there is something to say');
foreach my $setting (
	'standard_conforming_strings = off',
	'standard_conforming_strings = off; SET escape_string_warning = on; SET backslash_quote = off',
	'array_nulls = off', 'transform_null_equals = on', 'quote_all_identifiers = on',
	q{DateStyle = 'German, DMY'}, q{DateStyle = 'SQL, MDY'}, 'IntervalStyle = sql_standard', 'IntervalStyle = iso_8601',
	q{TimeZone = 'Asia/Kathmandu'}, q{timezone_abbreviations = 'India'}, 'extra_float_digits = -15',
	'bytea_output = escape', 'xmlbinary = hex', 'xmloption = document', 'row_security = off',
	q{lc_messages = 'C'}, q{client_encoding = 'LATIN1'}, q{client_encoding = 'SQL_ASCII'},
	'search_path = public', q{search_path = ''}, 'search_path = pg_temp, public, pg_catalog',
	'default_transaction_read_only = on', 'default_transaction_isolation = serializable',
	q{default_transaction_isolation = 'repeatable read'},
	'default_transaction_isolation = serializable; SET default_transaction_read_only = on; SET default_transaction_deferrable = on',
	'session_replication_role = replica', 'enable_seqscan = off; SET enable_indexscan = off; SET enable_bitmapscan = off',
	'plan_cache_mode = force_custom_plan', 'plan_cache_mode = force_generic_plan',
	'jit = on; SET jit_above_cost = 0', 'force_parallel_mode = on', 'max_parallel_workers_per_gather = 8',
	'check_function_bodies = off', 'constraint_exclusion = on', 'enable_partition_pruning = off',
	'default_tablespace = pg_default', 'synchronous_commit = off', 'work_mem = 64', 'lo_compat_privileges = on',
	'track_activities = off', 'client_min_messages = debug1', 'log_min_messages = fatal',
)
{
	my ($name) = $setting =~ /^(\w+(?:\.\w+)?)/;
	my $known = psql("SELECT count(*) FROM pg_settings WHERE name = lower('$name')");

	# 19 has but one value for some of old
	next if $known == 0 || sqlstate($node, "SET $setting") eq '0A000';
	my ($out, $stderr, $before);
	# what the worker is at may change meanwhile: then once more
	for my $try (1 .. 20)
	{
		($out, $stderr) = ('', '');
		$before = psql($answers);
		$node->psql('postgres', "SET $setting; $answers", stdout => \$out, stderr => \$stderr);
		last if psql($answers) eq $before;
	}
	is($out, $before, "the same with $setting") or diag($stderr);
}

cmp_ok($tested, '>=', 40, "$tested bad states");
$node->stop;

#
# Other servers: no memory for limiters, another encoding
#
my $plain = new_node('plain');
if ($plain->safe_psql('postgres', 'SHOW server_version_num') < 170000)
{
	my $stderr = '';

	is($plain->safe_psql('postgres', q{SELECT ok FROM idem_health() WHERE check_name = 'buckets'}), 't',
		'no limiter, no memory');
	$plain->psql('postgres', q{SELECT idem_limiter('slow', 10, '1 min')}, stderr => \$stderr,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($stderr, qr/NOTICE:  55000:.*shared_preload_libraries/s, 'a limiter that cannot work is said to be');
	is($plain->safe_psql('postgres', q{SELECT ok FROM idem_health() WHERE check_name = 'buckets'}), 'f',
		'a limiter without memory');
}
$plain->safe_psql('postgres', q{SELECT idem_policy('short', completed_ttl => '1 us');
	SELECT count(*) FROM idem_dedupe('s', '{a}', 'short')});
is($plain->safe_psql('postgres', q{SELECT ok FROM idem_health() WHERE check_name = 'worker'}), 'f',
	'a key that has expired, and nothing sweeps');
$plain->safe_psql('postgres', q{SELECT idem_sweep()});
is($plain->safe_psql('postgres', q{SELECT ok FROM idem_health() WHERE check_name = 'worker'}), 't', 'until it is swept');
$plain->safe_psql('postgres', q{CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0});
install($plain, 'bytes');
is($plain->safe_psql('bytes', q{SELECT string_agg(check_name, ' ') FROM idem_health()
	WHERE NOT ok AND check_name <> 'server_version'}), 'encoding', 'a database without an encoding');
$plain->append_conf('postgresql.conf', q{
shared_preload_libraries = 'idempotency'
idempotency.databases = 'bytes'
});
$plain->restart;
is($plain->safe_psql('postgres', q{SELECT ok, detail FROM idem_health() WHERE check_name = 'worker'}),
	'f|idempotency.databases does not name this database, and nobody is known to call idem_sweep() instead',
	'a database that is left out');
is($plain->safe_psql('bytes', q{SELECT ok FROM idem_health() WHERE check_name = 'worker'}), 't', 'and one that is not');
$plain->safe_psql('postgres', q{SELECT idem_sweep()});
is($plain->safe_psql('postgres', q{SELECT ok, detail FROM idem_health() WHERE check_name = 'worker'}),
	't|idempotency.databases does not name this database; no key is long due', 'where somebody else sweeps');
$plain->stop;

done_testing();
