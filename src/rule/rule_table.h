/*-------------------------------------------------------------------------
 *
 * rule_table.h
 *	  Tables of named rules, and what a backend remembers of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RULE_RULE_TABLE_H
#define IDEM_RULE_RULE_TABLE_H

#include "commands/trigger.h"
#include "nodes/pg_list.h"
#include "utils/hsearch.h"

#include "base/spi.h"

#define IDEM_RULE_MAX_COLUMNS 32

/* A row of such a table. */
typedef struct IdemRuleRow
{
	Datum		values[IDEM_RULE_MAX_COLUMNS];
	bool		nulls[IDEM_RULE_MAX_COLUMNS];
} IdemRuleRow;

/*
 * A table of rules.  The first column is the name, a text, on which it has its
 * primary key.  A rule is a struct of values, without pointers.
 */
typedef struct IdemRuleTable
{
	const char *relation;
	const char *title;			/* for messages: "a change of policies" */
	Size		relid;			/* where its OID is in an IdemCatalog */
	Size		rule_size;
	int			ncolumns;
	const char *(*describe) (int column, Oid *type);	/* its name */

	/* A rule from its row, or from none, where that is NULL: if it is one */
	bool		(*form) (void *rule, const char *name, const IdemRuleRow *row);

	/* The rest is our own, and begins as zeros. */
	struct IdemRuleTable *next;
	uint64		changes;		/* invalidations of the table, */
	uint64		as_of;			/* before those that "entries" knows of */
	Oid			current;		/* the table that the entries are from */
	HTAB	   *entries;
	Oid		   *types;			/* NULL: the statements are yet to be made */
	IdemPlan	read;
	IdemPlan	read_all;
	IdemPlan	insert;
	IdemPlan	update;
	IdemPlan	delete;
} IdemRuleTable;

extern bool idem_rule_find(IdemRuleTable *table, const char *name, void *rule,
						   bool keep_missing);
extern void idem_rule_lock(const IdemRuleTable *table);
extern List *idem_rule_read(IdemRuleTable *table, const char *name);
extern void idem_rule_write(IdemRuleTable *table, const IdemRuleRow *row,
							bool exists);
extern bool idem_rule_delete(IdemRuleTable *table, const text *name);
extern TriggerData *idem_rule_changed(const IdemRuleTable *table,
									  FunctionCallInfo fcinfo);
extern Datum idem_rule_columns(const IdemRuleTable *table);
extern void idem_rule_init(IdemRuleTable *table);

#endif							/* IDEM_RULE_RULE_TABLE_H */
