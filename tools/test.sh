#!/usr/bin/env bash
# Makes the environment if needed, then runs the linter and all tests, on two to four processes by the cores (a third on two cores
# was no faster), files with slow tests first. The type checker runs beside them, its single process takes a minute; its findings
# come last. Arguments replace those of pytest: bash tools/test.sh tests/test_layout.py -k imports
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment
"$python" -m ruff check .
checked=$(mktemp)
trap 'rm -f "$checked"' EXIT
"$python" -m mypy > "$checked" 2>&1 &
checker=$!
if [ $# -eq 0 ]; then
    processes=$("$python" -c 'from svdata2vec.runs.cores import usable_cores; print(min(max(usable_cores(), 2), 4))')
    set -- -n "$processes" --dist loadfile --no-loadscope-reorder
fi
status=0
"$python" -m pytest "$@" || status=$?
wait "$checker" || { cat "$checked"; exit 1; }
exit "$status"
