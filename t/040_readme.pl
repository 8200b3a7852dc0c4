# README.md and doc/ say what is so.
#
# Scenario: a reader follows README.md from top to bottom, then the files of
# doc/ in the order in which README links them, and types every block of SQL
# into one session of psql, with one database that was empty before; and then
# does it all again with a second database of the same server.  No statement
# may fail, and where output stands below a block it is what psql prints.
# Marks after "sql" in the first line of a block, which no reader of the page
# sees, say otherwise:
#
#   signature        is not run: how a function is declared
#   error=SQLSTATE   the last error of the block has this SQLSTATE
#   cluster          is run with the first database only; roles are made here
#   scratch          is run in a database of its own, in a session of its own
#   end              is run after all others, and what is of the cluster after
#                    both databases are done
#   cron             is run where there is pg_cron, which is in one database
#   citus            is not run here, but by test/citus/007_page.pl
#
# Typed once more, the blocks that install change nothing.  After the last
# block nothing of the extension is left.
#
# A "text" block right after a "sql" block is its output; blank lines, blanks
# at the end of lines and the counts of rows do not matter.
#
# Then headings and tables are compared with what they describe: functions with
# the members of the extension, settings with pg_settings, defaults of policies
# with idem_policy_list, error codes with src/idem.h, levels with the
# privileges that idem_grant gave, checks with idem_health.  README links every
# file of doc/ and has at most 300 lines, and all links lead somewhere.

use strict;
use warnings;

use File::Basename;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/..";
my $readme = slurp_file("$top/README.md");
my %linked;
my ($index) = $readme =~ /^## Documentation\n(.*)/ms or die 'README.md has no index';
my @files = ('README.md', grep { !$linked{$_}++ } $index =~ /\]\((doc\/[\w-]+\.md)\)/g);
my %content = map { $_ => slurp_file("$top/$_") } grep { -e "$top/$_" } @files;
is( join(' ', sort grep { /^doc/ } @files),
	join(' ', map { 'doc/' . basename($_) } sort glob("$top/doc/*.md")),
	'README.md links the files of doc/, and no others');
cmp_ok(scalar(split /\n/, $readme), '<=', 300, 'README.md has at most 300 lines');

my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);

my $cron = -e "$libdir/pg_cron.so";
my $node = new_node('readme', extension => 0, conf => join "\n",
	"shared_preload_libraries = 'idempotency" . ($cron ? ", pg_cron'" : "'"),
	$cron ? "cron.database_name = 'reader'\n" : '');
$node->safe_psql('postgres', "CREATE DATABASE $_")
  foreach ('reader', 'second');

#
# Blocks of SQL
#

# The blocks of a file: file, line, language, marks, text, expected output
sub find_blocks
{
	my ($file) = @_;
	my (@blocks, $block, $last);
	my $line = 0;

	foreach my $text (split /\n/, $content{$file})
	{
		$line++;
		if (defined $block && $text =~ /^\s*```\s*$/)
		{
			if ($block->{language} eq 'text' && defined $last)
			{
				$last->{expected} = $block->{text};
			}
			$last = $block->{language} eq 'sql' ? $block : undef;
			push @blocks, $block if $block->{language} eq 'sql';
			undef $block;
		}
		elsif (defined $block)
		{
			$block->{text} .= "$text\n";
		}
		elsif ($text =~ /^\s*```(\w+)\s*(.*?)\s*$/)
		{
			$block = {
				name => "$file line $line",
				language => $1,
				marks => { map { /(\w+)=?(.*)/ } split ' ', $2 },
				text => ''
			};
		}
		elsif ($text =~ /\S/)
		{
			undef $last;
		}
	}
	ok(!defined $block, "$file: every block is closed");
	return @blocks;
}

