/*-------------------------------------------------------------------------
 *
 * json_pairs.c
 *	  Names and texts in JSON: of headers, and of claims.
 *
 * An object, an array of objects with one member each, or an array of arrays
 * of a name and a value; a member's value is a string, a number or a boolean,
 * or an array of them for a name that repeats.  The order and all repeats are
 * kept, which jsonb would not do.
 *
 * Raises nothing for JSON that is malformed or has \u0000 in it: errors of
 * the server's own parser quote what they have read, and it may be a key.
 * Touches no table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/compat.h"
#include "base/json_pairs.h"

typedef enum ValueKind
{
	VALUE_NONE,
	VALUE_OBJECT,
	VALUE_ARRAY,
	VALUE_STRING,
	VALUE_NUMBER,				/* or a boolean: has a text, too */
	VALUE_NULL
} ValueKind;

typedef struct PairsState
{
	List	   *pairs;
	char	   *name;			/* of the pair being read; NULL: none */
	int			depth;			/* objects and arrays around what comes next */
	ValueKind	whole;			/* an object or an array */
	ValueKind	elements;		/* of the array: what all of them must be */
	ValueKind	element;		/* that we are in */
	int			nvalues;		/* in that element so far, names included */
	bool		in_list;		/* the member's value is an array */
	bool		malformed;
} PairsState;

static void
add_pair(PairsState *state, ValueKind kind, char *word)
{
	bool		plain = kind == VALUE_STRING || kind == VALUE_NUMBER;
	IdemPair   *pair;

	/* a name that is no string was noted as malformed */
	if (state->name == NULL)
		return;
	pair = palloc(sizeof(IdemPair));
	pair->name = state->name;
	pair->value = plain ? word : NULL;
	pair->is_string = kind == VALUE_STRING;
	pair->in_list = state->in_list;
	state->pairs = lappend(state->pairs, pair);
}

/* A value, or the begin of one, in an array [name, value]. */
static void
note_item(PairsState *state, ValueKind kind, char *word)
{
	state->in_list = false;
	switch (++state->nvalues)
	{
		case 1:
			state->name = kind == VALUE_STRING ? word : NULL;
			state->malformed |= state->name == NULL;
			break;
		case 2:
			add_pair(state, kind, word);
			break;
		default:
			state->malformed = true;
	}
}

/* An element of the outer array. */
static void
note_element(PairsState *state, ValueKind kind)
{
	if (state->elements == VALUE_NONE)
		state->elements = kind;
	state->malformed |= kind != state->elements ||
		(kind != VALUE_OBJECT && kind != VALUE_ARRAY);
	state->element = kind;
	state->nvalues = 0;
	state->name = NULL;
}

static void
note_value(PairsState *state, ValueKind kind, char *word)
{
	int			depth = state->depth;

	if (depth == 0)
	{
		state->whole = kind;
		state->malformed = kind != VALUE_OBJECT && kind != VALUE_ARRAY;
	}
	else if (state->whole == VALUE_ARRAY && depth == 1)
		note_element(state, kind);
	else if (state->whole == VALUE_ARRAY && state->element == VALUE_ARRAY)
	{
		/* what lies deeper is of a value that is no text, and was noted */
		if (depth == 2)
			note_item(state, kind, word);
	}
	else
	{
		if (state->whole == VALUE_ARRAY)
			depth--;
		if (depth == 1)
			state->in_list = kind == VALUE_ARRAY;
		if (depth == (state->in_list ? 2 : 1))
			add_pair(state, kind, word);
	}
}

static IdemCompatJsonAction
start_object(void *arg)
{
	PairsState *state = arg;

	note_value(state, VALUE_OBJECT, NULL);
	state->depth++;
	idem_compat_json_go_on();
}

static IdemCompatJsonAction
start_array(void *arg)
{
	PairsState *state = arg;

	note_value(state, VALUE_ARRAY, NULL);
	state->depth++;
	idem_compat_json_go_on();
}

static IdemCompatJsonAction
end_container(void *arg)
{
	PairsState *state = arg;

	state->depth--;

	/* an element has ended: a name and a value, or one member */
	if (state->depth == 1 && state->whole == VALUE_ARRAY)
		state->malformed |= state->nvalues !=
			(state->element == VALUE_ARRAY ? 2 : 1);
	idem_compat_json_go_on();
}

static IdemCompatJsonAction
start_member(void *arg, char *name, bool isnull)
{
	PairsState *state = arg;

	/* of the object itself, or of one that is an element of the array */
	if (state->whole == VALUE_OBJECT ? state->depth == 1 :
		state->depth == 2 && state->element == VALUE_OBJECT)
	{
		state->name = name;
		state->nvalues++;
	}
	idem_compat_json_go_on();
}

static IdemCompatJsonAction
read_scalar(void *arg, char *token, JsonTokenType type)
{
	PairsState *state = arg;

	note_value(state, type == JSON_TOKEN_STRING ? VALUE_STRING :
			   type == JSON_TOKEN_NULL ? VALUE_NULL : VALUE_NUMBER, token);
	idem_compat_json_go_on();
}

/*
 * idem_json_pairs_read
 *		The pairs in a JSON text of the database's encoding.
 *
 * False if it is not of this form; the pairs are then those that could be
 * read, one without a value where that is no text.
 */
bool
idem_json_pairs_read(char *json, int len, List **pairs)
{
	PairsState	state = {NIL};
	JsonSemAction actions = {0};

	actions.semstate = &state;
	actions.object_start = start_object;
	actions.object_end = end_container;
	actions.array_start = start_array;
	actions.array_end = end_container;
	actions.object_field_start = start_member;
	actions.scalar = read_scalar;
	state.malformed |= !idem_compat_json_parse(json, len,
											   GetDatabaseEncoding(), true,
											   &actions);
	*pairs = state.pairs;
	return !state.malformed;
}
