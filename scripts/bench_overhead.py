"""What proxy and sampler cost an engine: its output tokens per second in closed loop without either, with the sampler,
and with sampler and proxy, in mirrored order (A B C, C B A, ...). Touches no setting of a card, restarts no engine.

    python scripts/bench_overhead.py URL [--users 32] [--count 200] [--repeats 6] [--arms none,sampler,sampler+proxy]

A run's throughput is taken between its 10th and its 90th percent of output tokens, where every user is busy. A round
holds each arm once; the difference of two arms is the mean over rounds of their ratio, with Student's 95 % interval.
Ctrl-C ends it with the rounds that are whole.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sampler_cost import cost

from energy.summary import summarise
from joulegraph.load import LoadJob
from joulegraph.realtime import RealRun, run_real
from joulegraph.sweep.config import Point, Sweep
from joulegraph.sweep.setup import trace_of
from joulegraph.sweep.stats import interval
from joulegraph.targets import ask
from loadgen.replay import ReplayOptions
from loadgen.target import Target, split_url
from traces.errors import UserError
from traces.rundir import RunDir

ARMS = ("none", "sampler", "proxy", "sampler+proxy")
SPARE = 0.1
"""share of the tokens left out at either end: users start together and end one by one"""


def throughput(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Rows of a dispatch journal -> output tokens/s in the middle, median TTFT and time per output token (ms)."""
    stamps, tokens, ttft, tpot = [], [], [], []
    for row in rows:
        if row.get("outcome") != "ok" or row.get("t_first_token_ns") is None:
            continue
        stamps.append(row["t_sent_ns"] + np.cumsum(np.array(row["read_dt_ns"], np.int64)))
        tokens.append(np.array(row["read_tokens"], np.int64))
        ttft.append(row["t_first_token_ns"] - row["t_sent_ns"])
        tpot.append((row["t_last_token_ns"] - row["t_first_token_ns"]) / max(1, row["completion_tokens"] - 1))
    if not stamps:
        raise UserError("no request was answered; look at the run directory")
    at, made = np.concatenate(stamps), np.concatenate(tokens)
    order = np.argsort(at, kind="stable")
    at, done = at[order], np.cumsum(made[order])
    low, high = (int(np.searchsorted(done, share * done[-1])) for share in (SPARE, 1 - SPARE))
    return {
        "tokens_per_s": float((done[high] - done[low]) / (at[high] - at[low]) * 1e9),
        "tokens": float(done[-1]),
        "ttft_ms": float(np.median(ttft)) / 1e6,
        "tpot_ms": float(np.median(tpot)) / 1e6,
    }


def one(args: argparse.Namespace, arm: str, path: Path, trace: Path, sampled: list[dict[str, Any]]) -> dict[str, float]:
    """One run of an arm; what its sampler cost is put into sampled.

    New prompts every time, so that no run finds the cached prefixes of another.
    """
    server = ask(args.url)
    host, port, base, _ = split_url(args.url)
    target = Target(host, port, model=server.models[0], base=base, exact=server.exact_lengths)
    options = ReplayOptions(
        salt=f"{time.time_ns()}", timeout_ns=round(args.timeout * 1e9), closed_loop_users=args.users
    )
    run = RunDir.create(path)
    plan = RealRun(
        LoadJob(run=path, trace=trace, target=target, options=options),
        None,
        tuple(args.sources.split(",")) if "sampler" in arm else (),
        through_proxy="proxy" in arm,
        idle_s=0.5,
        tail_s=0.2,
        quiet=True,
    )
    run_real(run, plan)
    if "sampler" in arm:
        sampled.append(cost(summarise(run.rows("power"))))
    return {**throughput(run.rows("dispatch")), "failed": float(run.info["load"]["errors"])}


def mirrored(arms: list[str], repeats: int) -> list[tuple[int, str]]:
    """(round, arm) in the order of running: every second round backwards."""
    return [(k, arm) for k in range(repeats) for arm in (arms if k % 2 == 0 else arms[::-1])]


