#!/usr/bin/env bash
# chroot.sh - chroots of Debian releases, for scripts/matrix, fresh and package.
#
# Sourced, after lib.sh.  Chroots are made with debootstrap and stay under
# MATRIX_CACHE (/var/cache/idempotency-matrix); a lock there lets one run at a
# time work with them.  MATRIX_MIRROR is the Debian mirror to use, else the one
# that this machine's apt uses.
#
# use_cache comes first.  in_group runs a function and keeps what it prints,
# and read_sum finds "N passed, N failed" in that.

# shellcheck disable=SC2034		# the variables are for those who source this

CACHE=${MATRIX_CACHE:-${XDG_CACHE_HOME:-/var/cache}/idempotency-matrix}
SCRIPTS=/usr/share/debootstrap/scripts
HOST_RELEASE=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# by the major that they ship
declare -A RELEASES=([15]=bookworm [17]=trixie [18]=forky [19]=experimental)
ARCHIVES=            # folder for the packages that the chroots fetch, if any

use_cache() {
	((EUID == 0)) || die "this needs root: it makes chroots"
	mkdir -p "$CACHE"
	exec 9>"$CACHE/lock"
	flock -w 7200 9 || die "another run holds $CACHE/lock"
	need debootstrap debian-archive-keyring
	make_work
}

# Run a function in the background and a process group of its own, for
# cleanup() to end it, and keep what it prints: in_group LOG FUNCTION...
in_group() {
	local log=$1 rc=0
	shift

	set -m
	{ "$@" 2>&1 </dev/null | tee "$log"; } &
	RUNNER=$!
	set +m
	wait "$RUNNER" || rc=$?
	RUNNER=
	return "$rc"
}

