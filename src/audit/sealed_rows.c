/*-------------------------------------------------------------------------
 *
 * sealed_rows.c
 *	  The rows of the audit log as they are sealed.
 *
 * Owns what of a row, and of a seal, is hashed (doc/audit-format.md): the text
 * of each column as COPY gives it, in UTF-8.  Called between
 * idem_chain_begin() and idem_chain_end().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "libpq/pqformat.h"
#include "utils/lsyscache.h"

#include "audit/chain.h"
#include "audit/guard.h"
#include "audit/log.h"
#include "base/utf8.h"

/* What the bytes of a seal begin with. */
#define SEAL_LABEL "idempotency audit seal 1"

/* Read at once, with equal ones: who drops a primary key hides nothing. */
#define CHUNK_ROWS 1000
#define LOG_COLUMNS 13

/* Rows of a segment; idem_sealed_range() gives the parameters. */
#define IN_RANGE \
	" id > $1 AND id <= $2 AND xid >= $3 AND ($4 = '0' OR xid < $4)" \
	" AND at >= $5 AND at < $6"

static const Oid range_types[] = {
	INT8OID, INT8OID, XID8OID, XID8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	INT8OID
};
static const Oid head_types[] = {INT8OID, INT8OID, XID8OID, XID8OID, BOOLOID};

static IdemPlan rows_plan = {
	"SELECT id, at, xid, action, entity, entity_id, attempt, token,"
	" session_role, effective_role, client_addr, application_name, detail"
	" FROM %1$s.idempotency_audit_log WHERE" IN_RANGE
	" ORDER BY id FETCH FIRST $7 ROWS WITH TIES",
	lengthof(range_types), range_types
};
static IdemPlan bound_plan = {
	"SELECT max(xid), count(*) FROM (SELECT xid"
	" FROM %1$s.idempotency_audit_log WHERE" IN_RANGE
	" ORDER BY id LIMIT $7) l", lengthof(range_types), range_types
};
static IdemPlan remove_plan = {
	"DELETE FROM %1$s.idempotency_audit_log WHERE" IN_RANGE,
	lengthof(range_types) - 1, range_types
};

/*
 * Rows that must be in a segment.  Of another cluster ($1: the first id that
 * is not): all, once rows of this one are sealed ($5), else those up to the
 * last id ($2) of transactions before $3.  Of this one: those of transactions
 * before $4.
 */
#define IS_DUE \
	" CASE WHEN id >= $1 THEN xid < $4 ELSE $5 OR (id <= $2 AND xid < $3) END"

static IdemPlan due_plan = {
	"SELECT count(*) FROM %1$s.idempotency_audit_log WHERE" IS_DUE,
	lengthof(head_types), head_types
};
static IdemPlan stray_plan = {
	"SELECT id, (SELECT min(segment) FROM %1$s.idempotency_audit_seals"
	" WHERE kind = 's' AND l.id > id_from AND l.id <= id_to),"
	" (SELECT max(segment) FROM %1$s.idempotency_audit_seals)"
	" FROM %1$s.idempotency_audit_log l WHERE" IS_DUE
	" AND NOT EXISTS (SELECT FROM %1$s.idempotency_audit_seals"
	" WHERE kind = 's' AND l.id > id_from AND l.id <= id_to"
	" AND l.xid >= xid_from AND (xid_to IS NULL OR l.xid < xid_to)"
	" AND l.at >= at_from AND l.at < at_to) ORDER BY id",
	lengthof(head_types), head_types
};

/*
 * One column: a byte 0 for a null, else 1, the length of its text in four
 * bytes, big-endian, and the text in UTF-8.
 */
static void
append_column(StringInfo bytes, FmgrInfo *output, Datum value, bool isnull)
{
	char	   *text;
	const char *utf8;
	int			len;

	if (isnull)
	{
		appendStringInfoChar(bytes, 0);
		return;
	}
	text = OutputFunctionCall(output, value);

	/* with its length: else one column could be moved into the next */
	utf8 = idem_utf8(text, &len);
	appendStringInfoChar(bytes, 1);
	pq_sendint32(bytes, len);
	appendBinaryStringInfo(bytes, utf8, len);
	if (utf8 != text)
		pfree((char *) utf8);
	pfree(text);
}

