/*-------------------------------------------------------------------------
 *
 * shares.c
 *	  Target of tools/fuzz: src/limit/shares.c.
 *
 * Buckets that come and go, against a list of them that is counted anew for
 * each question.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "limit/shares.h"

#include "fuzz.h"

#define MAX_ROOM 64

typedef struct Owner
{
	uint64		database;
	uint64		limiter;
} Owner;

typedef struct Model
{
	int			room;
	int			used;
	Owner		owners[MAX_ROOM];
} Model;

static bool
model_permits(const Model *model, const Owner *owner)
{
	int			of_limiter = 0;
	int			of_database = 0;
	int			i;

	for (i = 0; i < model->used; i++)
	{
		bool		same = model->owners[i].database == owner->database;

		of_database += same;
		of_limiter += same && model->owners[i].limiter == owner->limiter;
	}
	return (of_limiter + 1) * 2 <= model->room &&
		(of_database + 1) * 4 <= model->room * 3;
}

static void
pick_owner(FuzzInput *in, Owner *owner)
{
	uint8		kind = fuzz_byte(in);

	/* not 0, which stands for a whole database */
	owner->database = (kind & 0x0f) + 1;
	owner->limiter = (kind >> 4) + 1;
	if (owner->limiter == 16)
		owner->limiter = PG_UINT64_MAX - fuzz_byte(in);
	if (owner->database == 16)
		owner->database = PG_UINT64_MAX - fuzz_byte(in);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	FuzzInput	in = fuzz_begin(data, size);
	Model		model = {16 + fuzz_byte(&in) % (MAX_ROOM - 15)};
	IdemShares *shares = malloc(idem_shares_size(model.room));

	idem_shares_init(shares, model.room);
	while (fuzz_is_left(&in))
	{
		uint8		step = fuzz_byte(&in);
		Owner		owner;

		if (step % 4 == 0 && model.used > 0)
		{
			int			place = fuzz_byte(&in) % model.used;

			owner = model.owners[place];
			idem_shares_remove(shares, owner.database, owner.limiter);
			model.owners[place] = model.owners[--model.used];
			continue;
		}
		pick_owner(&in, &owner);
		must(idem_shares_permit(shares, owner.database, owner.limiter) ==
			 model_permits(&model, &owner));

		/* without asking, too: the memory must do for any owners */
		if (model.used == model.room ||
			(step % 4 == 1 && !model_permits(&model, &owner)))
			continue;
		idem_shares_add(shares, owner.database, owner.limiter);
		model.owners[model.used++] = owner;
	}
	free(shares);
	return 0;
}
