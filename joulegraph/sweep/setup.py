"""What a point needs before it runs: its trace, and which of its factors its engine cannot turn.

May not know: how runs are played, time.
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from pathlib import Path

from joulegraph.sweep.config import Point, Sweep
from traces.errors import UserError
from traces.trace import write_trace
from traces.workloads import PRESETS, generate, manifest

_LENGTHS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # pattern: (input_length sets, output_length sets)
    "sequential": (("chunk",), ("output",)),
    "interactive": (("query",), ("output",)),
    "agentic": (
        ("coder_guide", "reviewer_guide", "reviser_guide"),
        ("design", "code", "review", "revision"),
    ),
    "tool-loop": (("result",), ("call", "answer")),
    "debate": (("question",), ("statement", "verdict")),
    "plan-execute": (("goal",), ("plan", "result", "answer")),
    "chat": (("prompt",), ("output",)),
}


NOT_TURNED = "power caps and clocks are not turned in this sweep (turn_knobs = false)"


def unable(point: Point, turn_knobs: bool = True) -> str | None:
    """Why this point cannot run as it stands, found before anything is started; None: it can be tried."""
    if not turn_knobs and (point.power_cap_w is not None or point.sm_clock_mhz is not None):
        return NOT_TURNED
    embedded = point.kind in ("embedded", "embedded-real", "parrot")
    if embedded and point.max_num_active_seqs is not None:
        return "the embedded engine has no max_num_active_seqs; use max_num_seqs or proxy_limit"
    if embedded and point.sm_clock_mhz is not None:
        return "the embedded engine has no SM clock to lock; use power_cap_w"
    odd = _foreign(point)
    if odd is not None:
        return odd
    launch = ("max_num_seqs", "max_num_active_seqs", "max_num_batched_tokens", "max_model_len", "prefix_caching")
    if point.kind == "attach":
        given = [name for name in launch if getattr(point, name) is not None]
        if given:
            return f"{given[0]} is a launch setting, and an attached engine runs already; use proxy_limit, or launch it"
    if point.kind == "xllamacpp":
        given = [n for n in ("max_num_active_seqs", "max_num_batched_tokens", "prefix_caching") if _set(point, n)]
        if given:
            return f"llama.cpp is not started with {given[0]} here"
    return None


def _foreign(point: Point) -> str | None:
    """Batch size is a setting of its own in a Parrot and elsewhere."""
    if point.kind == "parrot":
        given = [n for n in ("max_num_seqs", "proxy_limit") if _set(point, n)]
        return f"a Parrot has no {given[0]}; use max_batch_size or tasks_capacity" if given else None
    given = [n for n in ("max_batch_size", "tasks_capacity") if _set(point, n)]
    return f"{given[0]} is a setting of Parrot; use max_num_seqs or proxy_limit" if given else None


def _set(point: Point, name: str) -> bool:
    return getattr(point, name) is not None


def trace_of(point: Point, sweep: Sweep, repeat: int, folder: Path) -> Path:
    """The point's trace file, written once: repeats have seeds of their own, points of a repeat share theirs."""
    if point.trace is not None:
        return Path(point.trace)
    rate = None if point.users is not None else point.rate
    words = (point.workload, point.preset, _params(point), point.count, rate, point.cv, point.scale, point.users)
    seed = sweep.seed + repeat
    name = hashlib.blake2b(repr((words, seed)).encode(), digest_size=5).hexdigest()
    path = folder / f"{point.workload}-{name}.jsonl.gz".replace("/", "_").replace(":", "_")
    if path.exists():
        return path
    from joulegraph.commands.workload import plan

    streams = plan(
        Namespace(
            name=point.workload,
            preset=point.preset,
            param=[f"{k}={v}" for k, v in _params(point)],
            count=point.count,
            rate=rate,
            cv=point.cv,
            users=point.users,
            scale=point.scale,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    write_trace(part, manifest(f"joulegraph sweep {sweep.name}, seed {seed}"), generate(streams, seed=seed))
    part.rename(path)
    return path


def _params(point: Point) -> list[tuple[str, str]]:
    """The point's own parameters over those that its lengths set."""
    chosen: dict[str, str] = {}
    for length, which in ((point.input_length, 0), (point.output_length, 1)):
        if length is not None:
            chosen |= dict.fromkeys(_targets(point, which), str(length))
    return sorted((chosen | dict(point.params)).items())


def _targets(point: Point, which: int) -> list[str]:
    """Parameters that a length sets. UserError where the workload has no meaning for it."""
    preset = PRESETS.get(point.workload or "", {}).get(point.preset or "")
    streams = preset.streams if preset else ()
    if len(streams) > 1:
        classes = [(f"{s.name}.", str(s.pattern)) for s in streams]
    elif point.workload == "composite":
        mix = dict(point.params).get("mix", "interactive:1,sequential:1,agentic:1")
        classes = [(f"{word.partition(':')[0].strip()}.",) * 2 for word in mix.split(",")]
        classes = [(prefix, prefix.rstrip(".")) for prefix, _ in classes]
    else:
        classes = [("", point.workload or "")]
    out = []
    for prefix, pattern in classes:
        if pattern not in _LENGTHS:
            raise UserError(
                f"{('input_length', 'output_length')[which]} has no meaning for {pattern}; set its own parameters"
            )
        out += [prefix + name for name in _LENGTHS[pattern][which]]
    return out
