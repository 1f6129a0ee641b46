"""Engines of truth. linear: the estimator's family (no power limit, droop, padding, leakage or quadratic terms), driven
by the embedded engine. independent: another small engine, whose steps are rooflines per kernel class and whose runs
reach the estimator as files that import-run reads.

Ranges and sources stand in engines.embedded.variants and joulegraph.validation.roofline; all were fixed before any
tuning. May not know: the estimator.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from energy.foreign import import_run
from energy.load import load_run
from engines.embedded import variants
from engines.embedded.profiles import Profile, load_profile
from joulegraph.validation.mixes import Mix, Planned
from joulegraph.validation.roofline.boards import Chip
from joulegraph.validation.roofline.recording import record
from joulegraph.validation.roofline.serving import BLOCK, Asked, Serving
from joulegraph.validation.runs import Synthetic, synthesise
from traces.rundir import RunDir

BASE = "h100-llama8b"
POLICIES = ("mixed", "mixed", "capped", "alternate")


def linear_profile(seed: int) -> Profile:
    """A GPU of the estimator's family; constants vary by seed within 20 %."""
    return variants.linear(load_profile(BASE), seed)


def linear(mix: Mix, seed: int) -> Synthetic:
    """The mix on a GPU of the estimator's family."""
    return synthesise(mix, linear_profile(seed), seed)


def independent(mix: Mix, seed: int, policy: str | None = None) -> Synthetic:
    """The mix on the seed's roofline board under one of its batching policies, recorded, imported and loaded."""
    rng = np.random.default_rng([seed, 76])
    kv = mix.limits.kv_blocks * BLOCK if mix.limits.kv_blocks else 400_000
    serving = Serving(
        policy=policy or mix.policy or str(rng.choice(POLICIES)), budget=mix.limits.max_num_batched_tokens,
        sequences=mix.limits.max_num_seqs, kv_tokens=kv,
    )  # fmt: skip
    return recorded(mix, serving, seed)


def recorded(mix: Mix, serving: Serving, seed: int, board: Chip | None = None, kind: str = "counter") -> Synthetic:
    """The mix served, written down as files, imported and loaded. board: None for the seed's H100."""
    with tempfile.TemporaryDirectory() as folder:
        truth = record(Path(folder) / "recording", [_asked(p) for p in mix.plan], serving, seed, board, kind)
        import_run(Path(folder) / "recording", Path(folder) / "run")
        data = load_run(RunDir.open(Path(folder) / "run"))
    uj = dict(zip(truth.ids, 1e6 * truth.joules, strict=True))
    return Synthetic(mix.name, data, np.array([uj[i] for i in data.requests.ids]))


def _asked(planned: Planned) -> Asked:
    """A planned request with its prompt as chained block hashes."""
    request = planned.request
    tokens = np.asarray(request.prompt, np.int64)
    blocks, chain = [], 0
    for k in range(0, len(tokens) // BLOCK * BLOCK, BLOCK):
        chain = hash((chain, tokens[k : k + BLOCK].tobytes()))
        blocks.append(chain)
    return Asked(
        request.request_id, planned.t_ns / 1e9, tuple(blocks), len(tokens), request.max_tokens,
        planned.workflow, planned.class_name,
    )  # fmt: skip


TRUTHS: dict[str, Callable[[Mix, int], Synthetic]] = {"linear": linear, "independent": independent}
