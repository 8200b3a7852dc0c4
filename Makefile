# idempotency/Makefile

MODULE_big = idempotency
OBJS = \
	idempotency.o \
	src/idem_alike.o \
	src/idem_answer.o \
	src/idem_args.o \
	src/idem_audit.o \
	src/idem_audit_index.o \
	src/idem_bucket.o \
	src/idem_buckets.o \
	src/idem_buckets_memory.o \
	src/idem_cache.o \
	src/idem_canonical.o \
	src/idem_catalog.o \
	src/idem_claim.o \
	src/idem_dedupe.o \
	src/idem_digest.o \
	src/idem_fingerprint.o \
	src/idem_finish.o \
	src/idem_foreign.o \
	src/idem_grant.o \
	src/idem_headers.o \
	src/idem_health.o \
	src/idem_hmac.o \
	src/idem_http.o \
	src/idem_http_run.o \
	src/idem_keep.o \
	src/idem_launcher.o \
	src/idem_limiter.o \
	src/idem_pairs.o \
	src/idem_policy.o \
	src/idem_policy_values.o \
	src/idem_refusals.o \
	src/idem_require.o \
	src/idem_result.o \
	src/idem_role.o \
	src/idem_run.o \
	src/idem_seal.o \
	src/idem_seal_partition.o \
	src/idem_seal_verify.o \
	src/idem_secctx.o \
	src/idem_secret.o \
	src/idem_shares.o \
	src/idem_shmem.o \
	src/idem_state.o \
	src/idem_stats.o \
	src/idem_store.o \
	src/idem_store_acl.o \
	src/idem_store_audit.o \
	src/idem_store_cron.o \
	src/idem_store_direct.o \
	src/idem_store_direct_sweep.o \
	src/idem_store_health.o \
	src/idem_store_health_audit.o \
	src/idem_store_health_rights.o \
	src/idem_store_lock.o \
	src/idem_store_named.o \
	src/idem_store_partition.o \
	src/idem_store_parts.o \
	src/idem_store_row.o \
	src/idem_store_seal.o \
	src/idem_store_seal_rows.o \
	src/idem_store_secret.o \
	src/idem_store_spi.o \
	src/idem_store_sql.o \
	src/idem_store_stats.o \
	src/idem_store_way.o \
	src/idem_sweep.o \
	src/idem_task.o \
	src/idem_text.o \
	src/idem_throttle.o \
	src/idem_try.o \
	src/idem_worker.o \
	src/idem_xact.o

EXTENSION = idempotency
DATA = idempotency--1.0.sql
PGFILEDESC = "idempotency - requests that are safe to repeat"

# Nothing leaves the library but what is marked for it.
PG_CFLAGS = -fvisibility=hidden
PG_CPPFLAGS = -I$(srcdir) -I$(srcdir)/src \
	-DPGDLLEXPORT='__attribute__((visibility("default")))'

REGRESS = \
	canonical \
	claim \
	finish \
	run \
	dedupe \
	lookup \
	policy \
	audit \
	helpers \
	http \
	sweep \
	throttle \
	settings \
	members \
	shop \
	errors
REGRESS_OPTS = --encoding=UTF8
ISOLATION = \
	claim-two \
	claim-two-ends \
	claim-sweep \
	sweep-open \
	sweep-open-direct \
	sweep-changed \
	claim-takeover \
	claim-isolation \
	claim-skew \
	claim-wait \
	claim-cap \
	claim-order \
	claim-own \
	claim-same \
	claim-serializable \
	claim-dedupe \
	claim-direct \
	finish-savepoint \
	finish-prepared \
	finish-unseen \
	run-two \
	run-claim \
	run-nested \
	run-dedupe \
	http-two \
	dedupe-order \
	dedupe-sweep \
	dedupe-late \
	ways-mixed \
	release-claim \
	policy-change \
	policy-create \
	lock-timeout
# of these, those that are about the direct way or both; in the others a step
# that takes the direct way is called ..._direct
BOTH_WAYS = \
	sweep-open-direct \
	claim-direct \
	ways-mixed
ISOLATION_OPTS = --load-extension=pgcrypto --load-extension=idempotency
TAP_TESTS = 1

# Programs without a server.
UNIT = \
	test/unit/bucket \
	test/unit/canonical \
	test/unit/shares \
	test/unit/state

EXTRA_CLEAN = $(UNIT)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard $(srcdir)/src/*.h)

.PHONY: unit
unit: $(UNIT)

test/unit/%: test/unit/%.c src/idem_%.c $(wildcard $(srcdir)/src/*.h) $(wildcard $(srcdir)/test/unit/*.h)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CPPFLAGS) -o $@ $(filter %.c,$^)
