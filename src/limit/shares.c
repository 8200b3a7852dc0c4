/*-------------------------------------------------------------------------
 *
 * shares.c
 *	  How many buckets of a partition belong to a limiter, and to a database.
 *
 * Of the buckets no limiter has more than half, and no database more than
 * three quarters, so that a flood of subjects of one leaves room for those of
 * another.  Both hold in each partition: subjects fall on partitions by
 * chance, those of one limiter as those of all, so no count of the whole and
 * no lock for one is needed.
 *
 * The counts are exact, in a hash table with room for the worst case, in
 * which each bucket has a limiter and a database of its own.  Works on memory
 * of the caller, who has the lock of the partition; no pointers are in it, and
 * nothing can throw.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "limit/shares.h"

/* End of a chain, or of the free list. */
#define NONE (-1)

/* Stands for all limiters of a database; no limiter has it, but by chance. */
#define WHOLE_DATABASE UINT64CONST(0)

typedef struct Share
{
	uint64		database;
	uint64		limiter;
	int			used;			/* buckets */
	int			next;			/* in its chain, or free */
} Share;

/* Then come the shares, two for each bucket, and a chain for each bucket. */
struct IdemShares
{
	int			room;			/* buckets of the partition */
	int			free;
	Share		shares[FLEXIBLE_ARRAY_MEMBER];
};

/*
 * idem_shares_size
 *		The memory that a partition of so many buckets needs.
 */
Size
idem_shares_size(int room)
{
	return MAXALIGN(offsetof(IdemShares, shares) +
					2 * room * sizeof(Share) + room * sizeof(int));
}

/*
 * idem_shares_init
 *		Nobody has a bucket.
 */
void
idem_shares_init(IdemShares *shares, int room)
{
	int		   *chains = (int *) &shares->shares[2 * room];
	int			i;

	shares->room = room;
	shares->free = 0;
	for (i = 0; i < 2 * room; i++)
		shares->shares[i].next = i + 1 < 2 * room ? i + 1 : NONE;
	for (i = 0; i < room; i++)
		chains[i] = NONE;
}

/* The link to a share: its place, or NONE at the end of its chain. */
static int *
find_link(IdemShares *shares, uint64 database, uint64 limiter)
{
	int		   *chains = (int *) &shares->shares[2 * shares->room];
	int		   *link = &chains[(limiter + database) % shares->room];

	while (*link != NONE &&
		   (shares->shares[*link].database != database ||
			shares->shares[*link].limiter != limiter))
		link = &shares->shares[*link].next;
	return link;
}

static int
count_used(const IdemShares *shares, uint64 database, uint64 limiter)
{
	int			place = *find_link(unconstify(IdemShares *, shares), database,
								   limiter);

	return place == NONE ? 0 : shares->shares[place].used;
}

static void
add_one(IdemShares *shares, uint64 database, uint64 limiter)
{
	int		   *link = find_link(shares, database, limiter);
	Share	   *share;

	if (*link == NONE)
	{
		/* There is a free one: a bucket needs no more than two of its own. */
		*link = shares->free;
		share = &shares->shares[*link];
		shares->free = share->next;
		share->database = database;
		share->limiter = limiter;
		share->used = 0;
		share->next = NONE;
	}
	shares->shares[*link].used++;
}

static void
remove_one(IdemShares *shares, uint64 database, uint64 limiter)
{
	int		   *link = find_link(shares, database, limiter);
	int			place = *link;
	Share	   *share = &shares->shares[place];

	if (--share->used > 0)
		return;
	*link = share->next;
	share->next = shares->free;
	shares->free = place;
}

/*
 * idem_shares_permit
 *		Whether a limiter may have one more bucket.
 */
bool
idem_shares_permit(const IdemShares *shares, uint64 database, uint64 limiter)
{
	return count_used(shares, database, limiter) < shares->room / 2 &&
		count_used(shares, database, WHOLE_DATABASE) < shares->room * 3 / 4;
}

/*
 * idem_shares_add, idem_shares_remove
 *		A limiter has one more bucket, or one less.
 */
void
idem_shares_add(IdemShares *shares, uint64 database, uint64 limiter)
{
	add_one(shares, database, limiter);
	add_one(shares, database, WHOLE_DATABASE);
}

void
idem_shares_remove(IdemShares *shares, uint64 database, uint64 limiter)
{
	remove_one(shares, database, limiter);
	remove_one(shares, database, WHOLE_DATABASE);
}
