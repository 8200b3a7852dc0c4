/*-------------------------------------------------------------------------
 *
 * lock.c
 *	  The key lock: one writer of a key at a time, before it has a row.
 *
 * A heavyweight lock of the advisory class with a class number of its own,
 * which pg_advisory_lock() (1 and 2) cannot take.  How long it is held says
 * store.c; the end of the transaction ends it, and PREPARE TRANSACTION
 * keeps it.  It only tells a rival at once that a key is being worked on.
 * Uniqueness never rests on it: two keys whose hashes are the same would only
 * wait for one another.
 *
 * Lock order: key lock, then the row of the key, then whatever user code
 * locks.  idem_dedupe, the sweep and who forgets a scope take no key lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"

#include "base/args.h"
#include "base/citus.h"
#include "base/spi.h"
#include "store/store.h"

#define KEY_LOCK_CLASS 0x1DE

static const Oid remote_types[] = {TEXTOID, TEXTOID, BOOLOID};

/*
 * The lock where the row is.  The count makes one row of none, and the tenant in
 * its condition says to which node all of it goes.
 */
static IdemPlan remote_plan = {
	"SELECT %1$s.idem_key_lock($1, $2, $3)"
	" FROM (SELECT count(*) FROM %1$s.idempotency_keys"
	" WHERE (%2$sscope, key) = (%3$s$1, $2)) AS here",
	lengthof(remote_types), remote_types, 1, true
};

static uint64
hash_text(const text *value, uint64 seed)
{
	return hash_bytes_extended((const unsigned char *) VARDATA_ANY(value),
							   VARSIZE_ANY_EXHDR(value), seed);
}

/*
 * idem_store_key_tag
 *		The key lock of a key.
 *
 * 64 bits, seeded with a secret that all processes of a server know and no
 * client does, so that nobody can make keys that collide with another's.  The
 * server's nonce for mock authentication is one, and needs no preload; what it
 * is for is not weakened, since no lock tag leaves the server but as a hash.
 */
void
idem_store_key_tag(const IdemKey *id, LOCKTAG *tag)
{
	uint64		hash;

	memcpy(&hash, GetMockAuthenticationNonce(), sizeof(hash));
	hash = hash_text(id->key, hash_text(id->scope, hash));
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) (hash >> 32),
						 (uint32) hash, KEY_LOCK_CLASS);
}

static bool
lock_here(const IdemKey *id, LOCKTAG *tag, bool wait)
{
	idem_store_key_tag(id, tag);
	return LockAcquire(tag, ExclusiveLock, false, !wait) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/* On the node of the row, to the end of the transaction; here there is none. */
static bool
lock_there(const IdemKey *id, LOCKTAG *tag, bool wait)
{
	Datum		values[lengthof(remote_types)];
	IdemSecctx	saved;
	bool		isnull;
	bool		locked;

	memset(tag, 0, sizeof(LOCKTAG));
	idem_citus_begin(id->scope, id->key);
	values[0] = PointerGetDatum(id->scope);
	values[1] = PointerGetDatum(id->key);
	values[2] = BoolGetDatum(wait);
	idem_spi_begin(&saved);
	(void) idem_spi_execute(&remote_plan, values, NULL, false, 0);
	locked = DatumGetBool(idem_spi_value(0, 0, &isnull));
	idem_spi_end(&saved);
	return locked;
}

/*
 * idem_store_lock_key
 *		Take the key lock; without wait, false when another transaction has it.
 *
 * Waiting honours lock_timeout and takes part in deadlock detection.
 */
bool
idem_store_lock_key(const IdemKey *id, LOCKTAG *tag, bool wait)
{
	return idem_citus_is_here(id->scope) ? lock_here(id, tag, wait) :
		lock_there(id, tag, wait);
}

IDEM_FUNCTION(idem_key_lock);

/*
 * idem_key_lock(scope text, key text, wait boolean) RETURNS boolean
 *		For statements of ours on another node of Citus: the key lock, as
 *		idem_store_lock_key() has it.  Raises 22004, 55P03, ID012.
 */
Datum
idem_key_lock(PG_FUNCTION_ARGS)
{
	IdemKey		id;
	LOCKTAG		tag;

	id.scope = idem_args_text(fcinfo, 0, "scope");
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_BAD_KEY),
				 errmsg("the key is missing"),
				 errhint("This function is for statements of extension \"idempotency\".")));
	id.key = idem_args_text(fcinfo, 1, "key");
	idem_args_require(fcinfo, 2, "wait");
	PG_RETURN_BOOL(lock_here(&id, &tag, PG_GETARG_BOOL(2)));
}

/*
 * idem_store_unlock_key
 *		Take back one idem_store_lock_key.
 */
void
idem_store_unlock_key(const LOCKTAG *tag)
{
	if (tag->locktag_lockmethodid != 0)
		LockRelease(tag, ExclusiveLock, false);
}
