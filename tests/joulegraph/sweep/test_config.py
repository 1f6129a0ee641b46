"""Sweep files: what they mean, and one sentence for each mistake."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegraph.sweep.config import Point, parse, read
from joulegraph.sweep.setup import trace_of, unable
from traces.errors import UserError
from traces.trace import read_trace

EXAMPLES = Path(__file__).resolve().parents[3] / "scripts" / "examples"


def sweep_of(text: str) -> Any:
    return parse(tomllib.loads(text))


def test_grid_is_a_product_and_points_are_added() -> None:
    sweep = sweep_of(
        """
        repeats = 2
        [base]
        workload = "chat"
        count = 3
        [grid]
        max_num_seqs = [1, 2]
        [grid.param]
        prompt = ["64", 128]
        [[point]]
        workload = "agentic"
        param.files = 2
        """
    )
    assert len(sweep.points) == 5
    assert {(p.max_num_seqs, p.params) for p in sweep.points[:4]} == {
        (n, (("prompt", v),)) for n in (1, 2) for v in ("64", "128")
    }
    assert sweep.points[4].params == (("files", "2"),)
    assert all(p.count == 3 for p in sweep.points)


def test_equal_points_are_one() -> None:
    sweep = sweep_of('[base]\nworkload = "chat"\n[grid]\nmax_num_seqs = [1, 1]\n[[point]]\nmax_num_seqs = 1')
    assert len(sweep.points) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("repeat = 3", "repeat is unknown"),
        ('[base]\nworkload = "chat"\nbatch = 3', "batch is unknown"),
        ('[base]\nworkload = "chat"\nmax_num_seqs = "4"', "must be a whole number"),
        ('[base]\nworkload = "chat"\nmax_num_seqs = true', "must be a whole number"),
        ('[base]\nworkload = "chat"\nmax_num_seqs = 0', "must be at least 1"),
        ('[base]\nworkload = "chat"\nrate = nan', "must be at least 0"),
        ('[base]\nworkload = "chat"\nengine = "tgi"', "must be one of"),
        ('[base]\nworkload = "chat"\nengine = "attach"', "needs a URL"),
        ('[base]\nworkload = "chat"\nengine = "vllm"', "needs model"),
        ("[base]\ncount = 3", "exactly one of workload and trace"),
        ('[base]\nworkload = "chat"\nusers = 2\nrate = 1.0', "exclude one another"),
        ('[base]\ntrace = "t.jsonl"\noutput_length = 3', "belongs to a workload"),
        ('[base]\nworkload = "chat"\n[grid]\nusers = []', "is empty"),
        ("base = 3", "must be a table"),
        ("point = 3", "tables of their own"),
        ("[vllm]\nflags = 3", "list of words"),
        ('repeats = 0\n[base]\nworkload = "chat"', "must be at least 1"),
    ],
)
def test_mistakes_have_a_sentence(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sweep_of(text)


@pytest.mark.parametrize("text", ["[base", "\x00"])
def test_a_file_that_is_no_toml(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UserError, match="not TOML"):
        read(tmp_path / "s.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize("kind", ["embedded", "embedded-real", "parrot"])
def test_an_unknown_profile_is_refused_before_anything_is_played(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(f'[base]\nengine = "{kind}:h999"\nworkload = "chat"\n')
    with pytest.raises(UserError, match=r"s\.toml: profile 'h999' not found; give a path or one of: "):
        read(file)


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.integers() | st.text(max_size=4) | st.booleans(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        ),
    )
)
def test_junk_is_refused_with_a_sentence(data: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        parse(data)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("sweep*.toml")), ids=lambda p: p.name)
def test_examples_can_be_read(path: Path) -> None:
    assert read(path).points


def test_what_an_engine_cannot_do_is_known_beforehand() -> None:
    assert unable(Point(workload="chat", max_num_seqs=4, proxy_limit=3, power_cap_w=200)) is None
    assert "SM clock" in (unable(Point(workload="chat", sm_clock_mhz=900)) or "")
    assert "max_num_active_seqs" in (unable(Point(workload="chat", max_num_active_seqs=9)) or "")
    assert "launch setting" in (unable(Point(engine="attach:h:1", workload="chat", max_num_seqs=9)) or "")


@pytest.mark.parametrize(
    ("flag", "factor"),
    [("--max-model-len=9", "max_model_len = 8"), ("--no-enable-prefix-caching", "prefix_caching = true")],
)
def test_a_flag_for_all_points_does_not_undo_a_factor(flag: str, factor: str) -> None:
    base = 'engine = "vllm"\nmodel = "m"\nworkload = "chat"'
    with pytest.raises(UserError, match="take one of them out"):
        sweep_of(f"[vllm]\nflags = ['{flag}']\n[base]\n{base}\n{factor}")
    assert sweep_of(f"[vllm]\nflags = ['{flag}']\n[base]\n{base}").points


@pytest.mark.parametrize("knob", ["power_cap_w", "sm_clock_mhz"])
def test_a_sweep_may_be_told_to_turn_no_knob(knob: str) -> None:
    sweep = sweep_of(f'turn_knobs = false\n[base]\nengine = "attach:h:1"\nworkload = "chat"\n[grid]\n{knob} = [900]')
    assert "not turned" in (unable(sweep.points[0], sweep.turn_knobs) or "")
    assert unable(sweep.points[0]) is None
    assert unable(Point(workload="chat"), turn_knobs=False) is None


@pytest.mark.parametrize(
    "workload", ["sequential", "interactive", "agentic", "tool-loop", "debate", "plan-execute", "chat"]
)
def test_output_length_sets_every_output(tmp_path: Path, workload: str) -> None:
    sweep = sweep_of(f'[base]\nworkload = "{workload}"\ncount = 1\noutput_length = 7')
    trace = trace_of(sweep.points[0], sweep, 0, tmp_path)
    nodes = [n for w in read_trace(trace).workflows() for n in w.nodes if n.kind == "llm"]
    assert {n.output_length for n in nodes} == {7}


def test_a_trace_is_made_once_and_differs_between_repeats(tmp_path: Path) -> None:
    sweep = sweep_of('[base]\nworkload = "composite"\ncount = 4\ninput_length = 40\n[grid]\nmax_num_seqs = [1, 2]')
    first, second = sweep.points
    assert trace_of(first, sweep, 0, tmp_path) == trace_of(second, sweep, 0, tmp_path)
    assert trace_of(first, sweep, 0, tmp_path) != trace_of(first, sweep, 1, tmp_path)
    assert not list(tmp_path.glob("part-*"))
