/*-------------------------------------------------------------------------
 *
 * distribute.c
 *	  The key table on the nodes of Citus.
 *
 * Owns what makes the tables of one server those of a cluster: keys and leases
 * get the column of the tenant and are distributed by it, beside a table of the
 * application's; policies and limiters become reference tables; and all nodes
 * have the owner and the rights that the coordinator has.
 *
 * Citus makes the shards, and keeps the metadata of all nodes alike.  It leaves
 * the tables and functions of an extension as CREATE EXTENSION made them on each
 * node, and so each node's part is a script that is sent there and changes no
 * more than is missing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "base/acl.h"
#include "base/args.h"
#include "base/catalog.h"
#include "base/citus.h"
#include "base/spi.h"

/* The distribution column of a table. */
typedef struct Distribution
{
	char	   *type;			/* with its collation, as in CREATE TABLE */
	Oid			owner;			/* of the table */
} Distribution;

static const char *const tenant_tables[] = {
	"idempotency_keys", "idempotency_leases"
};
static const char *const reference_tables[] = {
	"idempotency_policies", "idempotency_limiters"
};

static uint64
ask(const char *sql, int nargs, Oid *types, Datum *values)
{
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not ask Citus");
	return SPI_processed;
}

static void
raise_state(const char *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg_internal("%s", message),
			 errhint("%s", hint)));
}

/* Who may do this, and where. */
static void
require_coordinator(void)
{
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to distribute the tables of extension \"idempotency\""),
				 errhint("Only a superuser can do that, on all nodes.")));
	idem_args_require_writable();
	if (!idem_catalog_has_citus())
		raise_state("extension \"citus\" is not installed in this database",
					"Without it the tables are those of one server, and there is nothing to distribute.");
}

static bool
is_coordinator(void)
{
	bool		isnull;

	return ask("SELECT groupid FROM pg_dist_local_group", 0, NULL, NULL) == 1 &&
		DatumGetInt32(idem_spi_value(0, 0, &isnull)) == 0;
}

/* What the keys are to be distributed by; 22023 when the table is no model. */
static void
find_distribution(Oid relid, Distribution *found)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(relid);
	bool		isnull;

	if (ask("SELECT format_type(a.atttypid, a.atttypmod) || coalesce("
			"(SELECT format(' COLLATE %I.%I', n.nspname, c.collname)"
			" FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace"
			" WHERE c.oid = a.attcollation AND c.collname <> 'default'), ''), t.relowner"
			" FROM pg_dist_partition d JOIN pg_class t ON t.oid = d.logicalrelid"
			" JOIN pg_attribute a ON a.attrelid = t.oid"
			" AND a.attname = column_to_column_name(d.logicalrelid, d.partkey)"
			" WHERE d.logicalrelid = $1 AND d.partmethod = 'h'",
			1, &type, &value) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("relation \"%s\" is not distributed by a column",
						get_rel_name(relid)),
				 errhint("Name a table of the application's that create_distributed_table() has distributed by the tenant.")));
	found->type = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	found->owner = DatumGetObjectId(idem_spi_value(0, 1, &isnull));
}

/* There is no way to give keys that are there a shard. */
static void
require_empty(const char *name)
{
	Relation	table = table_open(get_relname_relid(name, idem_catalog()->namespace),
								   AccessExclusiveLock);
	bool		plain = table->rd_rel->relkind == RELKIND_RELATION &&
	!has_subclass(RelationGetRelid(table)) &&
	!has_superclass(RelationGetRelid(table));

	table_close(table, NoLock);
	if (!plain)
		raise_state("the tables of the keys take part in partitioning or inheritance",
					"Citus makes the parts: DROP EXTENSION idempotency, and create it anew.");
	if (ask(psprintf("SELECT 1 FROM %s.%s LIMIT 1", idem_catalog()->schema, name),
			0, NULL, NULL) > 0)
		raise_state("there are keys, which cannot be distributed",
					"Distribute before the first key is claimed, or remove all by idem_forget_scope() and idem_sweep_all().");
}

/* Add what gives a table the column; nothing where it has it. */
static void
add_column(StringInfo script, const char *name, const char *type)
{
	const char *table = psprintf("%s.%s", idem_catalog()->schema, name);

	appendStringInfo(script,
					 "IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = %s::regclass"
					 " AND attname = '" IDEM_TENANT "' AND NOT attisdropped) THEN"
					 " ALTER TABLE %s ADD COLUMN " IDEM_TENANT " %s NOT NULL,"
					 " DROP CONSTRAINT %s_pkey,"
					 " ADD CONSTRAINT %s_pkey PRIMARY KEY (" IDEM_TENANT ", scope, key);"
					 " END IF; ",
					 quote_literal_cstr(table), table, type, name, name);
}

