/*-------------------------------------------------------------------------
 *
 * fingerprint.c
 *	  The canonical text of a request and its SHA-256.
 *
 * Owns: the walk through a jsonb, and the SQL functions idem_canonical and
 * idem_fingerprint.  How a leaf is written and in which order keys stand is
 * the business of canonical.c.
 *
 * Never: reads a table, a setting or the clock.  The result depends on the
 * document alone, so both functions are IMMUTABLE: rows keep fingerprints
 * for as long as their keys live, and what is written here today must come
 * out the same from every later version.
 *
 * The text is made, sorted and hashed in UTF-8 whatever the encoding of the
 * database, so that one document has one fingerprint everywhere.
 *
 * Locks: none.  Memory: the caller's context.  Beside the text, which grows
 * by doubling, only the keys of the objects that are open at the moment and
 * one number or string are held, and all of it is freed on the way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "base/digest.h"
#include "idem.h"
#include "key/canonical.h"
#include "key/fingerprint.h"

/* numeric on the wire: base 10000, and the sign of what is below zero */
#define GROUP_DIGITS 4
#define NUMERIC_SENT_NEGATIVE 0x4000

IDEM_FUNCTION(idem_canonical);
IDEM_FUNCTION(idem_fingerprint);

/*
 * A key of an object: as jsonb has it, to find the value, and in UTF-8, to
 * sort and write.  Both are the same pointer where nothing was converted.
 */
typedef struct ObjectKey
{
	char	   *stored;
	char	   *utf8;
	int			stored_len;
	int			utf8_len;
} ObjectKey;

/*
 * An object has at most MaxAllocSize / sizeof(JsonbPair) members, or jsonb
 * would have refused it.  So the array of its keys fits in one allocation.
 */
StaticAssertDecl(sizeof(ObjectKey) <= sizeof(JsonbPair),
				 "the keys of the largest object must fit in MaxAllocSize");

static void write_container(JsonbContainer *container, StringInfo out);

/*
 * Give a string of the document in UTF-8.  It may be the argument itself,
 * and is then not ended by a NUL.
 */
static char *
convert_to_utf8(char *stored, int stored_len, int *utf8_len)
{
	char	   *utf8 = pg_server_to_any(stored, stored_len, PG_UTF8);

	/* jsonb holds no U+0000, so the end of the converted text is its NUL */
	*utf8_len = (utf8 == stored) ? stored_len : (int) strlen(utf8);
	return utf8;
}

/*
 * Make room for size more bytes; a measure beyond what can be allocated
 * ends in the error of the StringInfo.
 */
static char *
reserve_room(StringInfo out, Size size)
{
	enlargeStringInfo(out, (int) Min(size, (Size) MaxAllocSize));
	return out->data + out->len;
}

static void
commit_room(StringInfo out, Size size)
{
	out->len += (int) size;
	out->data[out->len] = '\0';
}

static void
write_string(const char *utf8, int len, StringInfo out)
{
	Size		size = idem_canonical_measure_string(utf8, (Size) len);
	char	   *room = reserve_room(out, size);

	size = idem_canonical_write_string(utf8, (Size) len, room);
	commit_room(out, size);
}

static unsigned int
read_uint16(const unsigned char *wire)
{
	return (unsigned int) wire[0] << 8 | wire[1];
}

/*
 * The digits that a numeric stores, and its exponent, as text.  numeric_out()
 * would write all zeros, too, 131072 characters of 1e131071: time and memory
 * shall be bounded by the text that the document came as.
 */
static char *
digits_of(Numeric value)
{
	bytea	   *sent = DatumGetByteaPP(DirectFunctionCall1(numeric_send,
														   NumericGetDatum(value)));
	const unsigned char *wire = (unsigned char *) VARDATA_ANY(sent);
	int			ngroups = read_uint16(wire);	/* up to 36864 */
	int			weight = (int16) read_uint16(wire + 2); /* of the first */
	char	   *text = palloc(ngroups * GROUP_DIGITS + 20);
	char	   *out = text;
	int			i;

	if (read_uint16(wire + 4) == NUMERIC_SENT_NEGATIVE)
		*out++ = '-';
	/* the scale, which comes next, tells nothing of the value */
	*out++ = '0';
	for (i = 0; i < ngroups; i++)
	{
		unsigned int group = read_uint16(wire + 8 + 2 * i);

		*out++ = '0' + group / 1000;
		*out++ = '0' + group / 100 % 10;
		*out++ = '0' + group / 10 % 10;
		*out++ = '0' + group % 10;
	}
	*out++ = 'e';
	out += pg_ltoa((weight - ngroups + 1) * GROUP_DIGITS, out);
	*out = '\0';
	pfree(sent);
	return text;
}

