/*-------------------------------------------------------------------------
 *
 * decide.c
 *	  Harness for src/key/decide.c, without a server.
 *
 * cc -I`pg_config --includedir-server` -Isrc test/unit/decide.c \
 *	  src/key/decide.c
 *
 * Shown here: every combination of what a claim may find and ask gets what the
 * contract says.  Its table stands below, row by row: the first row that fits
 * decides.  Rows that need more than one session (a claim of a transaction that
 * has not ended) are not decided by the function and have no place here.
 *
 * One test for each row, one for each property of all, then edge cases.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "../../src/base/context.h"
#include "../../src/key/decide.h"
#include "tap.h"

#define NOW INT64CONST(1000000)

typedef struct Case
{
	IdemFound	found;
	IdemAsked	asked;
} Case;

typedef struct Row
{
	const char *name;
	bool		(*fits) (const Case *c);
	IdemDecision (*gets) (const Case *c);
	long		cases;
	long		wrong;
} Row;

/* The byte strings of the cases; "absent" is {NULL, 0}. */
static const IdemBytes absent = {NULL, 0};
static const IdemBytes one = {"\001\002\003", 3};
static const IdemBytes same_as_one = {"\001\002\003", 3};
static const IdemBytes other = {"\001\002\004", 3};
static const IdemBytes shorter = {"\001\002", 2};

/*
 * Words of the table
 */

static bool
is_expired(const Case *c)
{
	return c->found.expires_at != DT_NOEND &&
		c->found.expires_at <= c->asked.now;
}

/* A time "infinity" is never over; purge_at is where the sweep may come. */
static bool
tombstone_is_over(const Case *c)
{
	return c->asked.now - c->found.tombstone >= c->found.expires_at ||
		c->asked.now >= c->found.purge_at;
}

static bool
is_same(IdemBytes a, IdemBytes b)
{
	if ((a.data == NULL) != (b.data == NULL))
		return false;
	return a.data == NULL ||
		(a.len == b.len && memcmp(a.data, b.data, a.len) == 0);
}

static bool
is_holders_owner(const Case *c)
{
	return c->asked.owner.data != NULL &&
		is_same(c->asked.owner, c->found.owner);
}

static bool
is_finished(const Case *c)
{
	return c->found.state == IDEM_STATE_COMPLETED ||
		c->found.state == IDEM_STATE_RETRYABLE ||
		c->found.state == IDEM_STATE_FAILED;
}

/*
 * What a row gives
 */

static IdemDecision
give(IdemVerdict verdict, IdemOutcome outcome, int32 attempt, bool taken_over)
{
	IdemDecision decision = {verdict, outcome, attempt, taken_over};

	return decision;
}

static IdemDecision
gets_first_attempt(const Case *c)
{
	return give(IDEM_CLAIM_FRESH, IDEM_OUTCOME_CLAIMED, 1, false);
}

static IdemDecision
gets_fresh_next_attempt(const Case *c)
{
	return give(IDEM_CLAIM_FRESH, IDEM_OUTCOME_CLAIMED,
				c->found.attempt + 1, false);
}

static IdemDecision
gets_next_attempt(const Case *c)
{
	return give(IDEM_CLAIM_AGAIN, IDEM_OUTCOME_CLAIMED,
				c->found.attempt + 1, false);
}

static IdemDecision
gets_taken_over(const Case *c)
{
	return give(IDEM_CLAIM_AGAIN, IDEM_OUTCOME_CLAIMED,
				c->found.attempt + 1, true);
}

static IdemDecision
gets_same_claim(const Case *c)
{
	return give(IDEM_ANSWER, IDEM_OUTCOME_CLAIMED, 0, false);
}

static IdemDecision
gets_same_claim_locked(const Case *c)
{
	return give(IDEM_CLAIM_SAME, IDEM_OUTCOME_CLAIMED, 0, false);
}

static IdemDecision
gets_in_progress(const Case *c)
{
	return give(IDEM_ANSWER, IDEM_OUTCOME_IN_PROGRESS, 0, false);
}

static IdemDecision
gets_wait(const Case *c)
{
	return give(IDEM_WAIT, IDEM_OUTCOME_IN_PROGRESS, 0, false);
}

/* Only the verdict counts: an error has no outcome. */
static IdemDecision
gets_error(const Case *c)
{
	return give(IDEM_FORBIDDEN, IDEM_OUTCOME_CLAIMED, 0, false);
}

static IdemDecision
gets_expired(const Case *c)
{
	return give(IDEM_ANSWER, IDEM_OUTCOME_EXPIRED, 0, false);
}