/* A table that has its owner is not locked: requests may be under way. */
static void
add_owner_of(StringInfo script, const char *name, const char *owner)
{
	const char *table = psprintf("%s.%s", idem_catalog()->schema, name);

	appendStringInfo(script,
					 "IF NOT EXISTS (SELECT FROM pg_class WHERE oid = %s::regclass"
					 " AND relowner = %s::regrole) THEN ALTER TABLE %s OWNER TO %s; END IF; ",
					 quote_literal_cstr(table), quote_literal_cstr(owner), table,
					 owner);
}

/* Add what gives the tables to the role that has those beside them. */
static void
add_owner(StringInfo script, const char *owner)
{
	const char *schema = idem_catalog()->schema;
	int			i;

	for (i = 0; i < lengthof(tenant_tables); i++)
		add_owner_of(script, tenant_tables[i], owner);
	for (i = 0; i < lengthof(reference_tables); i++)
		add_owner_of(script, reference_tables[i], owner);

	/* who owns a shard makes it where it comes, with its triggers */
	appendStringInfo(script, "GRANT USAGE, CREATE ON SCHEMA %s TO %s;"
					 " GRANT EXECUTE ON FUNCTION %s.idem_key_lock(text, text, boolean),"
					 " %s.idem_policy_changed(), %s.idem_limiter_changed() TO %s; ",
					 schema, owner, schema, schema, schema, owner);
}

/* Add what makes the extension, where Citus would only when the node joins. */
static void
add_extension(StringInfo script)
{
	const char *schema = idem_catalog()->schema;
	Oid			type = OIDOID;
	Datum		pgcrypto = ObjectIdGetDatum(get_extension_oid("pgcrypto", false));
	char	   *command;

	/* format() has no name yet for what is to be made */
	(void) ask("SELECT format('CREATE SCHEMA IF NOT EXISTS %1$I; CREATE EXTENSION"
			   " IF NOT EXISTS pgcrypto SCHEMA %1$I; ', n.nspname)"
			   " FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
			   " WHERE e.oid = $1", 1, &type, &pgcrypto);
	command = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	appendStringInfo(script, "%sCREATE SCHEMA IF NOT EXISTS %s;"
					 " CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA %s; ",
					 command, schema, schema);
}

/*
 * The part of a node: a command that may be given again.  Before the node is
 * active it has no roles.
 */
static const char *
make_script(const Distribution *distribution, bool active)
{
	StringInfoData script;
	int			i;

	initStringInfo(&script);
	appendStringInfoString(&script,
						   "BEGIN PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),"
						   " pg_catalog.set_config('citus.enable_ddl_propagation', 'off', true); ");
	if (!active)
		add_extension(&script);
	for (i = 0; i < lengthof(tenant_tables); i++)
		add_column(&script, tenant_tables[i], distribution->type);
	if (active)
	{
		add_owner(&script,
				  quote_identifier(GetUserNameFromId(distribution->owner, false)));
		idem_acl_repeat(&script);
	}
	appendStringInfoString(&script, "END");
	return psprintf("DO %s", quote_literal_cstr(script.data));
}

/*
 * Send each worker its part.  What one has done stays done if another fails, or
 * we do: the same again goes on from there.
 */
static void
prepare_workers(const Distribution *distribution)
{
	Oid			types[] = {TEXTOID, INT4OID, TEXTOID};
	SPITupleTable *nodes;
	int			number;
	int			i;

	number = (int) ask("SELECT nodename, nodeport, isactive FROM pg_dist_node"
					   " WHERE noderole = 'primary' AND groupid <> 0 ORDER BY nodeid",
					   0, NULL, NULL);
	nodes = SPI_tuptable;
	for (i = 0; i < number; i++)
	{
		bool		isnull;
		char	   *name = SPI_getvalue(nodes->vals[i], nodes->tupdesc, 1);
		Datum		port = SPI_getbinval(nodes->vals[i], nodes->tupdesc, 2, &isnull);
		bool		active = DatumGetBool(SPI_getbinval(nodes->vals[i],
														nodes->tupdesc, 3, &isnull));
		Datum		values[] = {
			CStringGetTextDatum(name), port,
			CStringGetTextDatum(make_script(distribution, active))
		};

		(void) ask("SELECT success, result FROM master_run_on_worker(ARRAY[$1],"
				   " ARRAY[$2], ARRAY[$3], false)", lengthof(types), types, values);
		if (!DatumGetBool(idem_spi_value(0, 0, &isnull)))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("node %s:%d cannot have its part of the keys", name,
							DatumGetInt32(port)),
					 errdetail("%s", SPI_getvalue(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 2)),
					 errhint("Mend that there, and call again: what is done is not done twice.")));
	}
}

