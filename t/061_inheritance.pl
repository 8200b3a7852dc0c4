# A key table with children by inheritance: what was claimed in the table itself
# and has been moved to a child is still there.
#
# Scenario: somebody keeps older keys in a child of idempotency_keys, with a
# primary key of its own, so that the places of rows in the two tables are the
# same.  Keys in all states are made and moved.  Every verb finds them, no key
# is first again, and the sweep, by hand and by the procedure, removes what is
# due in either table and nothing else.  The way is SQL, whatever the setting.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use Test::More;

my $node = new_node('inheritance');

sub value
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# Move the keys of a scope to the child.
sub move
{
	my ($scope) = @_;

	value(
		qq{WITH moved AS (DELETE FROM ONLY idempotency_keys
WHERE scope = '$scope' RETURNING *)
INSERT INTO older SELECT * FROM moved});
	is( value(
			qq{SELECT count(*) > 0 FROM ONLY older WHERE scope = '$scope'
AND NOT EXISTS (SELECT FROM ONLY idempotency_keys WHERE scope = '$scope')}),
		't',
		"$scope: moved");
	return;
}

value(
	q{CREATE TABLE older (PRIMARY KEY (scope, key)) INHERITS (idempotency_keys);
CREATE TABLE effects (key text);
CREATE FUNCTION work(request jsonb) RETURNS json LANGUAGE sql AS $$
	INSERT INTO effects VALUES (request->>'key');
	SELECT json_build_object('done', request->>'key') $$});
like(value(q{SELECT detail FROM idem_health() WHERE check_name = 'storage'}),
	qr/^sql: .*inherit/, 'the way is SQL')
  if ($ENV{STORAGE} || 'auto') ne 'sql';

#
# Every verb
#
value(
	q{
SELECT idem_run('work(jsonb)', 's', k, jsonb_build_object('key', k))
FROM unnest(ARRAY['ran', 'expired']) k;
SELECT idem_claim('s', 'open', lease => '1 h', owner => '00000000-0000-4000-8000-000000000001');
SELECT idem_claim('s', 'abandoned');
SELECT idem_claim('s', 'released', lease => '1 h');
SELECT idem_claim('s', 'forgotten', lease => '1 h');
BEGIN;
SELECT idem_claim('s', 'failed');
SELECT idem_fail('s', 'failed', '"no"'::json);
COMMIT;
SELECT idem_dedupe('s', '{message}');
UPDATE idempotency_keys SET lease_until = created_at - interval '1 h' WHERE key = 'abandoned';
UPDATE idempotency_keys SET expires_at = expires_at - interval '1 week' WHERE key = 'expired'});
move('s');

is( value(
		q{SELECT outcome, attempt, idem_json(r) FROM idem_run('work(jsonb)', 's', 'ran', '{"key": "ran"}') r}
	),
	'replayed|1|{"done" : "ran"}',
	'a finished key is replayed');
is( value(
		q{SELECT outcome FROM idem_run('work(jsonb)', 's', 'ran', '{"key": "other"}')}
	),
	'mismatch',
	'with another request it is refused');
is(value(q{SELECT outcome FROM idem_claim('s', 'open')}),
	'in_progress', 'an open one is in progress');
is( value(
		q{SELECT outcome, attempt FROM idem_claim('s', 'open', owner => '00000000-0000-4000-8000-000000000001')}
	),
	'claimed|1',
	'its holder has it');
is( value(
		q{SELECT (idem_complete('s', 'open', '{"a":   1}'::json, token => token)).outcome IS NOT NULL
FROM idempotency_keys WHERE key = 'open';
SELECT outcome, idem_json(r) FROM idem_claim('s', 'open') r}),
	"t\nreplayed|{\"a\":   1}",
	'and can finish it');
is(value(q{SELECT outcome, attempt FROM idem_claim('s', 'abandoned')}),
	'claimed|2', 'an abandoned one is taken over');
is(value(q{SELECT outcome, attempt FROM idem_claim('s', 'failed')}),
	'claimed|2', 'one that failed is claimed again');
is( value(
		q{SELECT idem_release('s', 'released', token) FROM idempotency_keys WHERE key = 'released';
SELECT outcome, attempt FROM idem_claim('s', 'released')}),
	"t\nclaimed|2",
	'one is released');
is(value(q{SELECT idem_forget('s', 'forgotten'); SELECT outcome IS NULL FROM idem_lookup('s', 'forgotten')}),
	"t\nt", 'one is forgotten');
is( value(
		q{SELECT outcome, attempt FROM idem_run('work(jsonb)', 's', 'expired', '{"key": "expired"}')}
	),
	'completed|1',
	'one that has expired runs anew');
is( value(
		q{SELECT string_agg(first::text, ' ' ORDER BY ord) FROM idem_dedupe('s', '{message, new}')}
	),
	'false true',
	'a message is not first again');
is( value(
		q{SELECT string_agg(key, ' ' ORDER BY key COLLATE "C") FROM effects}),
	'expired expired ran',
	'the work was done as often as that');
is( value(
		q{SELECT count(*) FROM (SELECT FROM idempotency_keys GROUP BY scope, key HAVING count(*) > 1) twice}
	),
	'0',
	'no key has two rows');

#
# The sweep: due in the child, alive in the table itself, and the other way
# round, each at the same places of their tables.
#
value('TRUNCATE idempotency_keys');
value(
	q{
SELECT count(*) FROM generate_series(1, 300) i, idem_run('work(jsonb)', 'due', i::text);
UPDATE idempotency_keys SET expires_at = now() - interval '1 week', purge_at = now() - interval '1 week'
WHERE scope = 'due';
SELECT count(*) FROM generate_series(1, 300) i, idem_run('work(jsonb)', 'alive', i::text)});
move('due');
value('VACUUM FULL older; VACUUM FULL idempotency_keys');
is( value(
		q{SELECT count(*) > 0 FROM ONLY idempotency_keys k JOIN ONLY older o ON o.ctid = k.ctid}),
	't', 'rows of both tables have the same places');
is(value('SELECT idem_sweep(100)'), '100', 'as many are swept as were asked for');
is( value(
		q{SELECT scope, count(*) FROM idempotency_keys GROUP BY scope ORDER BY scope}),
	"alive|300\ndue|200",
	'and these were due');
value('CALL idem_sweep_all()');
is( value(
		q{SELECT scope, count(*) FROM idempotency_keys GROUP BY scope ORDER BY scope}),
	'alive|300',
	'the procedure removes the others');

move('alive');
value(
	q{SELECT count(*) FROM generate_series(1, 300) i, idem_run('work(jsonb)', 'due', i::text);
UPDATE idempotency_keys SET expires_at = now() - interval '1 week', purge_at = now() - interval '1 week'
WHERE scope = 'due';
});
value("VACUUM FULL idempotency_keys");
value('CALL idem_sweep_all()');
is( value(
		q{SELECT scope, tableoid::regclass, count(*) FROM idempotency_keys GROUP BY 1, 2}),
	'alive|older|300',
	'and those that are due in the table itself');

$node->stop;

done_testing();
