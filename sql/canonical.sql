--
-- Canonical JSON and fingerprints: RFC 8785 with exact numbers.
-- Needs a database in UTF8; t/030_canonical.pl has the others.
--
-- Vectors: RFC 8785 and the test data that its author published.  Escapes
-- in the expected text are PostgreSQL's, so that nothing here is invisible.
CREATE TEMP TABLE vectors (name text, input jsonb, expected text);

INSERT INTO vectors VALUES
('rfc 3.2.2, values',
 '{
    "numbers": [333333333.33333329, 1E30, 4.50,
                2e-3, 0.000000000000000000000000001],
    "string": "\u20ac$\u000F\u000aA''\u0042\u0022\u005c\\\"\/",
    "literals": [null, true, false]
  }',
 -- the RFC's first number is 333333333.3333333: here no digit is lost
 E'{"literals":[null,true,false],"numbers":[333333333.33333329,1e+30,4.5,'
 || E'0.002,1e-27],"string":"\u20ac$\\u000f\\nA''B\\"\\\\\\\\\\"/"}'),
('rfc 3.2.3, key order',
 '{
    "\u20ac": "Euro Sign",
    "\r": "Carriage Return",
    "\ufb33": "Hebrew Letter Dalet With Dagesh",
    "1": "One",
    "\ud83d\ude00": "Emoji: Grinning Face",
    "\u0080": "Control",
    "\u00f6": "Latin Small Letter O With Diaeresis"
  }',
 E'{"\\r":"Carriage Return","1":"One","\u0080":"Control",'
 || E'"\u00f6":"Latin Small Letter O With Diaeresis",'
 || E'"\u20ac":"Euro Sign","\U0001f600":"Emoji: Grinning Face",'
 || E'"\ufb33":"Hebrew Letter Dalet With Dagesh"}'),
('arrays',
 '[ 56, { "d": true, "10": null, "1": [ ] } ]',
 '[56,{"1":[],"10":null,"d":true}]'),
('french',
 '{
    "peach": "This sorting order",
    "p\u00e9ch\u00e9": "is wrong according to French",
    "p\u00eache": "but canonicalization MUST",
    "sin":   "ignore locale"
  }',
 E'{"peach":"This sorting order",'
 || E'"p\u00e9ch\u00e9":"is wrong according to French",'
 || E'"p\u00eache":"but canonicalization MUST","sin":"ignore locale"}'),
('structures',
 '{
    "1": {"f": {"f": "hi","F": 5} ,"\n": 56.0},
    "10": { },
    "": "empty",
    "a": { },
    "111": [ {"e": "yes","E": "no" } ],
    "A": { }
  }',
 E'{"":"empty","1":{"\\n":56,"f":{"F":5,"f":"hi"}},"10":{},'
 || E'"111":[{"E":"no","e":"yes"}],"A":{},"a":{}}'),
('unicode',
 '{ "Unnormalized Unicode":"A\u030a" }',
 E'{"Unnormalized Unicode":"A\u030a"}'),
('weird',
 '{
    "\u20ac": "Euro Sign",
    "\r": "Carriage Return",
    "\u000a": "Newline",
    "1": "One",
    "\u0080": "Control\u007f",
    "\ud83d\ude02": "Smiley",
    "\u00f6": "Latin Small Letter O With Diaeresis",
    "\ufb33": "Hebrew Letter Dalet With Dagesh",
    "</script>": "Browser Challenge"
  }',
 E'{"\\n":"Newline","\\r":"Carriage Return","1":"One",'
 || E'"</script>":"Browser Challenge","\u0080":"Control\u007f",'
 || E'"\u00f6":"Latin Small Letter O With Diaeresis",'
 || E'"\u20ac":"Euro Sign","\U0001f602":"Smiley",'
 || E'"\ufb33":"Hebrew Letter Dalet With Dagesh"}'),