# What is compared of the output of psql
sub essence
{
	my ($output) = @_;

	return join "\n", grep { /\S/ && !/^\(\d+ rows?\)$/ }
	  map { s/\s+$//r } split /\n/, $output;
}

# Run blocks in one session; of each, the output and the last SQLSTATE
sub run_blocks
{
	my ($database, @blocks) = @_;
	my $script = '';
	my ($stdout, $stderr) = ('', '');
	my $mark = '@@ end of block';

	foreach my $block (@blocks)
	{
		$script .= "\\set LAST_ERROR_SQLSTATE 00000\n"
		  . $block->{text}
		  . "\n\\echo $mark :LAST_ERROR_SQLSTATE\n";
	}
	# A reader's psql, so neither the settings of $node->psql() nor a .psqlrc
	IPC::Run::run(
		[
			$node->installed_command('psql'), '-X', '-q',
			'-v', 'VERBOSITY=verbose', '-d', $node->connstr($database)
		],
		'<', \$script, '>', \$stdout, '2>', \$stderr);
	note($stderr) if $stderr ne '';

	my @output = split /^\Q$mark\E (\w{5})\n/m, $stdout;
	foreach my $block (@blocks)
	{
		$block->{output} = shift @output;
		$block->{sqlstate} = shift(@output) // 'none';
	}
	return;
}

sub has
{
	my ($block, $mark) = @_;

	return exists $block->{marks}{$mark};
}

my @all = map { find_blocks($_) } @files;
my @signatures = grep { has($_, 'signature') } @all;
my @blocks = grep {
	!has($_, 'signature') && !has($_, 'citus') && ($cron || !has($_, 'cron'))
} @all;
my @scratch = grep { has($_, 'scratch') } @blocks;
my @end = grep { has($_, 'end') } @blocks;
my @common = grep { !has($_, 'scratch') && !has($_, 'end') } @blocks;
my @second = grep { !has($_, 'cluster') && !has($_, 'cron') } @common;

sub check_blocks
{
	my ($database, @checked) = @_;

	foreach my $block (@checked)
	{
		is( $block->{sqlstate},
			$block->{marks}{error} // '00000',
			"$database: $block->{name}: " . (has($block, 'error')
				? 'fails as it says' : 'runs'));
		is(essence($block->{output}), essence($block->{expected}),
			"$database: $block->{name}: output")
		  if defined $block->{expected};
	}
	return;
}

sub run_and_check
{
	my ($database, @checked) = @_;

	run_blocks($database, @checked);
	check_blocks($database, @checked);
	return;
}

cmp_ok(scalar(@second), '>', 20, 'there are blocks of SQL');
foreach my $n (0 .. $#scratch)
{
	$node->safe_psql('postgres', "CREATE DATABASE scratch$n");
	run_and_check("scratch$n", $scratch[$n]);
}
run_and_check('reader', @common);
run_and_check('second', @second);

# What installs, and what belongs to the cluster, a second time
my @install = grep { has($_, 'cluster') || $_->{text} =~ /CREATE EXTENSION idempotency/ }
  @common;
cmp_ok(scalar(@install), '>', 1, 'there are blocks that install');
foreach my $database ('reader', 'second')
{
	my $state = q{SELECT count(*), md5(string_agg(a::text, ',' ORDER BY a::text))
FROM (SELECT relname, relowner, relacl FROM pg_class
	UNION ALL SELECT nspname, nspowner, nspacl FROM pg_namespace
	UNION ALL SELECT rolname, 0, NULL FROM pg_roles) a};
	my $before = $node->safe_psql($database, $state);

	run_blocks($database, @install);
	foreach my $block (@install)
	{
		like($block->{sqlstate}, qr/^(42710|42P06|25P02)$/,
			"$database: $block->{name}: is there already");
	}
	is($node->safe_psql($database, $state), $before,
		"$database: installed twice, nothing is changed");
}

#
# Tables
#

# What stands under a heading of a file
sub section
{
	my ($file, $heading) = @_;
	my ($section) = $content{$file} =~ /^#+ \Q$heading\E\n(.*?)(?=^##? |\z)/ms
	  or die "$file has no section $heading";

	return $section;
}

# The rows of the n-th table there, without its head
sub table_under
{
	my ($file, $heading, $n) = @_;
	my @tables = section($file, $heading) =~ /((?:^\|.*\n)+)/mg;
	my @rows = split /\n/, $tables[ $n // 0 ] // '';

	return map {
		s/^\|\s*|\s*\|$//gr
	} splice(@rows, 2);
}

sub cells
{
	return map { s/^\s+|\s+$//gr } split /\s*\|\s*/, $_[0], -1;
}

sub reader
{
	my ($sql) = @_;

	return $node->safe_psql('reader',
		"SET search_path = idempotency, public; $sql");
}

# Functions: each that can be called by others than the extension has one
# heading, with its signature below.  Overloads by type of response stand under
# one, with the signature of that for text.
my $existing = reader(
	q{
SELECT regexp_replace(format('%s(%s)%s', p.proname,
         replace(pg_get_function_arguments(p.oid), 'IN max_duration', 'max_duration'),
         ' RETURNS ' || replace(pg_get_function_result(p.oid), 'TABLE(', 'TABLE (')),
       '(NULL|''[^'']+'')::[a-z0-9 ]+(\[\])?', '\1', 'g')
FROM pg_proc p
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
     AND d.deptype = 'e'
JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass
     AND d.refobjid = e.oid AND e.extname = 'idempotency'});
$existing =~ s/\btimestamp with time zone\b/timestamptz/g;
my %existing = map { $_ => 1 } split /\n/, $existing;
my %known = map { /^(\w+)/ => 1 } keys %existing;
my %public = map { $_ => 1 } grep { !/^\w+_values\(|RETURNS trigger$/ } keys %existing;

my %described;
foreach my $block (@signatures)
{
	my $signature = $block->{text} =~ s/\s+/ /gr =~ s/^ | $//gr;

	$described{$signature} = 1;
	if ($signature =~ /response text DEFAULT NULL/)
	{
		foreach my $type ('json', 'jsonb', 'bytea')
		{
			$described{ $signature =~
				  s/response text DEFAULT NULL/response $type/r } = 1;
		}
	}
}
is(join("\n", sort grep { !$existing{$_} } keys %described),
	'', 'every signature is that of a function of the extension');
is(join("\n", sort grep { !$described{$_} } keys %public),
	'', 'every function that can be called has its signature in doc/functions.md');
my %names = map { /^(\w+)/ => 1 } keys %public;
is( join("\n", sort $content{'doc/functions.md'} =~ /^### (\w+)$/mg),
	join("\n", sort keys %names),
	'and has one heading');
while ($content{'doc/functions.md'} =~ /^### (\w+)\n\n(?:```sql signature\n(\w+))?/mg)
{
	is($2, $1, "under $1 is its signature");
}
my $described = join ',', keys %names;
is( reader(
		"SELECT string_agg(DISTINCT p.proname, ' ') FROM pg_proc p, aclexplode(p.proacl) a
WHERE p.pronamespace = 'idempotency'::regnamespace AND p.proname LIKE 'idem%'
AND p.proname !~ '_values\$' AND a.grantee <> p.proowner
AND p.proname <> ALL (string_to_array('$described', ','))"),
	'',
	'nothing else is granted to anybody');

# Columns of the composite types, in their order
my %table_of = (idem_response => 0, idem_result => 1);
foreach my $type (sort keys %table_of)
{
	is( join(', ', map { join ' ', (map { s/`//gr } cells($_))[ 0, 1 ] }
			  table_under('doc/functions.md', 'Types', $table_of{$type})),
		reader(
			qq{SELECT replace(string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum),
	'timestamp with time zone', 'timestamptz')
FROM pg_attribute WHERE attrelid = '$type'::regclass AND attnum > 0}),
		"columns of $type");
}

# Settings; one of them may be set here, see STORAGE
my @settings = map { join '|', (map { s/`//gr } cells($_))[ 0 .. 3 ] }
  table_under('doc/settings.md', 'Settings', 1);
is( join("\n", sort @settings),
	$node->safe_psql(
		'reader', q{
SET search_path = idempotency, public;
DO $$ BEGIN PERFORM idem_health(); END $$;
SELECT name, CASE vartype WHEN 'enum' THEN boot_val ELSE current_setting(name) END,
	coalesce(unit, ''), context
FROM pg_settings WHERE name LIKE 'idempotency.%' ORDER BY name COLLATE "C"}),
	'the table of settings is that of pg_settings');

# Policies: each column, in its order, with its default
my @policy_rows = map { [ map { s/`//gr } (cells($_))[ 0, 1 ] ] }
  table_under('doc/policies.md', 'Columns');
is( join(',', map { $_->[0] } @policy_rows),
	reader(
		q{SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = 'idem_policy_list'::regclass AND attnum > 1}),
	'the table of policies has the columns of idem_policy_list');
foreach my $policy (@policy_rows)
{
	my ($column, $default) = @$policy;

	is( reader(
			"SELECT ${column}::text FROM idem_policy_list WHERE name = 'default'"),
		reader(
			"SELECT (NULLIF('$default', '')::"
			  . reader(
				"SELECT format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'idem_policy_list'::regclass AND attname = '$column'")
			  . ')::text'),
		"default of $column");
}

# Errors of the class of our own
my $header = slurp_file("$top/src/idem.h");
my %codes;
while ($header =~ /MAKE_SQLSTATE\(('.', ?'.', ?'.', ?'.', ?'.')\)/g)
{
	$codes{ $1 =~ s/[', ]//gr } = 1;
}
my $errors = join "\n", map { (cells($_))[0] } table_under('doc/errors.md', 'Errors');
is( join(' ', sort $errors =~ /`(ID\w{3})`/g),
	join(' ', sort keys %codes),
	'the table of errors has the codes of src/idem.h');

# Levels: what the table says is what idem_grant gives
foreach my $row (table_under('doc/security.md', 'Levels'))
{
	my ($level, $functions, $relations) = cells($row);

	$level =~ s/`//g;
	is( join(' ', sort "$functions $relations" =~ /`(\w+)`/g),
		reader(
			qq{BEGIN;
CREATE ROLE probe; SET client_min_messages = warning;
SELECT FROM idem_grant('probe', '$level') WHERE false;
DO \$\$ BEGIN PERFORM idem_grant('probe', '$level'); END \$\$;
SELECT string_agg(name, ' ' ORDER BY name COLLATE "C") FROM (
SELECT DISTINCT p.proname::text AS name FROM pg_proc p, aclexplode(p.proacl) a
WHERE a.grantee = 'probe'::regrole AND p.proname NOT LIKE '%_values'
UNION SELECT c.relname FROM pg_class c, aclexplode(c.relacl) a
WHERE a.grantee = 'probe'::regrole) granted;
ROLLBACK}),
		"level $level");
}

# Checks: pg_cron may not be here, and Citus is not; test/citus/007_page.pl
my @checks = section('doc/operations.md', 'Failing health checks') =~ /^### (\w+)$/mg;
is( join(' ', grep { !/^(?:pg_cron|citus_.*)$/ } @checks),
	reader(
		q{SELECT string_agg(check_name, ' ' ORDER BY check_name COLLATE "C")
FROM idem_health() WHERE check_name <> 'pg_cron'}),
	'the headings of checks are those of idem_health');

# Outcomes
is( join(' ', sort map { (cells($_))[0] =~ s/`//gr } table_under('README.md', 'How it works')),
	reader(
		q{SELECT string_agg(o::text, ' ' ORDER BY o::text COLLATE "C")
FROM unnest(enum_range(NULL::idem_outcome)) o}),
	'the table of outcomes is idem_outcome');

# Every name of a function of ours in the text is one
foreach my $file (grep { $_ ne 'doc/design.md' } @files)
{
	my %unknown = map { $_ => 1 } grep {
		!$known{$_} && !/^idem_(outcome|result|response|policy_list|stats|activity|sweep_status|throttle_activity)$/
	} $content{$file} =~ /\b(idem_[a-z_]+)\b/g;

	is(join(' ', sort keys %unknown), '', "$file names only what there is");
}

# Links between files, and to headings; what is code is neither
sub prose
{
	my ($file) = @_;

	return slurp_file("$top/$file") =~ s/^\s*```.*?^\s*```\s*$//msgr;
}

sub has_heading
{
	my ($file, $heading) = @_;
	my %headings = map { lc(s/[^\w\s-]//gr) =~ s/ /-/gr => 1 } prose($file) =~ /^#+ (.*)$/mg;

	return $headings{$heading};
}

foreach my $file (
	@files,
	map { s/^\Q$top\E\///r }
	map { sort glob("$top/$_") } 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md',
	'bench/README.md', 'examples/README.md', 'examples/*/README.md', 'adapters/*/README.md', 'src/*/README.md')
{
	my $links = 0;
	my @broken;

	foreach my $link (prose($file) =~ s/`[^`\n]*`//gr =~ /\]\(([^)\s]+)\)/g)
	{
		next if $link =~ /^\w+:/;
		my ($to, $heading) = $link =~ /^([^#]*)(?:#(.*))?$/;
		my $target = $to eq '' ? $file : dirname($file) . "/$to";

		$links++;
		push @broken, $link
		  if !-e "$top/$target" || (defined $heading && !has_heading($target, $heading));
	}
	is("@broken", '', "$file: $links links lead somewhere");
}

#
# Uninstall: cron job and extension in each database, then the cluster's own.
# A second role has a job, too.
#
$node->safe_psql(
	'reader', q{
CREATE ROLE sweeper LOGIN;
GRANT USAGE ON SCHEMA cron, idempotency TO sweeper;
DO $$ BEGIN PERFORM idempotency.idem_grant('sweeper', 'operator'); END $$;
SET SESSION AUTHORIZATION sweeper;
DO $$ BEGIN PERFORM idempotency.idem_schedule(); END $$;
RESET SESSION AUTHORIZATION;
DO $$ BEGIN PERFORM idempotency.idem_schedule(); END $$})
  if $cron;

foreach my $database ('reader', 'second')
{
	run_and_check($database,
		grep { !has($_, 'cluster') && ($database eq 'reader' || !has($_, 'cron')) }
		  @end);
	is( $node->safe_psql(
			$database, q{
SELECT extname FROM pg_extension WHERE extname IN ('idempotency', 'pgcrypto')
UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'idempotency'
UNION ALL SELECT relname FROM pg_class WHERE relname LIKE 'idem%'
UNION ALL SELECT proname FROM pg_proc WHERE proname LIKE 'idem%'}),
		'', "$database: nothing is left");
}
is( $node->safe_psql('reader', 'SELECT count(*) FROM cron.job'),
	'0', 'no job is left')
  if $cron;
run_and_check('second', grep { has($_, 'cluster') } @end);

# The library goes last: with its name in the settings nothing would start.
$node->stop;
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries',
	"'idempotency_is_gone'");
is($node->start(fail_ok => 1), 0, 'preloaded, but gone: no start');
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->start;
$node->stop;

done_testing();
