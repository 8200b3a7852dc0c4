/*-------------------------------------------------------------------------
 *
 * decide.c
 *	  Target of tools/fuzz: src/key/decide.c.
 *
 * Any row, any request, any time, against the table of doc/design.md written
 * down once more, with times in 128 bits and contexts taken apart into lists.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/context.h"
#include "key/decide.h"

#include "fuzz.h"

#define MAX_CONTEXT 200

typedef struct Bytes
{
	uint8		bytes[MAX_CONTEXT];
	size_t		len;
	bool		there;
} Bytes;

/* Short, so that two of them meet; or absent, or empty. */
static void
pick_bytes(FuzzInput *in, Bytes *buffer)
{
	uint8		kind = fuzz_byte(in);

	buffer->there = kind % 4 != 0;
	buffer->len = kind / 4 % 4;
	memset(buffer->bytes, kind / 16 % 2, sizeof(buffer->bytes));
	if (kind >= 128 && buffer->len > 0)
		buffer->bytes[buffer->len - 1] = fuzz_byte(in);
}

/* What idem_context() returns, nearly: with a byte too many, another mark ... */
static void
pick_context(FuzzInput *in, Bytes *buffer)
{
	uint8		kind = fuzz_byte(in);
	int			entries = kind % 6;
	int			i;

	if (kind < 64)
	{
		pick_bytes(in, buffer);
		return;
	}
	buffer->there = true;
	memcpy(buffer->bytes, IDEM_CONTEXT_MARK, IDEM_CONTEXT_MARK_BYTES);
	buffer->len = IDEM_CONTEXT_MARK_BYTES;
	for (i = 0; i < entries; i++)
	{
		uint8	   *entry = buffer->bytes + buffer->len;
		uint8		id = fuzz_byte(in);

		/* ids that differ in the one byte or in the other */
		memset(entry, fuzz_byte(in) % 4, IDEM_CONTEXT_ENTRY_BYTES);
		memset(entry, 0, IDEM_CONTEXT_ID_BYTES);
		entry[0] = id & 0x80;
		entry[id & 0x40 ? 3 : 2] = id & 0x3f;
		buffer->len += IDEM_CONTEXT_ENTRY_BYTES;
	}
	if (kind >= 224)
		buffer->bytes[fuzz_byte(in) % buffer->len] ^= fuzz_byte(in);
	if (kind >= 240)
		buffer->len += kind % 2 ? 1 : -1;
}

/* A copy to the byte */
static IdemBytes
give(const Bytes *buffer)
{
	IdemBytes	bytes = {NULL, 0};

	if (!buffer->there)
		return bytes;
	bytes.data = fuzz_copy(buffer->bytes, buffer->len);
	bytes.len = buffer->len;
	return bytes;
}

static bool
model_same(const Bytes *a, const Bytes *b)
{
	if (!a->there || !b->there)
		return a->there == b->there;
	return a->len == b->len && memcmp(a->bytes, b->bytes, a->len) == 0;
}

/* The secrets of a context, as a list; -1: it is not one of ours. */
static int
list_secrets(const Bytes *context, uint32 *ids, const uint8 **macs)
{
	const uint8 *c = context->bytes + IDEM_CONTEXT_MARK_BYTES;
	int			n = 0;

	if (!context->there || context->len < 4 + 36 ||
		memcmp(context->bytes, "\0ic\1", 4) != 0)
		return -1;
	for (; c < context->bytes + context->len; c += 36)
	{
		if (context->bytes + context->len - c < 36)
			return -1;
		ids[n] = (uint32) c[0] << 24 | c[1] << 16 | c[2] << 8 | c[3];
		macs[n] = c + 4;
		if (n > 0 && ids[n] >= ids[n - 1])
			return -1;
		n++;
	}
	return n;
}

static bool
model_same_client(const Bytes *a, const Bytes *b)
{
	uint32		ids[2][8];
	const uint8 *macs[2][8];
	int			n = list_secrets(a, ids[0], macs[0]);
	int			m = list_secrets(b, ids[1], macs[1]);
	int			shared = 0;
	int			equal = 0;
	int			i;
	int			j;

	if (n < 0 || m < 0)
		return model_same(a, b);
	for (i = 0; i < n; i++)
		for (j = 0; j < m; j++)
			if (ids[0][i] == ids[1][j])
			{
				shared++;
				equal += memcmp(macs[0][i], macs[1][j], 32) == 0;
			}
	return shared > 0 && equal == shared;
}

/* Of found, then of asked */
typedef struct Both
{
	Bytes		fingerprint[2];
	Bytes		context[2];
	Bytes		owner[2];
} Both;

static IdemDecision
decided(IdemVerdict verdict, IdemOutcome outcome, int64 attempt, bool taken_over)
{
	IdemDecision decision = {verdict, outcome,
		(int32) Min(attempt, PG_INT32_MAX), taken_over
	};

	return decision;
}

