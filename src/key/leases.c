/*-------------------------------------------------------------------------
 *
 * leases.c
 *	  The list of claims that idem_recover may have to take over.
 *
 * Owns idempotency_leases: an entry for each claim in progress under a policy
 * that is recoverable, so that abandoned ones are found without a look at the
 * keys.  Its entry is written with a claim and removed with its end, in the
 * same transaction; no other policy costs anything here.
 *
 * The list proposes, and the key's own row decides.  So it may be wrong without
 * harm: an entry is left behind when the policy was changed before the claim
 * ended, or somebody removed the row.  idem_recover drops what it finds to be
 * wrong, the sweep what is past its time.
 *
 * An entry is locked after the row of its key, which is why none is waited for
 * that is not about to go.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/citus.h"
#include "base/spi.h"
#include "key/leases.h"
#include "rule/policy.h"
#include "store/store.h"

static const Oid put_types[] = {
	TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID
};
static const Oid drop_types[] = {TEXTOID, TEXTOID, INT8OID};
static const Oid ended_types[] = {
	TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, INT8OID
};
static const Oid lease_types[] = {
	TIMESTAMPTZOID, INT8OID, TEXTOID, TEXTOID, TEXTOID
};

static IdemPlan put_plan = {
	"INSERT INTO %1$s.idempotency_leases"
	" (%2$slease_until, purge_at, token, scope, key, policy, claimed_by)"
	" VALUES (%3$s$1, $2, $3, $4, $5, $6, $7)"
	" ON CONFLICT (%2$sscope, key) DO UPDATE SET (lease_until, purge_at, token, policy, claimed_by)"
	" = (excluded.lease_until, excluded.purge_at, excluded.token, excluded.policy, excluded.claimed_by)",
	lengthof(put_types), put_types, 4
};

static IdemPlan drop_plan = {
	"DELETE FROM %1$s.idempotency_leases WHERE (%2$sscope, key) = (%3$s$1, $2) AND $3 IN (0, token)",
	lengthof(drop_types), drop_types, 1
};

/*
 * In the order of the index on (policy, lease_until), those of one time sorted.
 * Its owner may have let nulls in, which would be read as addresses.
 */
static IdemPlan ended_plan = {
	"SELECT lease_until, token, scope, key, claimed_by"
	" FROM %1$s"
	" WHERE policy = $1 AND lease_until <= $2 AND lease_until >= $3"
	" AND (lease_until > $3 OR (scope, key) > ($4, $5))"
	" AND (token, scope, key, claimed_by) IS NOT NULL"
	" ORDER BY lease_until, scope, key LIMIT $6",
	lengthof(ended_types), ended_types
};

static uint64
execute(IdemPlan *plan, Datum *values)
{
	IdemSecctx	saved;
	uint64		rows;

	idem_spi_begin_as(&saved, idem_catalog()->leases_owner);
	rows = idem_spi_execute(plan, values, NULL, false, 0);
	idem_spi_end(&saved);
	return rows;
}

/*
 * idem_leases_put
 *		List a claim in progress, or what its lease is now.
 */
void
idem_leases_put(const IdemKey *id, const IdemRow *row)
{
	Datum		values[lengthof(put_types)];

	values[0] = TimestampTzGetDatum(row->lease_until);
	values[1] = TimestampTzGetDatum(row->purge_at);
	values[2] = Int64GetDatum(row->token);
	values[3] = PointerGetDatum(id->scope);
	values[4] = PointerGetDatum(id->key);
	values[5] = row->policy != NULL ? PointerGetDatum(row->policy) :
		CStringGetTextDatum(IDEM_POLICY_DEFAULT);
	values[6] = PointerGetDatum(row->claimed_by);
	(void) execute(&put_plan, values);
}

/*
 * idem_leases_drop
 *		Take a claim from the list, if it is there: of a key whose row is
 *		locked, whichever it is (IDEM_NO_TOKEN), else the one with that token.
 */
void
idem_leases_drop(const IdemKey *id, int64 token)
{
	Datum		values[lengthof(drop_types)];

	values[0] = PointerGetDatum(id->scope);
	values[1] = PointerGetDatum(id->key);
	values[2] = Int64GetDatum(token);
	(void) execute(&drop_plan, values);
}

/*
 * idem_leases_ended
 *		The claims under a policy whose lease has ended, longest ago first,
 *		and after the given one where that is not NULL; returns their number.
 */
int
idem_leases_ended(const char *policy, TimestampTz now, const IdemLease *after,
				  int max_leases, IdemLease *leases)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[lengthof(ended_types)];
	IdemSecctx	saved;
	int			number;
	int			i;

	values[0] = CStringGetTextDatum(policy);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(after != NULL ? after->lease_until : DT_NOBEGIN);
	values[3] = after != NULL ? PointerGetDatum(after->id.scope) : CStringGetTextDatum("");
	values[4] = after != NULL ? PointerGetDatum(after->id.key) : CStringGetTextDatum("");
	values[5] = Int64GetDatum(max_leases);
	idem_spi_from(&ended_plan, idem_citus_rows(idem_catalog()->leases));
	idem_spi_begin_as(&saved, idem_catalog()->leases_owner);
	number = (int) idem_spi_execute(&ended_plan, values, NULL, false, 0);
	idem_spi_require_types(lease_types, lengthof(lease_types));
	MemoryContextSwitchTo(context);
	for (i = 0; i < number; i++)
	{
		Datum		columns[lengthof(lease_types)];
		bool		nulls[lengthof(lease_types)];

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
						  columns, nulls);
		leases[i].lease_until = DatumGetTimestampTz(columns[0]);
		leases[i].token = DatumGetInt64(columns[1]);
		leases[i].id.scope = DatumGetTextPCopy(columns[2]);
		leases[i].id.key = DatumGetTextPCopy(columns[3]);
		leases[i].claimed_by = DatumGetTextPCopy(columns[4]);
	}
	idem_spi_end(&saved);
	return number;
}

/*
 * idem_leases_sweep
 *		Remove up to so many entries that are left of claims whose key is past
 *		its time; waits for nobody.
 */
void
idem_leases_sweep(TimestampTz now, int64 max_rows)
{
	Oid			leases = idem_catalog()->leases;
	Relation	table;
	bool		empty;

	if (!ConditionalLockRelationOid(leases, RowExclusiveLock))
		return;

	/* most have none, and need no plan made for it */
	table = try_table_open(leases, NoLock);
	if (table == NULL)
		return;
	empty = table->rd_rel->relkind == RELKIND_RELATION &&
		!idem_citus_is_used() && RelationGetNumberOfBlocks(table) == 0;
	table_close(table, NoLock);
	if (!empty)
		idem_store_sweep_leases(now, max_rows);
}
