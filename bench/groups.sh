# groups.sh - the groups of bench/run; sourced by it.
#
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154	# variables are shared with bench/run and measure.sh

run_replay() {
	in_each_way ours/replay
	interleave replay '' bench "$cores" 0 "${each[@]}" peers/select ours/replay_request \
		peers/select_stored
	count_writes "${each[@]}" peers/select
}

# Transaction ids and WAL positions used so far.
used() {
	psql_quietly -d bench -F ' ' -c "SELECT pg_snapshot_xmax(pg_current_snapshot()),
		pg_current_wal_insert_lsn() - '0/0'"
}

# What replays and SELECTs write, by 2,000 transactions each.  The first
# readers after a VACUUM or a change of settings may tidy up pages of the
# catalogs.
count_writes() {
	local round script xid wal xid_before wal_before

	between_groups bench
	for script; do
		run_script bench "$script" 1 -t 2000
		for ((round = 1; round <= rounds; round++)); do
			read -r xid_before wal_before < <(used)
			run_script bench "$script" 1 -t 2000
			read -r xid wal < <(used)
			record xids '' "$script" "$round" $((xid - xid_before))
			record wal '' "$script" "$round" $((wal - wal_before))
		done
	done
}

run_pipeline() {
	in_each_way ours/replay_pipeline
	interleave pipeline '' bench "$cores" 0 "${each[@]}" peers/select_pipeline
}

run_durable() {
	in_each_way ours/run
	interleave durable '' bench 8 1 "${each[@]}" peers/bare
}

# The same with each fdatasync of the server 2 ms longer.
run_disk() {
	as_user "${CC:-gcc}" -O2 -shared -fPIC -o "$WORK/slow_disk.so" \
		"$WORK/src/bench/slow_disk.c" -ldl || die "could not compile slow_disk.c"
	restart_cluster LD_PRELOAD="$WORK/slow_disk.so"
	in_each_way ours/run
	interleave disk '' bench 8 1 "${each[@]}" peers/bare
	restart_cluster
}

# With these variables in its environment.
restart_cluster() {
	quietly "$WORK/restart.log" as_user env "$@" "$PG_BIN/pg_ctl" -D "$WORK/bench" -w -t 120 \
		-l "$WORK/bench.log" restart || die "the cluster did not start again"
}

# Other settings than those it was made with, or none: change_settings SETTING...
change_settings() {
	local setting

	psql_quietly -d postgres -c 'ALTER SYSTEM RESET ALL'
	for setting; do
		psql_quietly -d postgres -c "ALTER SYSTEM SET $setting"
	done
	restart_cluster
}

# Processor time: nothing waits for the disk.
run_cpu() {
	local ours by

	export PGOPTIONS='-c synchronous_commit=off'
	in_each_way ours/run
	ours=("${each[@]}")
	in_each_way ours/run_json
	interleave cpu '' bench "$cores" 1 "${ours[@]}" "${each[@]}" peers/bare peers/plpgsql
	for by in "${ours[@]}"; do
		count_dead "$by"
	done
	unset PGOPTIONS
}

run_statements() {
	local by

	export PGOPTIONS='-c synchronous_commit=off'
	in_each_way ours/statements
	interleave statements '' bench "$cores" 1 "${each[@]}" peers/statements
	for by in "${each[@]}"; do
		count_hot "$by"
	done
	unset PGOPTIONS
}

# All commits are flushed: ours flushes that of a lease whatever
# synchronous_commit says, so the peer must, too.
run_leased() {
	in_each_way ours/leased
	interleave leased '' bench 8 0 "${each[@]}" peers/leased
}

# A counter of the key table, once all backends have told theirs.
counter() {
	sleep 1
	psql_quietly -d bench -c "SELECT $1 FROM pg_stat_user_tables
		WHERE relid = 'idempotency_keys'::regclass"
}

# Dead tuples that executed calls leave.
count_dead() {
	local before after

	between_groups bench
	before=$(counter n_dead_tup+0)
	run_script bench "$1" 1 -t 2000
	after=$(counter n_dead_tup)
	record dead '' "$1" 1 $((after - before))
}