static void
write_numeric(Numeric value, StringInfo out)
{
	char	   *text = digits_of(value);
	IdemCanonicalNumber number;
	char	   *room;

	/* jsonb has neither NaN nor infinity */
	if (!idem_canonical_parse_number(text, strlen(text), &number))
		elog(ERROR, "unexpected number in jsonb");
	room = reserve_room(out, idem_canonical_measure_number(&number));
	commit_room(out, idem_canonical_write_number(&number, room));
	pfree(text);
}

static void
write_value(const JsonbValue *value, StringInfo out)
{
	char	   *utf8;
	int			len;

	switch (value->type)
	{
		case jbvNull:
			appendBinaryStringInfo(out, "null", 4);
			break;
		case jbvBool:
			appendStringInfoString(out, value->val.boolean ? "true" : "false");
			break;
		case jbvNumeric:
			write_numeric(value->val.numeric, out);
			break;
		case jbvString:
			/* it may be most of a large document, so it is freed at once */
			utf8 = convert_to_utf8(value->val.string.val,
								   value->val.string.len, &len);
			write_string(utf8, len, out);
			if (utf8 != value->val.string.val)
				pfree(utf8);
			break;
		case jbvBinary:
			write_container(value->val.binary.data, out);
			break;
		default:
			elog(ERROR, "unexpected jsonb value type %d", (int) value->type);
	}
}

static void
write_array(JsonbContainer *container, StringInfo out)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbValue	value;
	bool		first = true;

	(void) JsonbIteratorNext(&it, &value, true);	/* WJB_BEGIN_ARRAY */
	appendStringInfoCharMacro(out, '[');
	while (JsonbIteratorNext(&it, &value, true) == WJB_ELEM)
	{
		/* a hundred megabytes of elements must be open to cancel */
		CHECK_FOR_INTERRUPTS();
		if (!first)
			appendStringInfoCharMacro(out, ',');
		first = false;
		write_value(&value, out);
	}
	appendStringInfoCharMacro(out, ']');
}

static int
compare_object_keys(const void *a, const void *b)
{
	const ObjectKey *left = (const ObjectKey *) a;
	const ObjectKey *right = (const ObjectKey *) b;

	/* sorting millions of keys must be open to cancel, too */
	CHECK_FOR_INTERRUPTS();
	return idem_canonical_compare_keys(left->utf8, (Size) left->utf8_len,
									   right->utf8, (Size) right->utf8_len);
}

/* Read the keys of an object, in the order of RFC 8785 */
static ObjectKey *
read_sorted_keys(JsonbContainer *container, uint32 count)
{
	ObjectKey  *keys = (ObjectKey *) palloc(count * sizeof(ObjectKey));
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbIteratorToken token;
	JsonbValue	value;
	uint32		n = 0;

	(void) JsonbIteratorNext(&it, &value, true);	/* WJB_BEGIN_OBJECT */
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_END_OBJECT)
	{
		CHECK_FOR_INTERRUPTS();
		/* values are skipped: they come again in our order */
		if (token != WJB_KEY)
			continue;
		if (n >= count)
			elog(ERROR, "more keys in a jsonb object than it says");
		keys[n].stored = value.val.string.val;
		keys[n].stored_len = value.val.string.len;
		keys[n].utf8 = convert_to_utf8(keys[n].stored, keys[n].stored_len,
									   &keys[n].utf8_len);
		n++;
	}
	qsort(keys, n, sizeof(ObjectKey), compare_object_keys);
	return keys;
}

/*
 * jsonb keeps the members of an object by length of key and finds one by a
 * binary search, so each value is fetched by its key in our order.
 */
