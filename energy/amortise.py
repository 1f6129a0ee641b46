"""Prefix creators' joules spread over those who hit their blocks: the option beside "the creator pays".

A block of a prompt is computed by one request and, while the engine keeps it, read by others. Its own joules (the
creator's own prefill joules by tokens) are shared by the tokens of the block that each of them had: computed or cached.
Shared costs stay where they are: they were drawn by what ran, not kept in a cache. Pure but for reading a run's trace.
May not know: sensors, blocks of time, policies.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from energy.ledger import largest_remainder
from energy.model import PREFILL
from energy.rollup import Figures
from energy.tables import Floats, Ints, RequestTable, known
from traces.errors import UserError
from traces.rundir import RunDir
from traces.trace import read_trace
from traces.workflow import Manifest, Node

Prompt = Sequence[Hashable] | None
"""Ids of a prompt's blocks, each naming its whole prefix; None where they are not known."""
REMEDY = "leave --prefixes away (creators pay)"


@dataclass(frozen=True, slots=True)
class Uses:
    """One row per (computation of a block, request that had it): creator's row, request's row, tokens had; group
    numbers the computations. The creator's own row is among them. lost: cached tokens without a creator in the run."""

    group: Ints
    creator: Ints
    row: Ints
    tokens: Ints
    lost: int

    def __len__(self) -> int:
        return len(self.group)


def uses(requests: RequestTable, prompts: Sequence[Prompt], size: int) -> Uses:
    """Who computed which block and who hit it, as the counts of cached tokens say: of a prompt's blocks of `size`
    tokens those below its cached tokens were hit, the rest computed. A block computed anew (it had been evicted) serves
    the hits after it. Requests in order of their first token; one that never got one made nothing that can be told."""
    told = known(requests.first_ns) & known(requests.prompt) & known(requests.cached)
    # of two in one step, the one with less in the cache made what the other hit
    order = [int(i) for i in np.lexsort((requests.cached, requests.first_ns)) if told[i] and prompts[i]]
    maker: dict[Hashable, tuple[int, int]] = {}
    rows: list[tuple[int, int, int, int]] = []
    count = lost = 0
    for i in order:
        prompt, cached = int(requests.prompt[i]), min(int(requests.cached[i]), int(requests.prompt[i]))
        for k, block in enumerate(prompts[i] or ()):
            begin, end = k * size, min((k + 1) * size, prompt)
            hit, made = max(0, min(end, cached) - begin), max(0, end - max(begin, cached))
            if hit and block in maker:
                group, creator = maker[block]
                rows.append((group, creator, i, hit))
            else:
                lost += hit
            if made:
                maker[block] = (count, i)
                rows.append((count, i, i, made))
                count += 1
        lost += max(0, cached - len(prompts[i] or ()) * size)
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return Uses(columns[0], columns[1], columns[2], columns[3], lost)


def moved(found: Uses, own: Ints, computed: Floats) -> Ints:
    """uJ that each request gains (creators: loses), summing to 0. own: prefill uJ of each request; computed: its
    prompt tokens computed."""
    delta = np.zeros(len(own), np.int64)
    if not len(found):
        return delta
    makes = np.flatnonzero(found.row == found.creator)
    makes = makes[np.unique(found.group[makes], return_index=True)[1]]
    creator = found.creator[makes]
    # a creator's own joules go to its blocks by tokens; what it computed beyond them is one more entry of its own
    blocks = np.bincount(creator, found.tokens[makes], len(own))
    every = np.arange(len(own))
    weight = np.concatenate([found.tokens[makes].astype(float), np.maximum(computed - blocks, 0.0)])
    weight[len(makes) :] += blocks + computed <= 0
    cost = largest_remainder(weight, np.concatenate([creator, every]), own)[: len(makes)]
    shares = largest_remainder(found.tokens.astype(float), found.group, cost)
    np.add.at(delta, found.row, shares)
    np.subtract.at(delta, creator, cost)
    return delta


def amortised(figures: list[Figures], requests: RequestTable, found: Uses) -> list[Figures]:
    """The figures with own prefill joules spread over hits; sums over requests of own, active and full stay as they
    are, to the microjoule."""
    computed = np.where(known(requests.prompt), requests.prompt, 0) - np.where(
        known(requests.cached), requests.cached, 0
    )
    out = []
    for f in figures:
        delta = np.zeros_like(f.own)
        delta[:, PREFILL] = moved(found, f.own[:, PREFILL], np.maximum(computed, 0).astype(float))
        own, active, full, low, high = (x + delta for x in (f.own, f.active, f.full, f.low, f.high))
        out.append(replace(f, own=own, active=active, full=full, low=np.maximum(low, 0), high=high))
    return out


def prompts_of(run: RunDir, requests: RequestTable) -> tuple[list[Prompt], int]:
    """(block ids per request row, tokens per block) from the trace that the run replayed. UserError where it has none,
    or its blocks are not of tokens: who hit what cannot be told then."""
    path = run.file("trace.jsonl")
    if not path.is_file():
        raise UserError(f"--prefixes amortised: {run.path} has no trace.jsonl, so no block ids of prompts; {REMEDY}")
    trace = read_trace(path)
    if trace.manifest.block_unit != "tokens":
        raise UserError(
            f"--prefixes amortised: {path} names blocks of {trace.manifest.block_unit}, cached counts are of tokens;"
            f" {REMEDY}"
        )
    ids = {node.request_id: keys(node, trace.manifest) for node in trace if node.hash_ids}
    prompts: list[Prompt] = [ids.get(name) if name is not None else None for name in requests.nodes]
    if not any(prompts):
        raise UserError(f"--prefixes amortised: no request of {run.path} has block ids (hash_ids in {path}); {REMEDY}")
    if not np.any(known(requests.cached)):
        raise UserError(f"--prefixes amortised: no request of {run.path} says how much was cached; {REMEDY}")
    return prompts, trace.manifest.block_size


def keys(node: Node, manifest: Manifest) -> list[Hashable]:
    """The node's blocks, each naming its whole prefix within the manifest's scope."""
    scope = None
    if manifest.hash_scope != "global":
        scope = node.workflow_id if manifest.hash_scope == "workflow" else (node.session_id or node.workflow_id)
    out: list[Hashable] = []
    before = 0
    for block in node.hash_ids or ():
        before = block if manifest.chained else hash((before, block))
        out.append(before if scope is None else (scope, before))
    return out
