#!/usr/bin/env python3
"""Time attribution of a large run: writes requests and a counter, then runs `joulegraph attribute` on it.

    scripts/bench_attribution.py [--requests 1000000] [--reads 128] [--keep FOLDER]

Prints wall and CPU seconds and the highest resident memory of the command. The default wants 2 GB of disk and 4 GB of
memory; the run holds what a proxy writes (level L1), about 280 requests in flight at any time.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from traces.rundir import RunDir

RATE, STEP_NS, S = 100.0, 20_000_000, 1_000_000_000


def write_run(path: Path, requests: int, reads: int) -> None:
    """A run of steady load: `requests` streams of `reads` tokens, a counter every 100 ms."""
    run = RunDir.create(path)
    rng = np.random.default_rng(1)
    seconds = requests / RATE + reads * STEP_NS / S + 10
    with run.file("requests.0.jsonl").open("wb") as file:
        file.write(b'{"journal":"requests","version":1,"mono_ns":0,"wall_ns":0}\n')
        for i in range(requests):
            sent = 5 * S + round(i / RATE * S)
            gaps = rng.integers(STEP_NS - 4_000_000, STEP_NS + 4_000_000, reads)
            end = sent + int(gaps.sum())
            row = {
                "request_id": f"r{i}", "workflow_id": f"w{i // 4}", "node_id": f"n{i % 4}", "outcome": "ok",
                "t_arrival_ns": sent, "t_upstream_ns": sent, "t_first_token_ns": sent + int(gaps[0]),
                "t_last_token_ns": end, "t_end_ns": end, "prompt_tokens": int(rng.integers(50, 2000)),
                "cached_tokens": 0, "completion_tokens": reads, "read_dt_ns": gaps.tolist(), "read_tokens": [1] * reads,
            }  # fmt: skip
            file.write(orjson.dumps(row) + b"\n")
    sensor = {"kind": "sensor", "source": "g.energy", "domain": "gpu", "device": "gpu0", "reading": "counter",
              "unit": "uJ", "period_ns": 100_000_000, "resolution": 1000}  # fmt: skip
    with run.file("power.bench.jsonl").open("wb") as file:
        file.write(b'{"journal":"power","version":1,"mono_ns":0,"wall_ns":0}\n' + orjson.dumps(sensor) + b"\n")
        watts = 300 + 100 * np.sin(np.arange(int(seconds * 10)) / 300) + rng.normal(0, 5, int(seconds * 10))
        for k, uj in enumerate(np.cumsum(watts * 1e5).astype(int) // 1000 * 1000):
            t = k * 100_000_000
            row = {"kind": "sample", "source": "g.energy", "t0_ns": t, "t1_ns": t + 1000, "value": int(uj)}
            file.write(orjson.dumps(row) + b"\n")
    run.write_info({"state": "complete"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--reads", type=int, default=128)
    parser.add_argument("--keep", type=Path, help="make the run here and keep it (made once)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or Path(folder) / "run"
        if not (path / "run.json").is_file():
            write_run(path, args.requests, args.reads)
        begin = time.monotonic()
        command = [sys.executable, "-m", "joulegraph", "attribute", str(path), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        wall = time.monotonic() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = orjson.loads(done.stdout)
    print(
        f"{args.requests} requests x {args.reads} reads: {wall:.1f} s wall, {used.ru_utime + used.ru_stime:.1f} s CPU,"
        f" {used.ru_maxrss / 2**20:.2f} GB, closure {out['closure_uj']} uJ"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
