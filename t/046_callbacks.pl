# Others fit beside us: how many cache callbacks this library registers.
#
# Scenario: a backend has ten slots for callbacks of the relation cache, and some
# for those of the system caches; whoever wants one more ends it with FATAL, and
# Citus alone wants five.  A small library takes as many as it can get, in a
# session that has used all of ours, and in one that has not loaded it.  The
# difference is what we take: one for the relation cache.  Of the many slots for
# the system caches there is one for each cache that we watch, each named once in
# the source.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IdemTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = "$FindBin::RealBin/..";
my $folder = PostgreSQL::Test::Utils::tempdir;
my $node = new_node('callbacks');

system_or_bail('cp', "$source/test/slots.c", $folder);
append_to_file("$folder/Makefile",
	"MODULES = slots\nPGXS := \$(shell pg_config --pgxs)\ninclude \$(PGXS)\n");
system_or_bail('make', '-s', '-C', $folder, 'with_llvm=no', 'slots.so');

$node->safe_psql('postgres', join ';', map {
	"CREATE FUNCTION take_${_}_slots() RETURNS void
	AS '$folder/slots' LANGUAGE C" } 'relation', 'catalog');

# All that registers something: caches, both ways to the keys, limiters, DDL
my $use = q{
DO $$ DECLARE k text := gen_random_uuid(); BEGIN
	PERFORM idem_claim('s', k);
	PERFORM idem_complete('s', k);
	PERFORM idem_lookup('s', k);
	PERFORM idem_dedupe('s', '{a}'), idem_sweep(), count(*) FROM idem_health();
	PERFORM idem_limiter('l', 1, '1 s'), idem_policy('p');
	PERFORM count(*) FROM idem_audit_verify();
END $$;
CREATE TEMP TABLE other (i integer);
DROP TABLE other};

# What is left in a session that has done that before
sub left
{
	my ($kind, $before) = @_;
	my ($stdout, $stderr) = ('', '');

	$node->psql('postgres', "$before; SELECT take_${kind}_slots()",
		stdout => \$stdout, stderr => \$stderr);
	like($stderr, qr/FATAL:.*out of \w+_callback_list slots/,
		"$kind: there is an end of them");
	return scalar(() = $stderr =~ /NOTICE:  taken$/gm);
}

foreach my $case ([ 'relation', 'Relcache' ], [ 'catalog', 'Syscache' ])
{
	my ($kind, $name) = @$case;
	my @calls = map { slurp_file($_) =~ /CacheRegister${name}Callback\((\w+)/g }
	  glob "$source/src/*/*.c";
	my %seen;

	is(scalar(@calls), 1, 'relation: registered in one place')
	  if $kind eq 'relation';
	is(scalar(grep { $seen{$_}++ } @calls), 0, "$kind: none twice");
}

# The server's own come at first use: those of the type cache and of PL/pgSQL
my $others = left('relation', q{
DO $$ BEGIN PERFORM ROW(ARRAY[1], 'a'::text) = ROW(ARRAY[1], 'b'::text); END $$;
CREATE TEMP TABLE other (i integer);
DROP TABLE other});
my $beside_us = left('relation', $use);

is($others - $beside_us, 1, 'relation: we take one slot');
cmp_ok($beside_us, '>=', 6, 'relation: Citus and pg_cron find theirs');
cmp_ok(left('catalog', $use), '>=', 30, 'catalog: plenty are left');

$node->stop;
done_testing();
