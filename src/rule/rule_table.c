/*-------------------------------------------------------------------------
 *
 * rule_table.c
 *	  Tables of named rules, and what a backend remembers of them.
 *
 * Knows no rule: whoever has a table of them describes it.  Owns the
 * statements on such a table, which are made of that description, and a cache
 * for each, in CacheMemoryContext, so that using a rule costs no query.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "rule/rule_table.h"

/* The rule follows, aligned. */
typedef struct RuleEntry
{
	NameData	name;			/* the hash key */
	bool		missing;		/* there is none of this name */
} RuleEntry;

#define RULE_OFFSET MAXALIGN(sizeof(RuleEntry))

static IdemRuleTable *tables = NULL;

static void *
get_rule(RuleEntry *entry)
{
	return (char *) entry + RULE_OFFSET;
}

static Oid
get_relid(const IdemRuleTable *table)
{
	return *(const Oid *) ((const char *) idem_catalog() + table->relid);
}

static void
relation_changed(Oid relid)
{
	IdemRuleTable *table;

	/*
	 * This comes at any moment, in the middle of a look-up, too: it only
	 * counts, and asks no catalog which table is ours.
	 */
	for (table = tables; table != NULL; table = table->next)
		if (relid == InvalidOid || relid == table->current)
			table->changes++;
}

