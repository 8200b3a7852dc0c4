# Canonical JSON against another implementation, and in other encodings.
#
# Scenario: Node.js makes random doubles and random documents, and writes
# each as JSON together with what it should become.  For a double that is
# what JSON.stringify() prints, which RFC 8785 refers to.  For a document it
# is a reference implementation of the RFC in a few lines: keys sorted by
# JavaScript's own sort, which goes by UTF-16 code units, leaves by
# JSON.stringify().  The server reads them as jsonb, and idem_canonical()
# and idem_fingerprint() of each must be the same to the byte.
#
# Then one document, with keys whose order differs between encodings, is
# put into databases of other encodings: text and fingerprint must not
# depend on that.
#
# All seeds are fixed.  Without Node.js this test fails; it is not skipped.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $doubles = 200_000;
my $near = 50_000;
my $documents = 20_000;

my $generator = <<'JS';
'use strict';
const fs = require('fs');
const crypto = require('crypto');
const [dir, doubles, near, documents] =
  process.argv.slice(2).map((a, i) => (i === 0 ? a : Number(a)));

let state = 8785;
function random32() { // mulberry32
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return (t ^ (t >>> 14)) >>> 0;
}
const below = (n) => random32() % n;
const pick = (list) => list[below(list.length)];

const bits = new DataView(new ArrayBuffer(8));
function anyDouble() {
  do {
    bits.setUint32(0, random32());
    bits.setUint32(4, random32());
  } while (!Number.isFinite(bits.getFloat64(0)));
  return bits.getFloat64(0);
}

// Where the layout changes: powers of ten and their neighbours, whole
// numbers, prices, and everything else that people send
function nearDouble() {
  const sign = below(2) ? 1 : -1;
  switch (below(4)) {
    case 0:
      bits.setFloat64(0, Number('1e' + (below(60) - 30)));
      bits.setBigUint64(0, bits.getBigUint64(0) + BigInt(below(5)) - 2n);
      return sign * bits.getFloat64(0);
    case 1: return sign * below(1000000) * 10 ** below(20);
    case 2: return sign * below(100000) / 100;
    default: return sign * (random32() + 1) * 10 ** (below(50) - 30);
  }
}

// A row of COPY; each column a string
const rows = [];
const copyEscapes = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };
const row = (...columns) => rows.push(columns.map(
  (c) => c.replace(/[\\\n\r\t]/g, (m) => copyEscapes[m])).join('\t'));
function flush(name) {
  fs.writeFileSync(dir + '/' + name, rows.join('\n') + '\n');
  rows.length = 0;
}

for (let i = 0; i < doubles + near; i++) {
  const x = i < doubles ? anyDouble() : nearDouble();
  row(String(i), i % 3 ? JSON.stringify(x) : x.toExponential(),
    JSON.stringify(x));
}
flush('numbers');

function codePoint() {
  switch (below(8)) {
    case 0: return 1 + below(0x1f);
    case 1: return pick([0x22, 0x2f, 0x5c, 0x7f, 0x80, 0x7ff, 0x800, 0x2028,
      0xd7ff, 0xe000, 0xfeff, 0xffff, 0x10000, 0x10ffff]);
    case 2: return 0xe000 + below(0x2000);
    case 3: return 0x10000 + below(0x100000);
    case 4: return 0x80 + below(0xd800 - 0x80);
    default: return 0x20 + below(0x5f);
  }
}
function writeString(chars) {
  let out = '"';
  for (const c of chars) {
    if (c < 0x20 || c === 0x22 || c === 0x5c || below(6) === 0) {
      for (const unit of String.fromCodePoint(c).split(''))
        out += '\\u' + unit.charCodeAt(0).toString(16).padStart(4, '0');
    } else {
      out += String.fromCodePoint(c);
    }
  }
  return { text: out + '"', value: String.fromCodePoint(...chars) };
}
const chars = (most) => Array.from({ length: below(most + 1) }, codePoint);
const space = () => pick(['', '', '', ' ', '\n', '\t']);

// JSON text with all freedoms that JSON leaves, repeated keys included, and
// its canonical form by RFC 8785, both from the same values: what is tested
// does not rest on how Node.js parses JSON
function writeValue(depth) {
  const kind = below(depth > 0 ? 10 : 6);
  if (kind < 2) {
    const s = writeString(chars(12));
    return { text: s.text, canonical: JSON.stringify(s.value) };
  }
  if (kind < 4) {
    const x = below(2) ? nearDouble() : anyDouble();
    return { text: below(2) ? JSON.stringify(x) : x.toExponential(),
      canonical: JSON.stringify(x) };
  }
  if (kind < 6) {
    const text = pick(['null', 'true', 'false', '0', '-0', '""']);
    return { text, canonical: text === '-0' ? '0' : text };
  }
  const texts = [];
  const members = new Map();	// the last of equal names counts
  for (let n = below(7); n > 0; n--) {
    const name = kind < 8 ? { text: '', value: n } : writeString(chars(3));
    const item = writeValue(depth - 1);
    texts.push(space() + name.text + (kind < 8 ? '' : space() + ':' + space()) +
      item.text + space());
    members.set(name.value, item.canonical);
  }
  if (kind < 8)
    return { text: '[' + texts.join(',') + ']',
      canonical: '[' + [...members.values()].join(',') + ']' };
  return { text: '{' + texts.join(',') + '}',
    canonical: '{' + [...members.keys()].sort().map(
      (k) => JSON.stringify(k) + ':' + members.get(k)).join(',') + '}' };
}

for (let i = 0; i < documents; i++) {
  const { text, canonical } = writeValue(5);
  row(String(i), text, canonical,
    crypto.createHash('sha256').update(canonical, 'utf8').digest('hex'));
}
flush('documents');
JS