('surrogates before U+E000, prefixes first',
 '{"\ue000": 1, "\uffff": 2, "\ud7ff": 3, "\ud800\udc00": 4,
   "\udbff\udfff": 5, "\ud800\udc00\ue000": 6, "\ud800\udc00\ud800\udc00": 7}',
 E'{"\ud7ff":3,"\U00010000":4,"\U00010000\U00010000":7,'
 || E'"\U00010000\ue000":6,"\U0010ffff":5,"\ue000":1,"\uffff":2}'),
('every control character',
 '"\u0001\u0002\u0003\u0004\u0005\u0006\u0007\u0008\u0009\u000a\u000b\u000c'
 '\u000d\u000e\u000f\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018'
 '\u0019\u001a\u001b\u001c\u001d\u001e\u001f\u007f"',
 E'"\\u0001\\u0002\\u0003\\u0004\\u0005\\u0006\\u0007\\b\\t\\n\\u000b\\f'
 || E'\\r\\u000e\\u000f\\u0010\\u0011\\u0012\\u0013\\u0014\\u0015\\u0016'
 || E'\\u0017\\u0018\\u0019\\u001a\\u001b\\u001c\\u001d\\u001e\\u001f\u007f"'),
('scalars: null', 'null', 'null'),
('scalars: true', 'true', 'true'),
('scalars: false', ' false ', 'false'),
('scalars: string', '"\/"', '"/"'),
('scalars: empty string', '""', '""'),
('empty object', ' { } ', '{}'),
('empty array', ' [ ] ', '[]'),
('array of one', '[1]', '[1]'),
('nested empties', '[[], {}, [[{}]], {"": {"": []}}]',
 '[[],{},[[{}]],{"":{"":[]}}]');

SELECT name, idem_canonical(input) = expected AS matches,
       CASE WHEN idem_canonical(input) IS DISTINCT FROM expected
            THEN idem_canonical(input) END AS instead
FROM vectors;

-- Canonical text read again is the same document and the same text.
SELECT count(*) AS vectors,
       count(*) FILTER (WHERE idem_canonical(input)::jsonb = input) AS equal,
       count(*) FILTER (WHERE idem_canonical(idem_canonical(input)::jsonb)
                              = expected) AS stable
FROM vectors;

-- Numbers of RFC 8785, appendix B, and around them.
SELECT number AS input, idem_canonical(number::jsonb)
FROM unnest(ARRAY[
    '0', '-0', '-0.0', '0.000', '0e10', '5e-324', '-5e-324',
    '1.7976931348623157e+308', '-1.7976931348623157e+308',
    '9007199254740992', '-9007199254740992', '295147905179352830000',
    '9.999999999999997e+22', '1e+23', '1.0000000000000001e+23',
    '999999999999999700000', '999999999999999900000',
    '1e+21', '1e21', '1000000000000000000000', '1E20',
    '9.999999999999997e-7', '0.000001', '1e-6', '0.0000010', '1e-7',
    '0.0000001', '333333333.3333332', '333333333.33333325',
    '333333333.3333333', '333333333.3333334', '333333333.33333343',
    '-0.0000033333333333333333', '1424953923781206.2',
    '4.50', '1E30', '2e-3', '100', '1e2', '1.0e2', '10000e-2',
    '123456789012345680000', '1234567890123456800000',
    '9007199254740993', '0.1000000000000000055511151231257827',
    '12345678901234567890.12345678901234567890',
    '1234567890123456789012.3456789', '1e400', '-12e400', '1e-400'
]) AS number;

-- The extremes of numeric.
SELECT idem_canonical('1e131071') AS largest_power,
       idem_canonical('1e-16383') AS smallest_power,
       length(idem_canonical((repeat('9', 131072) || '.' ||
                              repeat('9', 16383))::jsonb)) AS most_digits;

