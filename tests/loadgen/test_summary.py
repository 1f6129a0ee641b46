"""Figures from records: hand-computed tables, invariants over random records, intervals against scipy."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loadgen.metrics import itl_ns, request_figures, slack_ns, workflow_figures
from loadgen.summary import Slo, Window, parse_slo, repeat_intervals, steady, summarise, union_ns
from traces.errors import UserError
from traces.records import DispatchRecord

MS = 1_000_000
S = 1_000_000_000


def record(
    name: str = "r", wf: str = "w", *, due: int = 0, late: int = 0, reads: Any = ((10, 1), (10, 1)), **more: Any
) -> DispatchRecord:
    """A streamed request: reads are (ms since the last, tokens)."""
    sent, at = due + late, due + late
    stamps = [at := at + ms * MS for ms, _ in reads]
    tokens = [t for t, (_, n) in zip(stamps, reads, strict=True) if n]
    given: dict[str, Any] = {
        "outcome": "ok", "t_sent_ns": sent, "t_end_ns": stamps[-1], "t_first_token_ns": tokens[0] if tokens else None,
        "t_last_token_ns": tokens[-1] if tokens else None, "read_dt_ns": tuple(ms * MS for ms, _ in reads),
        "read_tokens": tuple(n for _, n in reads), "completion_tokens": sum(n for _, n in reads), "prompt_tokens": 7,
        "planned_input_tokens": 7, "planned_output_tokens": sum(n for _, n in reads),
    }  # fmt: skip
    return DispatchRecord(request_id=name, workflow_id=wf, wire_id=name, due_ns=due, **given | more)


def test_request_figures_from_due_and_from_sent() -> None:
    got = request_figures(record(due=5 * MS, late=2 * MS, reads=((30, 0), (10, 1), (20, 1), (40, 2))))
    assert got is not None
    assert (got.ttft_due_ns, got.ttft_sent_ns) == (42 * MS, 40 * MS)
    assert (got.e2e_due_ns, got.e2e_sent_ns, got.late_ns) == (102 * MS, 100 * MS, 2 * MS)
    assert got.tpot_ns == 20 * MS
    assert request_figures(record(outcome="error")) is None
    assert request_figures(record(reads=((5, 1),))).tpot_ns is None  # type: ignore[union-attr]


def test_itl_is_of_tokens_not_of_reads() -> None:
    assert itl_ns(record(reads=((9, 0), (10, 1), (20, 1), (40, 4), (5, 0)))) == [20 * MS] + [10 * MS] * 4
    assert itl_ns(record(reads=((10, 16),))) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4)), min_size=1, max_size=30))
def test_itl_sums_to_the_time_between_first_and_last_token(reads: list[tuple[int, int]]) -> None:
    made = record(reads=tuple(reads))
    gaps = itl_ns(made)
    counts = [n for _, n in reads if n]
    assert len(gaps) == sum(counts[1:])
    if made.t_first_token_ns is not None and made.t_last_token_ns is not None:
        assert sum(gaps) == pytest.approx(made.t_last_token_ns - made.t_first_token_ns, abs=1)


def test_workflow_path_and_slack() -> None:
    both = ({"on": "a"}, {"on": "b"})
    rows = [
        record("a", due=0, reads=((10, 1), (90, 1))),
        record("b", due=0, reads=((10, 1), (20, 1))),
        record("c", due=150 * MS, late=5 * MS, delay_ns=50 * MS, deps=both, reads=((10, 1), (35, 1))),
        record("x", outcome="skipped", t_sent_ns=None, deps=({"on": "z"},)),
    ]  # fmt: skip
    got = workflow_figures(rows)
    assert not got.complete and got.makespan_ns == 200 * MS
    assert [s.request_id for s in got.path] == ["a", "c"]
    assert (got.serving_ns, got.tool_ns, got.late_ns) == (145 * MS, 50 * MS, 5 * MS)
    assert slack_ns(rows) == {"a": 0, "b": 70 * MS, "c": 0}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda p: (min(p), max(p))), max_size=20))
def test_union_counts_every_covered_instant_once(intervals: list[tuple[int, int]]) -> None:
    covered = {t for a, b in intervals for t in range(a, b)}
    assert union_ns([*intervals, (None, 5), (5, None)]) == len(covered)


def test_summary_of_two_classes_with_slo_and_both_denominators() -> None:
    after = {"deps": ({"on": "a"},), "delay_ns": 100 * MS}
    rows = [
        record("a", "w1", due=0, reads=((100, 1), (100, 1)), class_name="one"),
        record("b", "w1", due=300 * MS, reads=((100, 1), (100, 1)), class_name="one", **after),
        record("c", "w2", due=0, reads=((900, 1), (100, 1)), class_name="two", prompt_tokens=9),
        record("d", "w3", due=0, outcome="rejected", class_name="two", reads=((1, 0),)),
    ]  # fmt: skip
    got = summarise(rows, slo=parse_slo("ttft:500ms,makespan:2s"))
    assert orjson.dumps(got)
    both = got["all"]
    assert both["requests"] == 4 and both["outcomes"] == {"ok": 3, "rejected": 1}
    assert both["ttft_ms"]["due"]["n"] == 3 and both["ttft_ms"]["due"]["max"] == 900
    assert both["throughput"]["whole_s"] == 1.0 and both["throughput"]["output_tokens"] == 6
    # generating: 100-200, 400-500 and 900-1000 ms
    assert both["throughput"]["generating_s"] == pytest.approx(0.3)
    assert both["throughput"]["tokens_per_s_generating"] == pytest.approx(20)
    assert both["goodput"] == {
        "requests": 2, "requests_per_s": 2.0, "request_share": 0.5,  # of all four: one was refused
        "workflows": 2, "workflows_per_s": 2.0, "workflow_share": pytest.approx(2 / 3),
    }  # fmt: skip
    assert (
        both["usage"]["prompt"]["exact_share"] == pytest.approx(2 / 3)
        and both["usage"]["prompt"]["error_tokens"]["max"] == 2
    )
    assert got["classes"]["one"]["workflows"]["makespan_ms"]["p50"] == 500
    assert got["classes"]["one"]["workflows"]["path_share"] == {"serving": 0.8, "tools_and_delays": 0.2, "late": 0.0}
    assert got["classes"]["two"]["workflows"]["complete"] == 1 and got["classes"]["two"]["goodput"]["requests"] == 0


def test_windows_leave_out_warm_up_and_tail() -> None:
    rows = [record(f"r{i}", f"w{i}", due=i * S) for i in range(10)]
    window = steady(rows, 2, 3)
    assert window == Window(2 * S, 6 * S + 1)
    assert summarise(rows, window=window)["all"]["requests"] == 5
    assert steady(rows, 8, 3) is None and steady([], 1) is None


def test_an_empty_run_has_no_figures_and_no_zeros_in_their_place() -> None:
    got = summarise([])["all"]
    assert got["ttft_ms"]["due"] is None and got["throughput"]["tokens_per_s_whole"] is None
    assert got["usage"]["prompt"] is None and got["merged_share"] is None


def test_merged_reads_are_counted() -> None:
    assert summarise([record(reads=((1, 4), (1, 1)))])["all"]["merged_share"] == pytest.approx(3 / 5)


def test_intervals_over_repeats_agree_with_scipy() -> None:
    values = [10.0, 12.0, 11.0, 14.0]
    got = repeat_intervals([{"a": {"b": v}, "c": None, "d": "x"} for v in values])
    low, high = stats.t.interval(0.95, 3, loc=11.75, scale=stats.sem(values))
    assert got["a"]["b"]["mean"] == 11.75
    assert (got["a"]["b"]["low"], got["a"]["b"]["high"]) == (pytest.approx(low), pytest.approx(high))
    assert got["c"] is None and got["d"] is None
    assert repeat_intervals([{"a": 1}])["a"] == {"n": 1, "mean": 1.0, "low": None, "high": None}
    assert repeat_intervals([]) == {}


def test_slo_text() -> None:
    assert parse_slo("ttft:500ms, e2e:2s") == Slo(ttft_ms=500, e2e_ms=2000)
    for bad in ("ttft", "ttft:5", "foo:5ms", "ttft:-5ms", "ttft:xms"):
        with pytest.raises(UserError):
            parse_slo(bad)
