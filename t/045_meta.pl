# META.json is what PGXN asks for, and says what is so.
#
# Scenario: an author uploads the archive that "make dist" makes.  PGXN refuses
# one whose META.json breaks its specification (version 1.0.0), and would offer
# one that names another version, or files that are not there.

use strict;
use warnings;

use FindBin qw($Bin);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$Bin/..";
my $meta = decode_json(slurp_file("$top/META.json"));
my ($control) = slurp_file("$top/idempotency.control") =~ /^default_version = '(.*)'/m;
my $version = qr/^\d+\.\d+\.\d+(?:-[A-Za-z][\w-]*)?$/;		# PGXN's semantic version

foreach my $member (qw(name version abstract maintainer license provides meta-spec))
{
	ok(length $meta->{$member}, "$member, which is required");
}
is(join(' ', grep { !/^(?:name|version|abstract|maintainer|license|provides|meta-spec|
		description|generated_by|tags|no_index|prereqs|release_status|resources|x_\w+)$/xi } sort keys %$meta),
	'', 'no member that the specification does not know');
like($meta->{name}, qr/^[^\s\/\\]{2,}$/, 'name is a term');
like($meta->{version}, $version, 'version is a semantic version');
like($meta->{license}, qr/^(?:agpl_3|apache_1_1|apache_2_0|artistic_1|artistic_2|bsd|freebsd|gfdl_1_[23]|
	gpl_[123]|lgpl_2_1|lgpl_3_0|mit|mozilla_1_[01]|openssl|perl_5|postgresql|qpl_1_0|ssleay|sun|zlib|
	open_source|restricted|unrestricted|unknown)$/x, 'license is one of those known');
like($meta->{release_status} // 'stable', qr/^(?:stable|testing|unstable)$/, 'release_status');
is($meta->{'meta-spec'}{version}, '1.0.0', 'version of the specification');
is(ref($meta->{tags}) eq 'ARRAY' && scalar(grep { !length || length > 255 || /[\/\\]/ } @{ $meta->{tags} }),
	0, 'tags are terms');

foreach my $name (sort keys %{ $meta->{provides} })
{
	my $extension = $meta->{provides}{$name};

	like($extension->{version}, $version, "$name: version");
	ok(-s "$top/$extension->{$_}", "$name: $_ is there") for qw(file docfile);
}
my ($short) = $meta->{provides}{idempotency}{version} =~ /^(\d+\.\d+)/;
is($short, $control, 'the version is that of the control file');
is($meta->{provides}{idempotency}{file}, "idempotency--$control.sql", 'file is the install script');
is(join(' ', grep { !/^(?:configure|build|test|runtime|develop)$/ } keys %{ $meta->{prereqs} }),
	'', 'phases of prereqs');
is(join(' ', grep { !/^(?:requires|recommends|suggests|conflicts)$/ } map { keys %$_ } values %{ $meta->{prereqs} }),
	'', 'relations of prereqs');
like($meta->{prereqs}{runtime}{requires}{PostgreSQL}, qr/^15\.0\.0$/, 'PostgreSQL 15 and later');

my ($debian) = slurp_file("$top/debian/changelog") =~ /^\S+ \((.*?)-\d+\)/;
is($debian, $meta->{version}, "the version of Debian's package is the same");

done_testing();