/* An empty cache for the table as it is now. */
static void
reset(IdemRuleTable *table)
{
	HASHCTL		ctl = {0};

	/*
	 * An error below leaves "entries" NULL, and so the next call begins here
	 * again.  What is invalidated meanwhile is newer than "as_of".
	 */
	if (table->entries != NULL)
		hash_destroy(table->entries);
	table->entries = NULL;
	table->as_of = table->changes;
	table->current = get_relid(table);
	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = RULE_OFFSET + table->rule_size;
	ctl.hcxt = CacheMemoryContext;
	table->entries = hash_create(table->relation, 16, &ctl,
								 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

/*
 * idem_rule_find
 *		The rule of this name, as a copy: the cache may be emptied while its
 *		user waits, runs a handler or reads a table.  False when there is none,
 *		which is kept only if told so: the number of names that callers can
 *		think of is not bounded.
 */
bool
idem_rule_find(IdemRuleTable *table, const char *name, void *rule,
			   bool keep_missing)
{
	RuleEntry  *entry;
	List	   *rows;
	uint64		changes;
	bool		known;

	/* the hash would cut it off, and find the rule of another name */
	if (strlen(name) >= NAMEDATALEN)
		return false;

	/*
	 * The trigger on the table sends an invalidation with every change, and
	 * the statement that committed it may have been answered just now: hear
	 * of it before answering (specs/policy-change).
	 */
	AcceptInvalidationMessages();
	if (table->entries == NULL || table->as_of != table->changes)
		reset(table);
	entry = hash_search(table->entries, name, HASH_FIND, NULL);
	if (entry != NULL)
	{
		memcpy(rule, get_rule(entry), table->rule_size);
		return !entry->missing;
	}

	/*
	 * Reading may accept an invalidation, and call us for another name.  What
	 * was read while the table changed, or with the snapshot of a parallel
	 * plan, is used, as a query would have used it, but not kept.
	 */
	changes = table->changes;
	rows = idem_rule_read(table, name);
	known = table->form(rule, name, rows != NIL ? linitial(rows) : NULL);
	if ((known || keep_missing) && table->entries != NULL &&
		table->as_of == changes && changes == table->changes &&
		!IsInParallelMode())
	{
		entry = hash_search(table->entries, name, HASH_ENTER, NULL);
		entry->missing = !known;
		memcpy(get_rule(entry), rule, table->rule_size);
	}
	return known;
}

/*
 * The statements, once in a process.  Our schema is %1$s in them; each but
 * read_all has the name as its first parameter.
 */
static void
make_statements(IdemRuleTable *table)
{
	MemoryContext old;
	StringInfoData names;
	StringInfoData values;
	Oid		   *types;
	int			i;

	if (table->types != NULL)
		return;
	old = MemoryContextSwitchTo(TopMemoryContext);
	types = palloc(table->ncolumns * sizeof(Oid));
	initStringInfo(&names);
	initStringInfo(&values);
	for (i = 0; i < table->ncolumns; i++)
	{
		const char *separator = i > 0 ? ", " : "";

		appendStringInfo(&names, "%s%s", separator,
						 table->describe(i, &types[i]));
		appendStringInfo(&values, "%s$%d", separator, i + 1);
	}
	table->read.sql = psprintf("SELECT %s FROM %%1$s.%s WHERE name = $1",
							   names.data, table->relation);
	table->read_all.sql = psprintf("SELECT %s FROM %%1$s.%s ORDER BY name",
								   names.data, table->relation);
	table->insert.sql = psprintf("INSERT INTO %%1$s.%s (%s) VALUES (%s)",
								 table->relation, names.data, values.data);
	table->update.sql = psprintf("UPDATE %%1$s.%s SET (%s) = (%s) WHERE name = $1",
								 table->relation, names.data, values.data);
	table->delete.sql = psprintf("DELETE FROM %%1$s.%s WHERE name = $1",
								 table->relation);
	table->read.nargs = table->delete.nargs = 1;
	table->insert.nargs = table->update.nargs = table->ncolumns;
	table->read.argtypes = table->delete.argtypes = types;
	table->insert.argtypes = table->update.argtypes = types;

	/* the last, so that after an error all is made again */
	table->types = types;
	MemoryContextSwitchTo(old);
}

static uint64
execute_change(IdemPlan *plan, const Datum *values, const char *nulls)
{
	IdemSecctx	saved;
	uint64		rows;

	idem_spi_begin(&saved);
	rows = idem_spi_execute(plan, unconstify(Datum *, values), nulls,
							false, 0);
	idem_spi_end(&saved);
	return rows;
}

/*
 * idem_rule_lock
 *		Keep off other changes of the table until the transaction ends.
 */
void
idem_rule_lock(const IdemRuleTable *table)
{
	/*
	 * Against itself, and against ROW EXCLUSIVE, which a drop and plain SQL
	 * take; look-ups go on.
	 */
	LockRelationOid(get_relid(table), ShareRowExclusiveLock);
}

/*
 * idem_rule_read
 *		The row of this name, or all in the order of their names where that is
 *		NULL: a list of IdemRuleRow.
 */
List *
idem_rule_read(IdemRuleTable *table, const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		arg = name != NULL ? CStringGetTextDatum(name) : 0;
	List	   *rows = NIL;
	IdemSecctx	saved;
	uint64		i;

	make_statements(table);
	idem_spi_begin(&saved);

	/*
	 * With the latest snapshot, not with the transaction's: a REPEATABLE READ
	 * transaction would fill the cache of its backend with what nobody would
	 * correct later (specs/policy-change).
	 */
	PushActiveSnapshot(idem_spi_latest());
	idem_spi_execute(name != NULL ? &table->read : &table->read_all, &arg,
					 NULL, true, 0);
	PopActiveSnapshot();
	if (SPI_processed > 0)
		idem_spi_require_types(table->types, table->ncolumns);
	MemoryContextSwitchTo(context);
	for (i = 0; i < SPI_processed; i++)
	{
		IdemRuleRow *row = palloc(sizeof(IdemRuleRow));

		/* what is not by value points into the copy, which outlives SPI */
		heap_deform_tuple(heap_copytuple(SPI_tuptable->vals[i]),
						  SPI_tuptable->tupdesc, row->values, row->nulls);
		rows = lappend(rows, row);
	}
	idem_spi_end(&saved);
	return rows;
}

/*
 * idem_rule_write
 *		Insert or overwrite a row, under idem_rule_lock(); 40001 when the
 *		snapshot of the transaction is older than the one that exists.
 */
void
idem_rule_write(IdemRuleTable *table, const IdemRuleRow *row, bool exists)
{
	char		sql_nulls[IDEM_RULE_MAX_COLUMNS];
	int			i;

	make_statements(table);
	for (i = 0; i < table->ncolumns; i++)
		sql_nulls[i] = row->nulls[i] ? 'n' : ' ';

	/*
	 * The latest snapshot, under the lock, had the row to be overwritten;
	 * that of a REPEATABLE READ transaction need not (specs/policy-create).
	 */
	if (execute_change(exists ? &table->update : &table->insert, row->values,
					   sql_nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to a concurrent change of %s",
						table->title),
				 errhint("Repeat the whole transaction.")));
}

/*
 * idem_rule_delete
 *		Remove a row; false when it is not there.
 */
bool
idem_rule_delete(IdemRuleTable *table, const text *name)
{
	Datum		arg = PointerGetDatum(name);

	make_statements(table);
	return execute_change(&table->delete, &arg, NULL) > 0;
}

/*
 * idem_rule_changed
 *		For the triggers on a table (39P01 elsewhere): every backend forgets
 *		what it has cached.
 */
TriggerData *
idem_rule_changed(const IdemRuleTable *table, FunctionCallInfo fcinfo)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("It is for the triggers of \"%s\" only.",
						 table->relation)));

	/*
	 * To this backend with its next command, to the others at commit.  A
	 * rollback, be it to a savepoint, sends it to this one once more, which
	 * may have cached what is undone (specs/policy-change).
	 */
	CacheInvalidateRelcache(trigdata->tg_relation);

	/* on Citus the trigger is on a shard, and it is the table that is watched */
	CacheInvalidateRelcacheByRelid(get_relid(table));
	return trigdata;
}

/*
 * idem_rule_columns
 *		The names of its columns, a text[].
 */
Datum
idem_rule_columns(const IdemRuleTable *table)
{
	Datum		names[IDEM_RULE_MAX_COLUMNS];
	Oid			type;
	int			i;

	for (i = 0; i < table->ncolumns; i++)
		names[i] = CStringGetTextDatum(table->describe(i, &type));
	return PointerGetDatum(construct_array(names, table->ncolumns, TEXTOID, -1,
										   false, TYPALIGN_INT));
}

/*
 * idem_rule_init
 *		Have the cache of a table emptied when that changes; once in a process.
 */
void
idem_rule_init(IdemRuleTable *table)
{
	Assert(table->ncolumns <= IDEM_RULE_MAX_COLUMNS);
	if (tables == NULL)
		idem_catalog_watch(relation_changed);
	table->next = tables;
	tables = table;
}
