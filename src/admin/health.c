/*-------------------------------------------------------------------------
 *
 * health.c
 *	  Checking the installation at any time.
 *
 * Owns how a check is made: each is one row, and runs by itself (base/try.c).
 * What cannot be found out is a row that is not ok and says why, and stands in
 * no other's way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "admin/health.h"
#include "base/catalog.h"
#include "base/citus.h"
#include "base/databases.h"
#include "base/hmac.h"
#include "base/spi.h"
#include "base/try.h"
#include "limit/bucket_table.h"
#include "limit/limiter.h"
#include "rule/policy_values.h"
#include "store/row.h"

#define MAX_DETAIL 1000
#define NUM_PARAMETERS 10

/*
 * idem_health_say
 *		Answer, with so much of a text as is of use.
 */
void
idem_health_say(IdemHealthAnswer *answer, bool ok, const char *detail)
{
	MemoryContext old = MemoryContextSwitchTo(answer->context);
	int			len = strlen(detail);

	/*
	 * The answer outlives what it is made of: the memory of a query goes at
	 * SPI_finish().
	 */
	answer->found = true;
	answer->ok = ok;
	answer->detail = len <= MAX_DETAIL ? pstrdup(detail) :
		psprintf("%.*s ...", pg_mbcliplen(detail, len, MAX_DETAIL), detail);
	MemoryContextSwitchTo(old);
}

static Datum
make_array(Datum *values, int number, Oid type)
{
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(type, &len, &byval, &align);
	return PointerGetDatum(construct_array(values, number, type, len, byval,
										   align));
}

static Datum
make_oids(const List *list)
{
	Datum	   *oids = palloc(sizeof(Datum) * (list_length(list) + 1));
	int			count = 0;
	ListCell   *cell;

	foreach(cell, list)
		oids[count++] = ObjectIdGetDatum(lfirst_oid(cell));
	return make_array(oids, count, OIDOID);
}

/* All tables, that of the keys first, with their partitions. */
static void
find_relations(Datum *all, Datum *append_only)
{
	const IdemCatalog *catalog = idem_catalog();
	List	   *relations = find_all_inheritors(catalog->keys, NoLock, NULL);
	List	   *log = find_all_inheritors(catalog->audit_log, NoLock, NULL);
	Oid			origin = get_relname_relid("idempotency_audit_origin",
										   catalog->namespace);

	/*
	 * Without locks: these are looked up in the catalogs, where one that is
	 * dropped meanwhile has no row.  The default partition is named since
	 * somebody may have detached it.
	 */
	log = list_append_unique_oid(log, catalog->audit_default);
	log = lappend_oid(log, catalog->audit_seals);
	relations = lappend_oid(relations, catalog->leases);
	relations = lappend_oid(relations, catalog->policies);
	relations = lappend_oid(relations, catalog->limiters);
	relations = lappend_oid(relations, catalog->secrets);
	relations = lappend_oid(relations, origin);
	relations = list_concat(relations, log);
	*all = make_oids(relations);
	*append_only = make_oids(log);
}

/* The columns of the keys, as they are made. */
static void
make_key_columns(Datum *names, Datum *types, Datum *not_null)
{
	Datum		each_name[IDEM_NUM_COLUMNS];
	Datum		each_type[IDEM_NUM_COLUMNS];
	Datum		each_not_null[IDEM_NUM_COLUMNS];
	int			i;

	for (i = 0; i < IDEM_NUM_COLUMNS; i++)
	{
		each_name[i] = CStringGetTextDatum(idem_store_columns[i].name);
		each_type[i] = ObjectIdGetDatum(idem_store_columns[i].type);
		each_not_null[i] = BoolGetDatum(idem_store_columns[i].not_null);
	}
	*names = make_array(each_name, IDEM_NUM_COLUMNS, TEXTOID);
	*types = make_array(each_type, IDEM_NUM_COLUMNS, OIDOID);
	*not_null = make_array(each_not_null, IDEM_NUM_COLUMNS, BOOLOID);
}