# The numbers at the end of the output of a script, in ok and bad.  One that
# failed has at least one failure: read_sum LOG STATUS
read_sum() {
	ok=0 bad=0
	if [[ $(tail -n 1 "$1") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
		ok=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
	fi
	(($2 == 0 || bad > 0)) || bad=1
}

# The mirror that apt has for this machine's own release; nothing, and so
# debootstrap's own choice, where this is not Debian.
mirror() {
	if [[ -n ${MATRIX_MIRROR:-} ]]; then
		echo "$MATRIX_MIRROR"
	else
		archive_of "$HOST_RELEASE"
	fi
}

archive_of() {
	# shellcheck disable=SC2016		# apt-get fills these in
	apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' \
		'Created-By: Packages' |
		awk -v c="$1" '$1 == "Debian" && $2 == c { print $3; exit }'
}

# Run a command in a chroot, with mounts, processes and System V memory of its
# own: when it ends, or is killed, the kernel unmounts and ends what is left.
in_chroot() {
	local root=$1 propagation=private
	shift

	# Run from within a chroot, as by a CI, "/" is no mount to make private.
	mountpoint -q / || propagation=unchanged
	cp -L /etc/resolv.conf "$root/etc/resolv.conf"
	give_certificates "$root"
	# shellcheck disable=SC2016		# for the inner shell
	unshare --mount --propagation "$propagation" --pid --ipc --fork --kill-child bash -euc '
		root=$1
		archives=$2
		shift 2
		mount -t proc proc "$root/proc"
		mount --bind /dev "$root/dev"
		mount -t tmpfs tmpfs "$root/dev/shm"
		[ -z "$archives" ] || mount --bind "$archives" "$root/var/cache/apt/archives"
		chroot "$root" "$@"
		exit' bash "$root" "$ARCHIVES" env -i HOME=/root TERM="${TERM:-dumb}" LC_ALL=C.UTF-8 \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
		${CI:+CI="$CI"} ${PG_TEST_EXTRA:+PG_TEST_EXTRA="$PG_TEST_EXTRA"} \
		${CERTIFICATES:+NODE_EXTRA_CA_CERTS=/etc/host-certificates.pem} \
		STORAGE="$STORAGE" "$@"
}

# What this machine has been told to trust besides what its release does, the
# chroot's Node.js trusts as well: else npm could not fetch through a proxy that
# signs anew.
give_certificates() {
	CERTIFICATES=${NODE_EXTRA_CA_CERTS:-${SSL_CERT_FILE:-}}
	[[ -r $CERTIFICATES ]] || CERTIFICATES=
	[[ -z $CERTIFICATES ]] || cp -L "$CERTIFICATES" "$1/etc/host-certificates.pem"
}

# Make the chroot of a release as debootstrap leaves it, under a temporary name:
# if that is cut off, the next run starts again.  A debootstrap older than the
# release has no script for it; that of sid has served every release for years.
# No service starts.
make_base() {
	local release=$1 root=$CACHE/$1-base script

	[[ $release != experimental ]] || release=sid
	script=$SCRIPTS/$release
	[[ -e $script ]] || script=$SCRIPTS/sid
	say "making a chroot of $1"
	rm -rf "$root.new"
	quietly "$root.log" debootstrap --variant=minbase "$release" "$root.new" \
		"$(mirror)" "$script" || return 1
	[[ $1 == "$release" ]] || add_experimental "$root.new"
	printf '#!/bin/sh\nexit 101\n' >"$root.new/usr/sbin/policy-rc.d"
	chmod 755 "$root.new/usr/sbin/policy-rc.d"
	# A mirror may be a frozen one, and lists of testing expire in a week.
	echo 'Acquire::Check-Valid-Until "false";' >"$root.new/etc/apt/apt.conf.d/10matrix"
	mv "$root.new" "$root"
	touch "$root.fresh"
}

# Of experimental, which is a part of sid, what PostgreSQL needs and no more: apt
# would find no solution with all of it.
add_experimental() {
	sed 's/ sid / experimental /' "$1/etc/apt/sources.list" \
		>"$1/etc/apt/sources.list.d/experimental.list"
	printf 'Package: %s\nPin: release a=experimental\nPin-Priority: %d\n\n' \
		'*' 100 'postgresql-*19* postgresql*-common* libpq5 libpq-dev' 990 \
		>"$1/etc/apt/preferences.d/experimental"
}

# Bring a chroot up to date, at most once a day.  Where that fails, what is
# there is good enough.
refresh_chroot() {
	local name=$1 root=$CACHE/$1

	[[ -z $(find "$CACHE/$name.fresh" -mmin -1440 2>/dev/null) ]] || return 0
	say "refreshing the chroot $name"
	in_chroot "$root" sh -ec 'export DEBIAN_FRONTEND=noninteractive
		apt-get -q update
		apt-get -qy --no-install-recommends dist-upgrade
		apt-get clean' >"$CACHE/$name.log" 2>&1 </dev/null || {
		say "could not refresh it; going on as it is"
		return 0
	}
	touch "$CACHE/$name.fresh"
}

# The base of a release as it should be, and a copy of it to work in.
need_base() {
	[[ -d $CACHE/$1-base ]] || make_base "$1" || return 1
	refresh_chroot "$1-base"
}

need_chroot() {
	if [[ ! -d $CACHE/$1 ]]; then
		need_base "$1" || return 1
		copy_base "$1" "$1"
		touch "$CACHE/$1.fresh"
	fi
	refresh_chroot "$1"
}

# copy_base RELEASE NAME
copy_base() {
	rm -rf "${CACHE:?}/$2" "$CACHE/$2.new"
	cp -a --reflink=auto "$CACHE/$1-base" "$CACHE/$2.new"
	mv "$CACHE/$2.new" "$CACHE/$2"
}

# Copy the tree to /srv/idempotency of a chroot, in place of an older copy.
give_tree() {
	rm -rf "$1/srv/idempotency" "$1"/tmp/idempotency.*
	mkdir -p "$1/srv/idempotency"
	tar -C "$TOP" --exclude=./.git --exclude=./packages --exclude=tmp_check --exclude=node_modules -cf - . |
		tar -C "$1/srv/idempotency" --no-same-owner -xf -
}
