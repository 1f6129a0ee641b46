#!/bin/sh
# Everything about power that needs a real NVIDIA GPU, in about eight minutes: what is measurable, the probe's verdicts,
# and what the sampler costs beside a load. Reads only: sets no limit and no clock.
#   scripts/gpu_power_session.sh OUT_DIR [python]
set -eu
out=${1:?usage: scripts/gpu_power_session.sh OUT_DIR [python]}
python=${2:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$out"
"$python" -m joulegraph doctor --probe --out "$out" --json >"$out/doctor.json" 2>"$out/doctor.txt" || { cat "$out/doctor.txt"; exit 1; }
cat "$out/doctor.txt"
"$python" -m joulegraph doctor --from "$out" --json >"$out/judged_again.json"
quiet=$(mktemp -d)
"$python" -m joulegraph sample --out "$quiet/run" --duration 20 --json >"$out/sample_quiet.json"
cat "$out/sample_quiet.json"
"$python" scripts/bench_sampler_gpu.py --json >"$out/bench_sampler_gpu.json"
cat "$out/bench_sampler_gpu.json"
"$python" scripts/bench_sampler.py --seconds 60 --json >"$out/bench_sampler.json"
cat "$out/bench_sampler.json"
