#!/bin/sh
# Install this project in editable form: install.sh PIP TARGET, such as install.sh .venv/bin/pip ".[train]".
# On a Linux machine without an NVIDIA GPU, PyTorch's default wheels would bring gigabytes of CUDA libraries; there the
# CPU build is asked for first.
set -eu
pip=$1
target=$2

wants_cpu_index() {
  [ "$(uname -s)" = Linux ] || return 1
  [ "$(uname -m)" = x86_64 ] || return 1
  command -v nvidia-smi >/dev/null 2>&1 && return 1
  # A package source that already serves a CPU build (its version ends in +cpu) needs no other one.
  "$pip" install -q --dry-run --no-deps --ignore-installed --report - -c constraints.txt torch 2>/dev/null |
    grep -q '"version": *"[^"]*+cpu"' && return 1
  return 0
}

if ! "$(dirname "$pip")/python" -c 'import torch' 2>/dev/null && wants_cpu_index; then
  echo "No NVIDIA GPU found: installing the CPU build of PyTorch"
  "$pip" install -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu
fi
exec "$pip" install -q -c constraints.txt -e "$target"
