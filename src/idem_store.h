/*-------------------------------------------------------------------------
 *
 * idem_store.h
 *	  The one door to our tables.
 *
 * Every function that executes a statement does so as the owner of the key
 * table and is the caller again when it returns.  A row is handed out in the
 * memory context of the caller.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_H
#define IDEM_STORE_H

#include "nodes/pg_list.h"
#include "utils/array.h"

#include "idem.h"

/* What idem_dedupe needs to know of a row that is in its way. */
typedef struct IdemStoreBrief
{
	text	   *key;
	IdemState	state;
	TimestampTz expires_at;
	TimestampTz purge_at;
	text	   *claimed_by;
	text	   *policy;
} IdemStoreBrief;

/* A row of the audit log, less what the server knows itself. */
typedef struct IdemStoreAudit
{
	const char *action;
	const char *entity;
	const char *entity_id;
	int32		attempt;		/* 0: null */
	int64		token;			/* 0: null */
	const char *effective_role;
	Datum		detail;			/* jsonb; 0: null */
} IdemStoreAudit;

/* idem_store_lock.c */
extern bool idem_store_lock_key(const IdemKey *id, bool wait);
extern void idem_store_unlock_key(const IdemKey *id);

/* idem_store_sql.c */
extern bool idem_store_read(const IdemKey *id, IdemRow *row);
extern bool idem_store_peek(const IdemKey *id, IdemRow *row);
extern bool idem_store_lock(const IdemKey *id, IdemRow *row);
extern bool idem_store_insert(const IdemKey *id, const IdemRow *row);
extern void idem_store_insert_new(const IdemKey *id, const IdemRow *row);
extern void idem_store_update(const IdemKey *id, const IdemRow *row);
extern void idem_store_delete(const IdemKey *id);
extern int64 idem_store_count_live(const text *scope, TimestampTz now,
								   int64 limit);
extern int64 idem_store_sweep(TimestampTz now, int64 max_rows);
extern int	idem_store_insert_many(const text *scope, ArrayType *keys,
								   const IdemRow *row, text **inserted);
extern int	idem_store_read_many(const text *scope, ArrayType *keys,
								 IdemStoreBrief *found);

/* idem_store_policy.c */
extern bool idem_store_policy_read(const char *name, Datum *values,
								   bool *nulls);
extern void idem_store_policy_lock(void);
extern void idem_store_policy_write(const Datum *values, const bool *nulls,
									bool exists);
extern bool idem_store_policy_delete(const text *name);
extern List *idem_store_policy_names(void);

/* idem_store_audit.c */
extern int64 idem_store_audit(const IdemStoreAudit *audit);
extern bool idem_store_audit_passes(const IdemStoreAudit *row);

/* idem_store_secret.c */
extern int32 idem_store_secret_add(const text *purpose, const bytea *secret);
extern bytea *idem_store_secret_newest(const char *purpose, int32 *key_id);

#endif							/* IDEM_STORE_H */
