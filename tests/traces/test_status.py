"""Status pages: one writer, readers that never see two states mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import UserError
from traces.status import StatusPage, StatusReader, bucket, histogram_names, percentile_ns


def test_file_page_is_seen_by_another_mapping(tmp_path: Path) -> None:
    page = StatusPage(["a", "b", *histogram_names("ttft")], tmp_path / "status.x")
    reader = StatusReader(tmp_path / "status.x")
    page.set("a", -7)
    page.add("b", 3)
    page.observe("ttft", 5_000_000)
    page.set_group({"a": 1, "b": 2})
    assert reader.group(["a", "b"]) == {"a": 1, "b": 2}
    assert reader.get("b") == 2
    assert sum(reader.histogram("ttft")) == 1
    assert reader.all()["a"] == 1


@given(st.lists(st.integers(1_000, 10**12), min_size=1, max_size=200), st.floats(0.01, 1))
def test_percentiles_are_within_a_bucket_and_never_flatter(values: list[int], q: float) -> None:
    page = StatusPage(histogram_names("h"))
    for value in values:
        page.observe("h", value)
    got = percentile_ns(StatusReader(page).histogram("h"), q)
    exact = sorted(values)[max(0, -(-int(q * len(values) * 1_000_000) // 1_000_000) - 1)]
    assert got is not None
    assert got >= exact * 0.999
    assert bucket(got) - bucket(exact) <= 2 or got <= max(values) * 1.2


def test_empty_histogram_has_no_percentile() -> None:
    assert percentile_ns([0, 0], 0.5) is None


def test_a_foreign_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing of ours, long enough to map" * 4)
    with pytest.raises(UserError, match="not a status page"):
        StatusReader(tmp_path / "x")
    with pytest.raises(UserError, match="no status page there"):
        StatusReader(tmp_path / "gone")
