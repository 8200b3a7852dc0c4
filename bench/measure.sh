# measure.sh - how bench/run measures; sourced by it.
#
# A script is named by folder and file, like peers/bare.  @direct or @sql after
# it is the way to storage; clients/NAME is a contender of peers/clients.py.
#
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154	# variables are shared with bench/run and groups.sh

fewer=$(((rounds + 2) / 3))	# rounds of sweep
few=$(((rounds + 4) / 5))	# rounds of the groups of many points
scripts=			# folder of the scripts that are run
ways=()				# ways to storage that this build has
declare -A in_force=()	# the one in force, by database
declare -A values=()	# of variables in scripts, besides the usual ones

stored_purge=		# purge_at of the last stored key of database bench
stored_until=		# and its expires_at

# What the last run left.
tps=				# transactions a second
transactions=		# how many there were
distinct=			# keys that were asked for, if the clients counted them
idle=				# percentage of processor time that nobody used

psql_quietly() {
	"$PG_BIN/psql" -qAtX -v ON_ERROR_STOP=1 "$@"
}

# The scripts, and those made of them: 100 of a kind in a pipeline.
prepare_scripts() {
	local script i

	scripts=$WORK/scripts
	mkdir "$scripts"
	cp -R "$BENCH/ours" "$BENCH/peers" "$scripts"
	for script in ours/replay peers/select; do
		{
			printf '%s\n' '\startpipeline'
			for ((i = 0; i < 100; i++)); do
				cat "$scripts/$script.sql"
			done
			printf '%s\n' '\endpipeline'
		} >"$scripts/${script}_pipeline.sql"
	done
}

# A database with stored keys: make_database NAME KEYS PEERS, where PEERS says
# whether the peers' tables are made, too, 0 or 1.
make_database() {
	say "database $1: storing $2 keys"
	"$PG_BIN/createdb" "$1"
	psql_quietly -v keys="$2" -v skus="$skus" -v peers="$3" -d "$1" \
		-f "$BENCH/setup.sql" >/dev/null
}

# Columns that one row has and the other has not, which then do not take the same
# room: differing_columns TABLE CONDITION TABLE CONDITION.
differing_columns() {
	psql_quietly -d bench <<-END
		SELECT string_agg(name, ' ') FROM (
			SELECT name FROM (
				(SELECT to_jsonb(r) AS columns FROM $1 r WHERE $2 LIMIT 1)
				UNION ALL (SELECT to_jsonb(r) FROM $3 r WHERE $4 LIMIT 1)) AS two,
				jsonb_object_keys(jsonb_strip_nulls(columns)) AS name
			GROUP BY name HAVING count(*) = 1) AS alone
	END
}

