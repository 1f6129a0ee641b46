"""The engine alone on real arrivals: a part of the Mooncake conversation hour, its books closed to the microjoule."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import pytest

from engines.embedded import drive
from engines.embedded.core import EngineCore
from engines.embedded.profiles import load_profile
from engines.embedded.types import EngineRequest, Limits

ROWS = 1500
BLOCK = 512


def requests(path: Path) -> list[tuple[int, EngineRequest]]:
    out = []
    with path.open("rb") as file:
        for i, line in enumerate(islice(file, ROWS)):
            row = orjson.loads(line)
            ids = np.array(row["hash_ids"], dtype=np.int64)
            tokens = ((ids[:, None] * 1_000_003 + np.arange(BLOCK) * 7919) % 128_000).ravel()[: row["input_length"]]
            request = EngineRequest(f"m{i}", tokens, max(1, row["output_length"]), ignore_eos=True)
            out.append((row["timestamp"] * 1_000_000, request))
    return out


@pytest.mark.slow
def test_real_arrivals_are_served_to_the_token_and_the_microjoule(data: Path) -> None:
    load = requests(data / "traces" / "mooncake" / "conversation_trace.jsonl")
    core = EngineCore(load_profile("h100-llama8b"), Limits())
    result = drive.run(core, load, keep_steps=False)
    assert not result.refused
    assert len(result.served) == ROWS
    assert all(len(result.served[r.request_id].token_ns) == r.max_tokens for _, r in load)
    for total in result.totals:
        records = [t for s in result.served.values() for t in s.truth if t.component == total.component]
        assert sum(t.active_uj for t in records) == total.active_uj
        assert total.active_uj + total.idle_uj == total.total_uj
    core.kv.check()
    assert core.kv.free_blocks == core.kv.total
