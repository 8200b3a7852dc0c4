# Sealing the audit log as it grows.
#
# Scenario: rows are sealed under a prepared transaction that holds the horizon
# back, in every isolation level, by two at once, while 32 clients commit out
# of order, and through a crash.  Each row is in one segment in the end.
# Segments are pruned, partitions made and dropped, also while somebody reads
# the log.  At last the log is verified on a standby, and dumped and restored
# twice, with and without the key.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemAudit;
use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $log = 'idempotency_audit_log';
my $seals = 'idempotency_audit_seals';
my $node = new_node(
	'seals',
	streaming => 1,
	conf => q{
max_connections = 60
max_prepared_transactions = 2
});

use_node($node);

sub psql
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# Rows that are there, and how many of them are sealed
my $counts = q{SELECT count(*), (SELECT sum(rows) FROM idempotency_audit_seals
	WHERE kind = 's') - (SELECT COALESCE(sum(rows), 0) FROM idempotency_audit_seals
	WHERE kind = 'p') FROM idempotency_audit_log};

sub check_all_sealed
{
	my ($what) = @_;
	my ($rows, $sealed) = split /\|/, psql($counts);

	is($sealed, $rows, "$what: all rows are in segments");
	return $rows;
}

# Rows of another time, in a partition of theirs
sub insert_at
{
	my ($year) = @_;

	return qq{
INSERT INTO $log (at, xid, action, entity, entity_id, session_role, effective_role)
SELECT timestamptz '$year-01-15 00:00Z' + i * interval '1 hour', pg_current_xact_id(),
       'old', 'row', i, 'a', 'b' FROM generate_series(1, 3) i;};
}

sub add_partition
{
	my ($name, $year) = @_;

	psql("CREATE TABLE $name PARTITION OF $log (PRIMARY KEY (id)) FOR VALUES FROM ('$year-01-01') TO ('$year-02-01')");
	return;
}

#
# A chain: rows without a key, the key, rows of two partitions
#
add_partition('old', 2020);
psql(q{SELECT count(idem_audit('bulk', 'row', i::text)) FROM generate_series(1, 2500) i});
is(psql('SELECT idem_audit_seal()'), 2500, 'rows are sealed');
psql(qq{SELECT idem_secret('audit', '\\x$secret_hex')});
psql('BEGIN;' . insert_at(2020) . "SELECT idem_audit('new', 'row', '1'); COMMIT");
is(psql('SELECT idem_audit_seal()'), 4, 'rows of two partitions');
my $head = psql('SELECT idem_audit_digest()');

#
# A prepared transaction holds the horizon back
#
sub unsealed
{
	my ($rows, $sealed) = split /\|/, psql($counts);

	return $rows - $sealed;
}

psql('SELECT idem_audit_seal()');
is(unsealed(), 0, 'all is sealed');
foreach my $end ('COMMIT', 'ROLLBACK')
{
	my $writer = "SET statement_timeout = '20s'; SET lock_timeout = '20s'; SELECT idem_audit('writer', 'row', '1') > 0";

	psql($writer);
	psql("BEGIN; SELECT idem_audit('prepared', 'row', '$end'); PREPARE TRANSACTION 'held'");
	is(psql("$writer; $writer"), "t\nt", "$end: writers do not wait");
	is(psql('SELECT idem_audit_seal(); SELECT idem_audit_seal()'), "1\n0", "$end: one row was before it");
	is(unsealed(), 2, "$end: the rest is not sealed");
	check_well("$end: meanwhile", digest => $head);
	psql("$end PREPARED 'held'");
	is(psql('SELECT idem_audit_seal()'), $end eq 'COMMIT' ? 3 : 2, "$end: then it is");
	check_well("$end: then", digest => $head);
	check_all_sealed($end);
}

