# Sourced by the scripts in tools/: makes .venv in the repository and installs this package with its test environment, once per
# state of setup.cfg. PYTHON chooses the interpreter (3.11 or newer; if it differs from before, .venv is rebuilt),
# SVDATA2VEC_CUDA=cuda12 chooses the builds of PyTorch and DALI for CUDA 12 (default: cuda13). PyPI's PyTorch is for CUDA 13;
# for CUDA 12 it comes from PyTorch's own index (or from SVDATA2VEC_TORCH_INDEX). Sets $python to the path of the environment's
# interpreter. Once installed, no network is used. Bytecode is compiled at the first import, as most modules of PyTorch and
# similar packages are never imported, and kept even if PYTHONDONTWRITEBYTECODE is set: without it every process takes twice as
# long to start. pip is updated first: the one of Python 3.11 takes half a minute longer. PYTHONPATH and pip's variables are
# cleared: packages found through PYTHONPATH would count as installed, and the variables could install them elsewhere.

unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME PIP_PREFIX PIP_TARGET PIP_USER

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3.12 python3.13 python3; fi
    for candidate in "$@"; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        echo "PYTHON=$PYTHON: expected a Python 3.11 or newer with venv; name one, or unset PYTHON" >&2
    else
        echo "no Python 3.11 or newer with venv found; install one (Debian: python3 python3-venv) or set PYTHON=/path/to/python" >&2
    fi
    return 2
}

# Fails if the interpreter does not run.
kind_of() {
    "$1" -c 'import sys; print(sys.base_prefix, sys.version_info[:2])' 2>/dev/null
}

# With the variables of make_environment.
install_packages() {
    local pip=("$python" -m pip install --quiet --disable-pip-version-check)
    "${pip[@]}" --upgrade pip || return
    if [ "${SVDATA2VEC_CUDA:-}" = cuda12 ]; then
        "${pip[@]}" --no-compile --index-url "$index" "$torch" || return
    fi
    # Silences setuptools' warning that a working directory with a folder named svdata2vec takes precedence.
    PYTHONWARNINGS=ignore "${pip[@]}" --no-compile --editable ".[$extras]"
}

make_environment() {
    local root extras wanted stamp interpreter index torch kind
    case "${SVDATA2VEC_CUDA:-cuda13}" in
    cuda12 | cuda13) ;;
    *)
        echo "SVDATA2VEC_CUDA=$SVDATA2VEC_CUDA: expected cuda12 or cuda13 (the default)" >&2
        return 2 ;;
    esac
    root=$(pwd -P) # the same environment even if reached through a link
    extras="${SVDATA2VEC_CUDA:-cuda13},test"
    stamp=.venv/installed
    index="${SVDATA2VEC_TORCH_INDEX:-https://download.pytorch.org/whl/cu126}"
    torch=$(sed -n 's/^ *\(torch>.*\)$/\1/p' setup.cfg)
    wanted="$extras${SVDATA2VEC_TORCH_INDEX:+ $index} $(cksum < setup.cfg) $(cksum < pyproject.toml) $root"
    python="$root/.venv/bin/python"
    { # two at once would clear what the other one installs
        if command -v flock > /dev/null; then flock 9; fi
        if kind=$(kind_of "$python") && [ "$(kind_of "${PYTHON:-$python}")" = "$kind" ] &&
            [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
            return
        fi
        interpreter=$(find_python) || return
        if [ -f .venv/pyvenv.cfg ] && ! grep -q -e '-m venv --clear ' .venv/pyvenv.cfg; then
            echo "$root/.venv: not made by this script, which would clear it; move it away or remove it" >&2
            return 2
        fi
        echo "== installing into .venv (once)"
        rm -f "$stamp" # first, or a clearing that is interrupted leaves it
        "$interpreter" -m venv --clear .venv || return
        if ! install_packages; then
            echo "this package and its libraries could not be installed (see above): this needs PyPI or a mirror of it, once" >&2
            return 2
        fi
        echo "$wanted" > "$stamp"
    } 9< setup.cfg
}
