/* Orders from standard input, a line each: KEY REQUEST.  For each, one line:
 * STATUS OUTCOME TRIES BODY.  Connects as the PG* variables say. */
#define _GNU_SOURCE
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TRIES 10

/* All results are asked for in binary, so that the body arrives as its bytes;
 * text is the same in both formats. */
#define BUY \
	"SELECT outcome::text, http_status::text, body," \
	" retry_after_ms::text" \
	" FROM idempotency.idem_run('shop.buy(jsonb)'," \
	" idempotency.idem_scope('shop', 'buy'), $1, $2::jsonb, 'orders')"

/* No SQLSTATE: the connection is lost, or there was none. */
static int
worth_a_retry(const char *state)
{
	return state == NULL || strncmp(state, "08", 2) == 0 ||
		strncmp(state, "57P", 3) == 0 || strcmp(state, "40001") == 0 ||
		strcmp(state, "40P01") == 0 || strcmp(state, "53300") == 0;
}

/* 50 ms, 100 ms, ... 2 s, from half of it to the whole; at least so many s. */
static void
pause_before(int try, double at_least)
{
	double		seconds = try > 6 ? 2 : 0.05 * (1 << (try - 1));

	seconds *= 0.5 + drand48() / 2;
	usleep(1e6 * (seconds > at_least ? seconds : at_least));
}

static void
buy(PGconn *conn, const char *key, const char *request)
{
	const char *const values[] = {key, request};

	for (int try = 1;; try++)
	{
		PGresult   *result;
		const char *state;
		double		retry_after = 0;

		if (PQstatus(conn) != CONNECTION_OK)
			PQreset(conn);
		result = PQexecParams(conn, BUY, 2, NULL, values, NULL, NULL, 1);
		if (PQresultStatus(result) == PGRES_TUPLES_OK)
		{
			const char *outcome = PQgetvalue(result, 0, 0);

			if (strcmp(outcome, "in_progress") != 0 || try == TRIES)
			{
				printf("%s %s %d ", PQgetvalue(result, 0, 1), outcome, try);
				fwrite(PQgetvalue(result, 0, 2), 1, PQgetlength(result, 0, 2), stdout);
				putchar('\n');
				PQclear(result);
				return;
			}
			retry_after = atof(PQgetvalue(result, 0, 3)) / 1000;
		}
		else
		{
			state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
			if (!worth_a_retry(state) || try == TRIES)
			{
				fprintf(stderr, "%s", PQerrorMessage(conn));
				printf("error %s %d\n", state ? state : "none", try);
				PQclear(result);
				return;
			}
		}
		PQclear(result);
		pause_before(try, retry_after);
	}
}

int
main(void)
{
	PGconn	   *conn = PQconnectdb("connect_timeout=5");
	char	   *line = NULL;
	size_t		size = 0;

	srand48(time(NULL) ^ getpid());
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (getline(&line, &size, stdin) > 0)
	{
		char	   *request = strchr(line, ' ');

		if (request != NULL)
		{
			*request++ = '\0';
			buy(conn, line, request);
		}
	}
	PQfinish(conn);
	free(line);
	return 0;
}