#
# Isolation levels, and two at once
#
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	my ($one, $two) = (session($node), session($node));

	$one->query("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM $log");
	$two->query("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM $log");
	psql("SELECT idem_audit('after', 'snapshot', '1')");
	is($one->query('SELECT idem_audit_seal()'), 1, "$level: a row that is newer than the snapshot");
	$two->send('SELECT idem_audit_seal()');
	poll('a second sealer waits', sub {
		psql('SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = ' . $two->pid) eq '1'
	});
	psql("SELECT idem_audit('second', 'snapshot', '1')");
	$one->query('COMMIT');
	# the first one's transaction had an id when the row was written
	is($two->receive, 1, "$level: the second one goes on from there");
	is($two->state, '', "$level: without an error");
	$two->query('COMMIT');
	is($two->state, '', "$level: and commits");
	$_->quit foreach ($one, $two);
	psql('SELECT idem_audit_seal()');
	check_well("$level: then", digest => $head);
	check_all_sealed($level);
}

#
# 32 clients that commit out of order, beside one that seals and one that
# verifies
#
my @writers = map {
	my $end = $_;
	"\\set ms random(0, 30)\n\\set n random(1, 4)\nBEGIN;\n"
	  . "SELECT idem_audit('early', 'row', :client_id::text);\n"
	  . ($end eq 'savepoint'
		? "SAVEPOINT a;\nSELECT idem_audit('lost', 'row', 'x') FROM generate_series(1, :n);\nROLLBACK TO a;\n" : '')
	  . "SELECT pg_sleep(:ms / 1000.0);\n"
	  . "SELECT idem_audit('late', 'row', :client_id::text) FROM generate_series(1, :n);\n"
	  . ($end eq 'rollback' ? 'ROLLBACK' : 'COMMIT') . ";\n"
} qw(commit commit rollback savepoint);
my $sealer = "SELECT idem_audit_seal();\n";
my $checker = "SELECT 1 / (count(*) = 0)::integer FROM idem_audit_verify();\n";
my $segments_before = psql("SELECT max(segment) FROM $seals");
my $before = check_all_sealed('before the crowd');
{
	my @runs = (
		start_pgbench($node, clients => 32, scripts => \@writers, params => [ '-T', 3 ]),
		start_pgbench($node, clients => 2, scripts => [$sealer], params => [ '-T', 3 ],
			folder => PostgreSQL::Test::Utils::tempdir),
		start_pgbench($node, clients => 1, scripts => [$checker], params => [ '-T', 3 ],
			folder => PostgreSQL::Test::Utils::tempdir));

	foreach my $run (@runs)
	{
		$run->{handle}->finish;
		unlike($run->{err}, qr/ERROR|abort/, 'the crowd: no error') or diag($run->{err});
	}
	psql('SELECT idem_audit_seal()');
	my $rows = check_all_sealed('the crowd');
	cmp_ok($rows - $before, '>', 200, 'the crowd: has written');
	cmp_ok(psql("SELECT max(segment) FROM $seals") - $segments_before, '>', 5, 'the crowd: was sealed meanwhile');
	is(psql("SELECT count(*) FROM $log WHERE action = 'lost'"), 0, 'the crowd: savepoints');
	cmp_ok(psql("SELECT count(*) FROM $seals s, $seals t WHERE s.kind = 's' AND t.kind = 's'
		AND s.segment < t.segment AND s.id_to > t.id_from"), '>', 0, 'the crowd: has committed out of order');
	check_well('the crowd', digest => $head);
}

#
# A crash in the middle of it
#
for my $n (1 .. 2)
{
	my $sealed = psql("SELECT max(segment) FROM $seals");
	my @runs = (
		start_pgbench($node, clients => 8, scripts => \@writers, params => [ '-T', 60 ]),
		start_pgbench($node, clients => 2, scripts => [$sealer], params => [ '-T', 60 ],
			folder => PostgreSQL::Test::Utils::tempdir));

	poll('some seals', sub { psql("SELECT max(segment) FROM $seals") > $sealed + 5 });
	my $digest = psql('SELECT idem_audit_digest()');
	crash($node);
	$_->{handle}->finish foreach @runs;
	restart_after_crash($node);
	check_well("crash $n", digest => $digest);
	psql("SELECT idem_audit('after', 'crash', '$n')");
	psql('SELECT idem_audit_seal()');
	check_all_sealed("crash $n");
	check_well("crash $n: it goes on", digest => $digest);
}

#
# Pruning
#
sub add_older
{
	psql(insert_at(2019));
	is(psql('SELECT idem_audit_seal()'), 3, 'old rows are sealed');
	return;
}

is(psql("SELECT idem_audit_prune('-infinity'), idem_audit_prune('2019-01-01')"), '0|0', 'prune: nothing is that old');
is(psql("SELECT max(segment) FROM $seals WHERE kind = 'p'"), '', 'prune: then there is no seal of it');
is(psql("SELECT idem_audit_prune('2020-01-15 02:00Z')"), 0, 'prune: whole segments only');
check_problems('prune: undone', "SELECT idem_audit_prune('2021-01-01')", []);
is(sqlstate($node, "BEGIN; UPDATE old SET action = 'x'; SELECT idem_audit_prune('2021-01-01')"),
	'55000', 'prune: not what was changed');
{
	# somebody reads the log: rows are removed, the partition stays
	my $reader = session($node);

	add_partition('older', 2019);
	add_older();
	$reader->query("BEGIN; SELECT count(*) FROM $log");
	is($reader->state, '', 'a reader');
	is(psql("SET lock_timeout = '20s'; SELECT idem_audit_prune('2019-06-01')"), 3, 'prune: beside a reader');
	is(psql("SELECT count(*), to_regclass('older') IS NOT NULL FROM older"), '0|t', 'prune: the partition stays');
	$reader->quit;
	check_well('prune: beside a reader', digest => $head);
	add_older();
	psql('CREATE SCHEMA elsewhere; ALTER TABLE older SET SCHEMA elsewhere');
	is(psql("SELECT idem_audit_prune('2019-06-01')"), 3, 'prune: alone');
	is(psql("SELECT to_regclass('elsewhere.older') IS NULL"), 't', 'prune: the partition is dropped, wherever it is');
	check_well('prune: alone', digest => $head);
	is(psql("SELECT idem_audit_prune('2019-06-01')"), 0, 'prune: once');
	check_all_sealed('prune');
}
# not a partition with a row that is not sealed, nor that row
add_partition('older', 2019);
add_older();
psql(insert_at(2019));
is(psql("SELECT idem_audit_prune('2019-06-01')"), 3, 'prune: what is sealed');
is(psql('SELECT count(*) FROM older'), 3, 'prune: what is not sealed stays');
psql('SELECT idem_audit_seal()');
check_well('prune: sealed later', digest => $head);
# of the default partition, beside rows that stay
my $last_at = psql("SELECT last_at FROM $seals WHERE segment = 1");
is(psql("SELECT idem_audit_prune('$last_at')"), 3 + 3, 'prune: not what is just as old');
is(psql("SELECT idem_audit_prune(timestamptz '$last_at' + '1 us')"), 2500, 'prune: of the default partition');
is(psql("SELECT to_regclass('old') IS NULL, to_regclass('older') IS NULL"), 't|t', 'prune: empty partitions are dropped');
check_well('prune: of the default partition');
check_well('prune: with the digest from before', digest => $head);
check_all_sealed('prune: of the default partition');

#
# Partitions that are made
#
my $made = q{SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'idempotency_audit_log'::regclass
	AND inhrelid::regclass::text LIKE 'idempotency_audit_log\_2%' ORDER BY inhrelid::regclass::text};
my @partitions = split /\n/, psql($made);
cmp_ok(scalar @partitions, '>=', 1, 'partitions were made');
psql('SELECT idem_audit_seal()');
is(psql($made), join("\n", @partitions), 'and not again');
is( psql(qq{SELECT count(*) FROM pg_class c WHERE c.oid = '$partitions[0]'::regclass AND relrowsecurity AND relowner = 10
	AND (SELECT count(*) FROM pg_trigger t WHERE tgrelid = c.oid AND tgenabled = 'A' AND tgname LIKE 'idempotency_audit_guard%') = 2
	AND EXISTS (SELECT FROM pg_constraint WHERE conrelid = c.oid AND contype = 'p')
	AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'e')}),
	1, 'a partition is guarded as the log is');
# the first one begins in a moment
poll('the time of the first partition', sub {
	psql("SELECT idem_audit('in', 'partition', '1')");
	psql("SELECT count(*) > 0 FROM $partitions[0]") eq 't'
});
cmp_ok(psql('SELECT idem_audit_seal()'), '>', 0, 'rows go to the partition');
check_all_sealed('a partition');
check_well('a partition', digest => $head);
foreach my $period ('day', 'week', 'month')
{
	psql('CREATE DATABASE empty');
	install($node, 'empty');
	$node->append_conf('postgresql.conf', "idempotency.audit_partition = '$period'");
	$node->reload;
	$node->poll_query_until('empty', 'SHOW idempotency.audit_partition', $period) or die 'no reload';
	my ($bounds) = run_psql($node, q{
SET timezone = 'UTC';
SELECT idem_audit('a', 'b', 'c') \g /dev/null
SELECT idem_audit_seal() \g /dev/null
SELECT string_agg(pg_get_expr(relpartbound, oid), ' ' ORDER BY relname COLLATE "C")
FROM pg_class WHERE relname LIKE 'idempotency\_audit\_log\_2%' AND relkind = 'r'}, database => 'empty');
	my $next = $node->safe_psql('empty', qq{SET timezone = 'UTC';
SELECT date_trunc('$period', now()) + '1 $period', date_trunc('$period', now()) + '2 $period'});
	my ($from, $to) = split /\|/, $next;
	like($bounds, qr/TO \('\Q$from\E'\) FOR VALUES FROM \('\Q$from\E'\) TO \('\Q$to\E'\)$/,
		"$period: one for now and one for then");
	is($node->safe_psql('empty', 'SELECT * FROM idem_audit_verify()'), '', "$period: verified");
	psql('DROP DATABASE empty');
}

#
# A standby
#
{
	$node->backup('backup');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'backup', has_streaming => 1);
	$standby->start;
	psql("SELECT idem_audit('to', 'standby', '1')");
	psql('SELECT idem_audit_seal()');
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
	is($standby->safe_psql('postgres', "SELECT * FROM idem_audit_verify('$head')"), '', 'standby: verified');
	is($standby->safe_psql('postgres', 'SELECT idem_audit_digest()'), psql('SELECT idem_audit_digest()'),
		'standby: the digest');
	is(sqlstate($standby, "SELECT $_"), '25006', "standby: $_")
	  foreach ('idem_audit_seal()', "idem_audit_prune('2021-01-01')");
	psql("UPDATE $log SET action = 'changed' WHERE entity = 'standby'");
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
	like($standby->safe_psql('postgres', 'SELECT problem FROM idem_audit_verify()'), qr/^rows_changed$/,
		'standby: sees a change');
	psql("UPDATE $log SET action = 'to' WHERE entity = 'standby'");
	$standby->stop;
}

