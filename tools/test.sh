#!/usr/bin/env bash
# Makes the environment if needed, then runs linters, the type checker and all tests on two processes.
# Arguments replace pytest's `-n 2 --dist loadfile`: bash tools/test.sh tests/test_layout.py -k imports
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment
"$python" -m ruff check .
"$python" -m mypy
if [ $# -eq 0 ]; then
    set -- -n 2 --dist loadfile
fi
exec "$python" -m pytest "$@"
