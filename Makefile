# idempotency/Makefile

MODULE_big = idempotency
OBJS = \
	idempotency.o \
	src/admin/grant.o \
	src/admin/health.o \
	src/admin/health_audit.o \
	src/admin/health_rights.o \
	src/admin/health_store.o \
	src/admin/stats.o \
	src/admin/stats_store.o \
	src/audit/alike.o \
	src/audit/chain.o \
	src/audit/index_guard.o \
	src/audit/log.o \
	src/audit/partition.o \
	src/audit/refusal_queue.o \
	src/audit/seal.o \
	src/audit/sealed_rows.o \
	src/audit/secret.o \
	src/audit/verify.o \
	src/base/acl.o \
	src/base/args.o \
	src/base/catalog.o \
	src/base/counters.o \
	src/base/databases.o \
	src/base/digest.o \
	src/base/foreign.o \
	src/base/hmac.o \
	src/base/json_pairs.o \
	src/base/secctx.o \
	src/base/shmem.o \
	src/base/spi.o \
	src/base/try.o \
	src/base/utf8.o \
	src/http/http.o \
	src/http/postgrest.o \
	src/key/canonical.o \
	src/key/claim.o \
	src/key/decide.o \
	src/key/dedupe.o \
	src/key/fingerprint.o \
	src/key/finish.o \
	src/key/headers.o \
	src/key/name.o \
	src/key/owner.o \
	src/key/require.o \
	src/key/response.o \
	src/key/result.o \
	src/key/run.o \
	src/key/xact.o \
	src/limit/bucket_memory.o \
	src/limit/bucket_table.o \
	src/limit/limiter.o \
	src/limit/shares.o \
	src/limit/throttle.o \
	src/limit/token_bucket.o \
	src/rule/cache.o \
	src/rule/named.o \
	src/rule/policy.o \
	src/rule/policy_values.o \
	src/store/direct.o \
	src/store/direct_sweep.o \
	src/store/lock.o \
	src/store/parts.o \
	src/store/row.o \
	src/store/sql.o \
	src/store/store.o \
	src/store/whitelist.o \
	src/sweep/launcher.o \
	src/sweep/sweep.o \
	src/sweep/task.o \
	src/sweep/worker.o

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
	test/unit/canonical \
	test/unit/decide \
	test/unit/shares \
	test/unit/token_bucket

EXTRA_CLEAN = $(UNIT)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

HEADERS = $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h)

$(OBJS): $(HEADERS)

.PHONY: unit
unit: $(UNIT)

test/unit/canonical: src/key/canonical.c
test/unit/decide: src/key/decide.c
test/unit/shares: src/limit/shares.c
test/unit/token_bucket: src/limit/token_bucket.c

$(UNIT): %: %.c $(HEADERS) $(wildcard $(srcdir)/test/unit/*.h)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CPPFLAGS) -o $@ $(filter %.c,$^)
