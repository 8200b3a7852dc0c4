/*-------------------------------------------------------------------------
 *
 * audit.c
 *	  Target of tools/fuzz: src/audit/sealed_rows.c, with src/base/digest.c.
 *
 * A log of any rows is sealed in any segments, some are pruned.  What is hashed
 * must be what doc/audit-format.md says: that is written down here once more,
 * over columns that are text from the begin, with OpenSSL.
 *
 * Where the environment has FUZZ_EXPORT, the name of a folder, each log is
 * written there as COPY would: tools/fuzz gives it to tools/verify-audit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "audit/chain.h"
#include "audit/guard.h"
#include "base/compat.h"

#include "fuzz.h"
#include "server.h"

#define LOG_COLUMNS 13
#define MAX_ROWS 4096
#define MAX_SEALS 40
#define FIRST_XID 3
#define LAST_XID INT64CONST(1000000000000)

static const Oid log_types[LOG_COLUMNS] = {
	INT8OID, TIMESTAMPTZOID, XID8OID, TEXTOID, TEXTOID, TEXTOID, INT4OID,
	INT8OID, NAMEOID, NAMEOID, INETOID, TEXTOID, JSONBOID
};

typedef struct LogRow
{
	int64		id;
	TimestampTz at;
	uint64		xid;
	int64		segment;
	const char *columns[LOG_COLUMNS];	/* NULL: a null */
} LogRow;

typedef struct SealRow
{
	IdemSeal	seal;
	const char *columns[IDEM_SEAL_COLUMNS];
	bool		pruned;
} SealRow;

static LogRow rows[MAX_ROWS];
static int	row_count;
static SealRow seals[MAX_SEALS];
static int	seal_count;

/*
 * Texts of values
 */

static const char *
show_number(int64 number)
{
	char	   *text = palloc(32);

	sprintf(text, "%lld", (long long) number);
	return text;
}

static const char *
show_hex(const void *data, size_t len)
{
	char	   *text = palloc(2 * len + 3);
	size_t		i;

	strcpy(text, "\\x");
	for (i = 0; i < len; i++)
		sprintf(text +2 + 2 * i, "%02x", ((const uint8 *) data)[i]);
	return text;
}

/* Of a time in this or the next century */
static const char *
show_time(TimestampTz at)
{
	static const int month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	int64		days = at / USECS_PER_DAY;
	int64		rest = at % USECS_PER_DAY;
	int			year = 2000;
	int			month = 0;
	char	   *text = palloc(64);
	size_t		len;

	if (at == DT_NOBEGIN || at == DT_NOEND)
		return at == DT_NOEND ? "infinity" : "-infinity";
	for (;; year++)
	{
		int			length = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 366 : 365;

		if (days < length)
		{
			while (days >= month_days[month] + (month == 1 && length == 366))
			{
				days -= month_days[month] + (month == 1 && length == 366);
				month++;
			}
			break;
		}
		days -= length;
	}
	sprintf(text, "%04d-%02d-%02d %02d:%02d:%02d.%06d", year, month + 1,
			(int) days + 1, (int) (rest / USECS_PER_HOUR),
			(int) (rest / USECS_PER_MINUTE % 60), (int) (rest / USECS_PER_SEC % 60),
			(int) (rest % USECS_PER_SEC));
	len = strlen(text);
	while (text[len - 1] == '0')
		len--;
	if (text[len - 1] == '.')
		len--;
	strcpy(text +len, "+00");
	return text;
}

/*
 * What sealed_rows.c uses of the server: types are their own functions, and a
 * value without a form of its own is its text.
 */

SPITupleTable *SPI_tuptable;

void
getTypeOutputInfo(Oid type, Oid *function, bool *is_varlena)
{
	*function = type;
}

void
fmgr_info(Oid function, FmgrInfo *info)
{
	info->fn_oid = function;
}

