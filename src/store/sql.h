/*-------------------------------------------------------------------------
 *
 * sql.h
 *	  The SQL way to the key table, among its own files.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_SQL_H
#define IDEM_STORE_SQL_H

#include "store/store.h"

/* sql_sweep.c */
extern int64 idem_sql_sweep(IdemStore *store, IdemSweepMark *mark,
							TimestampTz now, int64 max_rows,
							IdemSweepCount count);

/* sql_many.c */
extern void idem_store_require_primary_key(void);
extern void idem_sql_read_many(IdemStore *store, text *scope,
							   IdemStoreItem **items, int number);
extern void idem_sql_insert_many(IdemStore *store, text *scope,
								 IdemStoreItem **items, int number,
								 const IdemRow *row);

#endif							/* IDEM_STORE_SQL_H */
