# Nothing confidential in messages or in the server's log.
#
# Scenario: scope, key, request, context, answer and secret are each a string
# that is found nowhere else.  They come out of a table, so that no statement
# has them in its text.  Every error that the functions can raise is raised
# with them.  None of the strings may then be in what the client gets as
# message, detail, hint or context, nor in the log: first at the default
# settings, then at the most talkative ones.  At last auto_explain logs nested
# statements with their parameters, and the secret is not among them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $canary = qr/CANARY/i;
# the same in the hexadecimal form of bytea, whatever is around it
my $canary_hex = qr/43414e415259/i;

my $node = new_node(
	'leaks', conf => q{
log_statement = none
deadlock_timeout = 10ms
max_prepared_transactions = 2
});

$node->safe_psql(
	'postgres', q{
CREATE ROLE other LOGIN;
SELECT idem_grant('other', 'app');
CREATE TABLE bird (scope text, key text, request jsonb, body text, context bytea,
                     secret bytea, header text, uuid text);
INSERT INTO bird VALUES ('canaryscope', 'canarykey', '{"canaryrequest": 1}',
	'canarybody', 'canarycontext', 'canarysecret', '"canaryheader', 'canary-uuid');
UPDATE bird SET scope = upper(scope), key = upper(key), body = upper(body),
	context = upper(encode(context, 'escape'))::bytea, secret = upper(encode(secret, 'escape'))::bytea,
	request = upper(request::text)::jsonb, header = upper(header), uuid = upper(uuid);
GRANT SELECT ON bird TO other;

SELECT idem_policy('small', max_body_bytes => 1);
SELECT idem_policy('few', max_live_keys => 1);
SELECT idem_policy('uuids', key_format => 'uuid');
SELECT idem_policy('once', on_repeat => 'reject');
SELECT idem_policy('late', completed_ttl => '1 us', on_expiry => 'reject', tombstone => '1 day');
SELECT idem_policy('strict', require_fingerprint => true);

CREATE FUNCTION not_json(jsonb) RETURNS text LANGUAGE sql AS 'SELECT body FROM bird';
CREATE FUNCTION refuses(jsonb) RETURNS idem_response LANGUAGE sql AS
	'SELECT idem_respond(500, to_json(body)) FROM bird';
CREATE FUNCTION large(jsonb) RETURNS json LANGUAGE sql AS 'SELECT to_json(body) FROM bird';
CREATE FUNCTION no_handler(text) RETURNS json LANGUAGE sql AS 'SELECT NULL::json';

-- a key for each kind of error
CREATE FUNCTION k(kind text) RETURNS text LANGUAGE sql STABLE AS
	'SELECT public.bird.key || kind FROM public.bird';
CREATE FUNCTION s() RETURNS text LANGUAGE sql STABLE AS
	'SELECT public.bird.scope FROM public.bird';
CREATE FUNCTION b() RETURNS text LANGUAGE sql STABLE AS
	'SELECT public.bird.body FROM public.bird';
GRANT EXECUTE ON FUNCTION k, s, b TO other;

BEGIN;
SELECT idem_claim(s(), k('done'), request, context => context) FROM bird;
SELECT idem_complete(s(), k('done'), to_json(b()));
SELECT idem_claim(s(), k('once'), request, policy => 'once') FROM bird;
SELECT idem_complete(s(), k('once'));
SELECT idem_claim(s(), k('late'), policy => 'late');
SELECT idem_complete(s(), k('late'));
SELECT idem_claim(s() || '2', k('few'), policy => 'few');
SELECT idem_complete(s() || '2', k('few'));
COMMIT;
SELECT idem_claim(s(), k('open'), lease => '1 hour');
});

