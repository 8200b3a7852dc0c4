#!/usr/bin/env bash
# lib.sh - what scripts/test, scripts/demo, scripts/indent, bench/run and
# tools/valgrind share.
#
# Sourced, not run.  It chooses a PostgreSQL, installs missing Debian packages,
# the headers in the server's own version, builds and installs the extension out
# of a copy of the tree, and runs throwaway clusters on a unix socket in a
# temporary folder.  Clusters of the machine are neither created, started,
# restarted nor stopped.
#
#   PG_MAJOR     the major to use; else that of PG_CONFIG, else the newest
#                server installed, else Debian's default
#   PG_CONFIG    a pg_config, also one outside Debian's folders
#   STORAGE      auto, or sql: the way to the key table in the clusters of
#                tests, see idempotency.storage; or partitioned: auto, with a
#                key table in partitions; auto unless told
#   SKIP_INSTALL set to 1: install no package, take the machine as it is
#   EXTENSION_INSTALLED
#                set to 1: the extension is in the server's folders, as of a
#                package; nothing is built, and no headers are needed
#   KEEP         set to 1: leave the temporary folder and its clusters
#
# A script which sources this gets: $TOP, choose_postgres, need, make_work
# ($WORK, which becomes the working directory), as_user, run_long,
# provide_extension, wrap_server, start_cluster, stop_cluster, and an exit trap
# which stops what was started.  If it defines at_exit, that is called last, with
# the exit status.

# shellcheck disable=SC2034		# the variables are for those who source this

set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=                # the temporary folder
RUNNER=              # process group of a runner that is under way
AS_USER=()           # prefix that makes a command unprivileged
SERVER=              # program to start in place of the server, if any

# Debian packages by purpose; the server and its headers come on top.
BUILD_PACKAGES=(make gcc libc6-dev)
TEST_PACKAGES=(perl libipc-run-perl pgbouncer python3 nodejs)

# Nothing of the caller's session may lead us to another server or build.
for name in ${!PG@}; do
	case $name in
		PG_*) ;;
		*) unset "$name" ;;
	esac
done
unset name MAKEFLAGS MAKELEVEL CDPATH
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

say() {
	printf '== %s\n' "$*"
}

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# The server would take any word: it does not know the setting until our
# library is loaded.
export STORAGE=${STORAGE:-auto}
[[ $STORAGE == auto || $STORAGE == sql || $STORAGE == partitioned ]] ||
	die "STORAGE is auto, sql or partitioned, not $STORAGE"

# Run a command, quietly unless it fails: quietly LOG COMMAND...  What matters
# in a long log is its begin, for a compiler, or its end, for others.
quietly() {
	local log=$1
	shift
	if ! "$@" >"$log" 2>&1 </dev/null; then
		awk '{ line[NR] = $0 }
			END { for (i = 1; i <= NR; i++) if (i <= 30 || i > NR - 30) print line[i]
				else if (i == 31) print "[...]" }' "$log" >&2
		return 1
	fi
}

as_root() {
	if ((EUID == 0)); then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo -- "$@"
	else
		die "this needs root, and there is no sudo: $*"
	fi
}

as_user() {
	"${AS_USER[@]}" "$@"
}

##
## Packages
##

