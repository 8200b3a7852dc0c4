/*-------------------------------------------------------------------------
 *
 * catalog.h
 *	  The extension's own objects in this database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_CATALOG_H
#define IDEM_BASE_CATALOG_H

#include "idem.h"

/* A column of the keys and leases, where Citus has distributed them by it. */
#define IDEM_TENANT "tenant"

typedef struct IdemCatalog
{
	Oid			namespace;
	char		schema[2 * NAMEDATALEN + 3];	/* quoted, for SQL text */
	Oid			owner;			/* of the key table: who our code runs as */
	Oid			keys;
	bool		keys_unique;	/* it has the primary key that we rest on */
	Oid			tenant_type;	/* of its column on Citus; InvalidOid: none */
	int32		tenant_typmod;
	Oid			tenant_collation;
	Oid			leases;
	Oid			leases_owner;	/* who writes to it */
	Oid			policies;
	Oid			limiters;
	Oid			audit_log;
	Oid			audit_default;	/* its partition for any other time */
	Oid			audit_sequence;
	Oid			audit_seals;
	Oid			audit_owner;	/* of the log: who inserts into it */
	Oid			seals_owner;	/* of the seals: who seals, if the same */
	Oid			secrets;
	Oid			secrets_pkey;
	Oid			response_type;
	Oid			result_type;
	Oid			outcome_type;
} IdemCatalog;

/* Told that a relation (InvalidOid: any) has changed; must not fail. */
typedef void (*IdemCatalogWatcher) (Oid relid);

extern const IdemCatalog *idem_catalog(void);
extern uint64 idem_catalog_generation(void);
extern bool idem_catalog_has_citus(void);
extern void idem_catalog_require_version(void);
extern void idem_catalog_watch(IdemCatalogWatcher watcher);
extern void idem_catalog_init(void);

#endif							/* IDEM_BASE_CATALOG_H */
