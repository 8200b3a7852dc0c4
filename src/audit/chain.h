/*-------------------------------------------------------------------------
 *
 * chain.h
 *	  The seals of the audit log, and its rows as they are sealed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_CHAIN_H
#define IDEM_AUDIT_CHAIN_H

#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "base/digest.h"
#include "base/spi.h"

/* The columns of idempotency_audit_seals; SEAL_KEY_ID is the last sealed. */
typedef enum IdemSealColumn
{
	SEAL_SEGMENT,
	SEAL_KIND,
	SEAL_SEALED_AT,
	SEAL_ID_FROM,
	SEAL_ID_TO,
	SEAL_XID_FROM,
	SEAL_XID_TO,
	SEAL_AT_FROM,
	SEAL_AT_TO,
	SEAL_FIRST_AT,
	SEAL_LAST_AT,
	SEAL_NEXT_ID,
	SEAL_NEXT_XID,
	SEAL_ORIGIN,
	SEAL_CLOSED,
	SEAL_ROWS,
	SEAL_ROWS_SHA256,
	SEAL_PRUNED,
	SEAL_PREVIOUS,
	SEAL_KEY_ID,
	SEAL_SEAL,
	SEAL_HMAC
} IdemSealColumn;

#define IDEM_SEALED_COLUMNS (SEAL_KEY_ID + 1)
#define IDEM_SEAL_COLUMNS	(SEAL_HMAC + 1)

#define IDEM_SEAL_ROWS		's'
#define IDEM_SEAL_PRUNED	'p'
#define IDEM_SEAL_KEY		'k'

/* A row of the table. */
typedef struct IdemSeal
{
	Datum		values[IDEM_SEAL_COLUMNS];
	bool		nulls[IDEM_SEAL_COLUMNS];
	bool		was_pruned;		/* a later row says so */
} IdemSeal;

/* Rows of the log: id_from < id <= id_to, and so on as in the table. */
typedef struct IdemSealRange
{
	int64		id_from;
	int64		id_to;
	uint64		xid_from;
	uint64		xid_to;			/* 0: no bound */
	TimestampTz at_from;
	TimestampTz at_to;
} IdemSealRange;

/* What they come to. */
typedef struct IdemSealRows
{
	int64		count;
	int64		last_id;
	TimestampTz first_at;
	TimestampTz last_at;
	uint8		sha256[IDEM_DIGEST_BYTES];
} IdemSealRows;

/* How far the chain has come. */
typedef struct IdemSealHead
{
	int64		origin;			/* first id of this cluster; 0: none yet */
	int64		old_origin;		/* of the one that sealed before it; 0: none */
	int64		old_id;			/* last id sealed in another cluster; 0: none */
	uint64		old_xid;		/* transactions before are sealed; 0: none */
	uint64		xid_from;		/* of this cluster's last seal; 0: none */
	uint64		xid_to;
	bool		closed;
} IdemSealHead;

/* The last seal; zero when there is none. */
typedef struct IdemSealLast
{
	int64		segment;
	uint8		seal[IDEM_DIGEST_BYTES];
} IdemSealLast;

static inline Datum
idem_chain_xid_datum(uint64 xid)
{
	return FullTransactionIdGetDatum(FullTransactionIdFromU64(xid));
}

static inline uint64
idem_chain_xid(Datum xid)
{
	return U64FromFullTransactionId(DatumGetFullTransactionId(xid));
}

typedef void (*IdemSealSink) (void *arg, const IdemSeal *seal);

/* chain.c */
extern const Oid idem_chain_types[IDEM_SEAL_COLUMNS];

extern int64 idem_chain_begin(IdemSecctx *saved);
extern void idem_chain_end(const IdemSecctx *saved);
extern bool idem_chain_lock(bool wait);
extern void idem_chain_horizon(uint64 *ended, uint64 *next);
extern void idem_chain_head(IdemSealHead *head);
extern int64 idem_chain_low_id(const IdemSealHead *head, uint64 xid);
extern bool idem_chain_set_back(void);
extern int64 idem_chain_reached(const IdemSealHead *head,
								const IdemSealRange *range, int64 *before);

extern void idem_chain_copy(Datum column, uint8 *digest);
extern bool idem_chain_is(const IdemSeal *seal, IdemSealColumn column,
						  const uint8 *digest);
extern void idem_chain_last(IdemSealLast *last);
extern void idem_chain_each(IdemSealSink sink, void *arg);
extern void idem_chain_add(const IdemSeal *seal);

/* sealed_rows.c */
extern void idem_sealed_digest(const IdemSeal *seal, uint8 *digest);
extern bool idem_sealed_range(const IdemSeal *seal, IdemSealRange *range);

extern void idem_sealed_hash(const IdemSealRange *range, int64 max_rows,
							 IdemSealRows *rows);
extern uint64 idem_sealed_bound(const IdemSealRange *range, int64 rows);
extern bool idem_sealed_exists(const IdemSealRange *range);
extern void idem_sealed_remove(const IdemSealRange *range);
extern int64 idem_sealed_due(const IdemSealHead *head);
extern bool idem_sealed_stray(const IdemSealHead *head, int64 *id,
							  int64 *segment);

#endif							/* IDEM_AUDIT_CHAIN_H */