installed() {
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

package_version() {
	dpkg-query -W -f '${Version}' "$1" 2>/dev/null || true
}

apt() {
	as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
		apt-get -qy --no-install-recommends -o DPkg::Lock::Timeout=300 \
		-o APT::Get::Upgrade-By-Source-Package=false "$@"
}

# Install packages without the side effects Debian gives to servers: no cluster
# "main" is made, and no service is started or restarted.  Two files say so for
# the time of the installation; a subshell, for its trap to remove them always.
#
# An installed server stays at its version unless it is named: apt is told to
# leave out other packages of the same source, which it would lift along.
apt_install() (
	clusters=/etc/postgresql-common/createcluster.d
	policy=/usr/sbin/policy-rc.d
	ours=("$clusters/idempotency.conf")
	log=$(mktemp)
	trap 'rm -f "$log"; as_root rm -rf "${ours[@]}"' EXIT

	[[ -e $clusters ]] || ours+=("$clusters")
	as_root mkdir -p "$clusters"
	echo 'create_main_cluster = false' | as_root tee "${ours[0]}" >/dev/null
	if [[ ! -e $policy ]]; then
		ours+=("$policy")
		printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
		as_root chmod 755 "$policy"
	fi

	# The package lists may be missing or stale: then fetch them and try again.
	apt install "$@" >"$log" 2>&1 </dev/null && exit
	quietly "$log" apt update
	quietly "$log" apt install "$@"
)

# Whether packages can be installed at all; if not, say which were to be.
may_install() {
	command -v apt-get >/dev/null ||
		die "no apt-get here: install what Debian calls $*, then set SKIP_INSTALL=1 and PG_CONFIG"
	((EUID == 0)) || command -v sudo >/dev/null ||
		die "neither root nor sudo here; please install: $*"
}

# Install those of the given packages that are missing.
need() {
	local missing=() package

	[[ ${SKIP_INSTALL:-} != 1 ]] || return 0
	for package in "$@"; do
		installed "$package" || missing+=("$package")
	done
	((${#missing[@]})) || return 0
	may_install "${missing[@]}"
	say "installing ${missing[*]}"
	apt_install "${missing[@]}" ||
		die "could not install: ${missing[*]}"
}

##
## PostgreSQL
##

# The newest major with a server installed, else the one that Debian's
# "postgresql" package stands for.
default_major() {
	local major

	major=$(printf '%s\n' /usr/lib/postgresql/*/bin/postgres |
		sed -n 's,^/usr/lib/postgresql/\([0-9]*\)/.*,\1,p' | sort -n | tail -n 1)
	if [[ -z $major ]]; then
		[[ -n $(apt-cache depends postgresql 2>/dev/null) ]] ||
			apt update >/dev/null 2>&1 || true
		major=$(apt-cache depends postgresql 2>/dev/null |
			sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1)
	fi
	echo "$major"
}

# Set PG_MAJOR, PG_CONFIG and PG_BIN, and see that the server is there, headers
# and a compiler unless the extension is installed, and the other packages
# given: choose_postgres [PACKAGE...].
choose_postgres() {
	if [[ -n ${PG_CONFIG:-} ]]; then
		PG_CONFIG=$(command -v "$PG_CONFIG") || die "PG_CONFIG names no program"
		PG_CONFIG=$(realpath -s "$PG_CONFIG")
		PG_MAJOR=$(program_version "$PG_CONFIG" | sed 's/^\([0-9]*\).*/\1/')
		PG_BIN=$("$PG_CONFIG" --bindir)
	else
		PG_MAJOR=${PG_MAJOR:-$(default_major)}
		[[ -n $PG_MAJOR ]] || die "no PostgreSQL here, and none that apt knows; please install one"
		PG_BIN=/usr/lib/postgresql/$PG_MAJOR/bin
		PG_CONFIG=$PG_BIN/pg_config
	fi

	export PG_CONFIG
	if [[ ${EXTENSION_INSTALLED:-} == 1 ]]; then
		need "$@"
		[[ -x $PG_BIN/postgres ]] || die "no server in $PG_BIN"
		return
	fi
	! from_debian || need_server_and_headers
	need "${BUILD_PACKAGES[@]}" "$@"
	[[ -x $PG_BIN/postgres ]] || die "no server in $PG_BIN"
	[[ -x $PG_CONFIG && -e $("$PG_CONFIG" --pgxs) ]] || die "$PG_CONFIG has no PGXS"
	compare_versions
}

from_debian() {
	[[ $PG_BIN == "/usr/lib/postgresql/$PG_MAJOR/bin" ]]
}

# Install the server unless one is there, which stays at its version where that
# is possible; and the headers of that version.  A minor release may change
# what the headers say: a library that was built with those of a later one
# need not load, or worse.
need_server_and_headers() {
	local server=postgresql-$PG_MAJOR headers=postgresql-server-dev-$PG_MAJOR

	[[ ${SKIP_INSTALL:-} != 1 ]] || return 0
	if [[ ! -x $PG_BIN/postgres ]]; then
		need "$server" "$headers"
	fi
	if ! installed "$server"; then
		need "$headers"			# somebody else's server; compare_versions will see
	elif ! installed "$headers" ||
		[[ $(package_version "$headers") != $(package_version "$server") ]]; then
		need_headers_of_server "$server" "$headers"
	fi
}

# The archive may have several versions, or that of the server no more.  From
# 18 on the headers want the client package of their own version; before, any
# will do, and is left alone.
need_headers_of_server() {
	local server=$1 headers=$2 version client=postgresql-client-$PG_MAJOR

	version=$(package_version "$server")
	may_install "$headers=$version"
	say "installing $headers $version, the version of the server"
	apt_install --allow-downgrades "$headers=$version" 2>/dev/null && return
	if [[ $(package_version "$client") != "$version" ]]; then
		apt_install --allow-downgrades "$headers=$version" "$client=$version" 2>/dev/null && return
	fi
	say "apt cannot install that: installing $server and $headers of one version instead"
	say "no cluster is restarted: one that runs stays at the old version until you do that"
	apt_install "$server" "$headers" ||
		die "the server is $server $version, and apt offers $headers $(candidate "$headers");" \
			"try: apt-get install $server $headers"
}

candidate() {
	apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p'
}

# What is built must match what runs.  Compared are the headers themselves: on
# Debian pg_config is in the client package, which may be of another minor; any
# other is of the same build as its server, or nothing is known of it.
compare_versions() {
	local server headers program

	server=$(program_version "$PG_BIN/postgres")
	headers=$(headers_version)
	program=$(program_version "$PG_CONFIG")
	[[ -n $headers ]] || die "no headers of PostgreSQL $server: $(how_to_match)"
	[[ $headers == "$server" ]] ||
		die "the server is PostgreSQL $server, its headers are those of $headers; $(how_to_match)"
	[[ $program == "$server" || $PG_CONFIG == "$PG_BIN/pg_config" ||
		$PG_CONFIG == /usr/bin/pg_config ]] ||
		die "the server is PostgreSQL $server, $PG_CONFIG that of $program; $(how_to_match)"
}

# "15.18 (Debian 15.18-0+deb12u1)" of "postgres (PostgreSQL) 15.18 (Debian ...".
program_version() {
	"$1" --version | sed 's/^[^0-9]*//'
}

headers_version() {
	cat "$("$PG_CONFIG" --includedir-server)"/pg_config*.h 2>/dev/null |
		sed -n '0,/^#define PG_VERSION "/s/^#define PG_VERSION "\(.*\)".*/\1/p'
}

# What to do about it, with the commands where we know them.
how_to_match() {
	local server=postgresql-$PG_MAJOR headers=postgresql-server-dev-$PG_MAJOR version

	if from_debian && installed "$server"; then
		version=$(package_version "$server")	# named, or else apt lifts it along
		echo "install those of the server: apt-get install --allow-downgrades $server=$version $headers=$version"
		echo "or lift both: apt-get install $server $headers"
	else
		echo "install server and development files of one version, or set PG_CONFIG to the pg_config of another server"
	fi
}

# Make the temporary folder and decide who the unprivileged user is.  The
# folder becomes TMPDIR and the working directory: a test that dies leaves
# nothing elsewhere, and the user can always read where it stands.
make_work() {
	local user=

	if ((EUID == 0)); then
		user=postgres
		id "$user" >/dev/null 2>&1 || user=nobody
		WORK=$(mktemp -d /tmp/idempotency.XXXXXX)
		chown "$user" "$WORK"
		AS_USER=(runuser -u "$user" -- env "HOME=$WORK")
	else
		WORK=$(mktemp -d "${TMPDIR:-/tmp}/idempotency.XXXXXX")
		AS_USER=(env "HOME=$WORK")
	fi
	export TMPDIR=$WORK
	cd "$WORK"
}

##
## The extension
##

# The extension in the server's folders, and a copy of the tree in $WORK/src.
provide_extension() {
	if [[ ${EXTENSION_INSTALLED:-} == 1 ]]; then
		copy_tree
	else
		build_extension "$@"
		install_extension
	fi
}

# Build in a copy of the tree, so that the checkout stays clean and two majors
# never mix their objects: build_extension [COMPILER OPTION...].  Bitcode for
# the JIT is left out, which would need the clang of the server's build.
build_extension() {
	say "building for PostgreSQL $PG_MAJOR"
	copy_tree
	make_in_copy clean || die "make clean failed"
	make_in_copy -j2 COPT="$*" all || die "could not build the extension"
}

copy_tree() {
	as_user mkdir "$WORK/src"
	tar -C "$TOP" --exclude=./.git --exclude=./packages --exclude=tmp_check --exclude=node_modules \
		--exclude='*.o' --exclude='*.so' --exclude='*.bc' -cf - . |
		as_user tar -C "$WORK/src" -xf - || die "could not copy $TOP"
}

make_in_copy() {
	quietly "$WORK/make.log" as_user make -s -C "$WORK/src" PG_CONFIG="$PG_CONFIG" \
		with_llvm=no "$@"
}

# Let the copy's install script create the key table in four partitions, which
# are no members of the extension, as if somebody had replaced the table.
partition_keys() {
	local script=$WORK/src/idempotency--1.0.sql name=@extschema@.idempotency_keys i

	as_user sed -i "/^CREATE TABLE $name (/,/^) WITH/ s/^) WITH (.*/) PARTITION BY HASH (scope, key);/" "$script"
	for i in 0 1 2 3; do
		echo "CREATE TABLE ${name}_$i PARTITION OF $name FOR VALUES WITH (MODULUS 4, REMAINDER $i);"
		echo "ALTER EXTENSION idempotency DROP TABLE ${name}_$i;"
	done | as_user tee -a "$script" >/dev/null
	grep -q '^) PARTITION BY HASH (scope, key)' "$script" ||
		die "the install script has no key table that could be partitioned"
}

# The server's folder gets back what it should have.
unpartition_keys() {
	as_root install -m 644 "$TOP/idempotency--1.0.sql" "$("$PG_CONFIG" --sharedir)/extension/"
}

# Into the server's own folders.  An older build may have left its bitcode
# there, which the JIT would inline in place of our code.
install_extension() {
	as_root rm -rf "$("$PG_CONFIG" --pkglibdir)/bitcode"/idempotency*
	quietly "$WORK/make.log" as_root make -s -C "$WORK/src" PG_CONFIG="$PG_CONFIG" \
		with_llvm=no install || die "make install failed"
}

##
## Clusters
##

# Have servers started in another way: wrap_server LINE..., lines of a script
# that ends by starting the server.  $WORK/bin has the server's own programs, but
# for that; "bindir=$WORK/bin" makes PGXS use it.  pg_ctl is told, since it would
# look for the server where it is itself, and restart what had been running.
wrap_server() {
	local program

	as_user mkdir "$WORK/bin"
	for program in "$PG_BIN"/*; do
		as_user ln -s "$program" "$WORK/bin/"
	done
	as_user rm -f "$WORK/bin/pg_ctl" "$WORK/bin/postgres"
	SERVER=$WORK/bin/postgres
	printf '%s\n' '#!/bin/sh' "$@" | as_user tee "$SERVER" >/dev/null
	printf '%s\n' '#!/bin/sh' "exec \"$PG_BIN/pg_ctl\" -p \"$SERVER\" \"\$@\"" |
		as_user tee "$WORK/bin/pg_ctl" >/dev/null
	as_user chmod 755 "$SERVER" "$WORK/bin/pg_ctl"
}

# Start a cluster: start_cluster NAME [SETTING...], e.g. 'fsync = off'.  Its
# data directory is $WORK/NAME, its log $WORK/NAME.log, its superuser postgres.
# It listens in $WORK/NAME.socket only, unless a setting says otherwise; that is
# left in PGHOST and PGPORT.
start_cluster() {
	local name=$1
	local data=$WORK/$name socket=$WORK/$name.socket
	shift

	as_user mkdir "$socket"
	quietly "$WORK/$name.initdb.log" as_user "$PG_BIN/initdb" -D "$data" \
		-U postgres -A trust -E UTF8 --locale=C -N || die "initdb failed"
	printf '%s\n' "listen_addresses = ''" "port = 5432" \
		"unix_socket_directories = '$socket'" "$@" |
		as_user tee -a "$data/postgresql.conf" >/dev/null
	if ! as_user "$PG_BIN/pg_ctl" -D "$data" -w -t 120 ${SERVER:+-p "$SERVER"} \
		-l "$WORK/$name.log" start >/dev/null </dev/null; then
		tail -n 40 "$WORK/$name.log" >&2
		die "the cluster $name did not start"
	fi
	export PGHOST=$socket PGPORT=5432 PGUSER=postgres
}

# The same for tests: with the settings of test/postgresql.conf, if there is
# one, and the way to the key table that STORAGE names.
start_test_cluster() {
	local settings=()

	if [[ -e $WORK/src/test/postgresql.conf ]]; then
		mapfile -t settings <"$WORK/src/test/postgresql.conf"
	fi
	start_cluster "$@" 'fsync = off' "idempotency.storage = ${STORAGE/partitioned/auto}" \
		"${settings[@]}"
}

# Stop a cluster: stop_cluster NAME [MODE], fast unless told.  pg_ctl finds the
# server by the pid in its data directory.
stop_cluster() {
	as_user "$PG_BIN/pg_ctl" -D "$WORK/$1" -w -t 60 -m "${2:-fast}" stop >/dev/null
}

# Run a program that may take long, unprivileged, and in a process group of its
# own: when the script is ended, cleanup() need not wait for it.
run_long() {
	local status=0

	setsid "${AS_USER[@]}" "$@" </dev/null &
	RUNNER=$!
	wait "$RUNNER" || status=$?
	RUNNER=
	return "$status"
}

# End the runner and wait, not for ever, for its whole group to be gone: tests
# stop their own servers on SIGTERM.
stop_runner() {
	local try

	kill -TERM -- "-$RUNNER" 2>/dev/null || return 0
	for ((try = 0; try < 300; try++)); do
		kill -0 -- "-$RUNNER" 2>/dev/null || return 0
		sleep 0.1
	done
}

# Stop every server that has its data under the temporary folder.
stop_clusters() {
	local pidfile

	find "$WORK" -name postmaster.pid 2>/dev/null | while IFS= read -r pidfile; do
		as_user "$PG_BIN/pg_ctl" -D "${pidfile%/*}" -w -t 60 -m immediate stop \
			>/dev/null 2>&1 </dev/null || true
	done
}

cleanup() {
	local status=$?

	trap - EXIT
	trap '' INT TERM
	[[ -z $RUNNER ]] || stop_runner
	if [[ -n $WORK && ${KEEP:-} == 1 ]]; then
		say "kept: $WORK"
	elif [[ -n $WORK ]]; then
		stop_clusters
		cd /
		rm -rf "$WORK"
	fi
	if declare -F at_exit >/dev/null; then
		at_exit "$status"
	fi
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
