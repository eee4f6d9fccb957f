#!/usr/bin/env bash
# Bring .venv up to what the Makefile asks for. Called by it; does nothing twice.
#   scripts/setup.sh venv|interfaces|test
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
pins=(-c constraints.txt)

say() { printf '\033[1m== %s\033[0m\n' "$*"; }

# Requirements of pyproject.toml, one a line: "dependencies" or the name of an extra.
requirements() {
  "$python" - "$1" <<'PY'
import sys
try:
    import tomllib
except ImportError:  # Python 3.10; pip carries a copy
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
which = sys.argv[1]
print("\n".join(project["dependencies"] if which == "dependencies" else project["optional-dependencies"][which]))
PY
}

install_listed() {
  local list
  list=$(mktemp)
  for which in "$@"; do requirements "$which" >>"$list"; done
  "$python" -m pip install --quiet "${pins[@]}" -r "$list"
  rm -f "$list"
}

case $1 in
venv)
  say "creating $venv and installing pinned packages (about 1 GB, once)"
  [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"
  "$python" -m pip install --quiet "pip==26.3"
  install_listed dependencies
  ;;
interfaces)
  say "building the ROS interfaces (about a minute)"
  # The environment variables reach pip's isolated build environment, the option does not.
  PIP_CONSTRAINT=$PWD/constraints.txt PIP_BUILD_CONSTRAINT=$PWD/constraints.txt \
    "$python" -m pip install --quiet --no-deps -e .
  ;;
test)
  say "installing the packages for training and testing (once)"
  # PyPI's torch for Linux brings several GB of CUDA packages. Without an NVIDIA GPU the CPU-only build of the same
  # version is enough: TORCH_INDEX_URL names where to look first, "" leaves it to pip's own configuration.
  if ! command -v nvidia-smi >/dev/null && ! "$python" -c 'import torch' 2>/dev/null; then
    index=${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu}
    if [ -n "$index" ] && "$python" -m pip install --quiet --retries 0 --timeout 10 --no-deps --index-url "$index" \
      "${pins[@]}" torch==2.13.0 2>/dev/null; then
      say "torch: CPU-only build"
    else
      say "torch: from the configured package index"
    fi
  fi
  install_listed train data ray dev
  ;;
*)
  echo "usage: $0 venv|interfaces|test" >&2
  exit 2
  ;;
esac
