# The seals of the audit log: what they find.
#
# Scenario: a log with partitions, sealed first without and then with a key.
# In transactions that are rolled back a superuser changes rows and seals in
# every way; idem_audit_verify() names the segment, and tools/verify-audit,
# which has nothing but an export, says the same.  A log that was rewritten as
# a whole, and one whose tail was cut off, are found with a digest that was
# kept, the first one also by the key.  What cannot be found is not found.  The
# worked example of doc/audit-format.md is verified, too.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemAudit;
use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $format = "$FindBin::RealBin/../doc/audit-format.md";
my @log_columns = qw(id at xid action entity entity_id attempt token
  session_role effective_role client_addr application_name detail);
my $node = new_node('seals');

use_node($node);

sub psql
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

#
# The document: its example is verified, byte for byte
#
{
	my %files = (log => '', seals => '');

	foreach my $block (slurp_file($format) =~ /^```text\n(.*?)^```$/msg)
	{
		my @fields = map { /^\w+: ?(.*)$/ ? $1 : () } split /\n/, $block;
		my $table = $block =~ /^id: / ? 'log' : $block =~ /^segment: / ? 'seals' : next;

		# the document has no escapes but for null and tab
		@fields = map { s/\\x/\\\\x/r } @fields;
		$files{$table} .= join("\t", @fields) . "\n";
	}
	append_to_file("$folder/document.$_", $files{$_}) for keys %files;
	my ($digest) = slurp_file($format) =~ /^(idem1:\d+:[0-9a-f]{64})$/m;
	is((verify_outside('document', '--key', "1=$key_file", '--digest', $digest))[0],
		'ok 2 segments, 1 rows', 'the example of the document');
	$files{log} =~ s/sold/Sold/;
	append_to_file("$folder/changed.$_", $files{$_}) for keys %files;
	my ($out, $exit) = verify_outside('changed');
	is(codes($out), '2 rows_changed', 'a byte of it flipped');
	is($exit, 1, 'exit code 1');
}

# What it cannot read
append_to_file("$folder/bad.log", "1\t2\n");
append_to_file("$folder/bad.seals", '');
foreach my $case (
	[ 'bad' ], [ 'none' ], [ 'document', '--digest', 'idem1:x' ],
	[ 'document', '--key', '1' ], [ 'document', '--key', "1=$folder/none" ],
	[ 'document', '--key', "x=$key_file" ], [ 'document', '--color' ])
{
	my (undef, $exit, $err) = verify_outside(@$case);

	is($exit, 2, "exit code 2: @$case[0 .. $#$case]");
	like($err, qr/verify-audit: /, 'and a word about it');
	unlike($err, qr/Traceback/, 'a clear one');
}

#
# A chain: 2,500 rows, the key, three times rows (an id is missing in the
# first), the last of them in two partitions, and rows that are not sealed
#
is(psql('SELECT idem_audit_digest()'), 'idem1:0:' . '0' x 64, 'no seal yet');
is(psql('SELECT * FROM idem_audit_verify()'), '', 'nothing to verify');
is(psql('SELECT idem_audit_seal()'), 0, 'nothing to seal');
psql(q{
CREATE TABLE old PARTITION OF idempotency_audit_log (PRIMARY KEY (id))
	FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
SELECT count(idem_audit('bulk', 'row', i::text)) FROM generate_series(1, 2500) i});
is(psql('SELECT idem_audit_seal()'), 2500, 'rows are sealed');
psql(qq{SELECT idem_secret('audit', '\\x$secret_hex')});
foreach my $when ('one', 'two')
{
	psql(qq{SELECT idem_audit('$when', E'tab\\t', E'\\\\ \\u2116 \\n\\r\\f\\b\\x0b' || i, '{"n": 1.50, "a": "\\\\u0041"}')
FROM generate_series(1, 5) i;
DO \$\$BEGIN
	PERFORM idem_audit('undone', 'row', '1');
	RAISE EXCEPTION 'undone';
EXCEPTION WHEN OTHERS THEN
END\$\$;
SELECT idem_audit('$when', 'row', '6', jsonb_build_object('session', session_user))});
	is(psql('SELECT idem_audit_seal()'), 6, "$when: sealed");
}
my $kept = psql('SELECT idem_audit_digest()');
like($kept, qr/^idem1:4:[0-9a-f]{64}$/, 'the digest to be kept');
my $insert_old = q{
INSERT INTO idempotency_audit_log (at, xid, action, entity, entity_id, session_role, effective_role)
SELECT timestamptz '2020-01-15 00:00Z' + i * interval '1 hour', pg_current_xact_id(),
       'old', 'row', i, 'a', 'b' FROM generate_series(1, 3) i;};
