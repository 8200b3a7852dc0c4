
=pod

=head1 NAME

IdemAudit - what the tests of the audit log's seals share

=head1 DESCRIPTION

Verifies a log from inside, by idem_audit_verify(), and from outside, by
tools/verify-audit from an export, and expects them to say the same.

=cut

package IdemAudit;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IdemTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  $folder $key_file $pin $secret_hex $verify check_problems check_well codes
  export_sql problems_after use_node verify_outside
);

my $verifier = "$FindBin::RealBin/../tools/verify-audit";
our $folder = PostgreSQL::Test::Utils::tempdir;

# The secret of key id 1, and a file of it
our $secret_hex = join '', map { sprintf '%02x', $_ } 0 .. 31;
our $key_file = "$folder/key";
append_to_file($key_file, "$secret_hex\n");

my $node;

# The node that is verified
sub use_node
{
	($node) = @_;
	return;
}

# The settings of an export
our $pin = q{SET timezone = 'UTC'; SET datestyle = 'ISO, YMD';
SET bytea_output = 'hex'; SET client_encoding = 'UTF8';};

# To two files, within the transaction that it is part of
sub export_sql
{
	my ($name) = @_;

	return join '', map {
		my ($table, $order) = @$_;
		"COPY (SELECT * FROM idempotency_audit_$table ORDER BY $order) TO STDOUT \\g '$folder/$name.$table'\n"
	} ([ 'log', 'id, at, xid' ], [ 'seals', 'segment, kind' ]);
}

# What tools/verify-audit says of an export, and its exit code
sub verify_outside
{
	my ($name, @args) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'python3', '-B', $verifier, @args, "$folder/$name.log", "$folder/$name.seals" ],
		'>', \$out, '2>', \$err);
	chomp $out;
	return ($out, $? >> 8, $err);
}

# A line for each problem: segment and code
sub codes
{
	my ($out) = @_;

	return join "\n", sort map { s/:.*//r } split /\n/, $out;
}

our $verify = q{SELECT segment || ' ' || problem FROM idem_audit_verify(%s);};
my $n_exports = 0;

# What both find after some statements, in a transaction that is rolled back.
# Options: digest, keys (false: without).
sub problems_after
{
	my ($what, $sql, %options) = @_;
	my $name = 'export' . ++$n_exports;
	my $digest = $options{digest};
	my @args = $options{keys} // 1 ? ('--key', "1=$key_file") : ();
	my $text = $pin . "BEGIN;\n\\o /dev/null\n$sql;\n\\o\n"
	  . sprintf($verify, defined $digest ? "'$digest'" : '') . "\n"
	  . export_sql($name) . 'ROLLBACK;';
	my ($inside, $state) = run_psql($node, $text);
	my ($outside, $exit) = verify_outside($name, @args,
		defined $digest ? ('--digest', $digest) : ());

	is($state, '', "$what: done") or return ('failed', 'failed');
	$inside = codes($inside);
	if ($exit == 0)
	{
		like($outside, qr/^ok \d+ segments, \d+ rows$/, "$what: ok outside");
		$outside = '';
	}
	is(codes($outside), $inside, "$what: the same from outside");
	return $inside;
}

sub check_problems
{
	my ($what, $sql, $expected, %options) = @_;

	is(problems_after($what, $sql, %options), join("\n", sort @$expected), $what);
	return;
}

sub check_well
{
	my ($what, %options) = @_;

	check_problems($what, 'SELECT 1', [], %options);
	return;
}

1;
