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
#include "common/hashfn.h"
#include "miscadmin.h"

#include "store/store.h"

#define KEY_LOCK_CLASS 0x1DE

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

/*
 * idem_store_lock_key
 *		Take the key lock; without wait, false when another transaction has it.
 *
 * Waiting honours lock_timeout and takes part in deadlock detection.
 */
bool
idem_store_lock_key(const IdemKey *id, LOCKTAG *tag, bool wait)
{
	idem_store_key_tag(id, tag);
	return LockAcquire(tag, ExclusiveLock, false, !wait) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/*
 * idem_store_unlock_key
 *		Take back one idem_store_lock_key.
 */
void
idem_store_unlock_key(const LOCKTAG *tag)
{
	LockRelease(tag, ExclusiveLock, false);
}