static IdemDecision
gets_duplicate(const Case *c)
{
	return give(IDEM_ANSWER, IDEM_OUTCOME_DUPLICATE, 0, false);
}

static IdemDecision
gets_mismatch(const Case *c)
{
	return give(IDEM_ANSWER, IDEM_OUTCOME_MISMATCH, 0, false);
}

static IdemDecision
gets_replayed(const Case *c)
{
	return give(IDEM_ANSWER, IDEM_OUTCOME_REPLAYED, 0, false);
}

/*
 * When a row fits, given that none above it does
 */

static bool
fits_nothing(const Case *c)
{
	return !c->found.exists;
}

static bool
fits_expired_reuse(const Case *c)
{
	return is_expired(c) && !c->found.reject_expired;
}

static bool
fits_tombstone_over(const Case *c)
{
	return is_expired(c) && tombstone_is_over(c);
}

static bool
fits_released_live(const Case *c)
{
	return c->found.state == IDEM_STATE_RELEASED && !is_expired(c);
}

static bool
fits_released(const Case *c)
{
	return c->found.state == IDEM_STATE_RELEASED;
}

static bool
fits_own_with_owner(const Case *c)
{
	return c->found.own && !is_finished(c) && is_holders_owner(c);
}

static bool
fits_own(const Case *c)
{
	return c->found.own && !is_finished(c);
}

static bool
fits_forbidden(const Case *c)
{
	return !c->found.permitted;
}

static bool
fits_duplicate(const Case *c)
{
	return c->found.reject_repeat &&
		(c->found.state == IDEM_STATE_COMPLETED ||
		 c->found.state == IDEM_STATE_FAILED);
}

static bool
fits_mismatch(const Case *c)
{
	return !is_same(c->asked.fingerprint, c->found.fingerprint) ||
		!is_same(c->asked.context, c->found.context);
}

static bool
fits_running_with_owner(const Case *c)
{
	return c->found.state == IDEM_STATE_IN_PROGRESS &&
		c->asked.now < c->found.lease_until && is_holders_owner(c);
}

static bool
fits_running(const Case *c)
{
	return c->found.state == IDEM_STATE_IN_PROGRESS &&
		c->asked.now < c->found.lease_until;
}

static bool
fits_lease_over(const Case *c)
{
	return c->found.state == IDEM_STATE_IN_PROGRESS;
}

static bool
fits_retryable(const Case *c)
{
	return c->found.state == IDEM_STATE_RETRYABLE;
}

static Row	table[] = {
	{"nothing: claimed, attempt 1", fits_nothing, gets_first_attempt},
	{"expired, reuse: claimed, attempt 1", fits_expired_reuse, gets_first_attempt},
	{"expired, the tombstone over: claimed, attempt 1", fits_tombstone_over, gets_first_attempt},
	{"released: claimed, attempt +1", fits_released_live, gets_fresh_next_attempt},
	{"released and expired: claimed, attempt 1", fits_released, gets_first_attempt},
	{"own claim, its owner: the same claim", fits_own_with_owner, gets_same_claim},
	{"own claim: in progress at once", fits_own, gets_in_progress},
	{"another role's: forbidden", fits_forbidden, gets_error},
	{"expired, within the tombstone: expired", is_expired, gets_expired},
	{"on_repeat = reject, completed or failed for good: duplicate", fits_duplicate, gets_duplicate},
	{"other fingerprint or context: mismatch", fits_mismatch, gets_mismatch},
	{"lease running, its owner: the same claim", fits_running_with_owner, gets_same_claim_locked},
	{"lease running: wait", fits_running, gets_wait},
	{"lease over: taken over, attempt +1", fits_lease_over, gets_taken_over},
	{"failed, retryable: claimed, attempt +1", fits_retryable, gets_next_attempt},
	{"finished: replayed", is_finished, gets_replayed}
};

static long broken_answers = 0; /* say "nothing written" and an attempt */
static long broken_claims = 0;	/* say "write" and no attempt or outcome */

static Row *
find_row(const Case *c)
{
	int			i;

	for (i = 0; i < lengthof(table); i++)
		if (table[i].fits(c))
			return &table[i];
	return NULL;
}

static bool
same_decision(const IdemDecision *a, const IdemDecision *b)
{
	return a->verdict == b->verdict && a->attempt == b->attempt &&
		a->taken_over == b->taken_over &&
		(a->outcome == b->outcome || a->verdict == IDEM_FORBIDDEN);
}