# How claims are completed.
count_hot() {
	local before after

	before=$(counter "n_tup_upd || ' ' || n_tup_hot_upd")
	run_script bench "$1" 1 -t 2000
	after=$(counter "n_tup_upd || ' ' || n_tup_hot_upd")
	record updates '' "$1" 1 $((${after% *} - ${before% *}))
	record hot '' "$1" 1 $((${after#* } - ${before#* }))
}

# Bytes of heap and indexes for each of a million keys, in tables that were
# empty, without a VACUUM.
run_bytes() {
	local script table

	make_database bytes 0 1
	export PGOPTIONS='-c synchronous_commit=off'
	for script in ours/bytes peers/bytes; do
		table=peer_requests
		[[ $script != ours/* ]] || table=idempotency_keys
		run_script bytes "$script" "$cores" -t $((executed / cores))
		record bytes '' "$script" 1 "$(psql_quietly -d bytes -c "SELECT round((pg_relation_size('$table')
			+ pg_indexes_size('$table'))::numeric / count(*), 1) FROM $table")"
	done
	unset PGOPTIONS
	[[ $(psql_quietly -d bytes -c 'SELECT max(octet_length(body)) FROM idempotency_keys') == 50 ]] ||
		die "the answers do not have 50 bytes"
	"$PG_BIN/dropdb" bytes
}

# What the log costs, and sealing it once a second: the worker does it each half
# minute.
run_audit() {
	local sealer round script

	psql_quietly -d bench -c "SELECT idem_policy('audited', audit => true)" >/dev/null
	between_groups bench
	export PGOPTIONS='-c synchronous_commit=off'
	for ((round = 1; round <= rounds; round++)); do
		for script in ours/run ours/audit ours/audit_sealed; do
			sealer=
			if [[ $script == ours/audit_sealed ]]; then
				psql_quietly -d bench -c 'SELECT idem_audit_seal()' >/dev/null
				"$PG_BIN/psql" -qAtX -d bench <<<'SELECT idem_audit_seal() \watch 1' >/dev/null &
				sealer=$!
			fi
			measure audit '' bench "$cores" "$script" "$round"
			[[ -z $sealer ]] || kill "$sealer"
		done
	done
	unset PGOPTIONS
	psql_quietly -d bench -c 'SELECT idem_audit_seal()' >/dev/null
	[[ -z $(psql_quietly -d bench -c 'SELECT * FROM idem_audit_verify()') ]] ||
		die "the seals do not verify"
}

run_dedupe() {
	local differ

	export PGOPTIONS='-c synchronous_commit=off'
	interleave dedupe '' bench 1 0 ours/dedupe peers/insert
	unset PGOPTIONS
	differ=$(differing_columns idempotency_keys "scope = 'inbox'" peer_keys "scope = 'inbox'")
	[[ -z $differ ]] || die "peers/insert.sql does not store what idem_dedupe does: $differ"
}

# Before 17 buckets need the library to be preloaded.
run_throttle() {
	as_user "${CC:-gcc}" -O2 -shared -fPIC -o "$WORK/empty.so" \
		-I "$("$PG_CONFIG" --includedir-server)" "$WORK/src/bench/empty.c" ||
		die "could not compile empty.c"
	change_settings "shared_preload_libraries = 'idempotency'"
	psql_quietly -d bench -c "CREATE FUNCTION empty(limiter text, subject text, cost integer DEFAULT 1)
			RETURNS TABLE (allowed boolean, remaining integer, retry_after_ms bigint)
			AS '$WORK/empty.so' LANGUAGE C ROWS 1" \
		-c "SELECT idem_limiter('bench', 20, '1 min', '1 s', '10 min')" >/dev/null
	interleave throttle '' bench "$cores" 0 ours/throttle peers/empty
	interleave subjects '' bench 64 0 ours/throttle_one ours/throttle
	psql_quietly -d bench -c 'DROP FUNCTION empty'
	change_settings
}

# Rows a second of one pass over a table with expired rows beside stored ones.
sweep() {
	local from=$EPOCHREALTIME to

	psql_quietly -d bench -f "$BENCH/$1.sql"
	to=$EPOCHREALTIME
	echo "$swept * 1000000 / (${to/./} - ${from/./})" | bc
}

run_sweep() {
	local rounds=$fewer round script table

	in_each_way ours/sweep
	for ((round = 1; round <= rounds; round++)); do
		for script in "${each[@]}" peers/delete; do
			table=peer_keys
			[[ $script != ours/* ]] || table=idempotency_keys
			psql_quietly -d bench -c 'SET synchronous_commit = off' \
				-c "CALL fill('$table', 'sweep', 1, $swept, $swept, '-1 day')"
			between_groups bench
			use_way bench "$script"
			record sweep '' "$script" "$round" "$(sweep "${script%@*}")"
			[[ $(psql_quietly -d bench -c "SELECT count(*) FROM $table
				WHERE scope = 'sweep'") == 0 ]] || die "$script left rows"
		done
	done
}

# Executed requests of more and more clients, durable commits.
run_peers() {
	local rounds=$few count ours

	in_each_way ours/run
	ours=("${each[@]}")
	in_each_way ours/statements
	for count in "${counts[@]}"; do
		interleave peers "$count" bench "$count" 1 "${ours[@]}" "${each[@]}" peers/bare \
			peers/plpgsql peers/statements peers/advisory
	done
}

# The same by clients in Python.
run_clients() {
	local rounds=$few count

	for count in "${counts[@]}"; do
		interleave clients "$count" bench "$count" 1 clients/run clients/bare \
			clients/store clients/redis
	done
}

# In the temporary folder, without persistence: nothing waits for a disk there.
start_redis() {
	local try

	as_user redis-server --port 0 --unixsocket "$WORK/redis.socket" --dir "$WORK" \
		--save '' --appendonly no --pidfile "$WORK/redis.pid" >"$WORK/redis.log" 2>&1 &
	for ((try = 0; try < 100; try++)); do
		[[ ! -s $WORK/redis.pid || ! -S $WORK/redis.socket ]] || break
		sleep 0.1
	done
	((try < 100)) || die "Redis did not start"
	redis=$(<"$WORK/redis.pid")
}

at_exit() {
	[[ -z $redis ]] || kill "$redis" 2>/dev/null || true
}

# How often the work was done and how many keys there are, when all ask for
# one.  Only Redis keeps its keys elsewhere.
contended() {
	psql_quietly -d bench -F ' ' -c "SELECT (SELECT 1000000000 - quantity FROM stock WHERE sku = 1),
		(SELECT count(*) FROM idempotency_keys WHERE scope LIKE 'contention%')
		+ (SELECT count(*) FROM peer_requests WHERE scope LIKE 'contention%')"
}

# All ask for one key.  Who promises it does the work once for each key.
run_contention() {
	local rounds=$few round script ours done_before done_after keys_before keys_after

	in_each_way ours/contend
	ours=("${each[@]}")
	in_each_way ours/contend_statements
	between_groups bench
	for ((round = 1; round <= rounds; round++)); do
		for script in "${ours[@]}" "${each[@]}" peers/contend_plpgsql peers/contend_advisory \
			clients/contend_run clients/contend_store clients/contend_redis; do
			read -r done_before keys_before < <(contended)
			measure contention '' bench 64 "$script" "$round"
			read -r done_after keys_after < <(contended)
			done_after=$((done_after - done_before))
			keys_after=$((keys_after - keys_before))
			[[ $script != clients/contend_redis ]] || keys_after=$distinct
			record effects '' "$script" "$round" "$done_after"
			record keys '' "$script" "$round" "$keys_after"
			[[ $done_after == "$keys_after" || $script == clients/contend_store ]] ||
				die "$script did the work $done_after times for $keys_after keys"
		done
	done
}

# Answers of many bytes: executed, and replayed.
run_body() {
	local rounds=$few size ours

	make_database body 1000 0
	psql_quietly -d body -v bodies="$bodies" -f "$BENCH/peers/body_function.sql" >/dev/null
	export PGOPTIONS='-c synchronous_commit=off'
	values[bodies]=$bodies
	for size in 100 10000 1000000; do
		values[bytes]=$size
		in_each_way ours/body
		interleave body "$size" body "$cores" 1 "${each[@]}" peers/body_bare peers/body_plpgsql
		in_each_way ours/body_replay
		interleave body "$size" body "$cores" 0 "${each[@]}" peers/body_select
	done
	values=()
	unset PGOPTIONS
	"$PG_BIN/dropdb" body
}

# Few and many stored keys.  The few stay few: what is executed is removed.
run_size() {
	local rounds=$few keys size room script ours round purge

	in_each_way ours/run
	ours=("${each[@]}")
	in_each_way ours/replay
	for size in "${sizes[@]}"; do
		room=$(df --output=avail -k "$WORK" | tail -n 1)
		if ((room < 20000000 + 2 * size)); then
			echo "$size stored keys are left out: no room on the disk" | tee -a "$out/machine.txt"
			continue
		fi
		make_database stored "$size" 0
		keys=$size
		purge=$(last_purge stored)
		for script in "${each[@]}" peers/select; do
			run_script stored "$script" "$cores" -T "$seconds"
		done
		interleave size "$size" stored "$cores" 0 "${each[@]}" peers/select
		export PGOPTIONS='-c synchronous_commit=off'
		for ((round = 0; round <= rounds; round++)); do
			for script in "${ours[@]}" peers/bare; do
				execute_and_remove "$size" "$script" "$round" "$purge"
			done
		done
		unset PGOPTIONS
		"$PG_BIN/dropdb" stored
		unset 'in_force[stored]'
	done
}

# 10,000 new requests; round 0 is not counted:
# execute_and_remove SIZE SCRIPT ROUND PURGE.
execute_and_remove() {
	local done_before

	done_before=$(effects stored)
	if (($3 == 0)); then
		run_script stored "$2" "$cores" -t $((10000 / cores))
	else
		measure size "$1" stored "$cores" "$2" "$3" -t $((10000 / cores))
	fi
	expect_effects stored $((done_before + transactions))
	remove_executed stored "$4"
}

# remove_executed DATABASE PURGE
remove_executed() {
	psql_quietly -d "$1" -c "DELETE FROM idempotency_keys WHERE purge_at > '$2'" \
		-c 'VACUUM idempotency_keys, stock'
}