# SQLSTATE, statements, and the user for them
my @cases = (
	[ 'ID001', q{SELECT idem_complete(s(), k('none'))} ],
	[ 'ID001', q{SELECT idem_extend(s(), k('none'), 1, '1 s')} ],
	[ 'ID002', q{SELECT idem_complete(s(), k('open'), to_json(b()))} ],
	[ 'ID002', q{SELECT idem_fail(s(), k('open'), to_json(b()), token => 1)} ],
	[ 'ID002', q{SELECT idem_checkpoint(s(), k('open'), 1, b())} ],
	[ 'ID002', q{SELECT idem_release(s(), k('open'))} ],
	[ 'ID003', q{SELECT idem_complete(s(), k('done'), to_json(b() || 2), token => token)
	             FROM idempotency_keys WHERE key = k('done')} ],
	[ 'ID003', q{SELECT idem_require(s(), k('done'), request, context => context) FROM bird} ],
	[ 'ID004', q{SELECT idem_require(s(), k('open'))} ],
	[ 'ID005', q{SELECT idem_require(s(), k('done'), request || '{"x": 1}') FROM bird} ],
	[ 'ID005', q{SELECT idem_require(s(), k('done'), request, context => context || '\\x00') FROM bird} ],
	[ 'ID006', q{SELECT idem_require(s(), k('late'), policy => 'late')} ],
	[ 'ID007', q{SELECT idem_require(s(), k('once'), request, policy => 'once') FROM bird} ],
	[ 'ID008', q{BEGIN; SELECT idem_claim(s(), k('small'), policy => 'small');
	             SELECT idem_complete(s(), k('small'), to_json(b()))} ],
	[ 'ID008', q{SELECT idem_run('large(jsonb)', s(), k('small'), policy => 'small')} ],
	[ 'ID009', q{SELECT idem_claim(s() || '2', k('more'), policy => 'few')} ],
	[ 'ID010', q{BEGIN; SELECT idem_claim(s(), k('frees'));
	             SELECT idem_complete(s(), k('frees'), to_json(b()), 503)} ],
	[ 'ID010', q{SELECT idem_run('refuses(jsonb)', s(), k('frees'), request) FROM bird} ],
	[ '42501', q{SELECT idem_claim(s(), k('done'), request, context => context) FROM bird}, 'other' ],
	[ '42501', q{SELECT idem_lookup(s(), k('done'))}, 'other' ],
	[ '42501', q{SELECT idem_complete(s(), k('open'))}, 'other' ],
	[ '42501', q{SELECT * FROM idem_dedupe(s(), ARRAY[k('done')])}, 'other' ],
	[ '42501', q{SELECT idem_secret('context', secret) FROM bird}, 'other' ],
	[ 'ID012', q{SELECT idem_dedupe(s(), ARRAY[k('a'), NULL])} ],
	[ '22004', q{SELECT idem_scope(s(), NULL)} ],
	[ 'ID012', q{SELECT idem_claim(s(), repeat(k('long'), 100))} ],
	[ '22023', q{SELECT idem_claim(repeat(s(), 100), k('long'))} ],
	[ 'ID012', q{SELECT idem_lookup(s(), repeat(k('long'), 200))} ],
	[ 'ID012', q{SELECT idem_claim(s(), uuid, policy => 'uuids') FROM bird} ],
	[ 'ID012', q{SELECT * FROM idem_dedupe(s(), ARRAY[k('a'), repeat(k('b'), 100)])} ],
	[ '22023', q{SELECT idem_claim(s(), k('both'), request, context) FROM bird} ],
	[ '22023', q{SELECT idem_claim(s(), k('strict'), policy => 'strict')} ],
	[ '22023', q{SELECT idem_claim(s(), k('lease'), lease => '1 month')} ],
	[ '22023', q{SELECT idem_claim(s(), k('fp'), fingerprint => (repeat(b(), 200))::bytea)} ],
	[ '22023', q{SELECT idem_claim(s(), k('ctx'), context => (repeat(b(), 200))::bytea)} ],
	[ '22023', q{SELECT idem_scope(s(), k(E'\\x01'))} ],
	[ '22023', q{SELECT idem_scope(VARIADIC array_fill(s(), ARRAY[200]))} ],
	[ 'ID012', q{SELECT idem_key(header) FROM bird} ],
	[ 'ID012', q{SELECT idem_key('"' || header || '" x') FROM bird} ],
	[ '22023', q{SELECT idem_secret('context', secret) FROM bird} ],
	[ '22023', q{SELECT idem_audit(repeat(b(), 200), s(), k('audit'))} ],
	[ '22023', q{BEGIN; SELECT idem_claim(s(), k('h'));
	             SELECT idem_complete(s(), k('h'), to_json(b()), headers => to_json(b()))} ],
	[ '22023', q{BEGIN; SELECT idem_claim(s(), k('h'));
	             SELECT idem_complete(s(), k('h'), b(), content_type => b() || E'\\n')} ],
	[ '22023', q{BEGIN; SELECT idem_claim(s(), k('h'));
	             SELECT idem_complete(s(), k('h'), to_json(b()), 1000)} ],
	[ '22023', q{SELECT idem_run('no_handler(text)', s(), k('h'), request) FROM bird} ],
	[ '22P02', q{BEGIN; SELECT idem_claim(s(), k('h')); SELECT idem_complete(s(), k('h'), b())} ],
	[ '22P02', q{BEGIN; SELECT idem_claim(s(), k('h')); SELECT idem_fail(s(), k('h'), '[1, ' || b())} ],
	[ '22P02', q{SELECT idem_run('not_json(jsonb)', s(), k('h'), request) FROM bird} ],
	[ '25006', q{BEGIN READ ONLY; SELECT idem_claim(s(), k('ro'))} ],
	[ '42704', q{SELECT idem_claim(s(), k('p'), policy => 'nosuch')} ],
	[ '57014', q{SET statement_timeout = '50ms';
	             SELECT idem_claim(s(), k('open'), wait => '1 min')} ]);

