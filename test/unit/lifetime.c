/*-------------------------------------------------------------------------
 *
 * lifetime.c
 *	  Harness for src/key/lifetime.c, without a server.
 *
 * cc -I`pg_config --includedir-server` -Isrc test/unit/lifetime.c \
 *	  src/key/lifetime.c
 *
 * Shown here: the times of a row under every combination of policy, ttl, lease
 * and finish are those of the contract; a finish within the lease never moves
 * purge_at, and nothing ever moves it back; what is added to a time saturates.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "../../src/key/lifetime.h"
#include "tap.h"

#define NOW INT64CONST(1000000)

static const int64 durations[] = {0, 1, 5, 100, DT_NOEND - NOW, PG_INT64_MAX};

/* What the contract says, in its words: a ttl of 0 is for ever. */
static int64
expected_expiry(int64 given, int64 policys, int64 since)
{
	int64		ttl = given >= 0 ? given : policys;

	return ttl == 0 || since == DT_NOEND || ttl >= DT_NOEND - since ?
		DT_NOEND : since + ttl;
}

static int64
expected_purge(const IdemPolicy *policy, int64 expires_at)
{
	if (!policy->reject_expired)
		return expires_at;
	return expires_at == DT_NOEND || policy->tombstone >= DT_NOEND - expires_at ?
		DT_NOEND : expires_at + policy->tombstone;
}

/* Whether purge_at is that time, or later by a thousandth of the retention. */
static bool
is_due(int64 purge_at, int64 end)
{
	if (end == DT_NOEND)
		return purge_at == DT_NOEND;
	return purge_at >= end && purge_at - end <= (end - NOW) / 1000;
}

typedef struct Wrong
{
	long		lease;
	long		finish;
	long		hot;
	long		back;
	long		own;
} Wrong;

static void
try_finish(const IdemPolicy *policy, const IdemRow *claimed, bool completed,
		   int64 ttl, int64 later, Wrong *wrong)
{
	IdemRow		row = *claimed;
	int64		at = NOW + later;
	int64		expires_at = expected_expiry(ttl >= 0 ? ttl : row.ttl, completed ?
											 policy->completed_ttl :
											 policy->failed_ttl, at);
	int64		end = expected_purge(policy, expires_at);

	idem_lifetime_finish(policy, &row, completed ? IDEM_STATE_COMPLETED :
						 IDEM_STATE_RETRYABLE, ttl, at);
	wrong->finish += row.finished_at != at || row.expires_at != expires_at ||
		(row.purge_at != claimed->purge_at && !is_due(row.purge_at, end)) ||
		row.purge_at < end;
	if (ttl >= 0 || claimed->purge_at == DT_NOEND)
		wrong->own += !is_due(row.purge_at, end) || row.ttl != claimed->ttl;
	else
	{
		wrong->hot += at <= row.lease_until && row.purge_at != claimed->purge_at;
		wrong->back += row.purge_at < claimed->purge_at;
	}
}

static void
try_lease(const IdemPolicy *policy, int64 ttl, int64 lease, int64 purge_at,
		  Wrong *wrong)
{
	IdemRow		row;
	int64		end = expected_expiry(lease, 0, NOW);
	int64		failed = expected_expiry(ttl, policy->failed_ttl, end);
	int64		completed = expected_expiry(ttl, policy->completed_ttl, end);
	int64		bound = expected_purge(policy, Max(failed, completed));
	int			i;
	int			own;

	memset(&row, 0, sizeof(row));
	row.ttl = ttl;
	row.purge_at = purge_at;
	idem_lifetime_lease(policy, &row, NOW, lease);
	wrong->lease += row.lease_until != end || row.expires_at != failed ||
		(row.purge_at != purge_at && !is_due(row.purge_at, bound)) ||
		row.purge_at < bound;
	wrong->back += row.purge_at < purge_at;
	for (i = 0; i < 3; i++)
	{
		for (own = -1; own < (int) lengthof(durations); own++)
		{
			int64		own_ttl = own < 0 ? -1 : durations[own];

			try_finish(policy, &row, true, own_ttl, durations[i], wrong);
			try_finish(policy, &row, false, own_ttl, durations[i], wrong);
		}
	}
}

static void
test_table(void)
{
	Wrong		wrong = {0, 0, 0, 0, 0};
	IdemPolicy	policy;
	int			i[5];

	memset(&policy, 0, sizeof(policy));
	for (i[0] = 0; i[0] < lengthof(durations); i[0]++)
		for (i[1] = 0; i[1] < lengthof(durations); i[1]++)
			for (i[2] = 0; i[2] < 2 * lengthof(durations); i[2]++)
				for (i[3] = -1; i[3] < (int) lengthof(durations); i[3]++)
					for (i[4] = 1; i[4] < lengthof(durations); i[4]++)
					{
						int64		ttl = i[3] < 0 ? -1 : durations[i[3]];

						policy.completed_ttl = durations[i[0]];
						policy.failed_ttl = durations[i[1]];
						policy.reject_expired = i[2] % 2 == 1;
						policy.tombstone = durations[i[2] / 2];
						try_lease(&policy, ttl, durations[i[4]], DT_NOBEGIN,
								  &wrong);
						try_lease(&policy, ttl, durations[i[4]], NOW + 50,
								  &wrong);
					}
	ok(wrong.lease == 0, "a claim: its lease, then failed_ttl or its own ttl");
	ok(wrong.finish == 0, "a finish: its ttl from then, and the tombstone");
	ok(wrong.hot == 0, "a finish within the lease leaves purge_at alone");
	ok(wrong.back == 0, "purge_at never moves back");
	ok(wrong.own == 0, "but for an answer with a ttl of its own, or from for ever");
}

static void
test_add(void)
{
	ok(idem_lifetime_add(NOW, 0) == NOW, "adding nothing");
	ok(idem_lifetime_add(NOW, 5) == NOW + 5, "adding");
	ok(idem_lifetime_add(-NOW, 5) == 5 - NOW,
	   "adding to a time before the epoch");
	ok(idem_lifetime_add(DT_NOEND, 0) == DT_NOEND, "infinity stays");
	ok(idem_lifetime_add(DT_NOEND, PG_INT64_MAX) == DT_NOEND,
	   "whatever is added");
	ok(idem_lifetime_add(NOW, PG_INT64_MAX) == DT_NOEND,
	   "an overflow is infinity");
	ok(idem_lifetime_add(NOW, DT_NOEND - NOW) == DT_NOEND,
	   "and so is its limit");
	ok(idem_lifetime_add(NOW, DT_NOEND - NOW - 1) == DT_NOEND - 1,
	   "one less is a time");
	ok(idem_lifetime_add(DT_NOEND - 1, 1) == DT_NOEND, "the last step");
}

static void
test_over(void)
{
	ok(!idem_lifetime_is_over(DT_NOEND, DT_NOEND - 1), "infinity never comes");
	ok(!idem_lifetime_is_over(NOW, NOW - 1), "a time is not over before");
	ok(idem_lifetime_is_over(NOW, NOW), "but when it has come");
}

int
main(void)
{
	plan(0);
	test_table();
	test_add();
	test_over();
	return finish();
}
