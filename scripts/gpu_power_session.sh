#!/bin/sh
# Everything about power that needs a real NVIDIA GPU, in under five minutes: what is measurable, the probe's verdicts,
# and what the sampler costs an engine that already runs there (its throughput with the sampler off and on, mirrored;
# the sampler's CPU time and time inside the driver). Reads only: sets no limit and no clock, restarts nothing.
#   scripts/gpu_power_session.sh URL OUT_DIR       PYTHON=python3  REPEATS=6  COUNT=200  SOURCES=nvml,rapl  BUDGET=280
# OUT_DIR/power_session.json holds the figures, OUT_DIR/steps.txt how each step ended.
set -u
usage="usage: scripts/gpu_power_session.sh URL OUT_DIR"
url=${1:?$usage}
out=${2:?$usage}
python=${PYTHON:-python3}
BUDGET=${BUDGET:-280}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
. scripts/_bounded.sh

bounded overhead 170 "$python" scripts/bench_overhead.py "$url" --arms none,sampler --repeats "${REPEATS:-6}" \
    --count "${COUNT:-200}" --sources "${SOURCES:-nvml,rapl}" --json >"$out/overhead.json"
bounded doctor 150 "$python" -m joulegraph doctor --probe --out "$out/doctor" --json >"$out/doctor.json"
bounded judged 30 "$python" -m joulegraph doctor --from "$out/doctor" --json >"$out/judged.json"
"$python" - "$out" <<'PY'
import json, sys
from pathlib import Path
out = Path(sys.argv[1])
found = {}
for name in ("overhead", "doctor", "judged"):
    text = (out / f"{name}.json").read_text().strip()
    found[name] = json.loads(text.splitlines()[-1]) if text else None
(out / "power_session.json").write_text(json.dumps(found))
overhead = found["overhead"]
if overhead is None:
    sys.exit(f"no throughput was measured: see {out}/log.txt")
for name, row in overhead["differences"].items():
    print(f"{name}: {row['percent']:+.2f} % (95 %: {row['lo']:+.2f} to {row['hi']:+.2f}, {row['rounds']} rounds)")
for key in ("cpu_percent", "driver_percent", "missed", "late_p99_ms_worst_second"):
    print(f"sampler {key}: {[row[key] and round(row[key], 3) for row in overhead['sampler']]}")
PY
