#!/usr/bin/env bash
# Makes the environment if needed, then runs linters, the type checker and all tests, on two to four processes by the cores.
# Arguments replace pytest's `-n PROCESSES --dist loadfile`: bash tools/test.sh tests/test_layout.py -k imports
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment
"$python" -m ruff check .
"$python" -m mypy
if [ $# -eq 0 ]; then
    processes=$("$python" -c 'from svdata2vec.runs.cores import usable_cores; print(min(max(usable_cores(), 2), 4))')
    set -- -n "$processes" --dist loadfile
fi
exec "$python" -m pytest "$@"
