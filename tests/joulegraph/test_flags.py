"""Numbers on the command line: out of range is one sentence and exit code 2, before anything starts."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegraph import cli
from joulegraph.flags import port, real, whole


@given(st.integers(-(10**6), 10**6), st.integers(-5, 5))
def test_a_whole_number_is_itself_or_refused(value: int, least: int) -> None:
    if value >= least:
        assert whole(least)(str(value)) == value
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=f"at least {least}"):
            whole(least)(str(value))


@given(st.floats())
def test_a_number_is_finite_and_within_its_bound(value: float) -> None:
    if 0 < value < float("inf"):
        assert real(above=0)(repr(value)) == value
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
            real(above=0)(repr(value))


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "65536", "1e3"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="from 0 to 65535"):
        port(text)


@pytest.mark.parametrize(
    "argv",
    [
        ["replay", "t.jsonl", "--shards", "0"],
        ["replay", "t.jsonl", "--seed", "-1"],
        ["replay", "t.jsonl", "--from", "nan"],
        ["replay", "t.jsonl", "--speed", "inf"],
        ["replay", "t.jsonl", "--otlp-port", "99999"],
        ["replay", "t.jsonl", "--max-concurrency", "0"],
        ["engine", "--port", "99999"],
        ["demo", "--seed", "x"],
        ["sample", "--out", "r", "--duration", "nan"],
        ["calibrate", "-o", "p.json", "--embedded", "h100-llama8b", "--seconds", "-1"],
        ["proxy", "--upstream", "http://127.0.0.1:1", "--deadline", "-1"],
        ["proxy", "--upstream", "http://127.0.0.1:1", "--max-body", "0"],
        ["workload", "agentic", "--users", "0"],
        ["attribute", "r", "--grid", "nan"],
    ],
)
def test_a_number_out_of_range_is_one_sentence(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.run(argv)
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert argv[-2] in said.err and repr(argv[-1]) in said.err and "give a" in said.err