static void
look_up_output(Oid type, FmgrInfo *output)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(type, &function, &is_varlena);
	fmgr_info(function, output);
}

/*
 * idem_sealed_digest
 *		The SHA-256 that is the seal.
 */
void
idem_sealed_digest(const IdemSeal *seal, uint8 *result)
{
	IdemDigest *digest = idem_digest_begin();
	StringInfoData bytes;
	int			i;

	/* with a label: no row of the log can be shown as a seal */
	initStringInfo(&bytes);
	appendStringInfoString(&bytes, SEAL_LABEL);
	for (i = 0; i < IDEM_SEALED_COLUMNS; i++)
	{
		FmgrInfo	output;

		look_up_output(idem_chain_types[i], &output);
		append_column(&bytes, &output, seal->values[i], seal->nulls[i]);
	}
	idem_digest_add(digest, bytes.data, bytes.len);
	idem_digest_end(digest, result);
	pfree(bytes.data);
}

static uint64
seal_xid(const IdemSeal *seal, IdemSealColumn column)
{
	return seal->nulls[column] ? 0 : idem_chain_xid(seal->values[column]);
}

/*
 * idem_sealed_range
 *		The rows that a seal of rows is about; false for another one, and for
 *		one that does not say.
 */
bool
idem_sealed_range(const IdemSeal *seal, IdemSealRange *range)
{
	if (DatumGetChar(seal->values[SEAL_KIND]) != IDEM_SEAL_ROWS ||
		seal->nulls[SEAL_ID_FROM] || seal->nulls[SEAL_ID_TO] ||
		seal->nulls[SEAL_XID_FROM] || seal->nulls[SEAL_AT_FROM] ||
		seal->nulls[SEAL_AT_TO])
		return false;
	range->id_from = DatumGetInt64(seal->values[SEAL_ID_FROM]);
	range->id_to = DatumGetInt64(seal->values[SEAL_ID_TO]);
	range->xid_from = seal_xid(seal, SEAL_XID_FROM);
	range->xid_to = seal_xid(seal, SEAL_XID_TO);
	range->at_from = DatumGetTimestampTz(seal->values[SEAL_AT_FROM]);
	range->at_to = DatumGetTimestampTz(seal->values[SEAL_AT_TO]);
	return true;
}

static void
range_values(const IdemSealRange *range, int64 rows, Datum *values)
{
	values[0] = Int64GetDatum(range->id_from);
	values[1] = Int64GetDatum(range->id_to);
	values[2] = idem_chain_xid_datum(range->xid_from);
	values[3] = idem_chain_xid_datum(range->xid_to);
	values[4] = TimestampTzGetDatum(range->at_from);
	values[5] = TimestampTzGetDatum(range->at_to);
	values[6] = Int64GetDatum(rows);
}

/* Hash what SPI_tuptable has. */
static void
hash_chunk(IdemDigest *digest, FmgrInfo *outputs, uint64 count,
		   IdemSealRows *rows)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	StringInfoData bytes;
	uint64		i;
	int			column;

	initStringInfo(&bytes);
	for (i = 0; i < count; i++)
	{
		Datum		values[LOG_COLUMNS];
		bool		nulls[LOG_COLUMNS];
		TimestampTz at;

		heap_deform_tuple(SPI_tuptable->vals[i], desc, values, nulls);
		for (column = 0; column < LOG_COLUMNS; column++)
		{
			if (outputs[column].fn_oid == InvalidOid)
				look_up_output(TupleDescAttr(desc, column)->atttypid,
							   &outputs[column]);
			append_column(&bytes, &outputs[column], values[column],
						  nulls[column]);
		}
		idem_digest_add(digest, bytes.data, bytes.len);
		resetStringInfo(&bytes);
		at = DatumGetTimestampTz(values[1]);
		rows->first_at = rows->count == 0 ? at : Min(rows->first_at, at);
		rows->last_at = rows->count == 0 ? at : Max(rows->last_at, at);
		rows->last_id = DatumGetInt64(values[0]);
		rows->count++;
	}
	pfree(bytes.data);
}

