# idempotency/Makefile

MODULE_big = idempotency
OBJS = \
	idempotency.o \
	src/admin/distribute.o \
	src/admin/grant.o \
	src/admin/health.o \
	src/admin/health_citus.o \
	src/admin/health_log.o \
	src/admin/health_rights.o \
	src/admin/health_sweep.o \
	src/admin/health_tables.o \
	src/admin/stats.o \
	src/audit/alike.o \
	src/audit/cell.o \
	src/audit/chain.o \
	src/audit/direct.o \
	src/audit/guard.o \
	src/audit/index_guard.o \
	src/audit/log.o \
	src/audit/partition.o \
	src/audit/refusal_queue.o \
	src/audit/row.o \
	src/audit/seal.o \
	src/audit/sealed_rows.o \
	src/audit/secret.o \
	src/audit/verify.o \
	src/audit/whitelist.o \
	src/base/acl.o \
	src/base/args.o \
	src/base/catalog.o \
	src/base/citus.o \
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
	src/key/granted.o \
	src/key/headers.o \
	src/key/leases.o \
	src/key/lifetime.o \
	src/key/name.o \
	src/key/operator.o \
	src/key/outcome.o \
	src/key/owner.o \
	src/key/recover.o \
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
	src/rule/policy.o \
	src/rule/policy_values.o \
	src/rule/rule_table.o \
	src/store/direct.o \
	src/store/direct_many.o \
	src/store/direct_sweep.o \
	src/store/direct_write.o \
	src/store/entries.o \
	src/store/holder.o \
	src/store/lock.o \
	src/store/parts.o \
	src/store/row.o \
	src/store/search.o \
	src/store/sql.o \
	src/store/sql_many.o \
	src/store/sql_sweep.o \
	src/store/store.o \
	src/store/whitelist.o \
	src/sweep/launcher.o \
	src/sweep/sweep.o \
	src/sweep/task.o \
	src/sweep/worker.o

EXTENSION = idempotency
DATA = idempotency--1.0.sql
PGFILEDESC = "idempotency - requests that are safe to repeat"

# Nothing leaves the library but what is marked for it.  From 16 on the server's
# own makefiles and headers see to that; those of 15 hide nothing, and leave
# PGDLLEXPORT empty, which fmgr.h marks the entry points with.
PG_CFLAGS = -fvisibility=hidden
PG_CPPFLAGS = -I$(srcdir) -I$(srcdir)/src \
	-DPGDLLEXPORT='__attribute__((visibility("default")))'

# The first has what the others share; for one alone, name both.
REGRESS = \
	setup \
	canonical \
	claim \
	claim_outcome \
	claim_times \
	claim_format \
	claim_policy \
	finish \
	finish_body \
	finish_holder \
	finish_lease \
	unfinished \
	recover \
	operator \
	operator_find \
	run \
	run_error \
	run_once \
	dedupe \
	lookup \
	policy \
	policy_effect \
	audit \
	audit_append_only \
	helpers \
	context \
	http \
	http_run \
	http_refused \
	http_args \
	sweep \
	throttle \
	settings \
	members \
	shop \
	errors \
	errors_rows
REGRESS_OPTS = --encoding=UTF8
# So it is with the specs.
ISOLATION = \
	spec-setup \
	claim-two \
	claim-two-ends \
	claim-sweep \
	sweep-open \
	sweep-open-direct \
	sweep-changed \
	claim-takeover \
	recover-two \
	unfinished-claim \
	claim-takeover-open \
	claim-isolation \
	claim-isolation-row \
	claim-skew \
	claim-wait \
	claim-cap \
	claim-order \
	claim-own \
	claim-same \
	claim-same-wait \
	claim-serializable \
	claim-dedupe \
	claim-dedupe-waits \
	direct-new-key \
	direct-expired-key \
	direct-leased-key \
	direct-old-snapshot \
	direct-old-snapshot-row \
	direct-wait-polls \
	finish-savepoint \
	finish-prepared \
	finish-prepared-lock \
	finish-unseen \
	finish-unseen-run \
	finish-unseen-change \
	run-two \
	run-claim \
	run-nested \
	run-dedupe \
	run-dedupe-expired \
	http-two \
	dedupe-order \
	dedupe-sweep \
	dedupe-late \
	dedupe-many \
	ways-claim \
	ways-run \
	ways-consume \
	ways-dedupe \
	ways-expired \
	ways-leased \
	ways-recover \
	ways-change \
	ways-change-run \
	release-claim \
	policy-change \
	secret-rotation \
	policy-create \
	lock-timeout \
	lock-timeout-claim \
	holder \
	operator-forget
# of these, those that are about the direct way or both; in the others a step
# that takes the direct way is called ..._direct
BOTH_WAYS = \
	sweep-open-direct \
	direct-new-key \
	direct-expired-key \
	direct-leased-key \
	direct-old-snapshot \
	direct-old-snapshot-row \
	direct-wait-polls \
	ways-claim \
	ways-run \
	ways-consume \
	ways-dedupe \
	ways-expired \
	ways-leased \
	ways-recover \
	ways-change \
	ways-change-run
ISOLATION_OPTS = --load-extension=pgcrypto --load-extension=idempotency
TAP_TESTS = 1

# Programs without a server.
UNIT = \
	test/unit/canonical \
	test/unit/decide \
	test/unit/lifetime \
	test/unit/shares \
	test/unit/token_bucket

EXTRA_CLEAN = $(UNIT) idempotency-*.zip

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# For src/base/digest.c, where the server has its digests from OpenSSL.
SHLIB_LINK += $(filter -lcrypto, $(LIBS))

HEADERS = $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h)

# Built in another folder (VPATH), which has no wings yet.
$(shell mkdir -p $(dir $(OBJS)))

$(OBJS): $(HEADERS)

.PHONY: unit
unit: $(UNIT)

test/unit/canonical: src/key/canonical.c
test/unit/decide: src/key/decide.c
test/unit/lifetime: src/key/lifetime.c
test/unit/shares: src/limit/shares.c
test/unit/token_bucket: src/limit/token_bucket.c

$(UNIT): %: %.c $(HEADERS) $(wildcard $(srcdir)/test/unit/*.h)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CPPFLAGS) -o $@ $(filter %.c,$^)

# The archive for PGXN, of what is committed.
DISTRIBUTION = idempotency-$(shell sed -n '0,/"version"/s/.*"version": "\(.*\)".*/\1/p' $(srcdir)/META.json)

.PHONY: dist
dist:
	git -C $(srcdir) archive --format=zip --prefix=$(DISTRIBUTION)/ \
		--output="$(CURDIR)/$(DISTRIBUTION).zip" HEAD
