#!/usr/bin/env bash
# The program with the cuda backend: it compiles where there is no GPU, runs there, and says what is missing when it is
# asked for one. Needs nvcc alone; only Hopper's machine code is built here, to save time.
set -u

skip() {
	echo "1..0 # SKIP $1"
	exit 0
}

nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
[ -x "$nvcc" ] || skip "nvcc is not installed: the cuda backend is not compiled"

failed=0
count=0
check() {
	count=$((count + 1))
	if [ "$1" = 0 ]; then
		echo "ok $count - $2"
	else
		echo "not ok $count - $2"
		[ -f "${3:-}" ] && sed 's/^/# /' "$3" | tail -n 20
		failed=1
	fi
}

build=$PWD/build
# Not part of the make that may run this test: its flags and its job server stay there.
env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -C "$QUARRY_ROOT" -s -j"$(nproc)" CUDA=1 OUT="$build" \
	CUDA_CODE='-gencode arch=compute_90,code=sm_90' "$build/quarry-worker" >build.log 2>&1
check $? "the worker builds with CUDA=1" build.log
! grep -n 'warning' build.log
check $? "without a warning" build.log

"$build/quarry-worker" --version >version.log 2>&1
check $? "it starts" version.log

if nvidia-smi >/dev/null 2>&1; then
	check 0 "there is a GPU here, so nothing is missing # SKIP"
else
	"$build/quarry-worker" --backend cuda --server http://127.0.0.1:9 --work work >asked.log 2>&1
	[ $? = 3 ] && grep -q 'the cuda backend needs an NVIDIA GPU and its driver' asked.log && [ "$(wc -l <asked.log)" = 1 ]
	check $? "asked for a GPU it says what is missing, in one line, and ends with 3" asked.log
fi

QUARRY_BUILD=$build "$QUARRY_BUILD/quarry-worker" --backend cuda --server http://127.0.0.1:9 --work work >plain.log 2>&1
[ $? = 2 ] && grep -q 'make CUDA=1 adds it' plain.log
check $? "the program without it says how to get it" plain.log
echo "1..$count"
exit $failed
