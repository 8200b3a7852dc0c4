# doc/citus.md says what is so.
#
# Scenario: a reader types each block of doc/citus.md, in its order, on a
# coordinator, with the addresses of three workers of which the third is to join
# and leave.  No statement fails.  The checks of Citus that doc/operations.md
# explains are those that idem_health() has; each test that the page names exists.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib", "$FindBin::RealBin/../../t/lib";

use CitusTest;
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/../..";
my $page = slurp_file("$top/doc/citus.md");
my @nodes = map { new_member("reader$_") } 1 .. 4;
my $coordinator = $nodes[0];
my $number = 0;

while ($page =~ /^```sql citus[^\n]*\n(.*?)^```$/gms)
{
	my $block = $1 =~ s/'10\.0\.0\.(\d)', 5432/"'127.0.0.1', " . $nodes[ $1 - 1 ]->port/ger;
	my ($out, $err) = ('', '');

	$number++;
	is($coordinator->psql('postgres', $block, stdout => \$out, stderr => \$err), 0, "block $number runs")
	  or note($err);
	if ($block =~ /idem_health/)
	{
		my @checks = slurp_file("$top/doc/operations.md") =~ /^### (citus_\w+)$/mg;

		is($coordinator->safe_psql('postgres', q{SELECT string_agg(check_name, ' ' ORDER BY check_name COLLATE "C")
			FROM idem_health() WHERE check_name ~ '^citus_'}), join(' ', @checks),
			'the checks of Citus are those of doc/operations.md');
		is($coordinator->safe_psql('postgres', q{SELECT string_agg(check_name || ': ' || detail, '; ')
			FROM idem_health() WHERE NOT ok AND check_name <> 'server_version'}), '', 'all is well');
	}
}
cmp_ok($number, '>', 6, 'there are blocks of SQL');
is(join(' ', grep { !-e "$top/test/citus/$_.pl" } $page =~ /`(00\d_\w+)`/g), '', 'the tests that it names exist');
done_testing();
