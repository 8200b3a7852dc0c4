/*-------------------------------------------------------------------------
 *
 * shares.c
 *	  Harness for src/limit/shares.c, without a server.
 *
 * cc -I`pg_config --includedir-server` test/unit/shares.c src/limit/shares.c
 *
 * Shown here: after any number of buckets that come and go, of any number of
 * limiters and databases, what is permitted is what counting all buckets
 * would say; no limiter gets more than half, no database more than three
 * quarters; nothing is written beyond the memory that was asked for; and a
 * limiter that takes all that it can leaves room for another, of the same
 * database and of another one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <stdlib.h>

#include "../../src/limit/shares.h"
#include "random.h"
#include "tap.h"

#define STEPS 200000
#define GUARD 64

typedef struct Bucket
{
	uint64		database;
	uint64		limiter;
} Bucket;

/* The buckets of a partition, one by one. */
typedef struct Model
{
	IdemShares *shares;
	char	   *end;			/* of the memory: then comes the guard */
	Bucket	   *buckets;
	int			room;
	int			used;
} Model;

static void
begin(Model *model, int room)
{
	Size		size = idem_shares_size(room);

	model->shares = malloc(size + GUARD);
	memset(model->shares, 0x7f, size + GUARD);
	model->end = (char *) model->shares + size;
	model->buckets = malloc(room * sizeof(Bucket));
	model->room = room;
	model->used = 0;
	idem_shares_init(model->shares, room);
}

static bool
end(Model *model)
{
	bool		kept = true;
	int			i;

	for (i = 0; i < GUARD; i++)
		kept = kept && model->end[i] == 0x7f;
	free(model->shares);
	free(model->buckets);
	return kept;
}

static bool
permits(const Model *model, uint64 database, uint64 limiter)
{
	int			of_limiter = 0;
	int			of_database = 0;
	int			i;

	for (i = 0; i < model->used; i++)
	{
		if (model->buckets[i].database != database)
			continue;
		of_database++;
		of_limiter += model->buckets[i].limiter == limiter;
	}
	return of_limiter + 1 <= model->room / 2.0 &&
		of_database + 1 <= model->room * 0.75;
}

static bool
add(Model *model, uint64 database, uint64 limiter)
{
	if (model->used == model->room ||
		!idem_shares_permit(model->shares, database, limiter))
		return false;
	idem_shares_add(model->shares, database, limiter);
	model->buckets[model->used].database = database;
	model->buckets[model->used++].limiter = limiter;
	return true;
}

static void
drop(Model *model, int place)
{
	Bucket	   *bucket = &model->buckets[place];

	idem_shares_remove(model->shares, bucket->database, bucket->limiter);
	*bucket = model->buckets[--model->used];
}

/* How many of a flood find room */
static int
flood(Model *model, uint64 database, uint64 limiter)
{
	int			found = 0;

	while (add(model, database, limiter))
		found++;
	return found;
}

/* Buckets come and go; few owners of them, or as many as there are */
static void
try_histories(int room, int databases, int limiters)
{
	Model		model;
	long		wrong = 0;
	int			i;

	begin(&model, room);
	for (i = 0; i < STEPS / room; i++)
	{
		uint64		database = 1 + next_random() % databases;
		uint64		limiter = 1 + next_random() % limiters;

		/* floods and droughts take turns */
		if (model.used > 0 && next_random() % 8 < (i / 500 % 2 ? 5 : 2))
			drop(&model, next_random() % model.used);
		else
		{
			wrong += permits(&model, database, limiter) !=
				idem_shares_permit(model.shares, database, limiter);
			(void) add(&model, database, limiter);
		}
	}
	while (model.used > 0)
		drop(&model, 0);
	ok(wrong == 0 && flood(&model, 1, 1) == room / 2,
	   "%d buckets, %d databases, %d limiters: as counted", room, databases,
	   limiters);
	ok(end(&model), "within the memory");
}

static void
try_flood(int room)
{
	Model		model;
	int			first;
	int			second;
	int			third;

	begin(&model, room);
	first = flood(&model, 1, 7);
	second = flood(&model, 1, 8);
	third = flood(&model, 1, 9);
	ok(first == room / 2 && first + second == room * 3 / 4 && third == 0,
	   "room %d: a limiter takes %d, another of its database %d", room, first,
	   second);
	ok(flood(&model, 2, 7) == room - room * 3 / 4 && model.used == room,
	   "and another database the rest");
	ok(end(&model), "within the memory");
}

int
main(void)
{
	static const int rooms[] = {16, 17, 18, 19, 100, 1216};
	int			i;

	plan(0);
	seed_random(20261129);
	for (i = 0; i < lengthof(rooms); i++)
	{
		try_flood(rooms[i]);
		try_histories(rooms[i], 1, 1);
		try_histories(rooms[i], 2, 3);
		try_histories(rooms[i], rooms[i], rooms[i]);
	}
	return finish();
}
