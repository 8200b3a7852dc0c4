# A limiter of idem_http_run charges new work, and nothing else.
#
# Scenario: requests as of PostgREST, under limiters of few tokens that do not
# flow in while the test runs.  First executions take one each; replays, other
# requests with a key, requests without a key or a principal, keys in progress
# and keys too many take none.  Of what is refused nothing is left, no row and no
# effect, but what the API function did besides: the same key is executed as soon
# as there are tokens.  Header and problem say when to ask again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('http_limiter', conf => q{
shared_preload_libraries = 'idempotency'
idempotency.worker = off
});

sub value
{
	return $node->safe_psql('postgres', $_[0]);
}

# What a client gets: status, code, Retry-After of header and problem
sub request
{
	my ($key, %with) = @_;
	my $arguments = join '', map { ", $_ => '$with{$_}'" } grep { /^[a-z]/ } sort keys %with;
	my $headers = defined $key ? qq({"idempotency-key": "$key"}) : '{}';
	my $claims = $with{Sub} // 'ada';

	return value(qq{
BEGIN;
SELECT set_config('request.method', 'POST', true), set_config('request.path', '/rpc/buy', true),
	set_config('request.headers', '$headers', true), set_config('request.jwt.claims', '{"sub": "$claims"}', true) \\g /dev/null
INSERT INTO attempts DEFAULT VALUES;
SELECT idem_http_run('work(jsonb)', '{"n": @{[ $with{Number} // 1 ]}}'$arguments) AS body \\gset
SELECT concat_ws(' ', current_setting('response.status'), :'body'::json ->> 'code',
	(SELECT h ->> 'Retry-After' FROM json_array_elements(current_setting('response.headers')::json) h WHERE h::jsonb ? 'Retry-After'),
	:'body'::json ->> 'retry_after');
COMMIT;});
}

sub left
{
	my ($subject, $limiter) = @_;

	return value("SELECT remaining FROM idem_throttle_peek('@{[ $limiter // 'few' ]}', '$subject')");
}

value(q{
CREATE TABLE effects (n bigint);
CREATE TABLE attempts (id serial);
CREATE FUNCTION work(request jsonb) RETURNS json LANGUAGE sql AS
	$$ INSERT INTO effects VALUES ((request ->> 'n')::bigint); SELECT '{}'::json $$;
SELECT idem_limiter('few', 3, '30 days');
SELECT idem_policy('capped', max_live_keys => 1);
});

is(request('a', limiter => 'few'), '200', 'the first is executed');
is(left('ada'), 2, 'and costs a token');
foreach my $free (
	[ 'a replay', '200', 'a' ],
	[ 'another request with its key', '422 idempotency_key_reused', 'a', Number => 2 ],
	[ 'no key', '400 idempotency_key_missing', undef ],
	[ 'no good key', '400 idempotency_key_invalid', 'two, keys' ],
	[ 'nobody', '401 principal_missing', 'b', Sub => '' ])
{
	my ($what, $answer, $key, %with) = @$free;

	is(request($key, %with, limiter => 'few'), $answer, $what);
	is(left('ada'), 2, "$what costs nothing");
}

# A key that somebody else is working on
my $session = session($node);
$session->query('BEGIN');
$session->query(q{SELECT idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'open', '{"n": 1}')});
is(request('open', limiter => 'few'), '409 idempotency_key_in_progress 1', 'in progress');
is(left('ada'), 2, 'costs nothing');
$session->query('ROLLBACK');
$session->quit;

# One key more than the policy allows in the scope
is(request('a', limiter => 'few', policy => 'capped', Sub => 'bob'), '200', 'one live key');
is( sqlstate($node, q{
SELECT set_config('request.method', 'POST', false), set_config('request.path', '/rpc/buy', false),
	set_config('request.headers', '{"idempotency-key": "b"}', false);
SELECT idem_http_run('work(jsonb)', '{}', 'capped', 'bob', limiter => 'few')}),
	'ID009', 'and no second');
is(left('bob'), 2, 'which costs nothing');

# The rest of the tokens, and one request more
is(request($_, limiter => 'few'), '200', "$_ is executed") foreach qw(b c);
my $before = value('SELECT count(*) FROM attempts');
my @answer = split / /, request('d', limiter => 'few');
is("@answer[0, 1]", '429 rate_limited', 'without a token there is no work');
ok($answer[2] > 9 * 86400 && $answer[2] <= 10 * 86400, 'Retry-After says when there is one again') or diag("@answer");
is($answer[3], $answer[2], 'and so does the problem');
is(value('SELECT count(*) FROM attempts') - $before, 1, 'what the API function did besides stays');
is(value(q{SELECT count(*) FROM idempotency_keys WHERE key = 'd'}), 0, 'nothing is left of the key');
is(request('a', limiter => 'few'), '200', 'a replay needs no token');
is(request('d'), '200', 'without a limiter it is executed, with the same key');

# Refused under a claim that failed: the row is as it was
value(q{
SELECT idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'failed', '{"n": 1}') \g /dev/null
UPDATE idempotency_keys SET lease_until = now() WHERE key = 'failed'});
my $row = q{SELECT md5(k::text) FROM idempotency_keys k WHERE key = 'failed'};
my $was = value($row);
like(request('failed', limiter => 'few'), qr/^429 /, 'a lease that has ended is not taken over without a token');
is(value($row), $was, 'and the row is as it was');
is(request('failed', limiter => 'few', subject => 'other'), '200', 'then by somebody with one');

# Another subject than the principal
is(left('other'), 2, 'the subject pays');
is(value("SELECT throttled FROM idem_stats WHERE datname = current_database() AND throttled > 0"), 2, 'refusals are counted');
is(value('SELECT count(*) FROM effects'), 6, 'each request was executed once');

$node->stop;
done_testing();
