/* libpq: PQexec, which is the simple protocol, and PQexecParams with results as
 * text or in binary.  Statements come from statements.json; for each, one line of
 * JSON with what was read. */
#include <arpa/inet.h>
#include <endian.h>
#include <jansson.h>
#include <libpq-fe.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_PARAMETERS 9

/* OIDs of pg_type */
enum
{
	BOOLEAN = 16, BYTEA = 17, BIGINT = 20, INTEGER = 23,
	TIMESTAMPTZ = 1184, JSONB = 3802
};

typedef struct Parameter
{
	const char *kind;
	char	   *value;			/* bytes as such, the rest as text */
	int			length;
} Parameter;

static PGconn *conn;
static json_t *values,
		   *values_read;

static void
say(json_t *what)
{
	char	   *line = json_dumps(what, JSON_COMPACT);

	puts(line);
	free(line);
	json_decref(what);
}

static json_t *
hexadecimal(const unsigned char *bytes, int length)
{
	char	   *digits = calloc(1, 2 * length + 1);
	json_t	   *tagged;

	for (int i = 0; i < length; i++)
		sprintf(digits + 2 * i, "%02x", bytes[i]);
	tagged = json_pack("{s:s}", "bytes", digits);
	free(digits);
	return tagged;
}

/* A column in binary form. */
static json_t *
binary(Oid type, const char *data, int length)
{
	uint64_t	eight;
	uint32_t	four;
	char		number[64];

	switch (type)
	{
		case BOOLEAN:
			return json_pack("{s:b}", "bool", data[0]);
		case BYTEA:
			return hexadecimal((const unsigned char *) data, length);
		case INTEGER:
			memcpy(&four, data, 4);
			snprintf(number, sizeof(number), "%d", (int32_t) ntohl(four));
			return json_pack("{s:s}", "int", number);
		case BIGINT:
			memcpy(&eight, data, 8);
			snprintf(number, sizeof(number), "%lld", (long long) be64toh(eight));
			return json_pack("{s:s}", "int", number);
		case TIMESTAMPTZ:
			{
				/* microseconds since 2000 */
				int64_t		us;
				time_t		seconds;
				char		moment[48];

				memcpy(&eight, data, 8);
				us = (int64_t) be64toh(eight);
				seconds = us / 1000000 + 946684800;
				strftime(moment, sizeof(moment), "%Y-%m-%dT%H:%M:%S", gmtime(&seconds));
				snprintf(number, sizeof(number), "%s.%06dZ", moment, (int) (us % 1000000));
				return json_pack("{s:s}", "time", number);
			}
		case JSONB:
			/* after a version */
			return json_pack("{s:s%}", "text", data + 1, (size_t) length - 1);
		default:
			return json_pack("{s:s%}", "text", data, (size_t) length);
	}
}

static json_t *
column(const PGresult *result, int row, int field)
{
	const char *data = PQgetvalue(result, row, field);
	json_t	   *tagged;
	size_t		length;

	if (PQgetisnull(result, row, field))
		return json_null();
	if (PQfformat(result, field) == 1)
		return binary(PQftype(result, field), data,
					  PQgetlength(result, row, field));
	if (PQftype(result, field) == BYTEA)
	{
		unsigned char *bytes = PQunescapeBytea((const unsigned char *) data, &length);

		tagged = hexadecimal(bytes, length);
		PQfreemem(bytes);
		return tagged;
	}
	return json_pack("{s:s}", "text", data);
}

static void
report(const char *name, const PGresult *result)
{
	json_t	   *columns = json_array(),
			   *rows = json_array();

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		say(json_pack("{s:s, s:s}", "name", name, "error", PQresultErrorMessage(result)));
		return;
	}
	for (int i = 0; i < PQnfields(result); i++)
		json_array_append_new(columns, json_string(PQfname(result, i)));
	for (int i = 0; i < PQntuples(result); i++)
	{
		json_t	   *row = json_array();

		for (int j = 0; j < PQnfields(result); j++)
		{
			json_t	   *value = column(result, i, j),
					   *bare = json_object_get(value, "int");
			char		key[128];

			if (bare == NULL)
				bare = json_object_get(value, "text");
			snprintf(key, sizeof(key), "%s.%s", name, PQfname(result, j));
			if (bare != NULL)
				json_object_set(values_read, key, bare);
			json_array_append_new(row, value);
		}
		json_array_append_new(rows, row);
	}
	say(json_pack("{s:s, s:o, s:o}", "name", name, "columns", columns, "rows", rows));
}