static Oid
get_user(IdemHealthUser user)
{
	return user == IDEM_HEALTH_OWNER ? idem_catalog()->owner :
		user == IDEM_HEALTH_SEALER ? idem_catalog()->seals_owner :
		GetUserId();
}

/*
 * idem_health_ask
 *		Answer with what a query says.  For people, now and then: no plan is
 *		kept.  Raises what the query does.
 */
void
idem_health_ask(IdemHealthUser user, const char *sql, TimestampTz at,
				IdemHealthAnswer *answer)
{
	static Oid	types[NUM_PARAMETERS] = {
		OIDARRAYOID, OIDARRAYOID, OIDOID, OIDOID, TIMESTAMPTZOID,
		TEXTARRAYOID, OIDARRAYOID, BOOLARRAYOID, TEXTARRAYOID, TEXTARRAYOID
	};
	Datum		values[NUM_PARAMETERS];
	IdemSecctx	saved;
	bool		isnull;
	bool		ok;
	char	   *detail;
	int			code;

	/* with a pinned search_path: what a user made is bound to no operator */
	idem_spi_begin_as(&saved, get_user(user));
	find_relations(&values[0], &values[1]);
	values[2] = ObjectIdGetDatum(idem_catalog()->namespace);
	values[3] = ObjectIdGetDatum(get_extension_oid("idempotency", false));
	values[4] = TimestampTzGetDatum(at);
	make_key_columns(&values[5], &values[6], &values[7]);
	values[8] = idem_rule_columns(&idem_policy_table);
	values[9] = idem_rule_columns(&idem_limiter_table);
	if (strstr(sql, "%1$s") != NULL)
		sql = psprintf(sql, idem_catalog()->schema,
					   idem_citus_rows(idem_catalog()->keys));

	/*
	 * Read only, and so with the snapshot of the calling statement, the same
	 * one for all queries.
	 */
	code = SPI_execute_with_args(sql, lengthof(types), types,
								 values, NULL, true, 1);
	if (code != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(code));
	ok = DatumGetBool(idem_spi_value(0, 0, &isnull)) && !isnull;
	detail = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
	idem_health_say(answer, ok, detail != NULL ? detail : "");
	idem_spi_end(&saved);
}

static void
check_version(IdemHealthAnswer *answer)
{
	idem_catalog_require_version();
	/* raises where a table or a type is missing */
	(void) idem_catalog();
	idem_health_say(answer, true,
					"objects and library are of version " IDEM_VERSION);
}

static void
check_pgcrypto(IdemHealthAnswer *answer)
{
	bool		found = idem_hmac_exists();

	idem_health_say(answer, found,
					found ? "hmac(bytea, bytea, text) found" :
					"extension pgcrypto has no hmac(bytea, bytea, text) of its own: nothing can be signed");
}

/* What the rate limiters can remember, and whether that was enough. */
static void
check_buckets(IdemHealthAnswer *answer)
{
	IdemBucketsUse use;
	bool		quiet;

	if (!idem_buckets_exist())
	{
		/* no limiter works without, and there should be none */
		idem_health_ask(IDEM_HEALTH_OWNER,
						"SELECT count(*) = 0, CASE WHEN count(*) = 0"
						" THEN 'no rate limiting: the library is not preloaded'"
						" ELSE count(*) || ' rate limiters cannot work: add idempotency to shared_preload_libraries' END"
						" FROM %1$s.idempotency_limiters", 0, answer);
		return;
	}
	idem_buckets_use(&use);

	/*
	 * What is counted is never taken back: a flood is a fault for an hour,
	 * not until the next restart (doc/operations.md).
	 */
	quiet = GetCurrentTimestamp() - use.no_room_at > USECS_PER_HOUR;
	idem_health_say(answer, use.no_room == 0 || quiet,
					psprintf("room for " INT64_FORMAT ", " INT64_FORMAT " taken; "
							 INT64_FORMAT " calls found none%s%s",
							 use.room, use.used, use.no_room,
							 use.no_room > 0 ? ", the last at " : "",
							 use.no_room > 0 ?
							 timestamptz_to_str(use.no_room_at) : ""));
}

