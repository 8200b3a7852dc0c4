# The wings under src/ and the order between them.
#
# Scenario: the tree itself is read, and its objects.  A wing uses what is on a
# lower floor and nothing else, by its #include lines as by the symbols of its
# objects; no circle of headers; a header compiles by itself; each wing has a
# README; files and functions stay short, and so do expected files; a test that
# is named exists; the list of typedefs for scripts/indent is complete.  What
# leaves the library is in t/011_versions.pl.

use strict;
use warnings;
use feature 'state';

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

# The one place that says who may use whom: the floor of each wing.  src/idem.h
# is below them all, idempotency.c above.
my %floor = (
	admin => 6,
	http => 5,
	sweep => 5,
	key => 4,
	limit => 4,
	audit => 3,
	store => 2,
	rule => 2,
	base => 1);

my $top = "$FindBin::RealBin/..";
my %source = map { s/^\Q$top\E\///r => slurp_file($_) }
  glob "$top/idempotency.c $top/src/*.h $top/src/*/*.[ch]";
my $work = PostgreSQL::Test::Utils::tempdir;

# What a command prints, and how it ends; it is given in the shell's words.
sub run_shell
{
	my ($command) = @_;
	my $out = `$command 2>&1`;

	return ($? == 0, $out);
}

sub wing_of
{
	my ($file) = @_;

	return $file =~ m{^src/(\w+)/} ? $1 : '';
}

# Whether code of one wing may use another
sub is_below
{
	my ($from, $to) = @_;

	return $from eq $to || $floor{$to} < $floor{$from};
}

my %wings = map { $_ => 1 } grep { $_ } map { wing_of($_) } keys %source;
is(join(' ', sort keys %wings),
	join(' ', sort keys %floor),
	'each wing has its floor');
is(join(' ', grep { !-s "$top/src/$_/README.md" } sort keys %wings),
	'', 'each wing has a README');

#
# Includes
#

my %included;
my @upward;

foreach my $file (sort keys %source)
{
	my $from = wing_of($file);

	foreach my $header ($source{$file} =~ /^#include "(.*)"$/mg)
	{
		my $to = wing_of("src/$header");

		next if !exists $source{"src/$header"};
		push @{ $included{$file} }, "src/$header";
		next if $file eq 'idempotency.c' || $to eq '';
		push @upward, "$file: $header"
		  if $from eq '' || !is_below($from, $to);
	}
}
is(join("\n", @upward), '', 'no file includes a header of a wing above it');

my %visited;
my @circles;

# Follow the headers from one; a header that is met on its own way is a circle.
sub follow
{
	my ($file, @way) = @_;

	if (grep { $_ eq $file } @way)
	{
		push @circles, join ' -> ', @way, $file;
		return;
	}
	return if $visited{$file};
	follow($_, @way, $file) foreach @{ $included{$file} || [] };
	$visited{$file} = 1;
	return;
}
follow($_) foreach sort keys %source;
is(join("\n", @circles), '', 'no circle of headers');

#
# The compiler's word
#

my ($cc, $cflags, $cppflags, $includes) =
  split /\n/, (run_shell('pg_config --cc --cflags --cppflags --includedir-server'))[1];
my $compiler = "$cc $cflags $cppflags -w -DPGDLLEXPORT= "
  . "-I$top -I$top/src -I$includes";

foreach my $header (sort grep { /\.h$/ } keys %source)
{
	my ($ok, $out) = run_shell(
		"$compiler -fsyntax-only -include postgres.h -x c $top/$header");

	ok($ok, "$header compiles by itself") or diag($out);
}

# An object as make has left it, or else one of our own; which wing has each
# symbol, and which are wanted.
my (%home, %wanted);

foreach my $file (sort grep { m{^src/.*\.c$} } keys %source)
{
	my $object = "$top/$file" =~ s/c$/o/r;

	if (!-e $object || (stat _)[9] < (stat "$top/$file")[9])
	{
		$object = "$work/" . ($file =~ s{/}{-}gr =~ s/c$/o/r);
		run_shell("$compiler -c -o $object $top/$file");
	}
	my ($ok, $out) = run_shell("nm -P $object");

	ok($ok, "nm reads the object of $file") or diag($out);
	foreach my $line (split /\n/, $out)
	{
		my ($name, $kind) = split ' ', $line;

		$home{$name} = wing_of($file) if $kind =~ /[A-TV-Z]/;
		push @{ $wanted{$name} }, $file if $kind eq 'U';
	}
}

my %calls;

foreach my $name (sort grep { exists $home{$_} } keys %wanted)
{
	foreach my $file (@{ $wanted{$name} })
	{
		push @{ $calls{"$file: $home{$name}"} }, $name
		  unless is_below(wing_of($file), $home{$name});
	}
}
cmp_ok(scalar(keys %home), '>', 200, 'the objects have symbols');
is(join("\n", map { "$_: @{$calls{$_}}" } sort keys %calls),
	'', 'no file uses a symbol of a wing above it');

#
# Measures
#

my (@long_files, @long_functions);

foreach my $file (sort keys %source)
{
	my $lines = () = $source{$file} =~ /\n/g;

	push @long_files, "$file: $lines" if $lines > 600;
	while ($source{$file} =~ /^(\w+)\(.*?^\{\n(.*?)^\}$/gms)
	{
		my ($name, $body) = ($1, $2);

		push @long_functions, "$file: $name" if ($body =~ tr/\n//) > 100;
	}
}
is("@long_files", '', 'no file has more than 600 lines');
is("@long_functions", '', 'no function has more than 100');
is( join(' ',
		grep { (() = slurp_file("$top/$_") =~ /\n/g) > 500 }
		map { s/^\Q$top\E\///r } sort glob "$top/expected/*"),
	'',
	'no expected file has more than 500');

# The design tells where a fact is decided: file and names, each of them there.
foreach (slurp_file("$top/doc/design.md") =~
	/^\|[^|]+\| `(\w+\/\w+\.[ch])` \|([^|]*)\|$/gm)
{
	state $file;
	if (m{/}) { $file = $_; next; }
	my $code = $source{"src/$file"} // '';
	my @missing = grep { $code !~ /\b$_\b/ } /`(\w+)`/g;
	ok($code ne '' && !@missing, "doc/design.md: $file @missing");
}

# A test that a comment, a README or a document names is there.
my %named;

foreach my $file (
	(keys %source),
	map { s/^\Q$top\E\///r } glob "$top/*.md $top/src/*/*.md $top/doc/*.md")
{
	my $text = slurp_file("$top/$file");

	$named{$_} = $file foreach $text =~ m{\b(?:specs|sql)/[\w-]+\b(?!\*|-)}g;
	$named{$_} = $file foreach $text =~ m{\bt/\d{3}_\w+}g;
	next if $file !~ /\.[ch]$/;
	while ($text =~ m{\bSpecs?: ([^.;]*)}g)
	{
		$named{"specs/$_"} = $file
		  foreach grep { /-/ } map { s/^[\s*]+|[\s*]+$//gr } split /,|\band\b|\bof\b/, $1;
	}
}
is( join(', ',
		map { "$_ ($named{$_})" }
		grep {
			!-e "$top/$_" && !-e "$top/$_.spec" && !-e "$top/$_.sql" && !-e "$top/$_.pl"
		} sort keys %named),
	'',
	'each test that is named exists');

# pgindent takes a word for a type only when it is listed.
my %typedefs;

foreach my $code (map { s{/\*.*?\*/}{}gsr } values %source,
	map { slurp_file($_) } glob "$top/{test,test/*,tools/*,bench,examples/*/*}/*.[ch]")
{
	$typedefs{$_} = 1
	  foreach $code =~ /^typedef\b[^;{]*?(?:\{.*?^\}\s*)?(?<!\w)(\w+);/gms,
	  $code =~ /^typedef [^;{]*\(\*(\w+)\)/gm;
}
my %listed = map { $_ => 1 } split /\n/, slurp_file("$top/tools/typedefs.list");
is(join(' ', grep { !$listed{$_} } sort keys %typedefs),
	'', 'tools/typedefs.list has each type');
is(join(' ', grep { !$typedefs{$_} } sort keys %listed),
	'', 'and no other');

done_testing();
