#!/usr/bin/env bash
# Real joints on a real person, from a photograph to shards that verify: see check_mediapipe.py. Not part of the tests, because
# it installs a large package. Takes a folder to work in (default: a temporary one); status 0 if everything is right.
set -euo pipefail
work=$(realpath -m "${1:-$(mktemp -d)}")  # relative to the caller's folder
cd "$(dirname "$0")/../.."
bash tools/pose/pose_env.sh mediapipe
.venv-mediapipe/bin/python -c 'import skimage' 2> /dev/null ||
    .venv-mediapipe/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: "scikit-image<0.26"
mkdir -p "$work"
PYTHONPATH="$(pwd)" .venv-mediapipe/bin/python tools/pose/check_mediapipe.py "$work"
run() { .venv/bin/python -m svdata2vec "$@"; }
run shard pyskl "$work/shards" --pickle-path "$work/poses.pkl" --videos "$work/videos" --workers 1
run verify "$work/shards"
echo "== real joints on a real person, packed and verified in $work"
