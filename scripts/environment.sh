# Sourced by demo and test: makes .venv with the pinned versions, once, and activates it.
# usage: source environment.sh EXTRAS   (EXTRAS: the optional dependencies wanted, such as gguf or test)
#
# PYTHON   the Python to use (3.11 or newer; default python3)
# TORCH    "cpu" or "gpu"; by default the CPU build, unless a GPU is present

cd "$(dirname "${BASH_SOURCE[0]}")/.."

make_environment() {
    local extras=$1 python=${PYTHON:-python3} wanted stamp
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "softh_probe needs Python 3.11 or newer; set PYTHON to one" >&2
        return 1
    }
    wanted=$(cat pyproject.toml constraints.txt scripts/environment.sh | cksum | cut -d' ' -f1)-${TORCH:-auto}
    stamp=.venv/installed-$extras
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    . .venv/bin/activate
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing the pinned packages into .venv (several minutes, once)" >&2
        install_torch
        python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]"
        echo "$wanted" >"$stamp"
    fi
}

install_torch() {
    local version pip="python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt"
    version=$(sed -n 's/^torch==//p' constraints.txt)
    python -c 'import torch' 2>/dev/null && return
    if [ "$(uname -s)" = Linux ] && [ "${TORCH:-}" != gpu ] && { [ "${TORCH:-}" = cpu ] || ! nvidia-smi -L >/dev/null 2>&1; }; then
        $pip "torch==$version+cpu" 2>/dev/null && return
        echo "pip's index has no CPU build of torch $version: installing the default one, which on Linux brings" >&2
        echo "gigabytes of GPU libraries; to avoid them, add PyTorch's CPU index (pytorch.org, 'Start locally')" >&2
        echo "as PIP_EXTRA_INDEX_URL and start again" >&2
    fi
    $pip "torch==$version"
}

set -euo pipefail
make_environment "$1"
