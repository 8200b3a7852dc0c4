/*-------------------------------------------------------------------------
 *
 * idem_pairs.c
 *	  Names and texts in JSON: of headers, and of claims.
 *
 * An object, or an array of objects; a value is a string, or an array of them
 * for a name that repeats.  The order and all repeats are kept, which jsonb
 * would not do.
 *
 * Raises nothing for JSON that is malformed or has \u0000 in it: errors of
 * the server's own parser quote what they have read, and it may be a key.
 * Touches no table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "idem_compat.h"
#include "idem_pairs.h"

typedef enum ValueKind
{
	VALUE_OBJECT,
	VALUE_ARRAY,
	VALUE_STRING,
	VALUE_OTHER
} ValueKind;

typedef struct PairsState
{
	List	   *pairs;
	char	   *name;			/* of the member being read */
	int			depth;			/* objects and arrays around what comes next */
	int			base;			/* depth of the members: 1, in an array 2 */
	bool		in_list;		/* the member's value is an array */
	bool		malformed;
} PairsState;

static void
add_pair(PairsState *state, ValueKind kind, char *text)
{
	IdemPair   *pair = palloc(sizeof(IdemPair));

	pair->name = state->name;
	pair->value = kind == VALUE_STRING ? text : NULL;

	pair->in_list = state->in_list;
	state->pairs = lappend(state->pairs, pair);
}

/* What lies deeper belongs to a value that is not a string, and was noted. */
static void
note_value(PairsState *state, ValueKind kind, char *text)
{
	if (state->depth == 0)
	{
		state->base = kind == VALUE_ARRAY ? 2 : 1;
		state->malformed = kind != VALUE_OBJECT && kind != VALUE_ARRAY;
	}
	else if (state->depth < state->base)
		state->malformed |= kind != VALUE_OBJECT;
	else if (state->depth == state->base)
	{
		state->in_list = kind == VALUE_ARRAY;
		if (!state->in_list)
			add_pair(state, kind, text);
	}
	else if (state->depth == state->base + 1 && state->in_list)
		add_pair(state, kind, text);
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
	idem_compat_json_go_on();
}

static IdemCompatJsonAction
start_member(void *arg, char *name, bool isnull)
{
	PairsState *state = arg;

	if (state->depth == state->base)
		state->name = name;
	idem_compat_json_go_on();
}

static IdemCompatJsonAction
read_scalar(void *arg, char *token, JsonTokenType type)
{
	PairsState *state = arg;

	note_value(state, type == JSON_TOKEN_STRING ? VALUE_STRING : VALUE_OTHER,
			   token);
	idem_compat_json_go_on();
}

/*
 * idem_pairs_read
 *		The pairs in a JSON text of the database's encoding; false if it is
 *		not of this form.
 */
bool
idem_pairs_read(char *json, int len, List **pairs)
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
	if (!idem_compat_json_parse(json, len, GetDatabaseEncoding(), true,
								&actions))
		return false;
	*pairs = state.pairs;
	return !state.malformed;
}
