"""What sampling costs a GPU's user: throughput of GPU work with the sampler off and on (ABBA), CPU and driver time.

Needs torch with CUDA. Two loads: large matrix products (GPU-bound) and small ones (launch-bound, where driver calls
of another process would show first). Touches no setting of the card. Takes about
2 x (4 x rounds x seconds + 4 x rounds) seconds; a load that is done is on standard error at once, and what a SIGTERM
finds done is still printed.

    python scripts/bench_sampler_gpu.py [--seconds 8] [--rounds 3] [--load small] [--json]
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sampler_cost import cost


def loads() -> dict[str, Callable[[], int]]:
    """Name -> a burst of about 10 ms that returns how many products it did."""
    import torch

    def burst(size: int, count: int) -> Callable[[], int]:
        a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
        out = torch.empty_like(a)

        def run() -> int:
            for _ in range(count):
                torch.mm(a, a, out=out)
            torch.cuda.synchronize()
            return count

        return run

    return {"large": burst(8192, 8), "small": burst(256, 1000)}


def throughput(burst: Callable[[], int], seconds: float) -> float:
    """Products per second."""
    begin = time.perf_counter()
    done = 0
    while time.perf_counter() - begin < seconds:
        done += burst()
    return done / (time.perf_counter() - begin)


def sampled(burst: Callable[[], int], seconds: float) -> tuple[float, dict[str, Any]]:
    """The same with the sampler beside it, and what the sampler says of itself."""
    from energy.sampling import SamplerConfig, start_sampler
    from energy.summary import summarise
    from traces.journal import JournalReader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "power.jsonl"
        child, ready = start_sampler(SamplerConfig(journal=str(path)))
        if not any(info.domain == "gpu" for info in ready.sensors):
            child.stop()
            why = [missing.sentence() for missing in ready.missing if missing.sensor.startswith("nvml")]
            raise SystemExit(f"no GPU sensor to measure with: {'; '.join(why)}")
        rate = throughput(burst, seconds)
        child.stop()
        return rate, cost(summarise(JournalReader(path)))


def main() -> int:
    """Run both loads, print the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3, help="ABBA rounds")
    parser.add_argument("--load", choices=("large", "small"), help="only this one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for name, burst in loads().items():
            if args.load not in (None, name):
                continue
            throughput(burst, min(3.0, args.seconds))  # warm
            result[name] = abba(burst, args.seconds, args.rounds)
            sys.stderr.write(f"{name}: {json.dumps(result[name])}\n")
    finally:
        if args.json:
            print(json.dumps(result), flush=True)
    return 0


def abba(burst: Callable[[], int], seconds: float, rounds: int) -> dict[str, Any]:
    """Off, on, on, off, `rounds` times: both rates, their paired change, and what the sampler says of itself."""
    off: list[float] = []
    on: list[float] = []
    said: list[dict[str, Any]] = []
    for _ in range(rounds):
        off.append(throughput(burst, seconds))
        for _ in range(2):
            rate, figures = sampled(burst, seconds)
            on.append(rate)
            said.append(figures)
        off.append(throughput(burst, seconds))
    change = [100 * (b / a - 1) for a, b in zip(off, on, strict=True)]
    return {
        "off_per_s": statistics.mean(off),
        "on_per_s": statistics.mean(on),
        "change_percent": statistics.mean(change),
        "change_sem_percent": statistics.stdev(change) / len(change) ** 0.5,
        **{key: statistics.mean(s[key] for s in said) for key in ("cpu_percent", "driver_percent")},
        "missed": sum(s["missed"] for s in said),
        "late_p99_ms_worst_second": max(s["late_p99_ms_worst_second"] for s in said),
        "sampler": said,
    }


if __name__ == "__main__":
    raise SystemExit(main())
