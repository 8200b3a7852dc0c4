# Rules that the source keeps, so that nobody has to remember them.
#
# Scenario: the tree itself is read.  The install script replaces nothing that
# is there already, quotes no @extschema@ and names no object of PostgreSQL's
# without its schema where a planted one could be bound; the version of the
# server is named in one file; user and search_path are switched in one room;
# SQL text is in the rooms listed below, none of it put together from values;
# subtransactions are in key/run and base/try alone; every ERROR has a SQLSTATE.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/..";
my %source = map { s/^\Q$top\E\///r => slurp_file($_) }
  glob "$top/idempotency.c $top/src/*.h $top/src/*/*.[ch]";

# The files in which a pattern occurs, comments left out
sub files_with
{
	my ($pattern) = @_;

	return join ' ', sort grep {
		(my $code = $source{$_}) =~ s{/\*.*?\*/}{}gs;
		$code =~ $pattern;
	} keys %source;
}

my $script = slurp_file("$top/idempotency--1.0.sql");
$script =~ s/--[^\n]*//g;
unlike($script, qr/\bOR\s+REPLACE\b|\bIF\s+NOT\s+EXISTS\b/i,
	'the script takes over no object that is there');
unlike($script, qr/['"]\@extschema\@|\@extschema\@['"]/,
	'the schema is in no quotes');
unlike(
	$script,
	qr/\bCREATE\s+(?:FUNCTION|PROCEDURE|TYPE|TABLE|VIEW)\s+(?!\@extschema\@\.)/,
	'every object is created in the schema of the extension');

is(files_with(qr/PG_VERSION_NUM/),
	'src/base/compat.h', 'one file knows the version of the server');
is(files_with(qr/SetUserIdAndSecContext/),
	'src/base/secctx.c', 'one room switches the user');
is(files_with(qr/"search_path"/),
	'src/base/secctx.c', 'and the search_path');
is(files_with(qr/InternalSubTransaction/),
	'src/base/try.c src/key/run.c',
	'two rooms have subtransactions: on_error = record, and what may fail');
is( files_with(qr/"(?:SELECT|INSERT|UPDATE|DELETE|GRANT)\b/),
	'src/admin/distribute.c src/admin/grant.c src/admin/health.c '
	  . 'src/admin/health_citus.c src/admin/health_log.c '
	  . 'src/admin/health_rights.c src/admin/health_sweep.c '
	  . 'src/admin/health_tables.c src/admin/stats.c '
	  . 'src/audit/chain.c src/audit/log.c src/audit/partition.c '
	  . 'src/audit/sealed_rows.c src/base/acl.c src/base/citus.c '
	  . 'src/base/hmac.c src/key/leases.c src/rule/rule_table.c '
	  . 'src/store/holder.c src/store/lock.c src/store/search.c '
	  . 'src/store/sql.c src/store/sql_many.c src/store/sql_sweep.c '
	  . 'src/sweep/sweep.c',
	'SQL text is where it belongs');
is(files_with(qr/SPI_execute\(/),
	'src/base/spi.c',
	'and has values as parameters, but for commands, which can have none');

foreach my $file (sort keys %source)
{
	my $without = 0;

	while ($source{$file} =~ /ereport\((ERROR|FATAL|PANIC|WARNING),\s*(.{10})/gs)
	{
		$without++ if $2 !~ /^\(?errcode/;
	}
	is($without, 0, "$file: every report has a SQLSTATE") if $file =~ /\.c$/;
}

done_testing();
