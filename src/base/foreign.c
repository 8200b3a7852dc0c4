/*-------------------------------------------------------------------------
 *
 * foreign.c
 *	  C functions of other extensions.
 *
 * Whoever owns an extension may add functions of his own to it, so that being
 * a member proves nothing; and who owns a function may put another body in its
 * place, or settings around it.  What does prove something is the library and
 * the symbol: only a superuser can make a function in C.  So a member is taken
 * only if it has both, and what is called is the symbol of that library.
 *
 * A library name without a folder stands for dynamic_library_path, which only
 * a superuser can set.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/dependency.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "commands/extension.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/syscache.h"

#include "base/foreign.h"

/* A text column of pg_proc, "" if it is null. */
static const char *
text_of(HeapTuple tuple, AttrNumber column)
{
	bool		isnull;
	Datum		value = SysCacheGetAttr(PROCOID, tuple, column, &isnull);

	return isnull ? "" : TextDatumGetCString(value);
}

static bool
is_wanted(HeapTuple tuple, const IdemForeign *foreign)
{
	Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);
	int			i;

	if (proc->prolang != ClanguageId || proc->pronargs != foreign->nargs)
		return false;
	for (i = 0; i < foreign->nargs; i++)
		if (proc->proargtypes.values[i] != foreign->args[i])
			return false;
	return strcmp(text_of(tuple, Anum_pg_proc_probin), foreign->library) == 0 &&
		strcmp(text_of(tuple, Anum_pg_proc_prosrc), foreign->symbol) == 0;
}

/*
 * idem_foreign_look_up
 *		The OID of the function, in any schema; InvalidOid when the extension
 *		is not there, or has none of its own.
 */
Oid
idem_foreign_look_up(const IdemForeign *foreign)
{
	Oid			extension = get_extension_oid(foreign->extension, true);
	Oid			found = InvalidOid;
	CatCList   *list;
	int			i;

	if (!OidIsValid(extension))
		return InvalidOid;

	/* in any schema: which one is its owner's choice */
	list = SearchSysCacheList1(PROCNAMEARGSNSP,
							   CStringGetDatum(foreign->name));
	for (i = 0; i < list->n_members; i++)
	{
		HeapTuple	tuple = &list->members[i]->tuple;
		Oid			proc = ((Form_pg_proc) GETSTRUCT(tuple))->oid;

		/* membership last: it takes a scan of pg_depend */
		if (is_wanted(tuple, foreign) &&
			getExtensionOfObject(ProcedureRelationId, proc) == extension)
			found = proc;
	}
	ReleaseSysCacheList(list);
	return found;
}

/*
 * idem_foreign_load
 *		Make ready to call it, with no look-up left to be made; false when it
 *		is not there.  A library is never unloaded, so its address is kept.
 */
bool
idem_foreign_load(IdemForeign *foreign, FmgrInfo *flinfo)
{
	Oid			oid = idem_foreign_look_up(foreign);

	if (!OidIsValid(oid))
		return false;
	if (foreign->address == NULL)
		foreign->address = (PGFunction)
			load_external_function(foreign->library, foreign->symbol, true,
								   NULL);

	/*
	 * Not by fmgr_info(), which would read pg_proc a second time: somebody
	 * might have changed the entry in between, or have put SET or SECURITY
	 * DEFINER around the function (t/035_trust.pl).
	 */
	memset(flinfo, 0, sizeof(*flinfo));
	flinfo->fn_addr = foreign->address;
	flinfo->fn_oid = oid;
	flinfo->fn_nargs = foreign->nargs;
	flinfo->fn_strict = true;	/* no caller of ours gives a null */
	flinfo->fn_mcxt = CurrentMemoryContext;
	return true;
}
