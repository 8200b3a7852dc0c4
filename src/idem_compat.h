/*-------------------------------------------------------------------------
 *
 * idem_compat.h
 *	  What differs between the majors of PostgreSQL.
 *
 * The only file that names PG_VERSION_NUM.  Each block says which major
 * changed what.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_COMPAT_H
#define IDEM_COMPAT_H

#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "utils/acl.h"
#include "utils/timestamp.h"

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

/* 17 moved the lexer's memory into the hands of its caller. */
static inline bool
idem_compat_json_is_valid(char *json, int len, int encoding)
{
	JsonLexContext *lex;
	bool		valid;

#if PG_VERSION_NUM >= 170000
	lex = makeJsonLexContextCstringLen(NULL, json, len, encoding, false);
#else
	lex = makeJsonLexContextCstringLen(json, len, encoding, false);
#endif
	valid = pg_parse_json(lex, &nullSemAction) == JSON_SUCCESS;
#if PG_VERSION_NUM >= 170000
	freeJsonLexContext(lex);
#endif
	return valid;
}

/* 18 lets a library say its name and version. */
#ifdef PG_MODULE_MAGIC_EXT
#define IDEM_COMPAT_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "idempotency", .version = "1.0")
#else
#define IDEM_COMPAT_MODULE_MAGIC PG_MODULE_MAGIC
#endif

#endif							/* IDEM_COMPAT_H */
