# scale.sh - the group scale of bench/run: many stored keys; sourced by it.
#
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154	# variables are shared with bench/run and the others

# Gigabytes that a database with so many keys takes, ours and those of the
# hand-written function, by those of database bench: a seventh more, for the
# indexes are sorted on disk, and WAL.
disk_needed() {
	psql_quietly -d bench -c "SELECT ceil((1.14 * bytes + least(bytes, pg_size_bytes('10GB'))) / 1e9)
		FROM (SELECT (pg_total_relation_size('idempotency_keys')
			+ pg_total_relation_size('peer_requests'))::numeric / $keys * $many) AS all_keys (bytes)"
}

# Refuse before anything is measured.
check_room() {
	local needed free

	needed=$(disk_needed)
	free=$(($(df --output=avail -B 1 "$WORK" | tail -n 1) / 1000000000))
	say "scale: $many stored keys need $needed GB of disk, $free GB are free in ${WORK%/*}"
	((free >= needed)) || die "not enough room on the disk for $many keys"
}

# Many keys beside the million of database bench: ours must suffer from them
# little more than the peers, which look into no key table, or into the same, or
# into one of their own.  Buffers take a quarter of the memory, as in a server of
# that size.
run_scale() {
	load_many
	change_settings "min_wal_size = '10GB'" "max_wal_size = '10GB'" \
		"shared_buffers = '$(awk '/^MemTotal/ { print int($2 / 4096) }' /proc/meminfo)MB'"
	recycle_wal
	[[ ${ways[0]} == sql || $(storage_way scale) == direct:* ]] ||
		die "after the keys were loaded: $(storage_way scale)"
	psql_quietly -d bench -c 'CREATE EXTENSION IF NOT EXISTS pg_prewarm' -c 'VACUUM ANALYZE'
	psql_quietly -d scale -c 'CREATE EXTENSION pg_prewarm'
	export PGOPTIONS='-c synchronous_commit=off'
	by_turns scale "$rounds" 0 idempotency_keys_pkey ours/replay peers/select
	by_turns scale "$rounds" 1 idempotency_keys_pkey ours/run peers/bare ours/run_growing
	# the two primary keys would not find room together
	by_turns scale_peer "$fewer" 1 peer_requests_pkey peers/plpgsql peers/bare
	psql_quietly -d postgres -c 'ALTER SYSTEM SET wal_compression = lz4' -c CHECKPOINT \
		-c 'SELECT pg_reload_conf()' >/dev/null
	by_turns scale_lz4 "$fewer" 1 idempotency_keys_pkey ours/run peers/bare
	unset PGOPTIONS
	"$PG_BIN/dropdb" scale
	change_settings
}

# A server that has run for a while has its segments of WAL, and makes no new ones.
recycle_wal() {
	psql_quietly -d bench -c "SELECT count(pg_logical_emit_message(false, '', repeat('x', 1000000)))
		FROM generate_series(1, 8000)" -c CHECKPOINT >/dev/null
}

# Without WAL, into a table without indexes.  They are made after it, as full as
# indexes are into which random keys came one by one.
load_many() {
	local start=$SECONDS

	change_settings 'wal_level = minimal' 'max_wal_senders = 0' "maintenance_work_mem = '1GB'"
	make_database scale 0 1
	say "storing $many keys in it"
	load_statements | psql_quietly -d scale
	psql_quietly -d scale -c "SELECT 'scale: $many stored keys, heap '
		|| pg_size_pretty(pg_relation_size('idempotency_keys')) || ', indexes '
		|| pg_size_pretty(pg_indexes_size('idempotency_keys'))
		|| ', loaded in $(((SECONDS - start + 59) / 60)) min; a quarter of the memory for shared_buffers'" |
		tee -a "$out/machine.txt"
}

load_statements() {
	local first

	cat <<-'END'
		BEGIN;
		TRUNCATE idempotency_keys;
		ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey;
		DROP INDEX idempotency_keys_purge_at;
	END
	for ((first = 1; first <= many; first += 1000000)); do
		echo "CALL fill('idempotency_keys', 'bench', $first, least($first + 999999, $many), $many);"
	done
	cat <<-'END'
		ALTER TABLE idempotency_keys
			ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key) WITH (fillfactor = 70);
		ALTER INDEX idempotency_keys_pkey RESET (fillfactor);
		CREATE INDEX idempotency_keys_purge_at ON idempotency_keys (purge_at);
		COMMIT;
		BEGIN;
		TRUNCATE peer_requests;
		ALTER TABLE peer_requests DROP CONSTRAINT peer_requests_pkey;
		DROP INDEX peer_requests_expires_at_idx;
		INSERT INTO peer_requests
			SELECT scope, key, fingerprint, convert_from(body, 'UTF8')::jsonb, expires_at
			FROM idempotency_keys;
		ALTER TABLE peer_requests
			ADD CONSTRAINT peer_requests_pkey PRIMARY KEY (scope, key) WITH (fillfactor = 70);
		ALTER INDEX peer_requests_pkey RESET (fillfactor);
		CREATE INDEX ON peer_requests (expires_at);
		COMMIT;
		VACUUM ANALYZE;
		CHECKPOINT;
	END
}

# The scripts in both databases, round after round; round 0 is not counted.  The
# index is read into the buffers first: by_turns GROUP ROUNDS EFFECTS INDEX SCRIPT...
by_turns() {
	local group=$1 last=$2 effects=$3 index=$4 round database script
	local -A stored=([bench]=$keys [scale]=$many)
	shift 4

	for database in bench scale; do
		psql_quietly -d "$database" -c "SELECT pg_prewarm('$index')" >/dev/null
	done
	for ((round = 0; round <= last; round++)); do
		for database in bench scale; do
			for script; do
				run_among "$group" "${stored[$database]}" "$database" "$script" "$round" "$effects"
			done
			psql_quietly -d "$database" -c 'VACUUM stock'
		done
		remove_executed bench "$stored_purge"
	done
}

# A run among stored keys, and its bytes of WAL for each transaction:
# run_among GROUP KEYS DATABASE SCRIPT ROUND EFFECTS
run_among() {
	local keys=$2 before wal

	before=$(effects "$3")
	wal=$(wal_written)
	if (($5 == 0)); then
		run_script "$3" "$4" "$cores" -T "$seconds"
	else
		measure "$1" "$keys" "$3" "$cores" "$4" "$5"
		record "$1_wal" "$keys" "$4" "$5" $((($(wal_written) - wal) / transactions))
	fi
	expect_effects "$3" $((before + $6 * transactions))
}

wal_written() {
	psql_quietly -d postgres -c "SELECT pg_current_wal_insert_lsn() - '0/0'"
}
