/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  What differs between the majors of PostgreSQL.
 *
 * The only file that names PG_VERSION_NUM.  Each block says which major
 * changed what.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_COMPAT_H
#define IDEM_BASE_COMPAT_H

#include "access/genam.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "storage/sinvaladt.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#endif

/* 16 moved the macros of varlena out of postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 18 made noreturn a prefix. */
#ifdef pg_noreturn
#define IDEM_COMPAT_NORETURN pg_noreturn
#else
#define IDEM_COMPAT_NORETURN pg_attribute_noreturn()
#endif

/* 16 replaced the per-catalog ACL checks by object_aclcheck(). */
#if PG_VERSION_NUM >= 160000
#define idem_compat_may_execute(proc, role) \
	(object_aclcheck(ProcedureRelationId, (proc), (role), ACL_EXECUTE) == \
	 ACLCHECK_OK)
#define idem_compat_may_use_schema(schema, role) \
	(object_aclcheck(NamespaceRelationId, (schema), (role), ACL_USAGE) == \
	 ACLCHECK_OK)
#else
#define idem_compat_may_use_schema(schema, role) \
	(pg_namespace_aclcheck((schema), (role), ACL_USAGE) == ACLCHECK_OK)
#define idem_compat_may_execute(proc, role) \
	(pg_proc_aclcheck((proc), (role), ACL_EXECUTE) == ACLCHECK_OK)
#endif

/* 17 gave interval the values infinity and -infinity. */
#if PG_VERSION_NUM >= 170000
#define idem_compat_interval_is_finite(interval) \
	(!INTERVAL_NOT_FINITE(interval))
#else
#define idem_compat_interval_is_finite(interval) true
#endif

/* 16 lets the actions of the JSON parser fail; ours never do. */
#if PG_VERSION_NUM >= 160000
typedef JsonParseErrorType IdemCompatJsonAction;
#define idem_compat_json_go_on() return JSON_SUCCESS
#else
typedef void IdemCompatJsonAction;
#define idem_compat_json_go_on() return
#endif

/*
 * Before 16 the parser raises an error for a character that is written as its
 * number and is not in the encoding of the database.  So where that could be,
 * such a text is not parsed: what is beyond ASCII must stand there itself.
 */
static inline bool
idem_compat_json_may_raise(const char *json, int len)
{
#if PG_VERSION_NUM < 160000
	int			i;

	if (GetDatabaseEncoding() == PG_UTF8)
		return false;
	for (i = 0; i + 5 < len; i++)
	{
		if (json[i] != '\\')
			continue;
		if (json[++i] == 'u' && (json[i + 1] != '0' || json[i + 2] != '0' ||
								 json[i + 3] > '7'))
			return true;
	}
#endif
	return false;
}

/*
 * Whether this is JSON; its actions see strings only with need_escapes.  17
 * moved the lexer's memory into the hands of its caller.
 */
static inline bool
idem_compat_json_parse(char *json, int len, int encoding, bool need_escapes,
					   JsonSemAction *actions)
{
	JsonLexContext *lex;
	bool		valid;

	if (need_escapes && idem_compat_json_may_raise(json, len))
		return false;
#if PG_VERSION_NUM >= 170000
	lex = makeJsonLexContextCstringLen(NULL, json, len, encoding, need_escapes);
#else
	lex = makeJsonLexContextCstringLen(json, len, encoding, need_escapes);
#endif
	valid = pg_parse_json(lex, actions) == JSON_SUCCESS;
#if PG_VERSION_NUM >= 170000
	freeJsonLexContext(lex);
#endif
	return valid;
}

static inline bool
idem_compat_json_is_valid(char *json, int len, int encoding)
{
	JsonSemAction actions = nullSemAction;

	return idem_compat_json_parse(json, len, encoding, false, &actions);
}

/* What an update asks of the indexes; 16 set BRIN and its like apart. */
typedef enum IdemCompatIndexes
{
	IDEM_COMPAT_INDEXES_NONE,	/* HOT */
	IDEM_COMPAT_INDEXES_SUMMARIZING,
	IDEM_COMPAT_INDEXES_ALL
} IdemCompatIndexes;

/* 19 gave updates and deletions options, in place of a deletion's last argument. */
#if PG_VERSION_NUM >= 190000
#define IDEM_COMPAT_NO_OPTIONS 0,
#define idem_compat_delete(relation, tid, cid, snapshot, wait, failure) \
	table_tuple_delete((relation), (tid), (cid), 0, (snapshot), \
					   InvalidSnapshot, (wait), (failure))
#else
#define IDEM_COMPAT_NO_OPTIONS
#define idem_compat_delete(relation, tid, cid, snapshot, wait, failure) \
	table_tuple_delete((relation), (tid), (cid), (snapshot), \
					   InvalidSnapshot, (wait), (failure), false)
#endif