my $dir = PostgreSQL::Test::Utils::tempdir;
my $script = "$dir/generate.js";
my $js = $ENV{NODE} || 'node';
PostgreSQL::Test::Utils::append_to_file($script, $generator);
system_log($js, $script, $dir, $doubles, $near, $documents) == 0
  or die "this test needs Node.js; NODE may name its executable\n";

my $node = PostgreSQL::Test::Cluster->new('canonical');
$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->start;

# The COPY of the file says how many rows there are to compare
$node->safe_psql(
	'postgres', qq{
SET client_min_messages = warning;
CREATE EXTENSION idempotency CASCADE;
CREATE TABLE numbers (id integer, input jsonb, expected text);
CREATE TABLE documents (id integer, input jsonb, expected text, hash text);
COPY numbers FROM '$dir/numbers' (ENCODING 'UTF8');
COPY documents FROM '$dir/documents' (ENCODING 'UTF8');
});

# Compare, and show some of what is wrong
sub compare_all
{
	my ($table, $condition, $rows, $name) = @_;

	is( $node->safe_psql(
			'postgres',
			"SELECT count(*), count(*) FILTER (WHERE $condition) FROM $table"
		),
		"$rows|$rows",
		$name)
	  or diag(
		$node->safe_psql(
			'postgres', qq{
SELECT id, left(expected, 200), left(idem_canonical(input), 200)
FROM $table WHERE ($condition) IS NOT TRUE ORDER BY id LIMIT 5}));
	return;
}

compare_all(
	'numbers', 'idem_canonical(input) = expected COLLATE "C"',
	$doubles + $near, 'doubles are written as JSON.stringify() does');
compare_all(
	'documents', 'idem_canonical(input) = expected COLLATE "C"',
	$documents, 'documents are as the reference has them');
compare_all('documents', q{idem_fingerprint(input) = decode(hash, 'hex')},
	$documents, 'fingerprints are the SHA-256 of the same bytes');
compare_all('documents', 'idem_canonical(input)::jsonb = input',
	$documents, 'a document is read back from its canonical text');

# The vectors must be as hard as they are meant to be
is( $node->safe_psql(
		'postgres', q{
SELECT count(*) FILTER (WHERE expected ~ 'e\+') > 1000
       AND count(*) FILTER (WHERE expected ~ 'e-') > 1000
       AND count(*) FILTER (WHERE expected ~ '^-?0\.0') > 1000
       AND count(*) FILTER (WHERE expected ~ '^-?\d+$') > 1000
       AND count(*) FILTER (WHERE expected ~ '^-?[1-9]\d*\.\d+$') > 1000
FROM numbers}),
	't', 'the numbers are in every layout');

# Keys in the order of UTF-16 and not of code points: a character above
# U+FFFF before one in U+E000 to U+FFFF
is( $node->safe_psql(
		'postgres', q|
SELECT count(*) > 100 FROM documents
WHERE expected ~ '[{,]"[\U00010000-\U0010ffff][^"]*":[^{]*,"[\ue000-\uffff]'|),
	't', 'the documents have keys that only UTF-16 puts in order');

# Other encodings.  Sent as escapes; the text comes back as bytes of UTF-8.
sub show_canonical
{
	my ($database, $document, $client) = @_;

	return $node->safe_psql(
		$database, qq{
SET client_encoding = '$client';
SELECT encode(convert_to(idem_canonical('$document'), 'UTF8'), 'hex'),
       encode(idem_fingerprint('$document'), 'hex')});
}

sub create_database
{
	my ($encoding) = @_;
	my $database = lc $encoding;

	$node->safe_psql('postgres',
		"CREATE DATABASE $database ENCODING '$encoding' LOCALE 'C' "
		  . 'TEMPLATE template0');
	$node->safe_psql($database,
			'SET client_min_messages = warning; '
		  . 'CREATE EXTENSION idempotency CASCADE');
	return $database;
}

my %samples = (
	'LATIN1' =>
	  '{"\u00fc": "\u00df\u000b", "u": [1.0], "\u00e9": {"\u00ff": ""}}',
	# by the bytes of EUC_JP the fullwidth letter (U+FF21) is first, and
	# the Hiragana (U+3042) stands before the Greek (U+03B1)
	'EUC_JP' => '{"\uff21": "\u4e9c", "\u3042": 1e3, "\u03b1": ["\u30a2"]}',
	'SQL_ASCII' => '{"b": "\u0001", "a": [1.50, null]}');

foreach my $encoding (sort keys %samples)
{
	my $database = create_database($encoding);
	my $expected = show_canonical('postgres', $samples{$encoding}, 'UTF8');

	foreach my $client ('UTF8', $encoding)
	{
		is(show_canonical($database, $samples{$encoding}, $client),
			$expected, "the same text in $encoding, client in $client");
	}
}

# In SQL_ASCII the server knows no characters: UTF-8 is taken for UTF-8,
# anything else is refused, rather than given a fingerprint of its own.
is( $node->safe_psql(
		'sql_ascii',
		q{SELECT encode(idem_fingerprint(E'"\303\266"'), 'hex')}),
	$node->safe_psql(
		'postgres', q{SELECT encode(idem_fingerprint('"\u00f6"'), 'hex')}),
	'UTF-8 in SQL_ASCII has the fingerprint of UTF-8');
my ($status, $stdout, $stderr) = $node->psql('sql_ascii',
	q{\set VERBOSITY sqlstate
SELECT idem_fingerprint(E'{"\366": 1}')});
like($stderr, qr/ERROR:  22021/, 'other bytes in SQL_ASCII are refused');

$node->stop;

done_testing();
