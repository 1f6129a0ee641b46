"""Profiles as files: what is wrong in one is said by file, field and remedy; memory gives the KV blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from engines.embedded.core import EngineCore
from engines.embedded.profiles import DATA, load_profile, profile_names
from engines.embedded.types import Limits
from traces.errors import UserError

ROW: dict[str, Any] = orjson.loads((DATA / "h100-llama8b.json").read_bytes())


def test_names_and_paths_load() -> None:
    assert profile_names() == ["a100-llama7b", "h100-llama8b"]
    assert load_profile(DATA / "h100-llama8b.json") == load_profile("h100-llama8b")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (orjson.dumps({k: v for k, v in ROW.items() if k != "times"}), "'times' is missing"),
        (orjson.dumps({k: v for k, v in ROW.items() if k != "gpu"}), "gpu"),
        (orjson.dumps(ROW | {"colour": 1}), "unknown field 'colour'"),
        (orjson.dumps(ROW | {"times": ROW["times"] | {"warp_s": 1}}), "times: unknown field 'warp_s'"),
        (orjson.dumps(ROW | {"power": {"gpu": ROW["power"]["gpu"]}}), "'hbm' is missing"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        load_profile(path)
    assert "p.json" in str(error.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="a100-llama7b, h100-llama8b"):
        load_profile("b200")


def test_memory_gives_the_recorded_number_of_blocks() -> None:
    profile = load_profile("h100-llama8b")
    assert profile.kv_blocks(16, 1) == pytest.approx(28_239, abs=2)
    assert profile.kv_blocks(16, 2) > 2 * profile.kv_blocks(16, 1)
    with pytest.raises(UserError, match="tensor_parallel_size"):
        replace(profile, weights_bytes=10**12).kv_blocks(16, 1)


@pytest.mark.parametrize(
    "change",
    [{"block_size": 0}, {"max_num_seqs": 0}, {"kv_blocks": 0}, {"power_cap_w": 0}, {"tensor_parallel_size": 0}],
)
def test_impossible_launch_settings_name_themselves(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        EngineCore(load_profile("h100-llama8b"), replace(Limits(), **change))  # type: ignore[arg-type]
