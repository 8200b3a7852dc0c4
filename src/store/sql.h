/*-------------------------------------------------------------------------
 *
 * sql.h
 *	  The SQL way to a row of the key table; for the door only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_SQL_H
#define IDEM_STORE_SQL_H

#include "idem.h"
#include "store/store.h"

extern bool idem_store_sql_read(const IdemKey *id, IdemRow *row);
extern bool idem_store_sql_peek(const IdemKey *id, IdemRow *row);
extern bool idem_store_sql_is_there(const IdemKey *id);
extern bool idem_store_sql_lock(const IdemKey *id, IdemRow *row);
extern bool idem_store_sql_try_lock(const IdemKey *id, IdemRow *row);
extern bool idem_store_sql_insert(const IdemKey *id, const IdemRow *row);
extern bool idem_store_sql_update(const IdemKey *id, const IdemRow *row);
extern bool idem_store_sql_delete(const IdemKey *id);
extern int64 idem_store_sql_sweep(TimestampTz *low, TimestampTz now,
								  int64 max_rows, IdemSweepCount count);

#endif							/* IDEM_STORE_SQL_H */