static void
write_object(JsonbContainer *container, StringInfo out)
{
	uint32		count = JsonContainerSize(container);
	ObjectKey  *keys = read_sorted_keys(container, count);
	JsonbValue	value;
	uint32		i;

	appendStringInfoCharMacro(out, '{');
	for (i = 0; i < count; i++)
	{
		ObjectKey  *key = &keys[i];

		CHECK_FOR_INTERRUPTS();
		if (i > 0)
			appendStringInfoCharMacro(out, ',');
		write_string(key->utf8, key->utf8_len, out);
		appendStringInfoCharMacro(out, ':');
		if (getKeyJsonValueFromContainer(container, key->stored,
										 key->stored_len, &value) == NULL)
			elog(ERROR, "key of a jsonb object not found in it");
		write_value(&value, out);
		if (key->utf8 != key->stored)
			pfree(key->utf8);
	}
	appendStringInfoCharMacro(out, '}');
	pfree(keys);
}

/*
 * The only recursion.  A document may be deeper than this session's stack
 * allows, having been stored by one that allowed more: 54001 then.
 */
static void
write_container(JsonbContainer *container, StringInfo out)
{
	check_stack_depth();
	if (JsonContainerIsObject(container))
		write_object(container, out);
	else
		write_array(container, out);
}

/* Append the canonical text of a document, in UTF-8 */
static void
write_document(Jsonb *document, StringInfo out)
{
	JsonbValue	scalar;

	/* a scalar is kept as an array of one, which must not show */
	if (JB_ROOT_IS_SCALAR(document))
	{
		(void) JsonbExtractScalar(&document->root, &scalar);
		write_value(&scalar, out);
	}
	else
		write_container(&document->root, out);
}

/*
 * idem_fingerprint_of
 *		SHA-256 of the canonical text of a request.
 *
 * The result is a fresh bytea of 32 bytes in the current memory context.
 * SQLSTATEs: those of idem_fingerprint().
 */
bytea *
idem_fingerprint_of(Jsonb *request)
{
	bytea	   *result;
	StringInfoData out;

	initStringInfo(&out);
	write_document(request, &out);

	result = idem_digest_bytea(out.data, (size_t) out.len);
	pfree(out.data);
	return result;
}

/*
 * idem_canonical(jsonb) RETURNS text
 *		The document in the form of RFC 8785, numbers with all their digits.
 *
 * Arguments: the document; STRICT, so never null.
 * Result: the text, in the encoding of the database.
 * SQLSTATEs: 54000 where the text would not fit in 1 GB, 54001 where the
 * document is too deep for the stack, 22021 or 22P05 where a string of it
 * is no UTF-8 (SQL_ASCII) or has no equivalent there.
 * Locks: none.
 */
Datum
idem_canonical(PG_FUNCTION_ARGS)
{
	Jsonb	   *document = PG_GETARG_JSONB_P(0);
	StringInfoData out;
	char	   *converted;
	text	   *result;

	/* the text is built behind its header, so as not to be copied */
	initStringInfo(&out);
	appendStringInfoSpaces(&out, VARHDRSZ);
	write_document(document, &out);
	PG_FREE_IF_COPY(document, 0);

	if (GetDatabaseEncoding() == PG_UTF8)
	{
		SET_VARSIZE(out.data, out.len);
		PG_RETURN_TEXT_P((text *) out.data);
	}
	converted = pg_any_to_server(out.data + VARHDRSZ, out.len - VARHDRSZ,
								 PG_UTF8);
	result = cstring_to_text(converted);
	pfree(out.data);
	PG_RETURN_TEXT_P(result);
}

/*
 * idem_fingerprint(jsonb) RETURNS bytea
 *		SHA-256 of the bytes of the canonical text in UTF-8.
 *
 * Arguments: the request; STRICT, so never null.
 * Result: 32 bytes.
 * SQLSTATEs: as idem_canonical().
 * Locks: none.
 */
Datum
idem_fingerprint(PG_FUNCTION_ARGS)
{
	Jsonb	   *request = PG_GETARG_JSONB_P(0);
	bytea	   *result = idem_fingerprint_of(request);

	PG_FREE_IF_COPY(request, 0);
	PG_RETURN_BYTEA_P(result);
}
