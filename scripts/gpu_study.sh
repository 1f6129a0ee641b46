#!/bin/sh
# The four workload patterns at three batch sizes, and an excerpt of a recorded trace, against an engine that already runs
# here: proxy in front, sampler on. Batch size is the proxy's run-time limit, so the engine is never restarted.
# Reads power only: sets no limit and no clock.
#   scripts/gpu_study.sh URL OUT_DIR [TRACE]       PYTHON=python3  LIMITS="1 4 16"  SOURCES=nvml,rapl
set -eu
url=${1:?usage: scripts/gpu_study.sh URL OUT_DIR [TRACE]}
out=${2:?usage: scripts/gpu_study.sh URL OUT_DIR [TRACE]}
trace=${3:-}
python=${PYTHON:-python3}
sources=${SOURCES:-nvml,rapl}
cd "$(dirname "$0")/.."
mkdir -p "$out"
jg() { "$python" -m joulegraph "$@"; }
jg workload sequential -o "$out/sequential.jsonl" --count 8 --rate 1 --param document=6000 >&2
jg workload interactive -o "$out/interactive.jsonl" --count 14 --rate 2 --param prefix=4096 --param query=200-900 --param output=100-400 >&2
jg workload agentic -o "$out/agentic.jsonl" --count 2 --rate 0.5 --param files=4 --param rounds=1 >&2
jg workload composite -o "$out/composite.jsonl" --preset demo >&2
for limit in ${LIMITS:-1 4 16}; do
    for name in sequential interactive agentic composite; do
        jg replay "$out/$name.jsonl" --target "$url" --max-concurrency "$limit" --sources "$sources" --seed "$limit" \
            --no-report --out "$out/$name-$limit" --json >>"$out/summary.jsonl" 2>>"$out/log.txt" ||
            echo "$name at $limit: exit $?" >&2
    done
done
if [ -n "$trace" ]; then
    jg replay "$trace" --target "$url" --limit "${TRACE_LIMIT:-40}" --proxy --sources "$sources" --no-report \
        --out "$out/trace" --json >>"$out/summary.jsonl" 2>>"$out/log.txt" || echo "trace: exit $?" >&2
fi
"$python" - "$out/summary.jsonl" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    r = json.loads(line)
    name = r["run"].rsplit("/", 1)[-1]
    print(f"{name:18} {r['state']:9} level {r['level']} requests {r['requests']:4} errors {r['errors']:3} rejected {r['rejected']:3} "
          f"measured {(r['measured_uj'] or 0) / 1e6:9.1f} J attributed {(r['attributed_uj'] or 0) / 1e6:9.1f} J "
          f"idle {(r['idle_uj'] or 0) / 1e6:8.1f} J closure {r['closure_uj']} wall {r['wall_s']} s {r['why'] or ''}")
PY