/* {"a", "b"} */
static char *
array(json_t *texts)
{
	char	   *literal = json_dumps(texts, 0);

	literal[0] = '{';
	literal[strlen(literal) - 1] = '}';
	return literal;
}

static Parameter
parameter(const char *name)
{
	json_t	   *pair = json_object_get(values, name);
	json_t	   *value = json_array_get(pair, 1);
	Parameter	made = {"bigint", NULL, 0};

	if (pair == NULL)
		value = json_object_get(values_read, name);
	else
		made.kind = json_string_value(json_array_get(pair, 0));
	if (value == NULL || json_is_null(value))
		return made;
	if (strcmp(made.kind, "json") == 0)
		made.value = json_dumps(value, 0);
	else if (strcmp(made.kind, "texts") == 0)
		made.value = array(value);
	else if (json_is_integer(value))
	{
		made.value = malloc(32);
		snprintf(made.value, 32, "%lld", (long long) json_integer_value(value));
	}
	else
		made.value = strdup(json_string_value(value));
	made.length = strlen(made.value);
	if (strcmp(made.kind, "bytes") == 0)
	{
		made.length /= 2;
		for (int i = 0; i < made.length; i++)
		{
			unsigned	byte;

			sscanf(json_string_value(value) + 2 * i, "%2x", &byte);
			made.value[i] = (char) byte;
		}
	}
	return made;
}

/* Bytes have their type and the binary format, the rest is text of no type. */
static PGresult *
with_parameters(const char *sql, const Parameter *parameters, int count, int format)
{
	Oid			types[MAX_PARAMETERS] = {0};
	const char *texts[MAX_PARAMETERS];
	int			lengths[MAX_PARAMETERS],
				formats[MAX_PARAMETERS];

	for (int i = 0; i < count; i++)
	{
		formats[i] = strcmp(parameters[i].kind, "bytes") == 0;
		types[i] = formats[i] ? BYTEA : 0;
		texts[i] = parameters[i].value;
		lengths[i] = parameters[i].length;
	}
	return PQexecParams(conn, sql, count, types, texts, lengths, formats, format);
}

static PGresult *
without_parameters(const char *sql, const Parameter *parameters)
{
	char		statement[4096];
	size_t		length = 0;

	for (const char *from = sql; *from != '\0'; from++)
	{
		const Parameter *value;
		char	   *quoted;

		if (*from != '$')
		{
			statement[length++] = *from;
			continue;
		}
		value = &parameters[*++from - '1'];
		if (value->value == NULL)
			quoted = strdup("NULL");
		else if (strcmp(value->kind, "bytes") == 0)
		{
			size_t		escaped;
			unsigned char *bytes = PQescapeByteaConn(conn, (unsigned char *) value->value,
													 value->length, &escaped);

			quoted = PQescapeLiteral(conn, (char *) bytes, escaped - 1);
			PQfreemem(bytes);
		}
		else
			quoted = PQescapeLiteral(conn, value->value, value->length);
		length += snprintf(statement + length, sizeof(statement) - length, "%s", quoted);
		PQfreemem(quoted);
	}
	statement[length] = '\0';
	return PQexec(conn, statement);
}

int
main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	json_t	   *file = json_load_file("../statements.json", 0, NULL);
	json_t	   *step;
	char		version[32];
	size_t		number;

	conn = PQconnectdb("client_encoding=UTF8");
	if (file == NULL || PQstatus(conn) != CONNECTION_OK)
	{
		fprintf(stderr, "%s", PQerrorMessage(conn));
		return 1;
	}
	values = json_object_get(file, "values");
	values_read = json_object();
	snprintf(version, sizeof(version), "%d.%d", PQlibVersion() / 10000, PQlibVersion() % 10000);
	say(json_pack("{s:s}", "version", version));

	json_array_foreach(json_object_get(file, "steps"), number, step)
	{
		const char *sql = json_string_value(json_object_get(step, "sql"));
		json_t	   *names = json_object_get(step, "args");
		int			count = json_array_size(names);
		Parameter	parameters[MAX_PARAMETERS];
		PGresult   *result;

		for (int i = 0; i < count; i++)
			parameters[i] = parameter(json_string_value(json_array_get(names, i)));
		if (strcmp(mode, "simple") == 0)
			result = without_parameters(sql, parameters);
		else
			result = with_parameters(sql, parameters, count, strcmp(mode, "binary") == 0);
		report(json_string_value(json_object_get(step, "name")), result);
		PQclear(result);
		for (int i = 0; i < count; i++)
			free(parameters[i].value);
	}
	PQfinish(conn);
	json_decref(values_read);
	json_decref(file);
	return 0;
}