my $stderr_all = '';

# Run with everything that a client can be told
sub run_case
{
	my ($sql, $user) = @_;
	my $stderr = '';
	my @params = (
		'-v', 'VERBOSITY=verbose', '-v', 'SHOW_CONTEXT=always',
		'-v', 'ECHO=none');

	push @params, '-U', $user if defined $user;
	$node->psql('postgres', $sql, stderr => \$stderr, extra_params => \@params);
	my ($state) = $stderr =~ /(?:ERROR|FATAL):\s+(\w{5}):/;
	$stderr_all .= $stderr;
	return $state // '';
}

sub run_cases
{
	my ($when) = @_;

	foreach my $case (@cases)
	{
		my ($expected, $sql, $user) = @$case;

		(my $name = $sql) =~ s/\s+/ /g;
		is(run_case($sql, $user), $expected, "$when: $name");
	}
	return;
}

# Errors that need two sessions; these talk as much as run_case()
sub pair
{
	return map {
		my $s = session($node);
		$s->query("\\set VERBOSITY verbose\n\\set SHOW_CONTEXT always");
		$s
	} 1 .. 2;
}

sub collect
{
	my ($session, $sql) = @_;

	$session->query($sql);
	my $text = $session->{last_error};
	$stderr_all .= $text;
	return $text =~ /ERROR:\s+(\w{5})/ ? $1 : '';
}

sub run_pairs
{
	my ($when, $n) = @_;
	my ($a, $b) = pair();

	# lock time-outs: on the key lock, and on a row that is not yet committed
	$b->query("SET lock_timeout = '50ms'");
	$a->query("BEGIN; SELECT idem_claim(s(), k('lock$n')); SELECT * FROM idem_dedupe(s(), ARRAY[k('row$n')])");
	is(collect($b, "SELECT idem_complete(s(), k('lock$n'))"),
		'55P03', "$when: time-out on a key lock");
	is(collect($b, "SELECT idem_dedupe(s(), ARRAY[k('row$n')])"),
		'55P03', "$when: time-out on a row");
	# where the direct way waits for nobody
	$b->query("SET idempotency.storage = 'sql'");
	is(collect($b, "SELECT idem_claim(s(), k('row$n'))"),
		'55P03', "$when: time-out of a claim on a row");
	$b->query('RESET idempotency.storage');
	$a->query('ROLLBACK');
	$b->query('RESET lock_timeout');

	# a deadlock; either of them may be the victim
	$a->query("BEGIN; SELECT idem_claim(s(), k('dead1'))");
	$b->query("BEGIN; SELECT idem_claim(s(), k('dead2'))");
	$a->send("SELECT idem_complete(s(), k('dead2'))");
	my $state = collect($b, "SELECT idem_complete(s(), k('dead1'))");
	$b->query('ROLLBACK');
	$a->receive;
	$stderr_all .= $a->{last_error};
	$state .= $1 if $a->{last_error} =~ /ERROR:\s+(40P01)/;
	like($state, qr/40P01/, "$when: deadlock");
	$a->query('ROLLBACK');

	# a snapshot that is too old
	foreach my $call (
		"idem_claim(s(), k('old$n'))",
		"idem_run('large(jsonb)', s(), k('old$n'))",
		"idem_dedupe(s(), ARRAY[k('old$n')])")
	{
		$a->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
		$b->query("SELECT idem_dedupe(s(), ARRAY[k('old$n')])");
		is(collect($a, "SELECT $call"), '40001', "$when: $call");
		$a->query('ROLLBACK');
		$b->query("SELECT idem_forget(s(), k('old$n'))");
	}

	# a table that is not what it was
	$b->query(q{
BEGIN;
ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey;
INSERT INTO idempotency_keys SELECT * FROM idempotency_keys WHERE key = k('done');
SAVEPOINT a});
	foreach my $call (
		"idem_claim(s(), k('done'))", "idem_claim(s(), k('fresh'))",
		"idem_dedupe(s(), ARRAY[k('done')])")
	{
		is(collect($b, "SELECT $call"), 'XX001', "$when: twins, $call");
		$b->query('ROLLBACK TO a');
	}
	$b->query('ROLLBACK');
	$b->query(q{
BEGIN;
SELECT idem_claim(s(), k('rule'));
CREATE RULE nothing AS ON UPDATE TO idempotency_keys DO INSTEAD NOTHING});
	is(collect($b, "SELECT idem_complete(s(), k('rule'))"),
		'XX001', "$when: a change suppressed");
	$b->query('ROLLBACK');
	$_->quit for ($a, $b);
	return;
}

