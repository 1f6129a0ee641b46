"""What this machine can measure: every power sensor with its period, resolution and cost per call measured on the spot,
what is missing and the command that would grant it. --probe drives known work and reports lag, averaging, duty cycle.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from energy.examine import Examined
    from energy.probing import Probed
    from energy.source import Found

_ALL_SOURCES = "nvml,rapl"
_NEEDS = {
    "nvml": "any user",
    "rapl": "read of energy_uj",
    "pyrapl": "read of energy_uj",
    "perf": "CAP_PERFMON",
    "amd": "group render",
    "node": "root or BMC account",
    "tdp": "any user",
}
"""permission by interface, the first part of a sensor's name"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `joulegraph doctor`."""
    parser.add_argument("--sources", default=_ALL_SOURCES, help=f"comma list to look for (default {_ALL_SOURCES})")
    parser.add_argument("--probe", action="store_true", help="drive square waves on CPU and GPU (about a minute)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the probe's recording here")
    parser.add_argument("--from", dest="recorded", type=Path, metavar="DIR", help="judge a kept recording instead")
    parser.add_argument("--json", action="store_true", help="one line of results on stdout")


def run(args: argparse.Namespace) -> int:
    """Look, measure, tell."""
    from energy.examine import examine
    from energy.knobs import restore_left_behind
    from energy.sampling import find_sources

    if args.recorded is not None:
        return _judge_recorded(args)
    for restored in restore_left_behind():
        _say(f"left by a run that was killed: {restored}")
    found = find_sources(tuple(name.strip() for name in args.sources.split(",") if name.strip()))
    try:
        _say("looking at each sensor for up to 1.5 s ...")
        examined = [one for source in found.sources for one in examine(source)]
        result = _result(found, examined)
        _tell(result, found)
        if args.probe:
            result["probe"] = _probe(found, args.out)
    finally:
        found.close()
    _print_json(args, result)
    return 0


def _result(found: Found, examined: list[Examined]) -> dict[str, Any]:
    from energy.knobs import describe_knobs
    from joulegraph import host
    from traces import compiled

    return {
        "host": {**host.describe(), "root": os.geteuid() == 0},
        "sensors": [_row(one) for one in examined],
        "missing": [asdict(missing) for missing in found.missing],
        "knobs": describe_knobs(),
        "hot_modules": compiled.FORM,
        "sampling_busy_percent": round(100 * sum({one.call_p50_ns: one.busy for one in examined}.values()), 3),
        "level": "measured" if any(not one.info.estimated for one in examined) else "L0 (estimates only)",
    }


def _row(one: Examined) -> dict[str, Any]:
    """A sensor as --json shows it."""
    info, seen = one.info, one.updates
    return {
        "sensor": info.source,
        "domain": info.domain,
        "device": info.device,
        "reading": info.reading,
        "unit": info.unit,
        "scope": info.scope,
        "watts": None if one.watts is None else round(one.watts, 2),
        "period_ms": _ms(seen.period_ns),
        "period_documented_ms": _ms(info.period_ns),
        "resolution": seen.resolution or info.resolution,
        "wraps_at_uj": info.wraps_at,
        "call_us_p50": round(one.call_p50_ns / 1000, 1),
        "call_us_p99": round(one.call_p99_ns / 1000, 1),
        "calls": one.calls,
        "needs": _NEEDS.get(info.source.split(".")[0], "its file"),
        "limits": info.limits,
        "estimated": info.estimated,
        "why": one.why,
    }


def _ms(value_ns: int | None) -> float | None:
    return None if value_ns is None else round(value_ns / 1e6, 3)


