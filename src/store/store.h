/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The one door to our tables.
 *
 * A function that executes a statement does so as the owner of the key table
 * and is the caller again when it returns.  A row is handed out in the memory
 * context of the caller.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_STORE_H
#define IDEM_STORE_STORE_H

#include "nodes/pg_list.h"
#include "storage/lock.h"
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

/* What idem_store_take came to. */
typedef enum IdemStoreTaken
{
	IDEM_STORE_NEW,				/* no row, and nobody else may insert one */
	IDEM_STORE_ROW,				/* the row is locked */
	IDEM_STORE_BUSY,			/* another transaction is at the key */
	IDEM_STORE_CHANGED			/* not what the look found: look again */
} IdemStoreTaken;

/* What a claimer holds of a key besides its row. */
typedef struct IdemStoreGrip
{
	bool		locked;			/* the key lock is held, */
	LOCKTAG		tag;			/* which is this one */
	bool		absent;			/* direct way: the look found no trace of it */
	uint64		ended;			/* SQL way: transactions ended at the look */
} IdemStoreGrip;

/* lock.c */
extern bool idem_store_lock_key(const IdemKey *id, LOCKTAG *tag, bool wait);
extern void idem_store_unlock_key(const LOCKTAG *tag);

/* store.c */
extern bool idem_store_read(const IdemKey *id, IdemRow *row);
extern bool idem_store_peek(const IdemKey *id, IdemRow *row);
extern bool idem_store_lock(const IdemKey *id, IdemRow *row);
extern IdemStoreTaken idem_store_try_lock(const IdemKey *id, IdemRow *row);
extern bool idem_store_try_insert(const IdemKey *id, const IdemRow *row);
extern bool idem_store_hold(const IdemKey *id, IdemRow *row);
extern bool idem_store_look(IdemStoreGrip *grip, const IdemKey *id,
							bool check_new, IdemRow *row);
extern IdemStoreTaken idem_store_take(IdemStoreGrip *grip, const IdemKey *id,
									  bool found, bool check_new,
									  IdemRow *row);
extern void idem_store_drop(IdemStoreGrip *grip);
extern bool idem_store_is_new(const IdemKey *id);
extern void idem_store_require_current(const IdemKey *id, const IdemRow *row);
extern bool idem_store_insert(IdemStoreGrip *grip, const IdemKey *id,
							  const IdemRow *row);
extern void idem_store_insert_new(IdemStoreGrip *grip, const IdemKey *id,
								  const IdemRow *row);
extern void idem_store_update(const IdemKey *id, const IdemRow *row);
extern void idem_store_delete(const IdemKey *id);

/* sql.c */
extern int64 idem_store_count_live(const text *scope, TimestampTz now,
								   int64 limit);

/* What a sweep is told of rows that it removed. */
typedef void (*IdemSweepCount) (const text *policy, int64 rows);

extern int64 idem_store_sweep(TimestampTz *low, TimestampTz now,
							  int64 max_rows, IdemSweepCount count);
extern int	idem_store_insert_many(const text *scope, ArrayType *keys,
								   const IdemRow *row, text **inserted);
extern int	idem_store_read_many(const text *scope, ArrayType *keys,
								 IdemStoreBrief *found);

/* rule/named.c */

typedef enum IdemStoreNamed
{
	IDEM_STORE_POLICIES,
	IDEM_STORE_LIMITERS
} IdemStoreNamed;

extern bool idem_store_named_read(IdemStoreNamed table, const char *name,
								  Datum *values, bool *nulls);
extern void idem_store_named_lock(IdemStoreNamed table);
extern void idem_store_named_write(IdemStoreNamed table, const Datum *values,
								   const bool *nulls, bool exists);
extern bool idem_store_named_delete(IdemStoreNamed table, const text *name);
extern List *idem_store_named_names(IdemStoreNamed table);

#endif							/* IDEM_STORE_STORE_H */