static void
try_case(const Case *c)
{
	Row		   *row = find_row(c);
	IdemDecision must = row->gets(c);
	IdemDecision is = idem_decide(&c->found, &c->asked);
	bool		writes;

	writes = is.verdict == IDEM_CLAIM_FRESH || is.verdict == IDEM_CLAIM_AGAIN;
	row->cases++;
	if (!same_decision(&must, &is))
		row->wrong++;
	if (!writes && (is.attempt != 0 || is.taken_over))
		broken_answers++;
	if (writes && (is.attempt < 1 || is.outcome != IDEM_OUTCOME_CLAIMED))
		broken_claims++;
}

/* How two byte strings may be to each other. */
static const IdemBytes *const pairs[][2] = {
	{&absent, &absent},
	{&one, &same_as_one},
	{&one, &other},
	{&one, &shorter},
	{&shorter, &one},
	{&one, &absent},
	{&absent, &one}
};

static const IdemState states[] = {
	IDEM_STATE_IN_PROGRESS, IDEM_STATE_COMPLETED, IDEM_STATE_RETRYABLE,
	IDEM_STATE_FAILED, IDEM_STATE_RELEASED
};

static const int64 leases[] = {NOW - 1, NOW, NOW + 1, DT_NOEND};
static const int64 expiries[] = {NOW - 2, NOW - 1, NOW, NOW + 1, DT_NOEND};
static const int64 purges[] = {NOW - 1, NOW, NOW + 1, DT_NOEND};
static const int64 tombstones[] = {0, 1, 2, INT64CONST(86400000000)};

/* Everything that is compared, for a case whose rest is set. */
static void
try_pairs(Case *c)
{
	int			f;
	int			x;
	int			o;

	for (f = 0; f < lengthof(pairs); f++)
		for (x = 0; x < lengthof(pairs); x++)
			for (o = 0; o < lengthof(pairs); o++)
			{
				c->found.fingerprint = *pairs[f][0];
				c->asked.fingerprint = *pairs[f][1];
				c->found.context = *pairs[x][0];
				c->asked.context = *pairs[x][1];
				c->found.owner = *pairs[o][0];
				c->asked.owner = *pairs[o][1];
				try_case(c);
			}
}

/* Every time, for a case whose flags are set. */
static void
try_times(Case *c)
{
	int			l;
	int			e;
	int			p;
	int			t;

	for (l = 0; l < lengthof(leases); l++)
		for (e = 0; e < lengthof(expiries); e++)
			for (p = 0; p < lengthof(purges); p++)
				for (t = 0; t < lengthof(tombstones); t++)
				{
					c->found.lease_until = leases[l];
					c->found.expires_at = expiries[e];
					c->found.purge_at = purges[p];
					c->found.tombstone = tombstones[t];
					try_pairs(c);
				}
}

static void
try_all(void)
{
	Case		c;
	int			flags;
	int			s;

	memset(&c, 0, sizeof(c));
	c.asked.now = NOW;
	c.found.attempt = 7;
	for (s = 0; s < lengthof(states); s++)
		for (flags = 0; flags < 32; flags++)
		{
			c.found.state = states[s];
			c.found.exists = (flags & 1) != 0;
			c.found.own = (flags & 2) != 0;
			c.found.permitted = (flags & 4) != 0;
			c.found.reject_repeat = (flags & 8) != 0;
			c.found.reject_expired = (flags & 16) != 0;
			try_times(&c);
		}
}

static void
test_table(void)
{
	long		cases = 0;
	int			i;

	try_all();
	for (i = 0; i < lengthof(table); i++)
	{
		ok(table[i].cases > 0 && table[i].wrong == 0, "%s", table[i].name);
		if (table[i].wrong > 0)
			diag("%ld of %ld cases wrong", table[i].wrong, table[i].cases);
		cases += table[i].cases;
	}
	ok(cases == 5L * 32 * 4 * 5 * 4 * 4 * 7 * 7 * 7,
	   "every combination fits a row");
	ok(broken_answers == 0, "what writes nothing has no attempt");
	ok(broken_claims == 0, "what writes is a claim with an attempt");
}

/* A completed key that lives for ever, asked for as it was claimed. */
static void
init_case(Case *c, IdemState state)
{
	memset(c, 0, sizeof(*c));
	c->found.exists = true;
	c->found.permitted = true;
	c->found.state = state;
	c->found.attempt = 1;
	c->found.lease_until = NOW + 1;
	c->found.expires_at = DT_NOEND;
	c->found.purge_at = DT_NOEND;
	c->asked.now = NOW;
}

static IdemDecision
decide(const Case *c)
{
	return idem_decide(&c->found, &c->asked);
}