static IdemDecision
model_decide(const IdemFound *found, const Both *buffers, int64 now)
{
	int128		forgotten = (int128) found->expires_at + found->tombstone;
	bool		expired = found->expires_at != DT_NOEND &&
	found->expires_at <= now;
	bool		over = expired &&
	(!found->reject_expired || found->purge_at <= now ||
	 Min(forgotten, (int128) DT_NOEND) <= now);
	bool		same_owner = buffers->owner[1].there &&
	model_same(&buffers->owner[0], &buffers->owner[1]);
	int64		next = (int64) found->attempt + 1;

	if (!found->exists || over)
		return decided(IDEM_CLAIM_FRESH, IDEM_OUTCOME_CLAIMED, 1, false);
	if (found->state == IDEM_STATE_RELEASED)
		return decided(IDEM_CLAIM_FRESH, IDEM_OUTCOME_CLAIMED,
					   expired ? 1 : next, false);
	if (found->own && found->state == IDEM_STATE_IN_PROGRESS)
		return decided(IDEM_ANSWER, same_owner ? IDEM_OUTCOME_CLAIMED :
					   IDEM_OUTCOME_IN_PROGRESS, 0, false);
	if (!found->permitted)
		return decided(IDEM_FORBIDDEN, IDEM_OUTCOME_EXPIRED, 0, false);
	if (expired)
		return decided(IDEM_ANSWER, IDEM_OUTCOME_EXPIRED, 0, false);
	if (found->reject_repeat && (found->state == IDEM_STATE_COMPLETED ||
								 found->state == IDEM_STATE_FAILED))
		return decided(IDEM_ANSWER, IDEM_OUTCOME_DUPLICATE, 0, false);
	if (!model_same(&buffers->fingerprint[0], &buffers->fingerprint[1]) ||
		!model_same_client(&buffers->context[0], &buffers->context[1]))
		return decided(IDEM_ANSWER, IDEM_OUTCOME_MISMATCH, 0, false);
	if (found->state == IDEM_STATE_IN_PROGRESS && found->lease_until <= now)
		return decided(IDEM_CLAIM_AGAIN, IDEM_OUTCOME_CLAIMED, next, true);
	if (found->state == IDEM_STATE_IN_PROGRESS)
		return same_owner ?
			decided(IDEM_CLAIM_SAME, IDEM_OUTCOME_CLAIMED, 0, false) :
			decided(IDEM_WAIT, IDEM_OUTCOME_IN_PROGRESS, 0, false);
	if (found->state == IDEM_STATE_RETRYABLE)
		return decided(IDEM_CLAIM_AGAIN, IDEM_OUTCOME_CLAIMED, next, false);
	return decided(IDEM_ANSWER, IDEM_OUTCOME_REPLAYED, 0, false);
}

/* Near now, for the most part */
static int64
pick_time(FuzzInput *in, int64 now)
{
	uint8		kind = fuzz_byte(in);

	switch (kind % 8)
	{
		case 0:
			return DT_NOEND;
		case 1:
			return DT_NOEND - fuzz_byte(in);
		case 2:
			return (int64) fuzz_below(in, PG_UINT64_MAX);
		case 3:
			return DT_NOBEGIN + fuzz_byte(in);
		default:
			return (int64) ((uint64) now + (uint64) (kind / 8) - 16);
	}
}

static void
pick_found(FuzzInput *in, IdemFound *found, int64 now)
{
	static const IdemState states[] = {
		IDEM_STATE_IN_PROGRESS, IDEM_STATE_COMPLETED, IDEM_STATE_RETRYABLE,
		IDEM_STATE_FAILED, IDEM_STATE_RELEASED
	};
	uint8		flags = fuzz_byte(in);

	found->state = states[fuzz_byte(in) % lengthof(states)];
	found->exists = (flags & 1) == 0;
	found->own = (flags & 2) != 0;
	found->permitted = (flags & 4) == 0;
	found->reject_repeat = (flags & 8) != 0;
	found->reject_expired = (flags & 16) != 0;
	found->attempt = (flags & 32) ? PG_INT32_MAX - (flags >> 6) :
		1 + fuzz_byte(in);
	found->lease_until = pick_time(in, now);
	found->expires_at = pick_time(in, now);
	found->purge_at = pick_time(in, now);
	found->tombstone = fuzz_magnitude(in, PG_INT64_MAX);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	FuzzInput	in = fuzz_begin(data, size);
	IdemFound	found;
	IdemAsked	asked;
	Both		buffers;
	IdemDecision is;
	IdemDecision must_be;
	int			i;

	memset(&found, 0, sizeof(found));
	asked.now = (int64) fuzz_below(&in, PG_UINT64_MAX);
	pick_found(&in, &found, asked.now);
	for (i = 0; i < 2; i++)
	{
		pick_bytes(&in, &buffers.fingerprint[i]);
		pick_context(&in, &buffers.context[i]);
		pick_bytes(&in, &buffers.owner[i]);
	}
	found.fingerprint = give(&buffers.fingerprint[0]);
	found.context = give(&buffers.context[0]);
	found.owner = give(&buffers.owner[0]);
	asked.fingerprint = give(&buffers.fingerprint[1]);
	asked.context = give(&buffers.context[1]);
	asked.owner = give(&buffers.owner[1]);

	is = idem_decide(&found, &asked);
	must_be = model_decide(&found, &buffers, asked.now);
	must(is.verdict == must_be.verdict);
	must(is.outcome == must_be.outcome || is.verdict == IDEM_FORBIDDEN);
	must(is.attempt == must_be.attempt);
	must(is.taken_over == must_be.taken_over);
	must(idem_decide_free_attempt(&found, asked.now) ==
		 (must_be.verdict == IDEM_CLAIM_FRESH ? must_be.attempt : 0));

	free((void *) found.fingerprint.data);
	free((void *) found.context.data);
	free((void *) found.owner.data);
	free((void *) asked.fingerprint.data);
	free((void *) asked.context.data);
	free((void *) asked.owner.data);
	return 0;
}