char *
OutputFunctionCall(FmgrInfo *info, Datum value)
{
	const char *text;
	char		letter[2] = "";

	switch (info->fn_oid)
	{
		case INT8OID:
		case XID8OID:
			text = show_number(DatumGetInt64(value));

			break;
		case INT4OID:
			text = show_number(DatumGetInt32(value));

			break;
		case TIMESTAMPTZOID:
			text = show_time(DatumGetTimestampTz(value));

			break;
		case BOOLOID:
			text = DatumGetBool(value) ? "t" : "f";

			break;
		case CHAROID:
			letter[0] = DatumGetChar(value);
			text = letter;

			break;
		case BYTEAOID:
			text = show_hex(VARDATA_ANY(DatumGetPointer(value)),
							VARSIZE_ANY_EXHDR(DatumGetPointer(value)));

			break;
		default:
			text = DatumGetCString(value);

			break;
	}
	return pstrdup(text);
}

void
heap_deform_tuple(HeapTuple tuple, TupleDesc desc, Datum *values, bool *nulls)
{
	const LogRow *row = (const LogRow *) tuple;
	int			i;

	for (i = 0; i < LOG_COLUMNS; i++)
	{
		nulls[i] = row->columns[i] == NULL;
		values[i] = nulls[i] ? (Datum) 0 : CStringGetDatum(row->columns[i]);
	}
	values[0] = Int64GetDatum(row->id);
	values[1] = TimestampTzGetDatum(row->at);
	values[2] = idem_chain_xid_datum(row->xid);
	if (!nulls[6])
		values[6] = Int32GetDatum(atoi(row->columns[6]));
	if (!nulls[7])
		values[7] = Int64GetDatum(atoll(row->columns[7]));
}

static TupleDesc
log_desc(void)
{
	TupleDesc	desc = palloc0(offsetof(struct TupleDescData, attrs) +
							   LOG_COLUMNS * (sizeof(FormData_pg_attribute) + 64));
	int			i;

	desc->natts = LOG_COLUMNS;
	for (i = 0; i < LOG_COLUMNS; i++)
		TupleDescAttr(desc, i)->atttypid = log_types[i];
	return desc;
}

/* rows_plan: those of a range, in the order of id, with all of the last id. */
uint64
idem_spi_execute(IdemPlan *plan, Datum *values, const char *nulls,
				 bool read_only, long max_rows)
{
	int64		limit = DatumGetInt64(values[6]);
	uint64		found = 0;
	int			i;

	SPI_tuptable = palloc0(sizeof(SPITupleTable));
	SPI_tuptable->tupdesc = log_desc();
	SPI_tuptable->vals = palloc(sizeof(HeapTuple) * (row_count + 1));
	for (i = 0; i < row_count; i++)
	{
		if (rows[i].id <= DatumGetInt64(values[0]) ||
			rows[i].id > DatumGetInt64(values[1]) ||
			rows[i].xid < idem_chain_xid(values[2]) ||
			(idem_chain_xid(values[3]) != 0 && rows[i].xid >= idem_chain_xid(values[3])) ||
			rows[i].at < DatumGetTimestampTz(values[4]) ||
			rows[i].at >= DatumGetTimestampTz(values[5]))
			continue;
		if ((int64) found >= limit &&
			(found == 0 || rows[i].id != ((LogRow *) SPI_tuptable->vals[found - 1])->id))
			break;
		SPI_tuptable->vals[found++] = (HeapTuple) &rows[i];
	}
	return found;
}

void
SPI_freetuptable(SPITupleTable *tuptable)
{
	pfree(tuptable->vals);
}

int64
idem_spi_number(int column)
{
	abort();
}

Datum
idem_spi_value(int row, int column, bool *isnull)
{
	abort();
}

uint64
idem_guard_change(IdemPlan *plan, Datum *values, const char *nulls)
{
	abort();
}

/* chain.c has it, and much else. */
const Oid	idem_chain_types[IDEM_SEAL_COLUMNS] = {
	INT8OID, CHAROID, TIMESTAMPTZOID, INT8OID, INT8OID, XID8OID, XID8OID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID,
	XID8OID, INT8OID, BOOLOID, INT8OID, BYTEAOID, INT8MULTIRANGEOID, BYTEAOID,
	INT4OID, BYTEAOID, BYTEAOID
};

