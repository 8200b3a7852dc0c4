# What somebody has added to the key table refuses a row: nothing of it is shown.
#
# Scenario: the table gets a CHECK, a foreign key, an exclusion constraint, a
# unique index, a trigger, a rule, a column, a policy, partitions, one at a time,
# and each refuses rows with the key, scope or body in question.  PostgreSQL's own
# message, detail and context would show these, and so would those of statements
# that a trigger makes of them; a deferred one, which would speak up at COMMIT, is
# refused at once.  Every function
# that writes is called.  The SQLSTATE is that of the cause, or XX001 where rows
# are suppressed in silence, and nothing of key, scope and body is in what the
# client gets, or in the server's log at its most verbose, or what PL/pgSQL can
# catch.  Then what was added is dropped, and all works.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $table = 'idempotency_keys';
my $node = new_node(
	'quiet', conf => q{
log_error_verbosity = verbose
log_min_error_statement = panic
log_parameter_max_length_on_error = -1
});

$node->safe_psql(
	'postgres', q{
CREATE TABLE bird (scope text, key text, body text);
INSERT INTO bird VALUES ('CANARY scope', 'CANARY key', 'CANARY body');
CREATE TABLE allowed (key text PRIMARY KEY);
CREATE TABLE seen (key text PRIMARY KEY, n integer);
CREATE FUNCTION answer(request jsonb) RETURNS text LANGUAGE sql AS
	'SELECT to_json(body) FROM bird';
CREATE FUNCTION null_row() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN RETURN NULL; END';
CREATE FUNCTION raise() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'no %', NEW USING DETAIL = NEW, HINT = NEW; END$$;
CREATE FUNCTION cast_key() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN PERFORM coalesce(NEW.key, OLD.key)::integer; RETURN NULL; END$$;
CREATE FUNCTION dynamic() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN EXECUTE 'SELECT ' || NEW.key; RETURN NULL; END$$;
CREATE FUNCTION missing() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN EXECUTE format('SELECT FROM %I', NEW.key); RETURN NULL; END$$;
CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO public.seen SELECT NEW.key FROM generate_series(1, 2); RETURN NULL; END$$;
CREATE FUNCTION asserts() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN ASSERT false, NEW.key; RETURN NULL; END$$;
CREATE FUNCTION catch(command text, OUT state text, OUT said text) LANGUAGE plpgsql AS $$
DECLARE a text; b text; c text; d text;
BEGIN
	EXECUTE command;
	state := '00000';
EXCEPTION WHEN OTHERS OR assert_failure THEN
	GET STACKED DIAGNOSTICS a = MESSAGE_TEXT, b = PG_EXCEPTION_DETAIL,
		c = PG_EXCEPTION_HINT, d = PG_EXCEPTION_CONTEXT;
	state := sqlstate;
	said := concat_ws(e'\n', a, b, c, d);
END $$;
});

# Calls that write a row; the key is in no text
my %calls = (
	claim => 'SELECT idem_claim(scope, key) FROM bird',
	run => q{SELECT idem_run('answer(jsonb)', scope, key) FROM bird},
	dedupe => 'SELECT idem_dedupe(scope, ARRAY[key]) FROM bird',
	complete => 'SELECT idem_complete(scope, key, to_json(body)) FROM bird',
	fail => 'SELECT idem_fail(scope, key, to_json(body)) FROM bird',
	checkpoint => q{SELECT idem_checkpoint(b.scope, b.key, k.token, 'CANARY body')
		FROM bird b JOIN idempotency_keys k USING (scope, key)},
	forget => 'SELECT idem_forget(scope, key) FROM bird',
	forget_scope => 'SELECT idem_forget_scope(scope) FROM bird',
	sweep => 'SELECT idem_sweep()');

