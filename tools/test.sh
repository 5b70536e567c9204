#!/usr/bin/env bash
# Makes the environment if needed, then runs the linter and all tests in one process more than there are cores (tests wait for
# others), four at most, files with slow tests first. The type checker runs in parallel and takes a minute; its findings are
# printed last. Arguments replace those of pytest: bash tools/test.sh tests/test_layout.py -k imports
# Tests write many small files and wait for each to reach the disk. They use memory instead if 8 GiB are free there, programs
# may be run from it (in containers often not), and TMPDIR is unset.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment
"$python" -m ruff check .
memory=/dev/shm
if [ -z "${TMPDIR:-}" ] && [ -w "$memory" ] && ! grep -q " $memory .*noexec" /proc/mounts &&
    [ "$(df -Pk "$memory" | awk 'END { print $4 }')" -ge 8388608 ]; then
    export TMPDIR="$memory"
fi
scratch=$(mktemp -d)
export TMPDIR="$scratch"
trap 'rm -rf "$scratch"' EXIT
"$python" -m mypy > "$scratch/checked" 2>&1 &
checker=$!
if [ $# -eq 0 ]; then
    processes=$("$python" -c 'from svdata2vec.runs.cores import usable_cores; print(min(usable_cores() + 1, 4))')
    set -- -n "$processes" --dist loadfile --no-loadscope-reorder
fi
status=0
"$python" -m pytest "$@" || status=$?
wait "$checker" || { cat "$scratch/checked"; exit 1; }
exit "$status"