-- Different numbers have different texts, equal ones the same.
SELECT idem_fingerprint('9007199254740993') =
       idem_fingerprint('9007199254740992') AS beyond_a_double,
       idem_fingerprint('0.1') =
       idem_fingerprint('0.1000000000000000055511151231257827') AS same_double,
       idem_fingerprint('1e21') =
       idem_fingerprint('1000000000000000000001') AS beyond_1e21,
       idem_fingerprint('[1.0, 1e3, -0]') =
       idem_fingerprint('[1, 1000.000, 0]') AS spellings;

SELECT count(*) AS numbers, count(DISTINCT n) AS values,
       count(DISTINCT idem_canonical(to_jsonb(n))) AS texts,
       count(*) FILTER (WHERE idem_canonical(to_jsonb(n))::numeric <> n)
       AS changed
FROM (SELECT (m || repeat('0', z) || 'e' || e)::numeric AS n
      FROM unnest(ARRAY['1', '-1', '2', '1.2', '12', '0.12', '120.', '9.99'])
           AS m,
           generate_series(0, 3) AS z, generate_series(-30, 30) AS e) AS s;

-- Types are never mixed up.
SELECT count(DISTINCT idem_fingerprint(d)) AS different
FROM unnest(ARRAY['1', '"1"', '[1]', '["1"]', '{"1": 1}', '[[1]]', 'true',
                  '"true"', 'null', '"null"', '""', '[]', '{}', '[{}]',
                  '[null]', '[""]', '["", ""]', '["a", "bc"]',
                  '["ab", "c"]', '["a,b"]', '["a", "b"]', '{"a": "b"}',
                  '{"a\":\"b": 1}']::jsonb[]) AS d;

-- The hash that a service outside computes over sorted keys, no spaces.
SELECT encode(idem_fingerprint('{"ids": [1, 2, 3], "by": "admin"}'), 'hex');
SELECT idem_fingerprint(input) = sha256(convert_to(expected, 'UTF8')) AS same,
       count(*)
FROM vectors GROUP BY 1;

-- Order and repeats of keys do not matter, order in arrays does.
SELECT idem_fingerprint('{"a": 1, "bb": {"x": [1, 2], "y": null}, "c": 3}') =
       idem_fingerprint('{"c":3,"a":9,"bb":{"y":null,"x":[1,2]},"a":1}')
       AS keys,
       idem_fingerprint('[1, 2]') = idem_fingerprint('[2, 1]') AS elements;

-- Keys of many lengths: jsonb has them by length, the text by content.
SELECT idem_canonical(jsonb_object_agg(k, length(k)))
FROM unnest(ARRAY['b', 'a', 'aa', 'ab', 'b1', 'a' || chr(1), 'aaa', '10', '9',
                  'Z', '', '_']) AS k;
SELECT idem_canonical(jsonb_object_agg(k, i)) =
       '{' || string_agg('"' || k || '":' || i, ',' ORDER BY k COLLATE "C")
       || '}' AS many_keys
FROM (SELECT md5(i::text) || repeat('x', i % 7) AS k, i
      FROM generate_series(1, 20000) AS i) AS s;

-- Numbers of every size: as the layout of ECMAScript has it, made here of
-- all their zeros, and the same for each way to write a number.
CREATE FUNCTION pg_temp.layout(n numeric) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    parts text[] := string_to_array(abs(n)::text || '.', '.');
    digits text := rtrim(ltrim(parts[1] || parts[2], '0'), '0');
    point integer := length(parts[1]) - length(parts[1] || parts[2]) + length(ltrim(parts[1] || parts[2], '0'));
    k integer := length(digits);
BEGIN
    RETURN CASE WHEN n < 0 THEN '-' ELSE '' END || CASE
        WHEN n = 0 THEN '0'
        WHEN point > 21 OR point < -5 THEN
            left(digits, 1) || CASE WHEN k > 1 THEN '.' ELSE '' END || substr(digits, 2) || 'e' || CASE WHEN point > 0 THEN '+' ELSE '' END || point - 1
        WHEN point <= 0 THEN '0.' || repeat('0', -point) || digits
        WHEN k <= point THEN digits || repeat('0', point - k)
        ELSE left(digits, point) || '.' || substr(digits, point + 1) END;