# Before them, where there must be a claim, or a row whose time is over
my %before = (
	complete => $calls{claim},
	fail => $calls{claim},
	checkpoint => $calls{claim},
	forget => $calls{claim},
	forget_scope => $calls{dedupe},
	sweep => "$calls{claim};
		UPDATE $table SET purge_at = now() - interval '1 day'");

my @inserts = qw(claim run dedupe);
my @updates = qw(complete fail checkpoint);
my @deletes = qw(forget forget_scope sweep);

sub trigger
{
	my ($when, $events, $function) = @_;

	return {
		name => "a trigger $when $events: $function",
		up => "CREATE TRIGGER t $when $events ON $table
			FOR EACH ROW EXECUTE FUNCTION $function()",
		down => "DROP TRIGGER t ON $table"
	};
}

my @cases = (
	{
		name => 'a CHECK',
		up => "ALTER TABLE $table ADD CONSTRAINT c CHECK (key NOT LIKE 'CANARY%')",
		down => "ALTER TABLE $table DROP CONSTRAINT c",
		calls => \@inserts,
		state => '23514'
	},
	{
		name => 'a CHECK of the body',
		up => "ALTER TABLE $table ADD CONSTRAINT c
			CHECK (state <> 'c' AND state <> 'r' AND recovery_point IS NULL)",
		down => "ALTER TABLE $table DROP CONSTRAINT c",
		calls => [@updates],
		state => '23514'
	},
	{
		name => 'a foreign key',
		up => "ALTER TABLE $table ADD CONSTRAINT c
			FOREIGN KEY (key) REFERENCES allowed",
		down => "ALTER TABLE $table DROP CONSTRAINT c",
		calls => \@inserts,
		state => '23503'
	},
	{
		name => 'a deferred foreign key',
		up => "ALTER TABLE $table ADD CONSTRAINT c
			FOREIGN KEY (key) REFERENCES allowed DEFERRABLE INITIALLY DEFERRED",
		down => "ALTER TABLE $table DROP CONSTRAINT c",
		calls => \@inserts,
		state => '42501'
	},
	{
		name => 'a foreign key to it',
		before => "$calls{dedupe}",
		up => "CREATE TABLE referring (scope text, key text,
				FOREIGN KEY (scope, key) REFERENCES $table);
			INSERT INTO referring SELECT scope, key FROM bird",
		down => 'DROP TABLE referring',
		calls => \@deletes,
		state => '23503'
	},
	{
		name => 'an exclusion constraint',
		before => q{SELECT idem_run('answer(jsonb)', scope, 'CANARY first') FROM bird},
		up => "ALTER TABLE $table ADD CONSTRAINT c EXCLUDE (body WITH =)",
		down => "ALTER TABLE $table DROP CONSTRAINT c",
		calls => [qw(run)],
		state => 'XX001'
	},
	{
		name => 'an exclusion constraint, of an answer',
		before => q{SELECT idem_run('answer(jsonb)', scope, 'CANARY first') FROM bird},
		up => "ALTER TABLE $table ADD CONSTRAINT c EXCLUDE (body WITH =)",
		down => "ALTER TABLE $table DROP CONSTRAINT c",
		calls => [qw(complete fail)],
		state => '23P01'
	},
	{
		name => 'a unique index',
		before => q{SELECT idem_claim(scope, 'CANARY first') FROM bird},
		up => "CREATE UNIQUE INDEX c ON $table (scope) INCLUDE (key)",
		down => 'DROP INDEX c',
		calls => [qw(claim run)],
		state => 'XX001'
	},
	{
		name => 'a unique index, of an answer',
		before => q{SELECT idem_run('answer(jsonb)', scope, 'CANARY first') FROM bird},
		up => "CREATE UNIQUE INDEX c ON $table (body)",
		down => 'DROP INDEX c',
		calls => [qw(complete fail)],
		state => '23505'
	},
	{
		name => 'a deferred unique constraint',
		before => q{SELECT idem_run('answer(jsonb)', scope, 'CANARY first') FROM bird},
		up => "ALTER TABLE $table ADD CONSTRAINT c UNIQUE (body)
			DEFERRABLE INITIALLY DEFERRED",
		down => "ALTER TABLE $table DROP CONSTRAINT c",
		calls => \@inserts,
		state => '55000'
	},
	{
		name => 'a generated column',
		up => "ALTER TABLE $table ADD c integer GENERATED ALWAYS AS (key::integer) STORED",
		down => "ALTER TABLE $table DROP c",
		calls => \@inserts,
		state => '22P02'
	},
	{
		name => 'a column that must not be null',
		up => "ALTER TABLE $table ADD c integer NOT NULL",
		down => "ALTER TABLE $table DROP c",
		calls => \@inserts,
		state => '23502'
	},
	{
		name => 'an index on an expression',
		up => "CREATE INDEX c ON $table ((key::integer))",
		down => 'DROP INDEX c',
		calls => \@inserts,
		state => '22P02'
	},
	{
		name => 'a rule',
		up => "CREATE RULE r AS ON INSERT TO $table DO INSTEAD NOTHING",
		down => "DROP RULE r ON $table",
		calls => [qw(claim run)],
		state => [qw(XX001 0A000)]
	},
	{
		name => 'row security',
		up => "ALTER TABLE $table ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
			CREATE ROLE keeper; GRANT USAGE ON SCHEMA public TO keeper;
			ALTER TABLE $table OWNER TO keeper;
			CREATE POLICY p ON $table WITH CHECK (key NOT LIKE 'CANARY%')",
		down => "DROP POLICY p ON $table; ALTER TABLE $table OWNER TO postgres;
			ALTER TABLE $table DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
			DROP OWNED BY keeper; DROP ROLE keeper",
		calls => \@inserts,
		state => [ '42501', '00000' ]
	},
	{
		%{ trigger('BEFORE', 'INSERT', 'null_row') },
		calls => [qw(claim run)],
		state => 'XX001'
	},
	{
		%{ trigger('BEFORE', 'UPDATE', 'null_row') },
		calls => \@updates,
		state => 'XX001'
	},
	map({
			my $case = $_;
			(   {
					%{ trigger('AFTER', 'INSERT', $case->[0]) },
					calls => \@inserts,
					state => $case->[1]
				},
				{
					%{ trigger('AFTER', 'UPDATE', $case->[0]) },
					calls => \@updates,
					state => $case->[1]
				})
		} ([ 'raise', 'P0001' ],
		[ 'cast_key', '22P02' ],
		[ 'dynamic', '42703' ],
		[ 'missing', '42P01' ],
		[ 'twice', '23505' ],
		[ 'asserts', 'P0004' ])),
	{
		%{ trigger('BEFORE', 'DELETE', 'cast_key') },
		calls => \@deletes,
		state => '22P02'
	},
	{
		name => 'a deferred constraint trigger',
		up => "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON $table DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION raise()",
		down => "DROP TRIGGER t ON $table",
		calls => \@inserts,
		state => '42501'
	});