#
# Dumped and restored, and once more
#
sub dump_restore
{
	my ($from, $from_db, $to, $to_db, @format) = @_;
	my $file = "$folder/$to_db.dump";

	run_client($from, 'pg_dump', @format, '-f', $file, $from_db);
	$to->safe_psql('postgres', "CREATE DATABASE $to_db");
	if (@format)
	{
		run_client($to, 'pg_restore', '--exit-on-error', '-j', 2, '-d', $to_db, $file);
	}
	else
	{
		run_client($to, 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', $file, $to_db);
	}
	return;
}

# What is found inside and outside; the origin is that of the database
sub found_in
{
	my ($on, $database) = @_;
	my $name = "export_$database";
	my ($inside) = run_psql($on, "$pin BEGIN ISOLATION LEVEL REPEATABLE READ;"
		  . sprintf($verify, "'$head'") . "\n" . export_sql($name) . 'COMMIT', database => $database);
	my $origin = $on->safe_psql($database, 'SELECT COALESCE(min(first_id), 0) FROM idempotency_audit_origin');
	my ($outside, $exit) = verify_outside($name, '--digest', $head, '--key', "1=$key_file", '--origin', $origin);

	is(codes($outside), codes($inside), "$database: the same from outside") if $exit != 0 && $inside !~ /key_missing/;
	return codes($inside) if $exit != 0 || $inside ne '';
	return '';
}

sub check_restored
{
	my ($on, $database, $unsealed) = @_;
	my $go = sub { return $on->safe_psql($database, $_[0]) };
	my ($key_segment) = $go->("SELECT min(segment) FROM $seals WHERE key_id IS NOT NULL");

	is($go->("SELECT segment || ' ' || problem FROM idem_audit_verify()"), "$key_segment key_missing",
		"$database: the secret is not there");
	is($go->("SELECT idem_secret('audit', '\\x$secret_hex')"), 1, "$database: the secret is set again");
	is(found_in($on, $database), '', "$database: verified");
	is($go->("SELECT (SELECT sum(rows) FILTER (WHERE kind = 's') - sum(rows) FILTER (WHERE kind = 'p') FROM $seals) + $unsealed - count(*) FROM $log"),
		0, "$database: all rows");
	$go->("SELECT idem_audit('restored', 'row', i::text) FROM generate_series(1, 4) i");
	is(found_in($on, $database), '', "$database: verified with new rows");
	is($go->('SELECT idem_audit_seal()'), $unsealed + 4, "$database: old and new rows are sealed");
	is(found_in($on, $database), '', "$database: verified when they are sealed");
	is($go->('SELECT idem_audit_seal()'), 0, "$database: nothing is left");
	# what is changed there is found
	foreach my $case (
		[ "DELETE FROM $log WHERE action = 'restored' AND entity_id = '2'", 'rows_missing' ],
		[ "UPDATE $log SET action = 'x' WHERE action = 'left'", 'rows_changed' ],
		[ qq{INSERT INTO $log SELECT (jsonb_populate_record(l, '{"id": 900000, "xid": "5"}')).* FROM $log l WHERE action = 'left' LIMIT 1}, 'row_outside' ])
	{
		my ($sql, $problem) = @$case;
		my ($out) = run_psql($on, "BEGIN; $sql; SELECT string_agg(DISTINCT problem, ',') FROM idem_audit_verify(); ROLLBACK",
			database => $database);
		is($out, $problem, "$database: changed there: $problem");
	}
	return;
}

# some rows that are not sealed, the newest ones
psql('SELECT idem_audit_seal()');
psql("SELECT idem_audit('left', 'row', i::text) FROM generate_series(1, 5) i");
#
# Text without a meaning: one row does not hold up all others.
#

foreach my $encoding ('SQL_ASCII', 'WIN1252', 'LATIN1')
{
	$node->safe_psql('postgres', qq{
CREATE DATABASE "$encoding" ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0});
	install($node, $encoding);
	is( $node->safe_psql($encoding, qq{
SET client_encoding = '$encoding';
SELECT idem_audit('a', 'b', E'\\x81'), idem_audit('a', 'b', E'\\xe4');
SELECT idem_audit_seal();
SELECT * FROM idem_audit_verify()}), "1|2\n2", "$encoding: sealed, and verified");
}

#
# Without any partition: the default one detached, and no other there.
#
$node->safe_psql('postgres', 'CREATE DATABASE bare');
install($node, 'bare');
is( $node->safe_psql('bare', q{
ALTER TABLE idempotency_audit_log DETACH PARTITION idempotency_audit_log_default;
SELECT idem_audit_seal(), idem_audit_prune('infinity')}), '0|0', 'no partition: nothing to do');
is(sqlstate($node, "SELECT idem_audit('a', 'b', 'c')", database => 'bare'), '23514', 'no partition: no row');
is( $node->safe_psql('bare', q{
ALTER TABLE idempotency_audit_log ATTACH PARTITION idempotency_audit_log_default DEFAULT;
SELECT idem_audit('a', 'b', 'c') IS NOT NULL;
ALTER TABLE idempotency_audit_log DETACH PARTITION idempotency_audit_log_default;
SELECT idem_audit_seal()}), "t\n0", 'no partition: the row is out of reach');

my $target = new_node('target', extension => 0);
# another cluster's transaction ids are greater
dump_restore($node, 'postgres', $target, 'plain');
dump_restore($node, 'postgres', $target, 'custom', '-Fc');
check_restored($target, $_, 5) foreach ('plain', 'custom');
$target->safe_psql('custom', "SELECT idem_audit('left', 'row', i::text) FROM generate_series(6, 7) i");
dump_restore($target, 'custom', $node, 'again', '-Fc');
check_restored($node, 'again', 2);

$node->stop;
$target->stop;

done_testing();
