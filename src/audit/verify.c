/*-------------------------------------------------------------------------
 *
 * verify.c
 *	  Checking the chain of seals, and its head as a text.
 *
 * Reads only, with one snapshot, and works on a standby.  Each segment is
 * checked by itself, so that one problem is told where it is and not again in
 * all that follow.  What this can find, and what it takes a digest that was
 * kept elsewhere for, stands in doc/security.md.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "audit/chain.h"
#include "base/args.h"
#include "base/compat.h"
#include "base/hmac.h"
#include "idem.h"

/* A head of the chain that was kept elsewhere. */
typedef struct KeptDigest
{
	IdemSealLast last;
	bool		seen;
} KeptDigest;

typedef struct Verification
{
	ReturnSetInfo *result;
	IdemSealHead head;
	KeptDigest *kept;			/* NULL: none */
	int64		segment;		/* of the last seal */
	uint8		stored[IDEM_DIGEST_BYTES];	/* what it says that it is */
	uint8		computed[IDEM_DIGEST_BYTES];	/* and what it should be */
	bool		is_signed;		/* some seal before has a key */
	Bitmapset  *introduced;		/* key ids that have a seal of their own */
	Bitmapset  *unknown;		/* that we do not have: told once */
	int64		rows;			/* found in segments */
} Verification;

static void
report(Verification *v, int64 segment, const char *problem, const char *detail)
{
	Datum		values[3];
	bool		nulls[3] = {false};

	values[0] = Int64GetDatum(segment);
	values[1] = CStringGetTextDatum(problem);
	values[2] = CStringGetTextDatum(detail);
	tuplestore_putvalues(v->result->setResult, v->result->setDesc, values,
						 nulls);
}

/* Numbers without a gap, each with the seal before it. */
static void
check_link(Verification *v, const IdemSeal *seal, int64 segment)
{
	if (segment <= v->segment)
		report(v, segment, "chain_broken", "its number is not the next one");
	else if (segment != v->segment + 1)
		report(v, v->segment + 1, "seal_missing",
			   psprintf("seals " INT64_FORMAT " to " INT64_FORMAT " are not there",
						v->segment + 1, segment - 1));

	/* either will do: a seal that was changed is told of itself only */
	else if (!idem_chain_is(seal, SEAL_PREVIOUS, v->stored) &&
			 !idem_chain_is(seal, SEAL_PREVIOUS, v->computed))
		report(v, segment, "chain_broken",
			   "it was made after another seal than the one before it");
}

static void
check_signature(Verification *v, const IdemSeal *seal, int64 segment)
{
	int32		key_id;
	IdemSecret	secret;
	bool		found;
	bytea	   *mac;

	if (seal->nulls[SEAL_KEY_ID])
	{
		if (v->is_signed)
			report(v, segment, "signature_missing",
				   "it has no HMAC, and seals before it have");
		return;
	}
	v->is_signed = true;
	key_id = DatumGetInt32(seal->values[SEAL_KEY_ID]);
	found = idem_secret_get(IDEM_PURPOSE_AUDIT, key_id, &secret);
	if (!found || VARSIZE_ANY_EXHDR(secret.secret) == 0)
	{
		/* a forged seal may have a negative one, which no Bitmapset takes */
		if (key_id < 0 || !bms_is_member(key_id, v->unknown))
			report(v, segment, "key_missing",
				   psprintf(found ? "the audit secret with key id %d was dropped" :
							"there is no audit secret with key id %d", key_id));
		if (key_id >= 0)
			v->unknown = bms_add_member(v->unknown, key_id);
		return;
	}
	mac = idem_hmac(v->computed, IDEM_DIGEST_BYTES, secret.secret,
					IDEM_HMAC_SEAL);
	if (!idem_chain_is(seal, SEAL_HMAC, (uint8 *) VARDATA_ANY(mac)))
		report(v, segment, "signature_wrong",
			   psprintf("its HMAC was not made with key id %d", key_id));
	else if (DatumGetChar(seal->values[SEAL_KIND]) == IDEM_SEAL_KEY)
		v->introduced = bms_add_member(v->introduced, key_id);
}

static void
check_rows(Verification *v, const IdemSeal *seal, int64 segment)
{
	int64		sealed = DatumGetInt64(seal->values[SEAL_ROWS]);
	IdemSealRange range;
	IdemSealRows rows;

	if (!idem_sealed_range(seal, &range))
		return;
	idem_sealed_hash(&range, PG_INT64_MAX, &rows);
	v->rows += rows.count;
	if (seal->was_pruned)
	{
		if (rows.count > 0)
			report(v, segment, "rows_added",
				   psprintf(INT64_FORMAT " rows are there of a segment that was pruned",
							rows.count));
	}
	else if (rows.count != sealed)
		report(v, segment, rows.count < sealed ? "rows_missing" : "rows_added",
			   psprintf(INT64_FORMAT " rows were sealed, " INT64_FORMAT " are there",
						sealed, rows.count));
	else if (!idem_chain_is(seal, SEAL_ROWS_SHA256, rows.sha256))
		report(v, segment, "rows_changed",
			   "there are as many rows as were sealed, but not the same");
}

