#!/usr/bin/env bash
# Installs what Quarry needs to build (and, with --tests, to run its tests) from Debian packages.
#
#   deploy/install-deps.sh            compiler and libraries
#   deploy/install-deps.sh --tests    also what `make check` uses
#   deploy/install-deps.sh --list     print the package names and do nothing
#
# Does nothing when everything is there. Uses sudo only when not root. On a system without apt it
# prints what is needed and exits with status 1.
set -eu

build_packages="gcc make pkg-config git libc6-dev
libmicrohttpd-dev libuv1-dev libsqlite3-dev libcjson-dev libcurl4-openssl-dev
libopenblas-pthread-dev liblapacke-dev libpcre2-dev libutf8proc-dev libssl-dev
libcmocka-dev python3"
test_packages="python3-venv python3-pip python3-yaml curl"
modules="libmicrohttpd libuv sqlite3 libcjson libcurl openblas libpcre2-8 libutf8proc libcrypto cmocka"

tests=no
for arg in "$@"; do
	case $arg in
	--tests) tests=yes ;;
	--list) echo $build_packages $test_packages; exit 0 ;;
	*) echo "install-deps: unknown option $arg; known are --tests and --list" >&2; exit 2 ;;
	esac
done

# Lines that say what is missing; nothing when all is there.
missing() {
	for tool in gcc make pkg-config git python3; do
		command -v "$tool" >/dev/null 2>&1 || echo "program $tool"
	done
	for module in $modules; do
		pkg-config --exists "$module" 2>/dev/null || echo "library $module (development files)"
	done
	# OpenBLAS carries LAPACKE's functions, not always its header.
	echo '#include <lapacke.h>' |
		gcc $(pkg-config --cflags openblas 2>/dev/null) -E - >/dev/null 2>&1 ||
		echo "header lapacke.h"
	if [ "$tests" = yes ]; then
		command -v curl >/dev/null 2>&1 || echo "program curl"
		python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || echo "Python module venv"
	fi
}

wanted=$(missing)
if [ -z "$wanted" ]; then
	exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "Quarry installs its packages itself only where apt-get is (Debian 12). Missing here:" >&2
	echo "$wanted" | sed 's/^/  /' >&2
	echo "On Debian 12 the packages are:" >&2
	echo $build_packages $test_packages | fold -s -w 90 | sed 's/^/  /' >&2
	exit 1
fi

packages=$build_packages
[ "$tests" = yes ] && packages="$packages $test_packages"
as_root=""
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "Missing packages, and neither root nor sudo is here. As root, run:" >&2
		echo "  apt-get install --no-install-recommends" $packages >&2
		exit 1
	fi
	as_root="sudo"
fi
echo "Installing packages that Quarry needs:" $packages
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Runs apt-get quietly; what it said is shown when it fails.
apt() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@" >"$log" 2>&1 && return
	cat "$log" >&2
	echo "apt-get $1 failed; check the network and the package sources." >&2
	exit 1
}
apt update -q
apt install -y -q --no-install-recommends $packages
wanted=$(missing)
if [ -n "$wanted" ]; then
	echo "Still missing after the installation:" >&2
	echo "$wanted" | sed 's/^/  /' >&2
	exit 1
fi