uint64
hex_encode(const char *src, size_t len, char *dst)
{
	abort();
}

const char *
idem_utf8(const char *text, int *len)
{
	*len = strlen(text);
	return text;
}

/*
 * The log in the making
 */

static char *
pick_text(FuzzInput *in)
{
	size_t		len;
	const uint8 *c = fuzz_bytes(in, fuzz_byte(in) % 24, &len);

	return fuzz_is_text(c, len) ? pnstrdup((const char *) c, len) :
		pstrdup("no text");
}

static LogRow *
add_row(FuzzInput *in, int64 id)
{
	LogRow	   *row = &rows[row_count++];
	uint8		nulls = fuzz_byte(in);
	int			i;

	row->id = id;
	row->at = (int64) fuzz_below(in, 100 * 365 * USECS_PER_DAY);
	if (nulls & 0x80)
		row->at -= row->at % (nulls & 0x40 ? USECS_PER_DAY : 100000);
	row->xid = FIRST_XID + fuzz_below(in, LAST_XID - FIRST_XID - 1);
	row->columns[0] = show_number(row->id);
	row->columns[1] = show_time(row->at);
	row->columns[2] = show_number((int64) row->xid);
	for (i = 3; i < LOG_COLUMNS; i++)
		row->columns[i] = pick_text(in);
	row->columns[6] = nulls & 1 ? NULL : show_number((int32) fuzz_below(in, PG_UINT32_MAX));
	row->columns[7] = nulls & 2 ? NULL : show_number((int64) fuzz_below(in, PG_UINT64_MAX));
	if (nulls & 4)
		row->columns[10] = NULL;
	if (nulls & 8)
		row->columns[11] = NULL;
	if (nulls & 16)
		row->columns[12] = NULL;
	return row;
}

static void
pick_rows(FuzzInput *in)
{
	int64		id = 0;

	row_count = 0;
	while (fuzz_is_left(in) && row_count < MAX_ROWS && row_count < 64)
	{
		uint8		step = fuzz_byte(in);
		bool		many = step == 255 && fuzz_byte(in) == 0xaa;
		int			copies = many ? fuzz_byte(in) * 12 : 0;
		LogRow	   *row = add_row(in, id += 1 + step % 3);

		/* more than are read at once, with one id, or with the next ones */
		for (; copies > 0 && row_count < MAX_ROWS; copies--)
		{
			LogRow	   *copy = &rows[row_count++];

			*copy = *row;
			if (row->at % 2 == 0)
				copy->id = ++id;
			copy->columns[0] = show_number(copy->id);
		}
	}
}

/*
 * The model
 */

typedef struct Encoded
{
	uint8	   *bytes;
	size_t		len;
	size_t		room;
} Encoded;

static void
encode_bytes(Encoded *to, const void *data, size_t len)
{
	if (to->len + len > to->room)
	{
		to->room = 2 * (to->len + len);
		to->bytes = to->bytes == NULL ? palloc(to->room) : repalloc(to->bytes, to->room);
	}
	memcpy(to->bytes + to->len, data, len);
	to->len += len;
}

static void
encode_columns(Encoded *to, const char *const *columns, int number)
{
	int			i;

	for (i = 0; i < number; i++)
	{
		size_t		len = columns[i] == NULL ? 0 : strlen(columns[i]);
		uint8		before[5] = {1, len >> 24, len >> 16, len >> 8, len};

		encode_bytes(to, columns[i] == NULL ? "" : (const void *) before,
					 columns[i] == NULL ? 1 : 5);
		encode_bytes(to, columns[i] == NULL ? "" : columns[i], len);
	}
}

static void
hash_bytes(const Encoded *bytes, uint8 *digest)
{
	must(EVP_Digest(bytes->bytes, bytes->len, digest, NULL, EVP_sha256(), NULL) == 1);
}