static void
check_seal(void *arg, const IdemSeal *seal)
{
	Verification *v = arg;
	int64		segment = DatumGetInt64(seal->values[SEAL_SEGMENT]);

	CHECK_FOR_INTERRUPTS();
	check_link(v, seal, segment);

	/* what it says that it is, too: one bad seal is not told of the next */
	v->segment = Max(v->segment, segment);
	idem_chain_copy(seal->values[SEAL_SEAL], v->stored);
	idem_sealed_digest(seal, v->computed);
	if (!idem_chain_is(seal, SEAL_SEAL, v->computed))
		report(v, segment, "seal_changed", "it is not what it was made as");
	check_signature(v, seal, segment);
	check_rows(v, seal, segment);
	if (v->kept == NULL || v->kept->last.segment != segment)
		return;
	v->kept->seen = true;
	if (memcmp(v->kept->last.seal, v->stored, IDEM_DIGEST_BYTES) != 0)
		report(v, segment, "digest_differs",
			   "the digest was made of another chain: this one was rewritten");
}

/* What can be told only when all seals were seen. */
static void
check_whole(Verification *v)
{
	int64		segment = v->segment;
	int64		stray;
	IdemSecret	newest;

	if (v->kept != NULL && !v->kept->seen && v->kept->last.segment > 0)
		report(v, v->kept->last.segment, "digest_missing",
			   psprintf("the chain ends with seal " INT64_FORMAT ": its tail was cut off",
						v->segment));

	/*
	 * A secret gets a seal of its own at once (idem_seal_key()), which nobody
	 * can make without it.
	 */
	if (idem_secret_live(IDEM_PURPOSE_AUDIT, &newest, 1) > 0 &&
		!bms_is_member(newest.key_id, v->introduced))
		report(v, segment, "key_unused",
			   psprintf("key id %d is in no seal: the chain was rewritten",
						newest.key_id));
	if (idem_chain_set_back())
		report(v, segment, "sequence_set_back",
			   "ids that were given before are given again");

	/* the row is looked for only if the numbers say that there is one */
	if (idem_sealed_due(&v->head) == v->rows)
		return;
	if (idem_sealed_stray(&v->head, &stray, &segment))
		report(v, segment, "row_outside",
			   psprintf("the row with id " INT64_FORMAT " is in no segment",
						stray));
}

static KeptDigest *
parse_digest(text *digest)
{
	KeptDigest *kept = palloc0(sizeof(KeptDigest));
	char	   *string = text_to_cstring(digest);
	char		hex[2 * IDEM_DIGEST_BYTES + 2];
	long long	segment;
	int			end = 0;

	/*
	 * More digits than a digest has are read, to be refused.  "%lld" takes
	 * blanks and a sign, so its first character is looked at.
	 */
	if (sscanf(string, "idem1:%19lld:%65[0-9a-f]%n", &segment, hex, &end) != 2 ||
		string[end] != '\0' || strlen(hex) != 2 * IDEM_DIGEST_BYTES ||
		string[strlen("idem1:")] < '0' || string[strlen("idem1:")] > '9')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\"", "digest"),
				 errhint("Give what idem_audit_digest() returned.")));
	kept->last.segment = segment;
	hex_decode(hex, 2 * IDEM_DIGEST_BYTES, (char *) kept->last.seal);
	return kept;
}

IDEM_FUNCTION(idem_audit_verify);

/*
 * idem_audit_verify(digest text)
 *		RETURNS TABLE (segment bigint, problem text, detail text)
 *		What is wrong with the log and its seals; no row when all is well.
 *
 * Reads the whole log.  Raises 22023 for what is no digest; 55000 when seals
 * have an HMAC and pgcrypto is missing.  No locks but those of reading.
 */
Datum
idem_audit_verify(PG_FUNCTION_ARGS)
{
	Verification v;
	IdemSecctx	saved;

	memset(&v, 0, sizeof(v));
	if (!PG_ARGISNULL(0))
		v.kept = parse_digest(PG_GETARG_TEXT_PP(0));
	InitMaterializedSRF(fcinfo, 0);
	v.result = (ReturnSetInfo *) fcinfo->resultinfo;
	(void) idem_chain_begin(&saved);
	idem_chain_head(&v.head);
	idem_chain_each(check_seal, &v);
	check_whole(&v);
	idem_chain_end(&saved);
	return (Datum) 0;
}

IDEM_FUNCTION(idem_audit_digest);

/*
 * idem_audit_digest() RETURNS text
 *		The head of the chain: its number and its seal in hexadecimal.
 */
Datum
idem_audit_digest(PG_FUNCTION_ARGS)
{
	IdemSecctx	saved;
	IdemSealLast last;
	char		hex[2 * IDEM_DIGEST_BYTES + 1] = {0};

	(void) idem_chain_begin(&saved);
	idem_chain_last(&last);
	idem_chain_end(&saved);
	hex_encode((char *) last.seal, IDEM_DIGEST_BYTES, hex);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("idem1:" INT64_FORMAT ":%s",
											  last.segment, hex)));
}