static void
test_attempts(void)
{
	Case		c;

	init_case(&c, IDEM_STATE_RETRYABLE);
	c.found.attempt = PG_INT32_MAX - 1;
	ok(decide(&c).attempt == PG_INT32_MAX, "attempts reach the greatest integer");
	c.found.attempt = PG_INT32_MAX;
	ok(decide(&c).attempt == PG_INT32_MAX, "and stay there: claimed again");
	c.found.state = IDEM_STATE_RELEASED;
	ok(decide(&c).attempt == PG_INT32_MAX, "and stay there: released");
	c.found.state = IDEM_STATE_IN_PROGRESS;
	c.found.lease_until = NOW;
	ok(decide(&c).attempt == PG_INT32_MAX, "and stay there: taken over");
}

static void
test_infinity(void)
{
	Case		c;

	init_case(&c, IDEM_STATE_COMPLETED);
	c.asked.now = DT_NOEND - 1;
	ok(decide(&c).outcome == IDEM_OUTCOME_REPLAYED, "infinity never expires");
	c.found.expires_at = DT_NOEND - 1;
	ok(decide(&c).verdict == IDEM_CLAIM_FRESH, "the last finite time does");
	c.asked.now--;
	ok(decide(&c).outcome == IDEM_OUTCOME_REPLAYED, "and not before");
	init_case(&c, IDEM_STATE_IN_PROGRESS);
	c.found.lease_until = DT_NOEND;
	c.asked.now = DT_NOEND - 1;
	ok(decide(&c).verdict == IDEM_WAIT, "a lease without end never ends");
}

static void
test_tombstones(void)
{
	Case		c;

	init_case(&c, IDEM_STATE_COMPLETED);
	c.found.reject_expired = true;
	c.found.expires_at = NOW;
	c.found.tombstone = DT_NOEND - NOW;
	ok(decide(&c).outcome == IDEM_OUTCOME_EXPIRED,
	   "a tombstone to the end of time refuses");
	c.found.tombstone = PG_INT64_MAX;
	ok(decide(&c).outcome == IDEM_OUTCOME_EXPIRED,
	   "a tombstone beyond it does not overflow");
	c.found.expires_at = DT_NOEND - 1;
	c.asked.now = DT_NOEND - 1;
	ok(decide(&c).outcome == IDEM_OUTCOME_EXPIRED,
	   "nor of the last finite expiry");
	c.found.expires_at = -NOW;
	c.found.tombstone = 2 * NOW;
	c.asked.now = NOW - 1;
	ok(decide(&c).outcome == IDEM_OUTCOME_EXPIRED,
	   "times before the epoch are times");
	c.asked.now = NOW;
	ok(decide(&c).verdict == IDEM_CLAIM_FRESH, "the tombstone ends at its end");
	c.found.reject_expired = false;
	c.asked.now = -NOW;
	ok(decide(&c).verdict == IDEM_CLAIM_FRESH, "reuse has no tombstone");
}

/* Equal but for one bit, wherever that is; every length. */
static bool
finds_every_difference(void)
{
	unsigned char a[64];
	unsigned char b[64];
	IdemBytes	x = {a, 0};
	IdemBytes	y = {b, 0};
	size_t		i;
	int			bit;

	memset(a, 0x5a, sizeof(a));
	memset(b, 0x5a, sizeof(b));
	for (x.len = y.len = 1; x.len <= sizeof(a); x.len = ++y.len)
		for (i = 0; i < x.len; i++)
			for (bit = 0; bit < 8; bit++)
			{
				b[i] ^= 1 << bit;
				if (idem_bytes_equal(x, y))
					return false;
				b[i] ^= 1 << bit;
				if (!idem_bytes_equal(x, y))
					return false;
			}
	return true;
}

static void
test_equal(void)
{
	IdemBytes	empty = {"", 0};

	ok(idem_bytes_equal(absent, absent), "absent equals absent");
	ok(!idem_bytes_equal(absent, empty), "empty is not absent");
	ok(!idem_bytes_equal(empty, absent), "nor the other way round");
	ok(idem_bytes_equal(empty, empty), "empty equals empty");
	ok(!idem_bytes_equal(one, shorter), "a prefix is not equal");
	ok(!idem_bytes_equal(shorter, one), "nor the other way round");
	ok(finds_every_difference(), "one bit makes a difference, anywhere");
}

/* A context in a buffer: of key ids, each with a byte that stands for its HMAC. */
typedef struct Context
{
	unsigned char bytes[IDEM_CONTEXT_MARK_BYTES + 4 * IDEM_CONTEXT_ENTRY_BYTES + 1];
	IdemBytes	as;
} Context;