static void
sign_seal(const uint8 *seal, uint8 *mac)
{
	static const char use[] = "idempotency 1 audit seal";
	uint8		secret[32];
	uint8		key[32];
	int			i;

	for (i = 0; i < 32; i++)
		secret[i] = i;
	must(HMAC(EVP_sha256(), secret, 32, (const uint8 *) use, 24, key, NULL) != NULL);
	must(HMAC(EVP_sha256(), key, 32, seal, 32, mac, NULL) != NULL);
}

/*
 * Sealing
 */

static void
set_value(SealRow *row, IdemSealColumn column, Datum value, const char *text)
{
	row->seal.values[column] = value;
	row->seal.nulls[column] = false;
	row->columns[column] = text;
}

static void
set_number(SealRow *row, IdemSealColumn column, int64 number)
{
	set_value(row, column, Int64GetDatum(number), show_number(number));
}

static void
set_time(SealRow *row, IdemSealColumn column, TimestampTz at)
{
	set_value(row, column, TimestampTzGetDatum(at), show_time(at));
}

static void
set_bytes(SealRow *row, IdemSealColumn column, const uint8 *bytes)
{
	set_value(row, column, PointerGetDatum(server_text(bytes, 32)), show_hex(bytes, 32));
}

static SealRow *
begin_seal(char kind)
{
	SealRow    *row = &seals[seal_count++];
	char		letter[2] = {kind, '\0'};

	memset(row, 0, sizeof(*row));
	memset(row->seal.nulls, true, sizeof(row->seal.nulls));
	set_number(row, SEAL_SEGMENT, seal_count);
	set_value(row, SEAL_KIND, CharGetDatum(kind), pstrdup(letter));
	set_time(row, SEAL_SEALED_AT, seal_count * USECS_PER_HOUR + seal_count);
	set_number(row, SEAL_ROWS, 0);
	return row;
}

static void
end_seal(SealRow *row, bool with_key)
{
	static const uint8 zeros[32];
	static uint8 last[32];
	Encoded		bytes = {NULL, 0, 0};
	uint8		due[32];
	uint8		mac[32];

	set_bytes(row, SEAL_PREVIOUS, seal_count == 1 ? zeros : last);
	if (with_key)
		set_value(row, SEAL_KEY_ID, Int32GetDatum(1), "1");
	encode_bytes(&bytes, "idempotency audit seal 1", 24);
	encode_columns(&bytes, row->columns, 20);
	hash_bytes(&bytes, due);
	idem_sealed_digest(&row->seal, last);
	must(memcmp(last, due, sizeof(due)) == 0);
	set_bytes(row, SEAL_SEAL, last);
	sign_seal(last, mac);
	if (with_key)
		set_bytes(row, SEAL_HMAC, mac);
}

/* Rows from one on: with all of the last id */
static int
seal_rows(int from, int number, bool with_key)
{
	SealRow    *row = begin_seal(IDEM_SEAL_ROWS);
	IdemSealRange range = {
		from == 0 ? 0 : rows[from - 1].id, 0, FIRST_XID, LAST_XID, DT_NOBEGIN, DT_NOEND
	};
	IdemSealRange said;
	IdemSealRows result;
	Encoded		bytes = {NULL, 0, 0};
	uint8		due[32];
	TimestampTz first = DT_NOEND;
	TimestampTz last = DT_NOBEGIN;
	int			end = from;

	while (end < row_count && (end < from + number || rows[end].id == rows[end - 1].id))
	{
		rows[end].segment = seal_count;
		encode_columns(&bytes, rows[end].columns, LOG_COLUMNS);
		first = Min(first, rows[end].at);
		last = Max(last, rows[end].at);
		end++;
	}
	range.id_to = rows[end - 1].id;
	hash_bytes(&bytes, due);
	idem_sealed_hash(&range, PG_INT64_MAX, &result);
	must(result.count == end - from && result.last_id == range.id_to);
	must(result.first_at == first && result.last_at == last);
	must(memcmp(result.sha256, due, sizeof(due)) == 0);

	set_number(row, SEAL_ID_FROM, range.id_from);
	set_number(row, SEAL_ID_TO, range.id_to);
	set_number(row, SEAL_XID_FROM, FIRST_XID);
	set_number(row, SEAL_XID_TO, LAST_XID);
	set_time(row, SEAL_AT_FROM, DT_NOBEGIN);
	set_time(row, SEAL_AT_TO, DT_NOEND);
	set_time(row, SEAL_FIRST_AT, result.first_at);
	set_time(row, SEAL_LAST_AT, result.last_at);
	set_number(row, SEAL_NEXT_ID, range.id_to);
	set_number(row, SEAL_NEXT_XID, LAST_XID);
	set_number(row, SEAL_ORIGIN, 1);
	set_value(row, SEAL_CLOSED, BoolGetDatum(true), "t");
	set_number(row, SEAL_ROWS, result.count);
	set_bytes(row, SEAL_ROWS_SHA256, result.sha256);
	must(idem_sealed_range(&row->seal, &said));
	must(said.id_from == range.id_from && said.id_to == range.id_to &&
		 said.xid_from == range.xid_from && said.xid_to == range.xid_to &&
		 said.at_from == range.at_from && said.at_to == range.at_to);
	end_seal(row, with_key);
	return end;
}

