#!/usr/bin/env bash
# Makes the environment of tools/pose/extract_poses.py: .venv-pose with mmpose, or, called with the word mediapipe,
# .venv-mediapipe. It is separate from .venv because of these packages' version pins, and layered over it: torch and PyAV come
# from .venv (for mmpose NumPy and OpenCV too), which is not changed. Once installed, no network is used. Nothing is compiled:
# mmcv-lite instead of mmcv, and no xtcocotools, which pose_models.py replaces.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/environment.sh
exec 9< tools/pose/pose_env.sh
if command -v flock > /dev/null; then flock 9; fi # two at once would build into one another
root=$(pwd -P)
python="$root/.venv/bin/python"
# pip installs this package after torch and PyAV: without it .venv is missing, or half made.
"$python" -I -c 'from importlib.metadata import version; version("svdata2vec")' 2> /dev/null || make_environment

case "${1:-mmpose}" in
mmpose)
    folder=.venv-pose
    packages=(
        --no-deps mmpose==1.3.2 mmcv-lite==2.1.0 mmengine==0.10.7
        "torchvision==0.28.*"      # the one for torch 2.13
        "setuptools>=77,<81"       # mmengine imports pkg_resources, which later ones lack
        json_tricks==3.17.3 munkres==3.0.0 scipy==1.17.1 addict==2.4.0 yapf==0.43.0 platformdirs==4.14.7 termcolor==3.3.0
    ) ;;
mediapipe) # 0.10.21 is the last one whose wheel holds the full pose model; it wants NumPy 1, and Python up to 3.12
    folder=.venv-mediapipe
    packages=(mediapipe==0.10.21) ;;
*)
    echo "$1: expected mmpose (the default) or mediapipe" >&2
    exit 2 ;;
esac
stamp=$folder/installed
versions=$("$python" -c 'import sys; from importlib.metadata import version as v; print(sys.version_info[:2], v("torch"), v("numpy"))')
wanted="$(cksum < tools/pose/pose_env.sh) $versions $root"
own=$folder/bin/python
if kind_of "$own" > /dev/null && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

echo "== installing ${1:-mmpose} into $folder (once)"
rm -f "$stamp" # first, or a clearing that is interrupted leaves it
"$python" -m venv --clear "$folder"
layer=$("$python" -c 'import sysconfig; print(repr(sysconfig.get_path("purelib")))')
target=$("$own" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if ! "$own" -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --upgrade "${packages[@]}"; then
    echo "${1:-mmpose} and its libraries could not be installed (see above): this needs PyPI or a mirror of it, once" >&2
    exit 2
fi
echo "import site; site.addsitedir($layer)" > "$target/layer_over_main.pth"
echo "$wanted" > "$stamp"
