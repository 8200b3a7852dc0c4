# example.sh - what examples/NAME/run has in common; to be sourced.
#
# begin_example NAME [PACKAGE...] installs the Debian packages that are missing,
# builds and installs the extension unless it is installed, and starts a cluster NAME of its own with it preloaded: in
# PGHOST, PGPORT and PGUSER, see start_cluster in scripts/lib.sh.  The example's
# files are then in $EXAMPLE, a copy that the unprivileged user may write to.
# NN in the name of a package stands for the major of the server.  What is in
# the array SETTINGS is added to postgresql.conf, and overrides ours.
#
# run_example COMMAND... runs the example itself as that user, and ends with its
# exit status; what was started is stopped at the end, whatever happens.
#
# shellcheck shell=bash

# shellcheck source-path=SCRIPTDIR source=../../scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

EXAMPLE=            # folder of the example's copy
SETTINGS=()         # of the cluster, besides ours

begin_example() {
	local name=$1
	shift

	choose_postgres python3
	need "${@//NN/$PG_MAJOR}"
	make_work
	provide_extension
	EXAMPLE=$WORK/src/examples/$name
	start_cluster "$name" 'max_connections = 300' 'fsync = off' \
		"shared_preload_libraries = 'idempotency'" "${SETTINGS[@]}"
}

# Run the SQL of a file in a new database: load_schema DATABASE FILE
load_schema() {
	as_user "$PG_BIN/createdb" "$1"
	quietly "$WORK/schema.log" as_user "$PG_BIN/psql" --no-psqlrc --quiet \
		--set ON_ERROR_STOP=1 --dbname "$1" --file "$2" || die "could not load $2"
}

run_example() {
	run_long env -C "$EXAMPLE" PYTHONPATH="$WORK/src/examples/lib" \
		PYTHONDONTWRITEBYTECODE=1 WORK="$WORK" "$@"
}