END
$$;
CREATE TEMP TABLE numbers AS
SELECT ((ARRAY['', '-'])[1 + i % 2] || (i * 7919 % (10 ^ (i % 9))::bigint) || (ARRAY['', '.5', '.00', '.0001', '.1234567890'])[1 + i % 5]
        || 'e' || (ARRAY[0, 1, -1, i % 40 - 20, i % 900 - 450, 131000, -16000, 4, -4])[1 + i / 7 % 9]) AS written
FROM generate_series(0, 4999) AS i
UNION ALL SELECT unnest(ARRAY['1e131071', '-9.99e131071', '1e-16383', '-12e-16383', '0e100', '-0', '0.0000', '10000', '9999', '99990000', '0.0001', '0.00010001', '1e4', '1e-4',
    repeat('9', 131072), repeat('123', 10000) || '.' || repeat('456', 5000), '1.' || repeat('0', 16383), '0.' || repeat('0', 16382) || '1']);
SELECT count(*) > 2000 AS tried, count(*) FILTER (WHERE idem_canonical(to_jsonb(written::numeric)) <> pg_temp.layout(written::numeric)) AS other,
       count(DISTINCT written::numeric) - count(DISTINCT idem_canonical(to_jsonb(written::numeric))) AS shared
FROM numbers;

-- And the time is that of the text that is read: of short numbers with many
-- zeros as of ordinary ones, best of five.
CREATE FUNCTION pg_temp.time_of(element text, OUT best double precision) LANGUAGE plpgsql AS $$
DECLARE
    document jsonb := '[' || rpad('', 90000, element || ',') || '0]';
    started timestamptz;
BEGIN
    FOR i IN 1 .. 5 LOOP
        started := clock_timestamp();
        PERFORM idem_fingerprint(document);
        best := least(best, extract(epoch FROM clock_timestamp() - started));
    END LOOP;
END
$$;
SELECT element, pg_temp.time_of(element) < 20 * pg_temp.time_of('12345678') AS linear
FROM unnest(ARRAY['1e131071', '-1e-9999', '7.0e9999']) AS element;

-- Toasted and compressed documents.
CREATE TEMP TABLE stored (d jsonb);
INSERT INTO stored
SELECT jsonb_build_object('text', repeat('long ', 100000), 'n', 1.0);
SELECT pg_column_size(d) < 100000 AS compressed, length(idem_canonical(d)),
       idem_fingerprint(d) =
       sha256(convert_to(idem_canonical(d), 'UTF8')) AS same
FROM stored;

-- Null in, null out.
SELECT idem_canonical(NULL) IS NULL AS canonical,
       idem_fingerprint(NULL) IS NULL AS fingerprint;

-- Depth: what one session could store, another may be too small to walk.
CREATE TEMP TABLE deep (name text, d jsonb);
INSERT INTO deep VALUES
    ('arrays', (repeat('[', 3000) || repeat(']', 3000))::jsonb),
    ('objects', (repeat('{"a":', 3000) || '1' || repeat('}', 3000))::jsonb);
SELECT name, length(idem_canonical(d)), idem_canonical(d)::jsonb = d AS equal
FROM deep;
SET max_stack_depth = '100kB';
\set VERBOSITY sqlstate
SELECT idem_canonical(d) FROM deep WHERE name = 'arrays';
SELECT idem_fingerprint(d) FROM deep WHERE name = 'objects';
\set VERBOSITY default
RESET max_stack_depth;

-- Marked so that they can stand in an index or a generated column.
SELECT proname, provolatile, proisstrict, proparallel,
       prorettype::regtype
FROM pg_proc
WHERE oid IN ('idem_canonical(jsonb)'::regprocedure,
              'idem_fingerprint(jsonb)'::regprocedure)
ORDER BY proname COLLATE "C";

DROP TABLE vectors, numbers, stored, deep;