# The ways that this build has, and that they are two, as idem_health() tells.
choose_ways() {
	local direct

	ways=(sql)
	[[ $(psql_quietly -d bench -c "LOAD 'idempotency'" -c "SELECT count(*)
		FROM pg_settings WHERE name = 'idempotency.storage'") == 1 ]] || return 0
	ways=(direct sql)
	direct=$(storage_way bench)
	use_way bench @sql
	[[ $direct != "$(storage_way bench)" ]] || die "storage goes the SQL way here in any case: $direct"
}

# storage_way DATABASE
storage_way() {
	psql_quietly -d "$1" -c "SELECT detail FROM idem_health() WHERE check_name = 'storage'"
}

# New connections to a database take the way of a script, or the extension's
# own choice: use_way DATABASE SCRIPT.
use_way() {
	local setting=auto

	((${#ways[@]} > 1)) || return 0
	[[ $2 != *@sql ]] || setting=sql
	[[ ${in_force[$1]:-auto} != "$setting" ]] || return 0
	psql_quietly -d postgres -c "ALTER DATABASE $1 SET idempotency.storage = '$setting'"
	in_force[$1]=$setting
}

# Set $each to a script in all ways: in_each_way SCRIPT.
in_each_way() {
	each=("${ways[@]/#/$1@}")
}

# Ticks of processor time so far: idle ones, and all.
processor_time() {
	awk '/^cpu / { print $5 + $6, $2 + $3 + $4 + $5 + $6 + $7 + $8 + $9 }' /proc/stat
}

# What the last run said about itself.
said() {
	sed -n "s/^$1\([0-9.]*\).*/\1/p" "$WORK/run.out"
}

# One run: run_script DATABASE SCRIPT CLIENTS [OPTION OF PGBENCH...]
run_script() {
	local database=$1 script=${2%@*} clients=$3 command name
	local options=(-U app -c "$clients" -D keys="$keys" -D skus="$skus")
	local idle_before all_before idle_after all_after

	use_way "$database" "$2"
	for name in "${!values[@]}"; do
		options+=(-D "$name=${values[$name]}")
	done
	if [[ $script == clients/* ]]; then
		command=("$python" -B "$scripts/peers/clients.py" "${options[@]}"
			--redis "$WORK/redis.socket" "${@:4}" "${script#*/}" "$database")
	else
		command=("$PG_BIN/pgbench" -n -M prepared "${options[@]}"
			-j "$((clients < cores ? clients : cores))" -f "$scripts/$script.sql"
			"${@:4}" "$database")
	fi

	read -r idle_before all_before < <(processor_time)
	if ! "${command[@]}" >"$WORK/run.out" 2>&1; then
		tail -n 20 "$WORK/run.out"
		die "$2 failed"
	fi
	read -r idle_after all_after < <(processor_time)
	idle=$(((idle_after - idle_before) * 100 / (all_after - all_before + 1)))
	tps=$(said 'tps = ')
	transactions=$(said 'number of transactions actually processed: ')
	distinct=$(said 'number of keys: ')
}

# Remember a number: record GROUP PARAMETER SCRIPT ROUND VALUE [IDLE].
record() {
	local IFS=,
	echo "$1,$2,$3,$4,$5,${6:-}" >>"$out/runs.csv"
	printf '  %s%s %s, round %s: %s\n' "$1" "${2:+ $2}" "$3" "$4" "$5"
}

# When the last key of a database is to be purged: those of measurements have a
# later time there.
last_purge() {
	psql_quietly -d "$1" -c 'SELECT max(purge_at) FROM idempotency_keys'
}

# Remember which keys the database bench has stored.
remember_stored() {
	stored_purge=$(last_purge bench)
	stored_until=$(psql_quietly -d bench -c 'SELECT max(expires_at) FROM peer_requests')
}

# Remove those that came since, so that no group has more keys than another.
remove_others() {
	psql_quietly -d bench -c 'SET synchronous_commit = off' \
		-c "DELETE FROM idempotency_keys WHERE purge_at > '$stored_purge'" \
		-c "DELETE FROM peer_requests WHERE expires_at > '$stored_until'" \
		-c "DELETE FROM peer_leases WHERE expires_at > '$stored_until'" \
		-c "DELETE FROM peer_keys WHERE scope <> 'bench'"
}

between_groups() {
	psql_quietly -d "$1" -c 'VACUUM ANALYZE' -c CHECKPOINT
}

# How often the work was done, or refused, so far.
effects() {
	psql_quietly -d "$1" -c 'SELECT sum(1000000000 - quantity)
		+ (SELECT count(*) FROM refusals) FROM stock'
}

# expect_effects DATABASE NUMBER
expect_effects() {
	[[ $(effects "$1") == "$2" ]] || die "the work was not done once for each request"
}

# The scripts one after the other, round after round:
# interleave GROUP PARAMETER DATABASE CLIENTS EFFECTS SCRIPT...
# EFFECTS is how often each transaction does the work, 0 or 1: that it was so
# is checked.
interleave() {
	local group=$1 parameter=$2 database=$3 clients=$4 per_transaction=$5
	local expected round script
	shift 5

	between_groups "$database"
	expected=$(effects "$database")
	for script; do
		run_script "$database" "$script" "$clients" -T 1
		expected=$((expected + per_transaction * transactions))
	done
	for ((round = 1; round <= rounds; round++)); do
		for script; do
			measure "$group" "$parameter" "$database" "$clients" "$script" "$round"
			expected=$((expected + per_transaction * transactions))
		done
	done
	expect_effects "$database" "$expected"
}

# One run that counts, with a log of each transaction's latency:
# measure GROUP PARAMETER DATABASE CLIENTS SCRIPT ROUND [OPTION OF PGBENCH...]
measure() {
	local length=(-T "$seconds")

	(($# == 6)) || length=("${@:7}")
	run_script "$3" "$5" "$4" "${length[@]}" --log \
		--log-prefix "$WORK/log/$1,$2,${5//\//.},$6,"
	record "$1" "$2" "$5" "$6" "$tps" "$idle"
}
