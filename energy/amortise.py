"""Prefix creators' joules spread over those who hit their blocks: the option beside "the creator pays".

A block of a prompt is computed by one request and, while the engine keeps it, read by others. Its own joules (the
creator's own prefill joules by tokens) are shared by the tokens of the block that each of them had: computed or cached.
Shared costs stay where they are: they were drawn by what ran, not kept in a cache. Pure but for reading a run's trace.
May not know: sensors, blocks of time, policies.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
PROXY: dict[str, Any] = {"block_size": 128, "block_unit": "bytes"}
"""what the proxy's block ids are of, where run.json has no manifest (a replay's proxy)"""
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


def uses(requests: RequestTable, prompts: Sequence[Prompt], size: float | Floats) -> Uses:
    """Who computed which block and who hit it, as the counts of cached tokens say: of a prompt's blocks of `size`
    tokens (one size, or each request's own) those below its cached tokens were hit, the rest computed. A block computed
    anew (it had been evicted) serves the hits after it. Requests in order of their first token (of their end, where a
    reply that is one document hides it); one that never got one made nothing that can be told."""
    whole = ~known(requests.first_ns) & (requests.completion > 0)
    when = np.where(whole, requests.end_ns, requests.first_ns)
    told = known(when) & known(requests.prompt) & known(requests.cached)
    # of two in one step, the one with less in the cache made what the other hit
    order = [int(i) for i in np.lexsort((requests.cached, when)) if told[i] and prompts[i]]
    sizes = np.broadcast_to(np.asarray(size, float), len(requests))
    maker: dict[Hashable, tuple[int, int]] = {}
    rows: list[tuple[int, int, int, int]] = []
    count = lost = 0
    for i in order:
        prompt, cached = int(requests.prompt[i]), min(int(requests.cached[i]), int(requests.prompt[i]))
        size_i = float(sizes[i])
        for k, block in enumerate(prompts[i] or ()):
            begin, end = round(k * size_i), min(round((k + 1) * size_i), prompt)
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
        lost += max(0, cached - round(len(prompts[i] or ()) * size_i))
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


@dataclass(frozen=True, slots=True)
class Blocks:
    """Block ids of each request's prompt and the tokens of one of its blocks. estimated: they are blocks of bytes, as a
    proxy without a tokenizer has them, and their tokens follow from the prompt's own tokens per byte."""

    prompts: list[Prompt]
    size: Floats
    estimated: bool = False


def prompts_of(run: RunDir, requests: RequestTable) -> Blocks:
    """Block ids per request row: from the trace that the run replayed, else from what the proxy saw. UserError where
    nobody knows them: who hit what cannot be told then."""
    if not np.any(known(requests.cached)):
        raise UserError(f"--prefixes amortised: no request of {run.path} says how much was cached; {REMEDY}")
    path = run.file("trace.jsonl")
    if path.is_file():
        trace = read_trace(path)
        manifest = trace.manifest
        ids = {node.request_id: keys(node, manifest) for node in trace if node.hash_ids}
        prompts: list[Prompt] = [ids.get(name) if name is not None else None for name in requests.nodes]
        if any(prompts):
            bytes_of = [None] * len(prompts)
            return _sized(requests, prompts, bytes_of, manifest.block_size, manifest.block_unit == "bytes")
    seen = {str(row.get("request_id")): row for row in run.rows("requests") if row.get("block_hashes")}
    rows = [seen.get(name) for name in requests.ids]
    if not any(rows):
        raise UserError(
            f"--prefixes amortised: nobody recorded the blocks of the prompts of {run.path}: no trace.jsonl with"
            f" hash_ids, no proxy's journal with block_hashes (--record-content hash); {REMEDY}"
        )
    said = PROXY | (run.info.get("manifest") or {})
    size, in_bytes = int(said["block_size"]), said["block_unit"] == "bytes"
    prompts = [None if row is None else [int(b) for b in row["block_hashes"]] for row in rows]
    lengths = [None if row is None else canonical_bytes(row) for row in rows]
    return _sized(requests, prompts, lengths, size, in_bytes)


def canonical_bytes(row: Mapping[str, Any]) -> int | None:
    """Bytes of the prompt that a proxy's block ids are of: two marks, the role and the text of each message. None where
    the journal has no messages."""
    messages = row.get("messages")
    return sum(2 + len(m["role"].encode()) + int(m["length"]) for m in messages) if messages else None


def _sized(
    requests: RequestTable, prompts: list[Prompt], lengths: Sequence[int | None], size: int, in_bytes: bool
) -> Blocks:
    """Tokens per block of each request. Where a prompt's bytes are not known half a block follows its last whole one;
    a journal keeps the first messages of very long prompts only, which then have whole blocks beyond them."""
    if not in_bytes:
        return Blocks(prompts, np.full(len(prompts), float(size)))
    tokens = np.where(known(requests.prompt), requests.prompt, 0).astype(float)
    whole = [len(p or ()) * size for p in prompts]
    filled = [n if n and n >= least else least + 0.5 * size for n, least in zip(lengths, whole, strict=True)]
    return Blocks(prompts, size * tokens / np.array(filled, float), estimated=True)


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
