/*-------------------------------------------------------------------------
 *
 * row.h
 *	  The columns of the key table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_ROW_H
#define IDEM_STORE_ROW_H

#include "access/skey.h"

#include "base/compat.h"
#include "idem.h"

typedef enum IdemColumn
{
	COLUMN_CREATED_AT,
	COLUMN_EXPIRES_AT,
	COLUMN_PURGE_AT,
	COLUMN_CLAIM_XID,
	COLUMN_FINISHED_AT,
	COLUMN_LEASE_UNTIL,
	COLUMN_TOKEN,
	COLUMN_TTL,
	COLUMN_BODY_SIZE,
	COLUMN_ATTEMPT,
	COLUMN_STATUS_CODE,
	COLUMN_STATE,
	COLUMN_SCOPE,
	COLUMN_KEY,
	COLUMN_POLICY,
	COLUMN_CLAIMED_BY,
	COLUMN_OWNER,
	COLUMN_FINGERPRINT,
	COLUMN_CONTEXT,
	COLUMN_HEADERS,
	COLUMN_CONTENT_TYPE,
	COLUMN_BODY_SHA256,
	COLUMN_BODY,
	COLUMN_RECOVERY_POINT,
	COLUMN_CHECKPOINT
} IdemColumn;

#define IDEM_NUM_COLUMNS	(COLUMN_CHECKPOINT + 1)

/* How the value of a column is kept in IdemRow. */
typedef enum IdemColumnKind
{
	KIND_NAME,					/* in IdemKey, not in IdemRow */
	KIND_STATE,
	KIND_INT32,
	KIND_INT64,					/* an xid8, a time or a number */
	KIND_VALUE,					/* pointer to a value that is decided upon */
	KIND_STORED					/* pointer to one as it was read, toasted or
								 * not */
} IdemColumnKind;

typedef struct IdemColumnShape
{
	const char *name;
	Oid			type;
	bool		not_null;
	IdemColumnKind kind;
	size_t		offset;			/* in IdemRow */
	int64		null;			/* a number that stands for null */
} IdemColumnShape;

extern const IdemColumnShape idem_store_columns[IDEM_NUM_COLUMNS];

extern void idem_store_row_form(IdemRow *row, const Datum *values,
								const bool *nulls);
extern void idem_store_row_scan_keys(const IdemKey *id, ScanKeyData entries[2]);
extern bool idem_store_row_is(const IdemKey *id, const Datum *values);
extern void idem_store_row_values(const IdemKey *id, const IdemRow *row,
								  Datum *values, bool *nulls);
IDEM_COMPAT_NORETURN extern void idem_store_row_raise_twins(const IdemKey *id);
IDEM_COMPAT_NORETURN extern void idem_store_row_raise_rival(void);
IDEM_COMPAT_NORETURN extern void idem_store_row_raise_suppressed(const IdemKey *id);

#endif							/* IDEM_STORE_ROW_H */