static inline TM_Result
idem_compat_update(Relation relation, ItemPointer tid, TupleTableSlot *slot,
				   CommandId cid, Snapshot snapshot,
				   IdemCompatIndexes *indexes)
{
	TM_FailureData failure;
	LockTupleMode mode;
	TM_Result	result;
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes update = TU_None;

	result = table_tuple_update(relation, tid, slot, cid,
								IDEM_COMPAT_NO_OPTIONS snapshot,
								InvalidSnapshot, true, &failure, &mode,
								&update);
	*indexes = update == TU_All ? IDEM_COMPAT_INDEXES_ALL :
		update == TU_Summarizing ? IDEM_COMPAT_INDEXES_SUMMARIZING :
		IDEM_COMPAT_INDEXES_NONE;
#else
	bool		update = false;

	result = table_tuple_update(relation, tid, slot, cid, snapshot,
								InvalidSnapshot, true, &failure, &mode,
								&update);
	*indexes = update ? IDEM_COMPAT_INDEXES_ALL : IDEM_COMPAT_INDEXES_NONE;
#endif
	return result;
}

#if PG_VERSION_NUM >= 160000
#define idem_compat_is_summarizing(info) ((info)->ii_Summarizing)
#else
#define idem_compat_is_summarizing(info) false
#endif

/* 18 counts the searches of an index scan for EXPLAIN; 19 adds flags. */
#if PG_VERSION_NUM >= 190000
#define idem_compat_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0, 0)
#elif PG_VERSION_NUM >= 180000
#define idem_compat_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0)
#else
#define idem_compat_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), (nkeys), 0)
#endif

/*
 * index_fetch_heap() with another snapshot than that of the scan.  Like that it
 * lets the index forget what is dead to all.
 */
static inline bool
idem_compat_fetch_heap(IndexScanDesc scan, Snapshot snapshot,
					   TupleTableSlot *slot)
{
	bool		again = false;
	bool		all_dead = false;
	bool		found = table_index_fetch_tuple(scan->xs_heapfetch,
												&scan->xs_heaptid, snapshot,
												slot, &again, &all_dead);

	if (found)
		pgstat_count_heap_fetch(scan->indexRelation);
	if (!scan->xactStartedInRecovery)
		scan->kill_prior_tuple = all_dead;
	return found;
}

/*
 * 17 has named segments of dynamic shared memory, made by whoever asks first:
 * the address of one, or NULL before.  19 has an argument for who makes it.
 */
typedef void (*IdemCompatInit) (void *memory);

#if PG_VERSION_NUM >= 190000
static inline void
idem_compat_init_segment(void *memory, void *arg)
{
	(*(IdemCompatInit *) arg) (memory);
}
#endif

static inline void *
idem_compat_named_segment(const char *name, Size size, IdemCompatInit init)
{
#if PG_VERSION_NUM >= 190000
	bool		found;

	return GetNamedDSMSegment(name, size, idem_compat_init_segment, &found,
							  &init);
#elif PG_VERSION_NUM >= 170000
	bool		found;

	return GetNamedDSMSegment(name, size, init, &found);
#else
	return NULL;
#endif
}

/* 19 has but one size for a hash table in shared memory. */
#if PG_VERSION_NUM >= 190000
#define idem_compat_shmem_hash(name, size, ctl, flags) \
	ShmemInitHash((name), (size), (ctl), (flags))
#else
#define idem_compat_shmem_hash(name, size, ctl, flags) \
	ShmemInitHash((name), (size), (size), (ctl), (flags))
#endif

/* 19 wants the name of a tranche at once, and registers it itself. */
#if PG_VERSION_NUM >= 190000
#define idem_compat_new_tranche(name) LWLockNewTrancheId(name)
#define idem_compat_register_tranche(tranche, name) ((void) 0)
#else
#define idem_compat_new_tranche(name) LWLockNewTrancheId()
#define idem_compat_register_tranche(tranche, name) \
	LWLockRegisterTranche((tranche), (name))
#endif

/* 17 names the waits of extensions; a name is given once in a server. */
#if PG_VERSION_NUM >= 170000
#define idem_compat_wait_event(name) WaitEventExtensionNew(name)
#else
#define idem_compat_wait_event(name) PG_WAIT_EXTENSION
#endif

/*
 * The process that runs a virtual transaction; 0 when it has ended, or is
 * prepared.  17 numbers processes otherwise, and asks more of LockHeldByMe().
 */
static inline int
idem_compat_vxid_pid(VirtualTransactionId vxid)
{
#if PG_VERSION_NUM >= 170000
	PGPROC	   *proc = ProcNumberGetProc(vxid.procNumber);

	return proc != NULL && proc->vxid.lxid == vxid.localTransactionId ?
		proc->pid : 0;
#else
	PGPROC	   *proc = BackendIdGetProc(vxid.backendId);

	return proc != NULL && proc->lxid == vxid.localTransactionId ?
		proc->pid : 0;
#endif
}

#if PG_VERSION_NUM >= 170000
#define idem_compat_lock_is_mine(tag, mode) LockHeldByMe((tag), (mode), false)
#else
#define idem_compat_lock_is_mine(tag, mode) LockHeldByMe((tag), (mode))
#endif

/* What a session reports of itself, counted from 1; 16 renamed it. */
#if PG_VERSION_NUM >= 160000
#define idem_compat_session(i) \
	(&pgstat_get_local_beentry_by_index(i)->backendStatus)
#else
#define idem_compat_session(i) \
	(&pgstat_fetch_stat_local_beentry(i)->backendStatus)
#endif

/* 18 lets a library say its name and version. */
#ifdef PG_MODULE_MAGIC_EXT
#define IDEM_COMPAT_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "idempotency", .version = "1.0")
#else
#define IDEM_COMPAT_MODULE_MAGIC PG_MODULE_MAGIC
#endif

#endif							/* IDEM_BASE_COMPAT_H */