def _tell(result: dict[str, Any], found: Found) -> None:
    host = result["host"]
    who = "root" if host["root"] else "user"
    _say(f"{host['cpu'] or host['machine']}, {host['cores']} cores, {host['os']}, as {who}")
    if result["sensors"]:
        _say("\nmeasurable here:" if result["level"] == "measured" else "\nnothing is measurable here; estimates:")
        heads = ("sensor", "domain", "kind", "watts", "period ms", "step", "call us p50 / p99", "needs")
        _columns([heads, *(_cells(row) for row in result["sensors"])])
        _say("(periods in brackets are documented, not seen: the value did not change while looked at)")
        for row in result["sensors"]:
            if row["limits"]:
                _say(f"  {row['sensor']}: {row['limits']}")
        _say(f"sampling all of it spends {result['sampling_busy_percent']} % of one core's time inside calls")
    else:
        _say("\nNothing is measurable here: runs work at level L0, joules only as estimates marked so:")
        _say("  --sources tdp:WATTS with the design power of the CPUs, or joulegraph attribute RUN --profile FILE")
    if found.missing:
        _say("\nnot measurable:")
    for missing in found.missing:
        _say(f"  {missing.sensor}: {missing.why}")
        _say(f"      to get it: {missing.remedy}" if missing.remedy else "      nothing on this machine would grant it")
    for knob in result["knobs"]:
        _say(f"knob {knob['knob']} on {knob['device']}: {knob['state']}")
    _say(f"hot modules of the proxy: {result['hot_modules']}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table of sensors."""
    period = str(row["period_ms"]) if row["period_ms"] is not None else f"({row['period_documented_ms']})"
    step = "?" if row["resolution"] is None else f"{row['resolution']} {row['unit']}"
    watts = "-" if row["watts"] is None else f"{row['watts']:.1f}"
    cost = f"{row['call_us_p50']} / {row['call_us_p99']}"
    reading = f"{row['reading']}, estimated" if row["estimated"] else row["reading"]
    return (row["sensor"], row["domain"], reading, watts, period, step, cost, row["needs"])


def _columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _probe(found: Found, out: Path | None) -> dict[str, Any]:
    """Square waves on what is there; every verdict as JSON."""
    from energy.probing import gpu_library, judge, probe_cpu, probe_gpu

    cpu = [s for s in found.sources if any(i.domain in ("cpu", "dram", "psys", "core", "node") for i in s.infos)]
    gpu = [s for s in found.sources if any(i.device == "gpu0" for i in s.infos)]
    result: dict[str, Any] = {}
    if cpu:
        result["cpu"] = _kept(probe_cpu(_only(cpu), _say), out, "cpu")
    else:
        _say("CPU probe: skipped, no CPU sensor is readable here")
    library = gpu_library()
    if gpu and library:
        result["gpu"] = _kept(probe_gpu(_only(gpu), library, _say), out, "gpu")
    elif gpu:
        _say("GPU probe: skipped, it needs torch or CuPy (pip install torch)")
    else:
        _say("GPU probe: skipped, no GPU sensor is readable here")
    verdicts = {}
    for kind, recording in result.items():
        judged = judge(recording)
        _tell_probe(kind, judged)
        verdicts[kind] = {name: asdict(one) for name, one in judged.items()}
    return verdicts


def _only(sources: list[Any]) -> Found:
    from energy.source import Found

    return Found(sources)


def _kept(recording: Any, out: Path | None, kind: str) -> Any:
    """The recording, written to DIR/<kind>.probe.json when asked for."""
    if out is not None:
        import orjson

        out.mkdir(parents=True, exist_ok=True)
        (out / f"{kind}.probe.json").write_bytes(orjson.dumps(recording))
    return recording


def _judge_recorded(args: argparse.Namespace) -> int:
    import orjson

    from energy.probe import Wave
    from energy.probing import Recording, judge
    from traces.errors import UserError

    files = sorted(args.recorded.glob("*.probe.json"))
    if not files:
        raise UserError(f"{args.recorded}: no *.probe.json in it; give the folder of doctor --probe --out")
    verdicts = {}
    for path in files:
        try:
            kept = orjson.loads(path.read_bytes())
            square = [(int(a), int(b)) for a, b in kept["square"]]
            recording = Recording(kept["rows"], square, [Wave(**wave) for wave in kept["waves"]])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a probe recording ({error}); record it with doctor --probe --out") from error
        judged = judge(recording)
        kind = path.name.split(".")[0]
        _tell_probe(kind, judged)
        verdicts[kind] = {name: asdict(one) for name, one in judged.items()}
    _print_json(args, {"probe": verdicts})
    return 0


def _tell_probe(kind: str, judged: dict[str, Probed]) -> None:
    _say(f"{kind} probe:")
    for name, one in judged.items():
        parts = [_updates(one.updates.period_ns)]
        if one.response is None and one.updates.period_ns:
            parts.append(
                "lag unknown: it shows no step (other work on the machine drowns the probe's, or it is too slow)"
            )
        if one.response is not None:
            fit = one.response
            parts.append(f"lag {fit.lag_ns / 1e6:.0f} ms ({fit.lag_low_ns / 1e6:.0f} .. {fit.lag_high_ns / 1e6:.0f})")
            parts.append(_averaging(fit.window_ns, one.updates.period_ns))
            parts.append(f"shows {fit.low_w:.0f} W off, {fit.high_w:.0f} W on, misfit {fit.rms_w:.1f} W")
        if one.duty is not None:
            parts.append(one.duty.sentence())
        _say(f"  {name:<28} " + "; ".join(parts))


def _updates(period_ns: int | None) -> str:
    """A sensor that is new at every read updates faster than the probe reads it."""
    from energy.probing import POLL_NS

    if period_ns is None:
        return "never changed"
    if period_ns < 1.2 * POLL_NS:
        return f"new at every read ({POLL_NS / 1e6:.0f} ms)"
    return f"updates every {_ms(period_ns)} ms"


def _averaging(window_ns: int, period_ns: int | None) -> str:
    """Windows far below the update period are not resolved by a probe of a dozen cycles."""
    if period_ns is not None and 2 * window_ns < period_ns:
        return "averages over less than half its period"
    return f"averages over {window_ns / 1e6:.0f} ms"


def _print_json(args: argparse.Namespace, result: dict[str, Any]) -> None:
    if args.json:
        import orjson

        sys.stdout.buffer.write(orjson.dumps(result) + b"\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