def verdicts(arms: list[str], found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Each arm's mean, and each arm against the one before it and against the first (percent, 95 % interval)."""
    out: dict[str, Any] = {"arms": {}, "differences": {}}
    for arm in arms:
        rates = [row["tokens_per_s"] for row in found[arm]]
        spread = float(np.std(rates, ddof=1) / np.mean(rates)) if len(rates) > 1 else None
        rest = {name: float(np.mean([row[name] for row in found[arm]])) for name in ("ttft_ms", "tpot_ms", "failed")}
        out["arms"][arm] = {"tokens_per_s": float(np.mean(rates)), "spread": spread, "runs": rates, **rest}
    for k, arm in enumerate(arms[1:], 1):
        for other in dict.fromkeys((arms[k - 1], arms[0])):
            change = [
                100 * (b["tokens_per_s"] / a["tokens_per_s"] - 1) for a, b in zip(found[other], found[arm], strict=True)
            ]
            bounds = interval(change)
            out["differences"][f"{arm} against {other}"] = {
                "percent": bounds.mean,
                "lo": bounds.low,
                "hi": bounds.high,
                "rounds": len(change),
            }
    return out


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runs in order, told one by one."""
    arms = args.arms.split(",")
    sizes = {"prefix": str(args.prefix), "query": args.query, "output": args.output}
    point = Point(workload="interactive", count=args.count, users=args.users, params=tuple(sorted(sizes.items())))
    trace = trace_of(point, Sweep("overhead", (point,)), 0, folder / "traces")
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    sampled: list[dict[str, Any]] = []
    one(args, "none", folder / "warm-up", trace, sampled)
    try:
        for number, arm in mirrored(arms, args.repeats):
            got = one(args, arm, folder / f"{number}-{arm.replace('+', '-')}", trace, sampled)
            found[arm].append(got)
            sys.stderr.write(f"round {number + 1}/{args.repeats} {arm:14} {got['tokens_per_s']:8.1f} tokens/s\n")
    except KeyboardInterrupt:
        whole = min(map(len, found.values()))
        if whole < 2:
            raise UserError(f"stopped after {whole} whole rounds; a difference needs two") from None
        found = {arm: rows[:whole] for arm, rows in found.items()}
    return {"users": args.users, "requests": args.count, **verdicts(arms, found), "sampler": sampled}


def main() -> int:
    """Run, print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="an OpenAI-style engine that runs")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--count", type=int, default=200, help="requests per run (default %(default)s)")
    parser.add_argument("--prefix", type=int, default=2048, help="tokens of the shared system prompt")
    parser.add_argument("--query", default="100-400", help="tokens after it")
    parser.add_argument("--output", default="100-200", help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=6, help="rounds (default %(default)s)")
    parser.add_argument("--arms", default="none,sampler,sampler+proxy", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--sources", default="nvml,rapl", help="power sensors (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds per request")
    parser.add_argument("--out", type=Path, help="keep the run directories here")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    args = parser.parse_args()
    unknown = [arm for arm in args.arms.split(",") if arm not in ARMS]
    if unknown or args.repeats < 2:
        parser.error(f"unknown arm {unknown[0]!r}" if unknown else "--repeats must be at least 2")
    try:
        with ExitStack() as stack:
            folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            result = measure(args, folder)
    except UserError as error:
        sys.stderr.write(f"bench_overhead: {error}\n")
        return 2
    if args.json:
        print(json.dumps(result))
        return 0
    for arm, row in result["arms"].items():
        print(
            f"{arm:14} {row['tokens_per_s']:8.1f} tokens/s  TTFT {row['ttft_ms']:.1f} ms  TPOT {row['tpot_ms']:.2f} ms"
        )
    for name, row in result["differences"].items():
        print(f"{name}: {row['percent']:+.2f} % (95 %: {row['lo']:+.2f} to {row['hi']:+.2f}, {row['rounds']} rounds)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