static void
make_context(Context *context, int number, const int *ids, const char *macs)
{
	unsigned char *c = context->bytes;
	int			i;

	memcpy(c, IDEM_CONTEXT_MARK, IDEM_CONTEXT_MARK_BYTES);
	c += IDEM_CONTEXT_MARK_BYTES;
	for (i = 0; i < number; i++)
	{
		c[0] = ids[i] >> 24;
		c[1] = ids[i] >> 16;
		c[2] = ids[i] >> 8;
		c[3] = ids[i];
		memset(c + IDEM_CONTEXT_ID_BYTES, macs[i],
			   IDEM_CONTEXT_ENTRY_BYTES - IDEM_CONTEXT_ID_BYTES);
		c += IDEM_CONTEXT_ENTRY_BYTES;
	}
	context->as.data = context->bytes;
	context->as.len = c - context->bytes;
}

/* Whether a key that was claimed with one is replayed with the other. */
static bool
matches(IdemBytes found, IdemBytes asked)
{
	Case		c;

	init_case(&c, IDEM_STATE_COMPLETED);
	c.found.context = found;
	c.asked.context = asked;
	return decide(&c).outcome == IDEM_OUTCOME_REPLAYED;
}

/*
 * All contexts of a client under secrets that come and go: the same when they
 * share one, whichever, and others when they share none.  Another client's
 * never are.
 */
static bool
shares_a_secret(void)
{
	static const int ids[] = {70000, 256, 255, 1};
	int			x;
	int			y;
	int			other_client;

	for (other_client = 0; other_client < 2; other_client++)
		for (x = 1; x < 16; x++)
			for (y = 1; y < 16; y++)
			{
				Context		a;
				Context		b;
				int			chosen[2][4];
				char		macs[2][4];
				int			number[2] = {0, 0};
				int			i;

				for (i = 0; i < 4; i++)
				{
					if (x & (1 << i))
					{
						chosen[0][number[0]] = ids[i];
						macs[0][number[0]++] = 'a' + i;
					}
					if (y & (1 << i))
					{
						chosen[1][number[1]] = ids[i];
						macs[1][number[1]++] = (other_client ? 'A' : 'a') + i;
					}
				}
				make_context(&a, number[0], chosen[0], macs[0]);
				make_context(&b, number[1], chosen[1], macs[1]);
				if (matches(a.as, b.as) != (!other_client && (x & y) != 0))
					return false;
			}
	return true;
}

static void
test_contexts(void)
{
	static const int ids[] = {3, 2, 1};
	static const int rising[] = {1, 3};
	static const int twice[] = {3, 3};
	Context		a;
	Context		b;
	IdemBytes	prefix = {IDEM_CONTEXT_MARK, IDEM_CONTEXT_MARK_BYTES};

	ok(shares_a_secret(), "contexts that share a secret are the same client's");
	make_context(&a, 3, ids, "xyz");
	make_context(&b, 2, ids, "xY");
	ok(!matches(a.as, b.as) && !matches(b.as, a.as),
	   "every secret that both have must say so");
	ok(!matches(a.as, absent) && !matches(absent, a.as),
	   "a context is not the lack of one");

	/* opaque bytes, of an application's own: one that is longer is another */
	make_context(&b, 2, ids, "xy");
	ok(matches(a.as, b.as), "one that has a secret less is the same");
	b.as.len++;
	ok(!matches(a.as, b.as) && matches(b.as, b.as), "but not with a byte more");
	b.as.len -= 2;
	ok(!matches(a.as, b.as) && matches(b.as, b.as), "nor with one less");
	b.as.len++;
	b.bytes[0] ^= 1;
	ok(!matches(a.as, b.as) && matches(b.as, b.as), "nor with another mark");
	make_context(&b, 2, rising, "zx");
	ok(!matches(a.as, b.as) && matches(b.as, b.as), "nor with rising key ids");
	make_context(&b, 2, twice, "xx");
	ok(!matches(a.as, b.as) && matches(b.as, b.as), "nor with one twice");
	ok(!matches(a.as, prefix) && matches(prefix, prefix), "nor without any");
}

static void
test_finished(void)
{
	ok(idem_decide_is_finished(IDEM_STATE_COMPLETED) &&
	   idem_decide_is_finished(IDEM_STATE_RETRYABLE) &&
	   idem_decide_is_finished(IDEM_STATE_FAILED), "an answer finishes");
	ok(!idem_decide_is_finished(IDEM_STATE_IN_PROGRESS) &&
	   !idem_decide_is_finished(IDEM_STATE_RELEASED), "no answer does not");
}

int
main(void)
{
	plan(0);
	test_table();
	test_attempts();
	test_infinity();
	test_tombstones();
	test_equal();
	test_contexts();
	test_finished();
	return finish();
}