psql(qq{BEGIN; $insert_old SELECT idem_audit('new', 'row', '1'), idem_audit('new', 'row', '2'); COMMIT});
is(psql('SELECT idem_audit_seal()'), 5, 'two partitions: sealed');
psql(q{SELECT idem_audit('unsealed', 'row', i::text) FROM generate_series(1, 3) i});
is( psql('SELECT segment, kind, rows, key_id FROM idempotency_audit_seals ORDER BY 1'),
	"1|s|2500|\n2|k|0|1\n3|s|6|1\n4|s|6|1\n5|s|3|1\n6|s|2|1",
	'the chain');
my $head = psql('SELECT idem_audit_digest()');
check_well('untouched');
check_well('untouched, with the digest', digest => $kept);
check_well('untouched, with the head', digest => $head);
check_well('untouched, verified without keys', keys => 0);

# $a: the first row of segment 3, $b of 4; $gap: an id that is missing in 3
my ($a, $b) = split /\|/, psql(
	q{SELECT min(id) FILTER (WHERE action = 'one'), min(id) FILTER (WHERE action = 'two') FROM idempotency_audit_log});
my $gap = $a + 5;
my $xid = "(SELECT xid FROM idempotency_audit_log WHERE id = %s)";
my $log = 'idempotency_audit_log';
my $seals = 'idempotency_audit_seals';
my $row = "INSERT INTO $log SELECT (jsonb_populate_record(l, '%s')).* FROM $log l WHERE id = %s";

#
# Rows
#
check_problems('a flipped byte', "UPDATE $log SET action = 'oNe' WHERE id = $a", ['3 rows_changed']);
check_problems('in a row of many', "UPDATE $log SET entity_id = '1234 ' WHERE entity_id = '1234'", ['1 rows_changed']);
check_problems('in another partition', 'UPDATE old SET action = upper(action) WHERE true', ['5 rows_changed']);
foreach my $column (grep { !/^(?:id|at|xid)$/ } @log_columns)
{
	my ($type) = psql("SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = '$log'::regclass AND attname = '$column'");
	my $value = $type =~ /int/ ? '77' : $type eq 'inet' ? "'192.0.2.1'" : $type eq 'jsonb' ? "'{}'" : "'x'";

	check_problems("$column", "UPDATE $log SET $column = $value WHERE id = $a", ['3 rows_changed']);
}
check_problems('an empty text for a null', "UPDATE $log SET application_name = NULL WHERE id = $a", ['3 rows_changed']);
check_problems('texts moved between columns',
	"UPDATE $log SET action = action || left(entity, 1), entity = substr(entity, 2) WHERE id = $a", ['3 rows_changed']);
check_problems('a later time', "UPDATE $log SET at = at + '1 us' WHERE id = $a", ['3 rows_changed']);
check_problems('a time in another partition',
	"UPDATE $log SET at = '2020-01-20 00:00Z' WHERE id = $a", [ '3 rows_missing', '3 row_outside' ]);
