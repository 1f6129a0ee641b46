#!/bin/sh
# What joulegraph can measure of an engine that already runs on this machine's GPU, in bounded steps; a step that fails or
# runs out of time is told and the next one starts. Reads power only: sets no limit and no clock, restarts nothing.
#   scripts/gpu_study.sh URL OUT_DIR [STEP ...]     all steps, about twelve minutes on an H100 with an 8B model
# Steps: doctor (probe of the sensors), patterns (four workload patterns, batch size as the proxy's run-time limit),
#   trace (TRACE, first TRACE_LIMIT workflows), calibrate (profile.json), overhead (throughput with sampler and proxy off
#   and on), pack (OUT_DIR.tar.xz: journals and summaries, without what can be derived again), summary.
# BUDGET=(seconds in all)  PYTHON=python3  LIMITS="1 4 16"  SOURCES=nvml,rapl  TRACE=FILE  TRACE_LIMIT=40
# REPEATS=6  CALIBRATE_S=3
# Batch size as a launch setting of vLLM, with its iteration stream: scripts/gpu_batch.sh.
set -u
usage="usage: scripts/gpu_study.sh URL OUT_DIR [STEP ...]"
url=${1:?$usage}
out=${2:?$usage}
shift 2
[ $# -gt 0 ] || set -- doctor patterns trace calibrate overhead summary pack
python=${PYTHON:-python3}
sources=${SOURCES:-nvml,rapl}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
. scripts/_bounded.sh

replay() { # NAME SECONDS TRACE [flags]: one measured run
    name=$1 seconds=$2 trace=$3
    shift 3
    bounded "$name" "$seconds" "$python" -m joulegraph replay "$trace" --target "$url" --sources "$sources" \
        --timeout "$seconds" --no-report --out "$out/$name" --json "$@" >>"$out/summary.jsonl"
}

patterns() {
    made=0
    for limit in ${LIMITS:-1 4 16}; do
        [ $made = 1 ] || workloads "$out" && made=1
        for name in sequential interactive agentic composite; do
            replay "$name-limit$limit" 120 "$out/$name.jsonl" --max-concurrency "$limit" --seed "$limit"
        done
    done
}

for wanted in "$@"; do
    case $wanted in
    doctor) bounded doctor 150 "$python" -m joulegraph doctor --probe --out "$out/doctor" --json >"$out/doctor.json" ;;
    patterns) patterns ;;
    trace)
        if [ -n "${TRACE:-}" ]; then
            replay trace 150 "$TRACE" --limit "${TRACE_LIMIT:-40}" --proxy
        else
            echo "trace: skipped, TRACE names no file" >&2
        fi
        ;;
    calibrate)
        bounded calibrate 240 "$python" -m joulegraph calibrate --target "$url" --sources "$sources" \
            --seconds "${CALIBRATE_S:-3}" -o "$out/profile.json" --json >"$out/calibrate.json"
        ;;
    overhead)
        bounded overhead 330 "$python" scripts/bench_overhead.py "$url" --sources "$sources" \
            --repeats "${REPEATS:-6}" --json >"$out/overhead.json"
        ;;
    summary) [ -s "$out/summary.jsonl" ] && "$python" scripts/show_runs.py "$out/summary.jsonl" ;;
    pack) pack "$out" ;;
    *) echo "$wanted: no such step; $usage" >&2 ;;
    esac
done
