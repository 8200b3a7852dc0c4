# What was stored can be read back in a database of any encoding.
#
# Scenario: databases in LATIN1, SQL_ASCII and UTF8.  An answer in UTF-8 with
# characters that LATIN1 does not have is stored as bytes; idem_json shows its
# JSON nevertheless, with those escaped, the same value as jsonb reads it.
# Headers that the encoding cannot express are refused when they are stored.
# A UUID is one key in any case, and a key's other bytes are what they are.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '--encoding', 'UTF8', '--locale', 'C' ]);
$node->append_conf('postgresql.conf',
	'idempotency.storage = ' . ($ENV{STORAGE} // 'auto'));
$node->start;

my $name = 'u0';
# "é" and "€" and a clef, then an escape that was there before
my $body = '{"a": "' . "\xc3\xa9 \xe2\x82\xac \xf0\x9d\x84\x9e" . ' \\u20ac"}';
my $hex = unpack 'H*', $body;

# The output of a query, and the SQLSTATE of its error
sub query
{
	my ($sql) = @_;
	my ($out, $err) = ('', '');

	$node->psql($name, $sql, stdout => \$out, stderr => \$err,
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $err =~ /ERROR:\s+(\w{5})/ ? $1 : $out;
}

foreach my $encoding ('LATIN1', 'SQL_ASCII', 'UTF8')
{
	$name++;
	$node->safe_psql('postgres',
		"CREATE DATABASE $name ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	$node->safe_psql($name, 'CREATE EXTENSION idempotency CASCADE');
	query(qq{BEGIN; SELECT idem_claim('s', 'body');
		SELECT idem_complete('s', 'body', '\\x$hex'::bytea, content_type => 'application/json'); COMMIT});

	is(query(q{SELECT encode(body, 'hex') FROM idem_claim('s', 'body')}), $hex,
		"$encoding: the bytes are replayed");
	is( query(q{SELECT encode(convert_to(idem_json(r)::text, getdatabaseencoding()), 'hex') FROM idem_claim('s', 'body') r}),
		unpack('H*',
			$encoding eq 'LATIN1'
			? "{\"a\": \"\xe9 \\u20ac \\ud834\\udd1e \\u20ac\"}"
			: $body),
		"$encoding: the JSON is readable");
	is( query(q{SELECT key FROM idem_dedupe('s', '{8E03978E-40D5-43DD-BC93-6894A57F9324,8e03978e-40d5-43dd-bc93-6894a57f9324}') WHERE first}),
		'8E03978E-40D5-43DD-BC93-6894A57F9324',
		"$encoding: a UUID is one key");
	is( query(q{SELECT idem_respond(200, '{}', E'{"A": "\\\\u20ac"}') IS NOT NULL}),
		$encoding eq 'UTF8' ? 't' : '22023',
		"$encoding: a header is taken that the database can express");
	is( query(qq{SELECT idem_respond(200, '{}', '{"A": "\xc3\xa9"}') IS NOT NULL}),
		't', "$encoding: another one");
	like( query(q{UPDATE idempotency_keys SET headers = '{"A": "1", "B": "\u20ac\u0000"}' WHERE key = 'body';
			SELECT idem_http_headers(r) FROM idem_claim('s', 'body') r}),
		qr/^\[(\{"A": "1"\}, )?\{"Idempotency-Replayed"/,
		"$encoding: headers that came from elsewhere do not fail a replay");
}

done_testing();