check_problems('an earlier transaction', "UPDATE $log SET xid = '3' WHERE id = $a", [ '3 rows_missing', '3 row_outside' ]);
check_problems('a later transaction', "UPDATE $log SET xid = '99999999999' WHERE id = $a", ['3 rows_missing']);
check_problems('another id', "UPDATE $log SET id = $gap WHERE id = $a", ['3 rows_changed']);
check_problems('a deleted row', "DELETE FROM $log WHERE id = $a + 2", ['3 rows_missing']);
check_problems('the first one', "DELETE FROM $log WHERE id = $a", ['3 rows_missing']);
check_problems('the last one', "DELETE FROM $log WHERE id = $a + 6", ['3 rows_missing']);
check_problems('all of a segment', "DELETE FROM $log WHERE action = 'one'", ['3 rows_missing']);
check_problems('all of a partition', 'TRUNCATE old', ['5 rows_missing']);
check_problems('a partition', 'DROP TABLE old', ['5 rows_missing']);
check_problems('the log as a whole', "TRUNCATE $log",
	[ '1 rows_missing', '3 rows_missing', '4 rows_missing', '5 rows_missing', '6 rows_missing' ]);
check_problems(
	'two swapped rows', qq{
UPDATE $log SET id = -1 WHERE id = $a;
UPDATE $log SET id = $a WHERE id = $a + 1;
UPDATE $log SET id = $a + 1 WHERE id = -1}, ['3 rows_changed']);
check_problems(
	'two swapped rows of two segments', qq{
UPDATE $log l SET entity_id = o.entity_id, action = o.action FROM $log o
WHERE (l.id, o.id) IN (($a, $b), ($b, $a))}, [ '3 rows_changed', '4 rows_changed' ]);
check_problems(
	'with ids and transactions', qq{
UPDATE $log SET id = -1 WHERE id = $a;
UPDATE $log SET id = $a WHERE id = $b;
UPDATE $log SET id = $b WHERE id = -1;
UPDATE $log l SET xid = o.xid FROM $log o WHERE (l.id, o.id) IN (($a, $b), ($b, $a))},
	[ '3 rows_changed', '4 rows_changed' ]);
check_problems('an inserted row', sprintf($row, qq({"id": $gap}), $a), ['3 rows_added']);
check_problems('of another transaction', sprintf($row, qq({"id": $gap, "xid": "3"}), $a), ['3 row_outside']);
check_problems('with an old id', sprintf($row, qq({"id": 0}), $a), ['6 row_outside']);
check_problems('with a new id', sprintf($row, qq({"id": 1000000}), $a), ['6 row_outside']);
check_problems('one deleted, one inserted',
	"DELETE FROM $log WHERE id = $a + 1;" . sprintf($row, qq({"id": $gap}), $a), ['3 rows_changed']);
# rows are read a thousand at a time; without the primary key there may be two
check_problems('twins',
	"ALTER TABLE idempotency_audit_log_default DROP CONSTRAINT idempotency_audit_log_default_pkey;"
	  . join('', map { sprintf($row, qq({"action": "twin"}), $_) . ';' } 1000), ['1 rows_added']);
# what is not sealed yet is not covered
check_problems('a row that is not sealed', "DELETE FROM $log WHERE action = 'unsealed'", []);

