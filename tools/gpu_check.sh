#!/usr/bin/env bash
# Does everything work on this machine's NVIDIA GPU? Writes gpu_check.json and gpu_check.txt; see tools/gpu_check.py.
# Installs nothing: takes $PYTHON if it is set, else .venv, else python3, with the versions that it finds.
#
#     bash tools/gpu_check.sh [--out FOLDER] [--only PART ...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python="${PYTHON:-}"
if [ -z "$python" ]; then
    python="$here/../.venv/bin/python"
    [ -x "$python" ] || python=python3
fi
exec "$python" "$here/gpu_check.py" "$@"
