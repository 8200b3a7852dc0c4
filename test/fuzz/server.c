/*-------------------------------------------------------------------------
 *
 * server.c
 *	  Stand-ins for what the server gives to files that are not quite pure.
 *
 * Each piece of memory is one of malloc's, so that the sanitizer knows its
 * bounds, and stays until server_reset(), as in a context of the server's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"

#include "base/compat.h"

#include "fuzz.h"
#include "server.h"

sigjmp_buf	server_caught;
int			server_sqlstate;

MemoryContext CurrentMemoryContext = NULL;

/* Before each piece of memory: they are in a ring. */
typedef struct Piece
{
	struct Piece *next;
	struct Piece *previous;
} Piece;

static Piece pieces =
{
	&pieces, &pieces
};

static void
link_piece(Piece *piece)
{
	piece->next = &pieces;
	piece->previous = pieces.previous;
	pieces.previous->next = piece;
	pieces.previous = piece;
}

static void
unlink_piece(Piece *piece)
{
	piece->next->previous = piece->previous;
	piece->previous->next = piece->next;
}

void *
palloc(Size size)
{
	Piece	   *piece = malloc(sizeof(Piece) + size);

	link_piece(piece);
	/* not zeros, which would hide that somebody forgot to set them */
	memset(piece + 1, 0x7f, size);
	return piece + 1;
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void *
palloc_extended(Size size, int flags)
{
	return flags & MCXT_ALLOC_ZERO ? palloc0(size) : palloc(size);
}

void
pfree(void *pointer)
{
	Piece	   *piece = (Piece *) pointer - 1;

	unlink_piece(piece);
	free(piece);
}

void *
repalloc(void *pointer, Size size)
{
	Piece	   *piece = (Piece *) pointer - 1;

	unlink_piece(piece);
	piece = realloc(piece, sizeof(Piece) + size);
	link_piece(piece);
	return piece + 1;
}

char *
pnstrdup(const char *in, Size len)
{
	char	   *copy = palloc(len + 1);

	len = strnlen(in, len);
	memcpy(copy, in, len);
	copy[len] = '\0';
	return copy;
}

char *
pstrdup(const char *in)
{
	return pnstrdup(in, strlen(in));
}

void
server_reset(void)
{
	while (pieces.next != &pieces)
		pfree(pieces.next + 1);
}

/* The clients' names of the same, for the libraries */

void *
pg_malloc(size_t size)
{
	return palloc(size);
}

void *
pg_malloc0(size_t size)
{
	return palloc0(size);
}

void *
pg_malloc_extended(size_t size, int flags)
{
	return palloc_extended(size, flags);
}

void *
pg_realloc(void *pointer, size_t size)
{
	return repalloc(pointer, size);
}

char *
pg_strdup(const char *in)
{
	return pstrdup(in);
}

void
pg_free(void *pointer)
{
	pfree(pointer);
}

/*
 * Texts
 */

text *
server_text(const void *data, size_t len)
{
	text	   *result = palloc(VARHDRSZ + len);

	SET_VARSIZE(result, VARHDRSZ + len);
	if (len > 0)
		memcpy(VARDATA(result), data, len);
	return result;
}

text *
cstring_to_text_with_len(const char *s, int len)
{
	return server_text(s, len);
}

text *
cstring_to_text(const char *s)
{
	return server_text(s, strlen(s));
}

struct varlena *
pg_detoast_datum_packed(struct varlena *datum)
{
	return datum;
}

int
GetDatabaseEncoding(void)
{
	return PG_UTF8;
}

/*
 * Lists, as far as they are made
 */

List *
lappend(List *list, void *datum)
{
	if (list == NIL)
	{
		list = palloc0(offsetof(List, initial_elements));
		list->type = T_List;
	}
	list->elements = list->elements == NULL ? palloc(sizeof(ListCell)) :
		repalloc(list->elements, sizeof(ListCell) * (list->length + 1));
	list->elements[list->length++].ptr_value = datum;
	return list;
}

/*
 * Errors
 */

bool
errstart(int elevel, const char *domain)
{
	server_sqlstate = ERRCODE_INTERNAL_ERROR;
	must(elevel >= ERROR);
	return true;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	siglongjmp(server_caught, 1);
}

int
errcode(int sqlerrcode)
{
	server_sqlstate = sqlerrcode;
	return 0;
}

int
errmsg(const char *fmt,...)
{
	return 0;
}

int
errmsg_internal(const char *fmt,...)
{
	return 0;
}

int
errdetail(const char *fmt,...)
{
	return 0;
}

int
errhint(const char *fmt,...)
{
	return 0;
}