#
# Seals
#
foreach my $column (split /, /, psql(
		"SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '$seals'::regclass AND attnum > 1"))
{
	my ($type) = psql("SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = '$seals'::regclass AND attname = '$column'");
	my $value =
	    $type =~ /^(?:bigint|integer)$/ ? "COALESCE($column, 1) + 1"
	  : $type =~ /^timestamp/ ? "CASE WHEN isfinite($column) THEN $column + '1 us' ELSE '2100-01-01' END"
	  : $type eq 'bytea' ? "set_byte($column, 31, get_byte($column, 31) # 1)"
	  : $type eq 'xid8' ? "($column\::text::bigint - 1)::text::xid8"
	  : $type eq 'boolean' ? "NOT $column"
	  : $column eq 'kind' ? "'k'"
	  : "'{[1,2)}'";
	my $found = problems_after("seal: $column", "UPDATE $seals SET $column = $value WHERE segment = 4");
	my $expected = $column eq 'hmac' ? '4 signature_wrong' : '4 seal_changed';

	like($found, qr/^$expected$/m, "seal: $column: found") or diag($found);
	$found = problems_after("seal: no $column", "
ALTER TABLE $seals DROP CONSTRAINT idempotency_audit_seals_pkey;
UPDATE $seals SET $column = NULL WHERE segment = 4")
	  if $type !~ /bytea/ && $column !~ /^(?:kind|sealed_at|rows|pruned)$/;
	like($found, qr/^$expected$/m, "seal: no $column: found") or diag($found);
}
check_problems('a changed seal', "UPDATE $seals SET seal = sha256(seal) WHERE segment = 4", ['4 seal_changed']);
check_problems('of the first one', "UPDATE $seals SET rows = 2499 WHERE segment = 1",
	[ '1 rows_added', '1 seal_changed' ]);
check_problems('of the key', "UPDATE $seals SET sealed_at = '2020-01-01' WHERE segment = 2",
	[ '2 seal_changed', '2 signature_wrong', '6 key_unused' ]);
check_problems('of the last one', "UPDATE $seals SET rows_sha256 = seal WHERE segment = 6",
	[ '6 rows_changed', '6 seal_changed', '6 signature_wrong' ]);
check_problems('a hmac', "UPDATE $seals SET hmac = seal WHERE segment = 4", ['4 signature_wrong']);
check_problems('no hmac', "UPDATE $seals SET hmac = NULL WHERE segment = 4", ['4 signature_wrong']);
check_problems('no key', "UPDATE $seals SET hmac = NULL, key_id = NULL WHERE segment = 4",
	[ '4 seal_changed', '4 signature_missing' ]);
check_problems('another key', "UPDATE $seals SET key_id = 9 WHERE segment = 4", [ '4 key_missing', '4 seal_changed' ]);
check_problems('a deleted seal', "DELETE FROM $seals WHERE segment = 2", [ '2 seal_missing', '6 key_unused' ]);
check_problems('of rows', "DELETE FROM $seals WHERE segment = 3", [ '3 seal_missing', '6 row_outside' ]);
check_problems('the first one', "DELETE FROM $seals WHERE segment = 1", [ '1 seal_missing', '6 row_outside' ]);
check_problems('with its rows', "DELETE FROM $seals WHERE segment = 3; DELETE FROM $log WHERE action = 'one'",
	['3 seal_missing']);
check_problems(
	'two swapped seals', qq{
UPDATE $seals SET segment = 9 WHERE segment = 3;
UPDATE $seals SET segment = 3 WHERE segment = 4;
UPDATE $seals SET segment = 4 WHERE segment = 9},
	[   '3 chain_broken', '3 seal_changed', '3 signature_wrong', '4 chain_broken', '4 seal_changed',
		'4 signature_wrong', '5 chain_broken' ]);
my $forge = "INSERT INTO $seals SELECT (jsonb_populate_record(s, '%s')).* FROM $seals s WHERE segment = %d";
like(problems_after('an inserted seal', sprintf($forge, '{"segment": 7}', 3)),
	qr/^7 chain_broken$/m, 'an inserted seal');
# one that hides a row, with a number that is looked at by nobody
foreach my $number (0, -5)
{
	my $found = problems_after("seal $number", sprintf($row, qq({"id": $gap, "xid": "3"}), $a) . ';'
		  . sprintf($forge, qq({"segment": $number, "xid_from": "1", "xid_to": "4"}), 3));

	like($found, qr/^$number chain_broken$/m, "a seal with number $number") or diag($found);
}
like(problems_after('a second seal 3',
		"ALTER TABLE $seals DROP CONSTRAINT idempotency_audit_seals_pkey;" . sprintf($forge, '{"kind": "t"}', 3)),
	qr/^3 chain_broken$/m, 'a second seal of one number');
# one of kind "p", by hand, for what is not there any more
my $digest_sql = "
CREATE FUNCTION pg_temp.forge_pruned() RETURNS void LANGUAGE sql AS \$\$
	INSERT INTO $seals (segment, kind, sealed_at, rows, pruned, previous, key_id, seal)
	SELECT segment + 1, 'p', sealed_at, 6, '{[3,4)}', seal, key_id, seal
	FROM $seals ORDER BY segment DESC LIMIT 1
\$\$;";
check_problems('a pretended pruning',
	"$digest_sql DELETE FROM $log WHERE action = 'one'; SELECT pg_temp.forge_pruned()",
	[ '7 seal_changed', '7 signature_wrong' ]);
check_problems('rows of a pruned segment',
	"CREATE TABLE saved AS SELECT * FROM old; SELECT idem_audit_prune('2021-01-01');
	 INSERT INTO $log SELECT * FROM saved", ['5 rows_added']);

#
# The tail, and the whole
#
my $cut = "DELETE FROM $seals WHERE segment >= 5; DELETE FROM $log WHERE action IN ('old', 'new', 'unsealed')";
check_problems('a cut tail is not found', $cut, []);
check_problems('with an older digest neither', $cut, [], digest => $kept);
check_problems('a cut tail, with the digest', $cut, ['6 digest_missing'], digest => $head);
my $steal = q{CREATE TEMP TABLE stolen AS TABLE idempotency_secrets; DELETE FROM idempotency_secrets;};
my $give_back = 'INSERT INTO idempotency_secrets SELECT * FROM stolen';
my $change = "DELETE FROM $seals; UPDATE $log SET action = 'forged' WHERE id = $a; DELETE FROM $log WHERE id = $b;";
check_problems('rewritten, found by the key', "$steal $change SELECT idem_audit_seal(); $give_back", ['2 key_unused']);
check_problems('rewritten, by key and digest', "$steal $change SELECT idem_audit_seal(); $give_back",
	[ '2 key_unused', '4 digest_missing' ], digest => $kept);
check_problems('rewritten, without a key it is not found', "$steal $change SELECT idem_audit_seal()", [], keys => 0);
check_problems('but with the digest', "$steal $change SELECT idem_audit_seal(); SELECT idem_audit_seal()",
	['2 digest_differs'], keys => 0, digest => 'idem1:2:' . '0' x 64);
check_problems('rewritten from a segment on',
	"$steal DELETE FROM $seals WHERE segment >= 3; UPDATE $log SET action = 'forged' WHERE id = $a;
	 SELECT idem_audit_seal(); $give_back",
	[ '3 signature_missing', '4 signature_missing' ]);
check_problems('with another key',
	"$steal DELETE FROM $seals; UPDATE $log SET action = 'forged' WHERE id = $a;
	 SELECT idem_secret('audit', '0123456789abcdef'), idem_audit_seal();
	 DELETE FROM idempotency_secrets; $give_back",
	[ '1 signature_wrong', '2 signature_wrong', '3 signature_wrong', '3 key_unused' ]);
is(psql('SELECT idem_audit_digest()'), $head, 'all of that was rolled back');

#
# A change of key: what the old one has sealed still verifies
#
psql(q{SELECT idem_secret('audit', '0123456789abcdef'), idem_audit('new', 'key', '1')});
psql('SELECT idem_audit_seal()');
is(psql('SELECT count(DISTINCT key_id) FROM idempotency_audit_seals'), '2', 'sealed with two keys');
is(psql('SELECT * FROM idem_audit_verify()'), '', 'and verified with both');

#
# Arguments and rights
#
my $hex = 'a' x 64;
foreach my $digest ('', 'x', 'idem1', "idem1:1:", "idem1:1:${hex}a", 'idem1:1:' . 'a' x 63, "idem1:1:$hex ",
	" idem1:1:$hex", 'idem1:1:' . 'A' x 64, "idem2:1:$hex", "idem1:-1:$hex", "idem1::$hex",
	"idem1:99999999999999999999:$hex", "idem1: 1:$hex", "idem1:+1:$hex")
{
	is(sqlstate($node, "SELECT * FROM idem_audit_verify('$digest')"), '22023', "no digest: $digest");
}
is(sqlstate($node, 'SELECT idem_audit_prune(NULL)'), '22004', 'prune: null');
is(sqlstate($node, "BEGIN READ ONLY; SELECT $_"), '25006', "read only: $_")
  foreach ('idem_audit_seal()', "idem_audit_prune('2021-01-01')");
is(sqlstate($node, 'BEGIN READ ONLY; SELECT * FROM idem_audit_verify(); SELECT idem_audit_digest()'),
	'', 'read only: the other two');

$node->stop;

done_testing();
