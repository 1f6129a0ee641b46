"""A designed experiment as a trace, and one profile fitted to the runs it (or anything else) left.

The experiment separates what ordinary load confounds: solo requests of each type, a batch ladder (steps against
sequences), a prefill ladder (tokens against context), an output ladder, then random mixes. Each part waits for the one
before and a pause, so that idle and tail are seen too. May not know: engines' constants.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from energy.attribute import attribute
from energy.fit import TERMS, Fit, Profile, Spans, fit_energy, joined, profile_json, spans_of
from energy.load import load_run
from energy.timefit import fit_time
from energy.work import FEATURES
from traces.errors import UserError
from traces.rundir import RunDir
from traces.workflow import Dep, Manifest, Node, Workflow

PAUSE_NS = 1_500_000_000
SOLO = {"prefill": (4096, 1), "decode": (64, 256), "chat": (1024, 192), "tool": (2048, 48)}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PREFILLS = ((512, 1), (2048, 1), (2048, 4), (2048, 16))
OUTPUTS = (32, 128, 384)
MIXES = 4


@dataclass
class _Design:
    """Collects nodes part by part; each part hangs on every last node of the one before."""

    rng: np.random.Generator
    seconds: float

    def __post_init__(self) -> None:
        self.nodes: list[Node] = []
        self.last: list[str] = []
        self.block = 0

    def add(self, n_in: int, n_out: int, after: list[str], delay_ns: int, agent: str) -> str:
        """One request with a prompt of its own."""
        name = f"n{len(self.nodes)}"
        blocks = tuple(range(self.block, self.block + -(-n_in // 512)))
        self.block += len(blocks)
        self.nodes.append(
            Node(
                "calibration",
                name,
                0,
                n_in,
                n_out,
                agent_id=agent,
                delay_ns=delay_ns,
                hash_ids=blocks,
                deps=tuple(Dep(a, "control") for a in after),
            )
        )
        return name

    def part(self, name: str, chains: list[list[tuple[int, int]]], offsets_ns: list[int] | None = None) -> None:
        """Chains that start together (or at offsets); requests of one chain follow one another."""
        ends = []
        for k, chain in enumerate(chains):
            after, delay = self.last, PAUSE_NS + (offsets_ns[k] if offsets_ns else 0)
            for n_in, n_out in chain:
                after, delay = [self.add(n_in, n_out, after, delay, name)], 0
            ends += after
        self.last = ends


def design(seed: int, seconds: float) -> Workflow:
    """The experiment; seconds: rough length of a part on a current card."""
    d = _Design(np.random.default_rng(seed), seconds)
    for name, (n_in, n_out) in SOLO.items():
        each = 0.02 * n_in / 1000 + 0.0075 * n_out
        d.part(f"solo-{name}", [[(n_in, n_out)] * max(2, round(seconds / each))])
    for n in BATCHES:
        d.part(f"batch-{n}", [[(64, round(seconds / 0.009))]] * n)
    for n_in, n in PREFILLS:
        d.part(f"prefill-{n_in}x{n}", [[(n_in, 1)] * max(2, round(seconds / (0.023 * n * n_in / 1000)))] * n)
    for n_out in OUTPUTS:
        d.part(f"output-{n_out}", [[(512, n_out)] * max(1, round(seconds / 0.008 / n_out))] * 16)
    types = list(SOLO.values())
    for k in range(MIXES):
        rate = float(d.rng.choice([2, 4, 8]))
        offsets = np.sort(d.rng.uniform(0, 2 * seconds, max(2, round(rate * 2 * seconds))))
        weights = d.rng.dirichlet(np.ones(len(types)))
        chosen = d.rng.choice(len(types), len(offsets), p=weights)
        d.part(f"mix-{k}", [[types[int(c)]] for c in chosen], [round(x * 1e9) for x in offsets.tolist()])
    return Workflow("calibration", tuple(d.nodes), "calibration")


def experiment(args: argparse.Namespace) -> Path:
    """Replay the design against an engine; the run directory (kept beside the profile)."""
    from joulegraph.commands import replay
    from traces.trace import write_trace

    out = Path(args.out).with_suffix(".run")
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "calibration.jsonl"
        write_trace(trace, Manifest(source="joulegraph calibrate"), [design(args.seed, args.seconds)])
        words = [str(trace), "--out", str(out), "--no-report", "--seed", str(args.seed)]
        words += ["--target", args.target, "--sources", args.sources] if args.target else ["--embedded", args.embedded]
        words += ["--model", args.model] if args.model else []
        parser = argparse.ArgumentParser()
        replay.configure(parser)
        with contextlib.redirect_stdout(sys.stderr):
            code = replay.run(parser.parse_args(words))
    if code not in (0, 1):
        raise KeyboardInterrupt(f"the experiment was interrupted; remove {out} and run calibrate again")
    return out


def fit_runs(paths: list[Path], *, allow_invalid: bool = False) -> tuple[Profile, dict[str, Any]]:
    """One profile for all runs (same GPU and model), and how well it fits each. UserError for a run that says it is
    invalid, unless allowed: then name and provenance of the profile say so."""
    invalid = _invalid(paths)
    if invalid and not allow_invalid:
        said = "; ".join(f"{path}: the run is invalid ({why})" for path, why in invalid.items())
        raise UserError(f"{said}; no profile is saved: record it again, or say --allow-invalid to save one marked so")
    parts: list[tuple[Path, Spans]] = []
    seconds = []
    sources = []
    for path in paths:
        run = RunDir.open(path)
        result = attribute(load_run(run))
        gpu = next((d for d in result.devices if d.curve.domain == "gpu"), None)
        if gpu is None:
            raise UserError(f"{path}: no GPU energy was measured; a profile needs an energy counter")
        parts.append((path, spans_of(gpu.curve, gpu.work, gpu.windows.origin_ns, gpu.lag.lag_s)))
        seconds.append(fit_time(gpu.work))
        sources.append(
            f"{path.name} ({gpu.curve.source}{', simulated' if gpu.curve.simulated else ''}, {result.level})"
        )
    fit = fit_energy(joined([s for _, s in parts]), np.mean(seconds, axis=0))
    if isinstance(fit, str):
        raise UserError(f"{paths[0]}: {fit}; record for longer")
    quality = {
        "spans": fit.blocks,
        "residual_w": fit.residual_w,
        "condition": fit.condition,
        "power_limit_w": fit.cap_w if np.isfinite(fit.cap_w) else None,
        "terms": {t: {"joules": float(j), "sd": float(s)} for t, j, s in zip(TERMS, fit.joules, fit.sd, strict=True)},
        "runs": {path.name: _off(fit, spans) for path, spans in parts},
        "invalid": {path.name: why for path, why in invalid.items()},
    }
    name = f"{paths[0].name} (of an invalid run)" if invalid else paths[0].name
    sources += [f"invalid: {path.name} ({why})" for path, why in invalid.items()]
    return _profile(fit, name, "; ".join(sources)), quality


def _invalid(paths: list[Path]) -> dict[Path, str]:
    """Runs that say they are invalid, and why."""
    infos = {path: RunDir.open(path).info for path in paths}
    return {path: str(i.get("why") or "no reason given") for path, i in infos.items() if i.get("state") == "invalid"}


def _off(fit: Fit, spans: Spans) -> float:
    return float(fit.energy(spans).sum() / spans.joules.sum() - 1)


def _profile(fit: Fit, name: str, provenance: str) -> Profile:
    return Profile(
        name=name,
        joules={t: float(j) for t, j in zip(TERMS, fit.joules, strict=True)},
        sd={t: float(s) for t, s in zip(TERMS, fit.sd, strict=True)},
        seconds={f: float(s) for f, s in zip(FEATURES, fit.seconds, strict=True)},
        cap_w=fit.cap_w,
        provenance=provenance,
    )


def save(path: Path, profile: Profile, quality: dict[str, Any]) -> None:
    """Write the profile file. UserError when it cannot be written."""
    try:
        path.write_bytes(orjson.dumps({**profile_json(profile), "quality": quality}, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another -o") from error