sub check_log
{
	my ($when, $offset) = @_;
	my $log = substr slurp_file($node->logfile), $offset;

	cmp_ok(length($log), '>', 1000, "$when: there is a log");
	is( scalar(grep { /$canary|$canary_hex/ } split /\n/, $log),
		0, "$when: nothing in the log")
	  or diag(join "\n", (grep { /$canary|$canary_hex/ } split /\n/, $log)[0 .. 3]);
	is( scalar(grep { /$canary|$canary_hex/ } split /\n/, $stderr_all),
		0, "$when: nothing in what the client is told")
	  or diag(join "\n",
		(grep { /$canary|$canary_hex/ } split /\n/, $stderr_all)[0 .. 3]);
	like($stderr_all, qr/key [0-9a-f]{16} in scope [0-9a-f]{16}/,
		"$when: ids in place of them");
	$stderr_all = '';
	return;
}

# The test itself must be able to see
is(run_case(q{DO $$BEGIN RAISE EXCEPTION '%', (SELECT key FROM bird); END$$}),
	'P0001', 'an error with a canary');
like($stderr_all, $canary, 'is seen in what the client is told');
like(slurp_file($node->logfile), $canary, 'and in the log');
$stderr_all = '';

my $offset = -s $node->logfile;
run_cases('defaults');
run_pairs('defaults', 1);
check_log('defaults', $offset);

$node->append_conf(
	'postgresql.conf', q{
log_min_messages = debug2
log_error_verbosity = verbose
log_lock_waits = on
log_statement = all
log_min_duration_statement = 0
log_parameter_max_length_on_error = -1
});
$node->reload;
$node->poll_query_until('postgres', 'SHOW log_statement', 'all')
  or die 'no reload';
$offset = -s $node->logfile;
run_cases('talkative');
run_pairs('talkative', 2);
check_log('talkative', $offset);

# auto_explain logs nested statements, from 16 on with their parameters; most
# of them are of the SQL way
$offset = -s $node->logfile;
my $auto_explain = q{
LOAD 'auto_explain';
SET idempotency.storage = 'sql';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_nested_statements = on;
SET auto_explain.log_verbose = on;
};
$auto_explain .= "SET auto_explain.log_parameter_max_length = -1;\n"
  if $node->pg_version->major >= 16;
is( sqlstate(
		$node, qq{
$auto_explain
SELECT idem_secret('context', secret || secret) FROM bird;
SELECT length(idem_context('somebody'));
SELECT outcome FROM idem_claim('plain', 'plain', context => idem_context('somebody'));
}),
	'', 'a secret under auto_explain');
my $log = substr slurp_file($node->logfile), $offset;
like($log, qr/Query Text:.*idempotency_keys/s, 'nested statements are logged');
is(scalar(grep { /$canary|$canary_hex/ } split /\n/, $log),
	0, 'the secret is not among their parameters');
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) FROM pg_settings WHERE setting ILIKE '%canary%';
SELECT count(*) FROM pg_prepared_statements WHERE statement ILIKE '%canarys%'}),
	"0\n0",
	'nor in a setting');

$node->stop;

done_testing();
