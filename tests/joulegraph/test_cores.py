"""Work on several cores comes back in the order asked for, told once each; a bug in one piece is a crash."""

from __future__ import annotations

from os.path import split

import pytest

from joulegraph.validation.cores import cores, results


def test_results_come_in_order() -> None:
    said: list[str] = []
    with cores() as pool:
        found = results({path: pool.submit(split, path) for path in ("c/3", "a/1", "b/2")}, said.append)
    assert list(found.items()) == [("c/3", "c"), ("a/1", "a"), ("b/2", "b")]
    assert said == ["3", "1", "2"]


def test_a_bug_in_one_piece_ends_it_all() -> None:
    said: list[str] = []
    with pytest.raises(TypeError), cores() as pool:
        results({k: pool.submit(split, path) for k, path in enumerate(["a/1", None, "b/2"])}, said.append)  # type: ignore[arg-type]
    assert said == ["1"]
