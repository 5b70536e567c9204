#!/usr/bin/env bash
# Makes .venv-pose: mmpose for tools/pose/extract_poses.py, apart from .venv because of mmpose's version pins. It is a layer
# over .venv: torch, NumPy, OpenCV and PyAV come from there, and nothing in there changes. Once installed, no network is used.
# Nothing is compiled: mmcv-lite instead of mmcv, and no xtcocotools, which pose_models.py replaces.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/environment.sh
exec 9< tools/pose/pose_env.sh
if command -v flock > /dev/null; then flock 9; fi # two at once would build into one another
if [ -x .venv/bin/python ]; then
    python="$(pwd)/.venv/bin/python"
else
    make_environment
fi

packages=(
    mmpose==1.3.2 mmcv-lite==2.1.0 mmengine==0.10.7
    "torchvision==0.28.*"      # the one for torch 2.13
    "setuptools>=77,<81"       # mmengine imports pkg_resources, which later ones lack
    json_tricks==3.17.3 munkres==3.0.0 scipy==1.17.1 addict==2.4.0 yapf==0.43.0 platformdirs==4.14.7 termcolor==3.3.0
)
stamp=.venv-pose/installed
versions=$("$python" -c 'import sys; from importlib.metadata import version as v; print(sys.version_info[:2], v("torch"), v("numpy"))')
wanted="$(cksum < tools/pose/pose_env.sh) $versions $(pwd)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

echo "== installing mmpose into .venv-pose (once)"
"$python" -m venv --clear .venv-pose
own=.venv-pose/bin/python
layer=$("$python" -c 'import sysconfig; print(repr(sysconfig.get_path("purelib")))')
target=$("$own" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if ! "$own" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --upgrade "${packages[@]}"; then
    echo "mmpose and its libraries could not be installed (see above): this needs PyPI or a mirror of it, once" >&2
    exit 2
fi
echo "import site; site.addsitedir($layer)" > "$target/layer_over_main.pth"
echo "$wanted" > "$stamp"