sub try_call
{
	my ($name, $call, $states) = @_;
	my $log = -s $node->logfile;
	my ($stdout, $stderr) = ('', '');
	# A claim and its finish are of one transaction
	my $sql = "BEGIN; " . ($before{$call} ? "$before{$call};" : '')
	  . "$calls{$call}; COMMIT";

	$node->psql(
		'postgres', $sql,
		stdout => \$stdout,
		stderr => \$stderr,
		extra_params => [ '-v', 'VERBOSITY=verbose', '-o', '/dev/null' ]);
	my ($state) = $stderr =~ /ERROR:\s+(\w{5}):/;
	$state //= '00000';
	ok( scalar(grep { $_ eq $state } ref $states ? @$states : $states),
		"$name, $call: SQLSTATE $state")
	  or diag $stderr;
	unlike($stderr, qr/CANARY/, "$name, $call: nothing shown to the client");
	unlike(slurp_file($node->logfile, $log),
		qr/CANARY/, "$name, $call: nor in the log");
	unlike(
		$node->safe_psql('postgres',
			($before{$call} ? "BEGIN; SELECT FROM ($before{$call}) b;" : '')
			. qq{SELECT said FROM catch(\$c\$$calls{$call}\$c\$)}),
		qr/CANARY/,
		"$name, $call: nor can it be caught") if !$before{$call};
	return;
}

sub run_case
{
	my ($case) = @_;

	$node->safe_psql('postgres', "DELETE FROM $table; " . ($case->{before} // ''));
	$node->safe_psql('postgres', $case->{up});
	try_call($case->{name}, $_, $case->{state}) foreach @{ $case->{calls} };
	$node->safe_psql('postgres', $case->{down});
	$node->safe_psql('postgres', "DELETE FROM $table");
	is($node->safe_psql('postgres', 'SELECT outcome FROM ('
			. $calls{run} =~ s/idem_run\(.*?\) FROM/(idem_run('answer(jsonb)', scope, key)).outcome FROM/r . ') r'),
		'completed', "$case->{name}: without it all is well");
	return;
}

run_case($_) foreach @cases;

# The same for a row that no partition takes
partition_keys($node, 2);
$node->safe_psql('postgres',
	"DELETE FROM $table; ALTER TABLE $table DETACH PARTITION ${table}_1;
	ALTER TABLE $table DETACH PARTITION ${table}_2");
try_call('no partition', $_, '23514') foreach @inserts;

$node->stop;
done_testing();
