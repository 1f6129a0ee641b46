# Shared by gpu_study.sh and gpu_batch.sh (sourced; needs $out and $python): bounded steps, the four workloads, packing.
# BUDGET seconds in all: a step is cut to what is left of it, and with less than 10 s left it is skipped.
deadline=$(($(date +%s) + ${BUDGET:-86400}))

bounded() { # NAME SECONDS COMMAND...: first a Ctrl-C at the end of its time (drains and saves), 20 s later the end
    step=$1 step_s=$2
    shift 2
    begin=$(date +%s)
    left_s=$((deadline - begin))
    if [ $left_s -lt 10 ]; then
        echo "$step: skipped, the budget of ${BUDGET} s is spent" | tee -a "$out/steps.txt" >&2
        return
    fi
    [ $left_s -ge "$step_s" ] || step_s=$left_s
    timeout -s INT -k 20 "$step_s" "$@" 2>>"$out/log.txt"
    code=$?
    echo "$step: exit $code after $(($(date +%s) - begin)) s$([ $code = 124 ] && echo ', out of time')" | tee -a "$out/steps.txt" >&2
    [ $code = 0 ] || tail -n 3 "$out/log.txt" >&2
}

workloads() { # DIR: one trace per pattern, the same for every batch size
    mkdir -p "$1" &&
        "$python" -m joulegraph workload sequential -o "$1/sequential.jsonl" --count 8 --rate 1 --param document=6000 >&2 &&
        "$python" -m joulegraph workload interactive -o "$1/interactive.jsonl" --count 14 --rate 2 \
            --param prefix=4096 --param query=200-900 --param output=100-400 >&2 &&
        "$python" -m joulegraph workload agentic -o "$1/agentic.jsonl" --count 2 --rate 0.5 \
            --param files=4 --param rounds=1 >&2 &&
        "$python" -m joulegraph workload composite -o "$1/composite.jsonl" --preset demo --count "${COMPOSITE:-60}" >&2
}

pack() { # DIR: DIR.tar.xz without tables and reports, which `joulegraph finish RUN` makes again from the journals
    "$python" - "$1" <<'PY'
import sys, tarfile
from pathlib import Path
folder = Path(sys.argv[1])
again = (".parquet", "report.html", "report.json", "timeline.json")
def kept(entry):
    name = entry.name.rsplit("/", 1)[-1]
    return None if name.endswith(again) or name.startswith("status.") else entry
packed = folder.with_name(folder.name + ".tar.xz")
with tarfile.open(packed, "w:xz", preset=6) as tar:
    tar.add(folder, folder.name, filter=kept)
print(f"pack: {packed.stat().st_size / 2**20:.1f} MiB in {packed}", file=sys.stderr)
PY
}
