#!/bin/sh
# Batch size as vLLM's own launch setting (max_num_seqs), at level L3: a sweep that starts vLLM once per value with its
# iteration stream on and plays the four workload patterns through the proxy. Reads power only: sets no limit, no clock.
#   scripts/gpu_batch.sh MODEL OUT_DIR [vLLM flag ...]     about four minutes per value with an 8B model
# PYTHON=python3  VLLM_PYTHON=(PYTHON)  SEQS="4 16"  REPEATS=1  BUDGET=520  SOURCES=nvml,rapl
# The same command goes on where it stopped; scripts/gpu_study.sh has the rest.
set -u
usage="usage: scripts/gpu_batch.sh MODEL OUT_DIR [vLLM flag ...]"
model=${1:?$usage}
out=${2:?$usage}
shift 2
python=${PYTHON:-python3}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
[ -d "$model" ] && model=$(cd "$model" && pwd)
cd "$(dirname "$0")/.." || exit 2
. scripts/_bounded.sh

words() { # the rest of the line as a TOML list
    printf '['
    for word in "$@"; do printf "'%s', " "$word"; done
    printf ']'
}

workloads "$out/traces" || exit 2
cat >"$out/sweep.toml" <<TOML
name = "batch"
repeats = ${REPEATS:-1}
warmup = 1
cooldown_s = 2
idle_s = 2
timeout_s = 150
sources = $(words $(echo "${SOURCES:-nvml,rapl}" | tr , ' '))

[base]
engine = "vllm"
model = "$model"

[grid]
max_num_seqs = [$(echo ${SEQS:-4 16} | tr ' ' ,)]
trace = ["traces/sequential.jsonl", "traces/interactive.jsonl", "traces/agentic.jsonl", "traces/composite.jsonl"]

[vllm]
python = "$(command -v "${VLLM_PYTHON:-$python}")"
start_s = 300
flags = $(words "$@")
TOML
BUDGET=${BUDGET:-520}
bounded sweep "$BUDGET" "$python" -m joulegraph sweep "$out/sweep.toml" --out "$out" --json >"$out/sweep-result.json"
pack "$out"