static void
seal_pruned(int segment, bool with_key)
{
	SealRow    *row = begin_seal(IDEM_SEAL_PRUNED);
	char	   *text = palloc(64);

	sprintf(text, "{[%d,%d)}", segment, segment + 1);
	set_value(row, SEAL_PRUNED, CStringGetDatum(text), text);
	set_value(row, SEAL_ROWS, seals[segment - 1].seal.values[SEAL_ROWS],
			  seals[segment - 1].columns[SEAL_ROWS]);
	seals[segment - 1].pruned = true;
	end_seal(row, with_key);
}

/*
 * The export
 */

static void
write_columns(FILE *file, const char *const *columns, int number)
{
	int			i;

	for (i = 0; i < number; i++)
	{
		const char *c = columns[i] == NULL ? "\\N" : columns[i];

		if (i > 0)
			fputc('\t', file);
		for (; *c != '\0'; c++)
		{
			const char *letter = columns[i] == NULL ? NULL :
			strchr("\bb\ff\nn\rr\tt\vv\\\\", *c);

			if (letter != NULL && strchr("\b\f\n\r\t\v\\", *c) != NULL)
				fprintf(file, "\\%c", letter[1]);
			else
				fputc(*c, file);
		}
	}
	fputc('\n', file);
}

static FILE *
open_export(const char *folder, int number, const char *what)
{
	char		path[1024];
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/%d.%s", folder, number, what);
	file = fopen(path, "w");
	must(file != NULL);
	return file;
}

static void
export_log(const char *folder)
{
	static int	exported = 0;
	FILE	   *file;
	int			i;

	file = open_export(folder, ++exported, "log");
	for (i = 0; i < row_count; i++)
		if (!seals[rows[i].segment - 1].pruned)
			write_columns(file, rows[i].columns, LOG_COLUMNS);
	fclose(file);
	file = open_export(folder, exported, "seals");
	for (i = 0; i < seal_count; i++)
		write_columns(file, seals[i].columns, IDEM_SEAL_COLUMNS);
	fclose(file);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	FuzzInput	in = fuzz_begin(data, size);
	const char *folder = getenv("FUZZ_EXPORT");
	uint8		plan = fuzz_byte(&in);
	bool		with_key = plan % 2 == 1;
	int			from = 0;

	seal_count = 0;
	pick_rows(&in);
	if (with_key)
		end_seal(begin_seal(IDEM_SEAL_KEY), true);
	while (from < row_count && seal_count < MAX_SEALS - 4)
	{
		from = seal_rows(from, seal_count >= MAX_SEALS - 6 ? MAX_ROWS :
						 row_count > 100 ? 2500 : 1 + plan / 2 % 8, with_key);
		if (plan >= 128 && seal_count % 3 == 1 && !seals[seal_count - 1].pruned)
			seal_pruned(seal_count, with_key);
	}
	if (folder != NULL && with_key)
		export_log(folder);
	server_reset();
	return 0;
}