/*
 * idem_sealed_hash
 *		SHA-256 of up to max_rows rows of a range, in the order of their ids.
 */
void
idem_sealed_hash(const IdemSealRange *range, int64 max_rows,
				 IdemSealRows *rows)
{
	IdemDigest *digest = idem_digest_begin();
	FmgrInfo	outputs[LOG_COLUMNS];
	Datum		values[lengthof(range_types)];
	uint64		count;
	int64		limit;

	memset(rows, 0, sizeof(*rows));
	memset(outputs, 0, sizeof(outputs));
	range_values(range, 0, values);
	do
	{
		/*
		 * Goes on behind the last id of a chunk, which has all rows of that
		 * id: there may be several, once a primary key was dropped.
		 */
		limit = Min(CHUNK_ROWS, max_rows - rows->count);
		values[6] = Int64GetDatum(limit);
		count = idem_spi_execute(&rows_plan, values, NULL, true, 0);
		hash_chunk(digest, outputs, count, rows);
		SPI_freetuptable(SPI_tuptable);
		values[0] = Int64GetDatum(rows->last_id);
	} while (count >= limit && rows->count < max_rows);
	idem_digest_end(digest, rows->sha256);
}

/*
 * idem_sealed_bound
 *		Where a range of transactions is to end for it to have these many rows,
 *		or some more; range->xid_to if it has fewer.
 */
uint64
idem_sealed_bound(const IdemSealRange *range, int64 rows)
{
	Datum		values[lengthof(range_types)];
	bool		isnull;

	range_values(range, rows, values);
	(void) idem_spi_execute(&bound_plan, values, NULL, true, 1);

	/* the bound is behind the last of them, not to cut a transaction in two */
	if (idem_spi_number(1) < rows)
		return range->xid_to;
	return idem_chain_xid(idem_spi_value(0, 0, &isnull)) + 1;
}

/*
 * idem_sealed_exists
 *		Whether a range has a row.
 */
bool
idem_sealed_exists(const IdemSealRange *range)
{
	Datum		values[lengthof(range_types)];

	range_values(range, 1, values);
	return idem_spi_execute(&rows_plan, values, NULL, true, 1) > 0;
}

/*
 * idem_sealed_remove
 *		Remove the rows of a range.
 */
void
idem_sealed_remove(const IdemSealRange *range)
{
	Datum		values[lengthof(range_types)];

	range_values(range, 0, values);
	(void) idem_guard_change(&remove_plan, values, NULL);
}

static uint64
execute_due(IdemPlan *plan, const IdemSealHead *head)
{
	Datum		values[lengthof(head_types)];

	values[0] = Int64GetDatum(head->origin != 0 ? head->origin : PG_INT64_MAX);
	values[1] = Int64GetDatum(head->old_id);
	values[2] = idem_chain_xid_datum(head->old_xid);

	/* rows may be left of the transactions that a batch ended in */
	values[3] = idem_chain_xid_datum(head->closed ? head->xid_to :
									 head->xid_from);

	/* rows of a restore are sealed before the first one of this cluster is */
	values[4] = BoolGetDatum(head->xid_to != 0);
	return idem_spi_execute(plan, values, NULL, true, 1);
}

/*
 * idem_sealed_due
 *		How many rows there are that must be in a segment.
 */
int64
idem_sealed_due(const IdemSealHead *head)
{
	(void) execute_due(&due_plan, head);
	return idem_spi_number(0);
}

/*
 * idem_sealed_stray
 *		The first of them that is in no segment, and the one that it would be
 *		in by its id, else the newest; false when there is none.
 */
bool
idem_sealed_stray(const IdemSealHead *head, int64 *id, int64 *segment)
{
	bool		isnull;

	if (execute_due(&stray_plan, head) == 0)
		return false;
	*id = idem_spi_number(0);
	(void) idem_spi_value(0, 1, &isnull);
	*segment = idem_spi_number(isnull ? 2 : 1);
	return true;
}