/* Have Citus distribute the tables; they are empty. */
static void
distribute(Oid colocate_with)
{
	Oid			types[] = {REGCLASSOID, TEXTOID};
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(colocate_with);
	Oid			schema = idem_catalog()->namespace;
	Datum		values[2];
	int			i;

	(void) ask("SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c"
			   " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
			   1, &type, &value);
	values[1] = CStringGetTextDatum(SPI_getvalue(SPI_tuptable->vals[0],
												 SPI_tuptable->tupdesc, 1));
	for (i = 0; i < lengthof(tenant_tables); i++)
	{
		values[0] = ObjectIdGetDatum(get_relname_relid(tenant_tables[i], schema));
		(void) ask("SELECT create_distributed_table($1, '" IDEM_TENANT "',"
				   " colocate_with => $2)", 2, types, values);
	}

	/* a trigger of ours only tells the backends of its node */
	idem_secctx_set("citus.enable_unsafe_triggers", "on");
	for (i = 0; i < lengthof(reference_tables); i++)
	{
		values[0] = ObjectIdGetDatum(get_relname_relid(reference_tables[i], schema));
		(void) ask("SELECT create_reference_table($1)", 1, types, values);
	}
}

IDEM_FUNCTION(idem_distribute);

/*
 * idem_distribute(colocate_with regclass) RETURNS void
 *		On the coordinator of Citus: distribute keys and leases by tenant, beside
 *		a table that is distributed by it and whose owner they get; see the head
 *		of this file.
 *
 * Raises 22004, 22023, 25006, 42501, 55000, and what Citus does.  Takes ACCESS
 * EXCLUSIVE on the four tables.
 */
Datum
idem_distribute(PG_FUNCTION_ARGS)
{
	Distribution distribution;
	IdemSecctx	saved;
	int			i;

	idem_args_require(fcinfo, 0, "colocate_with");
	require_coordinator();
	idem_spi_begin_as(&saved, GetUserId());
	if (!is_coordinator())
		raise_state("this node is a worker",
					"Call idem_distribute() on the coordinator.");
	if (ask("SELECT 1 FROM pg_dist_node WHERE groupid = 0", 0, NULL, NULL) == 0)
		raise_state("the coordinator is not in the metadata",
					"Call citus_set_coordinator_host() first: policies are read on each node.");
	if (idem_citus_is_used())
		raise_state("the keys are distributed already",
					"For a node that has joined call idem_distribute_node().");
	find_distribution(PG_GETARG_OID(0), &distribution);
	for (i = 0; i < lengthof(tenant_tables); i++)
		require_empty(tenant_tables[i]);
	idem_spi_command(make_script(&distribution, true));
	prepare_workers(&distribution);
	distribute(PG_GETARG_OID(0));
	idem_spi_end(&saved);
	PG_RETURN_VOID();
}

IDEM_FUNCTION(idem_distribute_node);

/*
 * idem_distribute_node() RETURNS void
 *		Give each worker of Citus its part of what idem_distribute() did, where
 *		that is missing: column, owner, rights.  An inactive node gets the
 *		extension and the column, without which it could not be activated.
 *
 * On a worker it has the coordinator do that.  Raises 25006, 42501, 55000.
 */
Datum
idem_distribute_node(PG_FUNCTION_ARGS)
{
	Distribution distribution;
	IdemSecctx	saved;
	bool		isnull;

	require_coordinator();
	idem_spi_begin_as(&saved, GetUserId());
	if (is_coordinator())
	{
		if (!idem_citus_is_used())
			raise_state("the keys are not distributed",
						"Call idem_distribute() first.");
		find_distribution(idem_catalog()->keys, &distribution);
		prepare_workers(&distribution);
	}
	else
	{
		Oid			type = TEXTOID;
		Datum		command =
		CStringGetTextDatum(psprintf("SELECT %s.idem_distribute_node()",
									 idem_catalog()->schema));

		(void) ask("SELECT success, result FROM run_command_on_coordinator($1)",
				   1, &type, &command);
		if (!DatumGetBool(idem_spi_value(0, 0, &isnull)))
			raise_state(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2),
						"Call idem_distribute_node() on the coordinator.");
	}
	idem_spi_end(&saved);
	PG_RETURN_VOID();
}
