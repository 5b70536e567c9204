# Sourced by the scripts in tools/: makes .venv in the repository and installs this package with its test environment, once per
# state of setup.cfg. PYTHON chooses the interpreter (3.11 or newer), SVDATA2VEC_CUDA=cuda12 DALI's build for CUDA 12 (default:
# cuda13). Leaves the path of the environment's interpreter in $python. Once installed, no network is used.

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
    local root extras wanted stamp interpreter
    root=$(pwd)
    extras="${SVDATA2VEC_CUDA:-cuda13},test"
    stamp=.venv/installed
    wanted="$extras $(cksum < setup.cfg) $(cksum < pyproject.toml) $root"
    python="$root/.venv/bin/python"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    interpreter=$(find_python) || return
    echo "== installing into .venv (once)"
    "$interpreter" -m venv --clear .venv || return
    "$python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" || return
    echo "$wanted" > "$stamp"
}