static const IdemHealthCheck general[] = {
	{"version", 0, NULL, check_version},
	{"pgcrypto", 0, NULL, check_pgcrypto},
	{"buckets", 0, NULL, check_buckets},
	{
		"encoding", IDEM_HEALTH_OWNER,
		"SELECT e <> 'SQL_ASCII', CASE WHEN e <> 'SQL_ASCII' THEN e"
		" ELSE 'SQL_ASCII: no text is checked or converted to UTF-8; use a database of encoding UTF8' END"
		" FROM (SELECT pg_encoding_to_char(encoding) AS e FROM pg_database"
		" WHERE datname = current_database()) d"
	},
	{
		"server_version", IDEM_HEALTH_OWNER,
		"SELECT fixed, version || CASE WHEN fixed THEN ''"
		" ELSE ': SERIALIZABLE may miss conflicts of ON CONFLICT; update to the"
		" minor release of November 2026 or later' END"
		" FROM (SELECT current_setting('server_version') AS version,"
		" num % 10000 >= CASE num / 10000 WHEN 15 THEN 20 WHEN 16 THEN 16"
		" WHEN 17 THEN 12 WHEN 18 THEN 6 ELSE 0 END AS fixed"
		" FROM (SELECT current_setting('server_version_num')::integer AS num) v) w"
	},
	{NULL}
};

static const IdemHealthCheck *const lists[] = {
	general, idem_health_tables, idem_health_rights, idem_health_log,
	idem_health_sweep, idem_health_citus
};

/* One check, for idem_try(). */
typedef struct Attempt
{
	const IdemHealthCheck *check;
	IdemHealthAnswer answer;
} Attempt;

static void
attempt(void *arg)
{
	Attempt    *this = arg;

	if (this->check->check != NULL)
		this->check->check(&this->answer);
	else
		idem_health_ask(this->check->user, this->check->sql, 0, &this->answer);
}

static void
put_row(ReturnSetInfo *rsinfo, const IdemHealthCheck *check)
{
	Attempt		this = {check, {CurrentMemoryContext}};
	ErrorData  *error = idem_try(attempt, &this);
	Datum		values[3];
	bool		nulls[3] = {0};

	if (error != NULL)
		idem_health_say(&this.answer, false,
						psprintf("cannot be checked: %s", error->message));
	if (!this.answer.found)
		return;
	values[0] = CStringGetTextDatum(check->name);
	values[1] = BoolGetDatum(this.answer.ok);
	values[2] = CStringGetTextDatum(this.answer.detail);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * What would change how a query is read, or what it shows: the answers are the
 * same in every session.
 */
static int
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"standard_conforming_strings", "on"},
		{"array_nulls", "on"},
		{"transform_null_equals", "off"},
		{"quote_all_identifiers", "off"},
		{"row_security", "on"},
		{"datestyle", "ISO, YMD"},
		{"intervalstyle", "postgres"},
		{"timezone", "UTC"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_messages", "C"},
		{"lc_numeric", "C"}
	};
	int			level = NewGUCNestLevel();
	int			i;

	/*
	 * As a superuser would: lc_messages is his to set.  The nest level takes
	 * all of them back.
	 */
	for (i = 0; i < lengthof(pinned); i++)
		(void) set_config_option(pinned[i][0], pinned[i][1], PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	return level;
}

IDEM_FUNCTION(idem_health);

/*
 * idem_health() RETURNS TABLE (check_name text, ok boolean, detail text)
 *		What is right with the installation and what is not.
 *
 * Raises nothing but a cancel and the end of the session; takes ACCESS SHARE
 * on what it looks at.
 */
Datum
idem_health(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const IdemHealthCheck *check;
	int			level;
	int			i;

	InitMaterializedSRF(fcinfo, 0);

	/* after an error, which only a cancel is, the abort takes them back */
	level = pin_settings();
	if (!RecoveryInProgress())
		idem_databases_know();
	for (i = 0; i < lengthof(lists); i++)
		for (check = lists[i]; check->name != NULL; check++)
			put_row(rsinfo, check);
	AtEOXact_GUC(false, level);
	return (Datum) 0;
}
