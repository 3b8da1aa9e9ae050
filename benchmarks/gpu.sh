#!/usr/bin/env bash
# What a GPU gives: tests/gpu, then benchmarks/gpu.py, in eight minutes; in small on a CPU where there is no GPU.
#   bash benchmarks/gpu.sh [FOLDER]
# FOLDER, build/gpu by default, gets tests.log, tests.jsonl, gpu.md and gpu.jsonl as they come. Without .venv it
# takes python3 as it is: torch, pytest and the packages of the extras `train` and `dataset` must be there.
set -uo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
mkdir -p "${1:-$root/build/gpu}"
out="$(cd "${1:-$root/build/gpu}" && pwd)"
rm -f "$out"/{tests.log,tests.jsonl,gpu.md,gpu.jsonl}
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

python="$root/.venv/bin/python"
if [ ! -x "$python" ]; then # lay the packages out as they are installed
  python=python3
  mkdir "$scratch/site"
  cp -r "$root/vartok" "$scratch/site/"
  cp -r "$root/cli" "$root/weights" "$scratch/site/vartok/"
  export PYTHONPATH="$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
fi
cd "$scratch" # in $root, `import vartok` would find the package without its command line and weights

accelerator='import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())'
tests=170 speed=290 # seconds at most
if [ "$("$python" -c "$accelerator")" = False ]; then
  export OMP_NUM_THREADS=1 VARTOK_TEST_DEVICE=cpu
  tests=300 speed=270 # torch.compile alone takes a minute
fi
export PYTHONUNBUFFERED=1 VARTOK_TEST_FIGURES="$out/tests.jsonl"
nvidia-smi -L 2>/dev/null
timeout "$tests" "$python" -m pytest -vv -p no:cacheprovider -p no:xdist --durations 5 "$root/tests/gpu" 2>&1 | tee "$out/tests.log"
status=${PIPESTATUS[0]}
timeout $((speed + 30)) "$python" "$root/benchmarks/gpu.py" --out "$out" --seconds "$speed"
exit $((status | $?))
