# Sourced by the scripts in tools/: makes .venv in the repository and installs this package with its test environment, once per
# state of setup.cfg. PYTHON chooses the interpreter (3.11 or newer), SVDATA2VEC_CUDA=cuda12 the builds of PyTorch and DALI for
# CUDA 12 (default: cuda13). PyPI's PyTorch is for CUDA 13, so that for CUDA 12 comes from PyTorch's own index
# (SVDATA2VEC_TORCH_INDEX names another). Leaves the path of the environment's interpreter in $python. Once installed, no network
# is used. Bytecode is left to the first import, as most modules of PyTorch and its like never are imported, and kept even where
# PYTHONDONTWRITEBYTECODE is set: without it every process takes twice as long to start. pip is brought up to date first: the
# one that comes with Python 3.11 takes half a minute more for the same.

unset PYTHONDONTWRITEBYTECODE

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "no Python 3.11 or newer with venv found; install one (Debian: python3 python3-venv) or set PYTHON=/path/to/python" >&2
    return 2
}

make_environment() {
    local root extras wanted stamp interpreter index torch
    root=$(pwd)
    extras="${SVDATA2VEC_CUDA:-cuda13},test"
    stamp=.venv/installed
    index="${SVDATA2VEC_TORCH_INDEX:-https://download.pytorch.org/whl/cu126}"
    torch=$(sed -n 's/^ *\(torch>.*\)$/\1/p' setup.cfg)
    wanted="$extras $(cksum < setup.cfg) $(cksum < pyproject.toml) $root"
    python="$root/.venv/bin/python"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    interpreter=$(find_python) || return
    echo "== installing into .venv (once)"
    "$interpreter" -m venv --clear .venv || return
    "$python" -m pip install --quiet --disable-pip-version-check --upgrade pip || return
    if [ "${SVDATA2VEC_CUDA:-}" = cuda12 ]; then
        "$python" -m pip install --quiet --disable-pip-version-check --no-compile --index-url "$index" "$torch" || return
    fi
    # No warning of setuptools, that a working directory with a folder named svdata2vec takes precedence.
    PYTHONWARNINGS=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extras]" || return
    echo "$wanted" > "$stamp"
}
