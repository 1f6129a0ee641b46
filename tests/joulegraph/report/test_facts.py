"""Facts and figures of a run: exact percentiles, joules that add up, missing kept missing, against a run by formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from joulegraph.report.checks import checks
from joulegraph.report.document import agents, command_line, document, not_measured, notable, top_workflows
from joulegraph.report.facts import Facts, Joules, Request, Workflow
from joulegraph.report.gather import gather
from joulegraph.report.summary import class_rows, class_table, figure, latencies, quantiles, totals
from joulegraph.report.timeline import timeline
from traces.errors import UserError
from traces.journal import JournalWriter
from traces.rundir import RunDir
from traces.workflow import Dep

MS = 1_000_000
S = 1_000 * MS


@pytest.fixture(scope="module")
def facts(whole_run: RunDir) -> Facts:
    return gather(whole_run)


def request(node: str, begin: int = 0, end: int = 10, **changes: object) -> Request:
    base = Request(
        f"r-{node}", node, "w", "c", "a", "llm", "ok", begin * MS, (begin + 1) * MS, (begin + 3) * MS, (end - 1) * MS,
        end * MS, 10, 0, 5,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def made_facts(workflows: list[Workflow], **changes: object) -> Facts:
    base = Facts("run", {"state": "complete"}, [r for w in workflows for r in w.requests], workflows, None, None)
    return replace(base, **changes)  # type: ignore[arg-type]


# --- against the made run ------------------------------------------------------------------------------------------


def test_every_request_and_its_joules_are_there(facts: Facts) -> None:
    assert len(facts.requests) == 238 and len(facts.workflows) == 115 and facts.planned and not facts.notes
    assert all(r.joules is not None and r.joules.active > 0 for r in facts.requests)
    assert facts.ledger is not None
    books = facts.ledger["components"]
    added = sum(r.joules.active for r in facts.requests if r.joules)
    assert added == sum(books[name]["attributed_uj"] for name in ("gpu", "cpu", "dram")), "HBM is not added to the GPU"
    for r in facts.requests:
        assert r.joules and r.joules.prefill + r.joules.decode == r.joules.active
        assert r.joules.low <= r.joules.active <= r.joules.high and r.joules.own <= r.joules.active <= r.joules.full
        assert sum(uj for name, uj in r.joules.by_component if name != "hbm") == r.joules.active


def test_latencies_are_those_of_the_formula(facts: Facts) -> None:
    found = latencies(facts)
    sent, due = found["ttft"]["sent"], found["ttft"]["due"]
    assert sent and due and found["tpot"]["sent"] and found["itl"]["sent"]
    wanted = [5 * MS + (r.prompt_tokens or 0) * MS // 20 for r in facts.requests]
    assert sent["p50"] == np.quantile(wanted, 0.5) and sent["max"] == max(wanted)
    assert due["p50"] > sent["p50"]
    assert found["tpot"]["sent"]["p99"] == 8 * MS and found["itl"]["sent"]["p50"] == 8 * MS
    assert found["itl"]["sent"]["max"] == 8 * MS
    assert found["lateness"]["due"] and found["lateness"]["due"]["p50"] >= 200_000


def test_class_rows_add_up_and_the_table_fits_a_terminal(facts: Facts, whole_run: RunDir) -> None:
    rows = class_rows(facts)
    assert [r.name for r in rows] == ["agentic", "composite", "interactive", "sequential", "all"]
    for field in ("workflows", "requests", "output_tokens", "failed"):
        assert sum(getattr(r, field) for r in rows[:-1]) == getattr(rows[-1], field)
    assert sum(r.active_j or 0 for r in rows[:-1]) == pytest.approx(rows[-1].active_j)
    for row in rows:
        assert row.j_per_workflow and row.j_per_workflow_low and row.j_per_workflow_high
        assert row.j_per_workflow_low <= row.j_per_workflow <= row.j_per_workflow_high
        assert row.idle_share is not None and 0 < row.idle_share < 0.5
    assert class_rows(whole_run.path) == rows
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(class_table(rows))
        text = console.export_text()
    assert "…" not in text and "interactive" in text and max(map(len, text.splitlines())) <= 80


def test_the_timeline_shows_the_watts_that_were_drawn(facts: Facts) -> None:
    line = facts.timeline
    assert line is not None and [p.device for p in line.power] == ["gpu0", "hbm0", "cpu0", "dram0"]
    edges = np.array(line.edges_s)
    assert edges[0] < -1 and len(edges) <= 410
    gpu = {p.device: p for p in line.power}["gpu0"]
    before = [w for w, t in zip(gpu.watts, edges[1:], strict=False) if t < -0.1]
    assert before and all(w == pytest.approx(90.0, abs=0.5) for w in before)
    start = min(r.sent_ns or 0 for r in facts.requests)
    fine = start + np.arange(int(edges[0] * 1000), int(edges[-1] * 1000)) * MS
    active = sum(((fine >= (r.sent_ns or 0)) & (fine < r.end_ns)).astype(int) for r in facts.requests)
    drawn = 90.0 + np.where(active > 0, 160.0, 0.0) + 6.0 * active
    cell = np.searchsorted(edges, (fine - start) / S, "right") - 1
    wanted = np.bincount(cell, drawn, len(edges) - 1) / np.maximum(1, np.bincount(cell, minlength=len(edges) - 1))
    off = [abs(a - b) for a, b in zip(gpu.watts, wanted, strict=True) if a is not None]
    assert len(off) > 200 and np.median(off) < 3 and max(off) < 60


def test_totals_have_both_throughputs(facts: Facts) -> None:
    t = totals(facts)
    assert t["output_tokens_per_s_generation"] > t["output_tokens_per_s_wall"] > 0
    assert t["output_tokens"] == sum(r.output_tokens or 0 for r in facts.requests) and t["outcomes"] == {"ok": 238}
    assert t["j_per_output_token"] == pytest.approx(t["active_j"] / t["output_tokens"])


def test_the_document_is_whole(facts: Facts) -> None:
    value = document(facts)
    assert value["level"] == "L1" and value["state"] == "complete"
    assert {c["verdict"] for c in value["checks"] if c["name"] != "sensors"} == {"good"}
    tops = value["top_workflows"]
    assert len(tops) == 10 and [w["active_j"] for w in tops] == sorted((w["active_j"] for w in tops), reverse=True)
    assert sum(a["active_j"] for a in agents(facts)) == pytest.approx(value["summary"]["active_j"])
    for path in value["critical_paths"].values():
        assert path["serving_ms"] + path["tools_and_delays_ms"] + path["late_ms"] == pytest.approx(path["makespan_ms"])
        assert path["critical_path_j"] <= path["active_j"] + 1e-9
    worst = value["critical_paths"]["worst"]
    assert worst["makespan_ms"] == max(w.makespan_ns or 0 for w in facts.workflows) / MS
    by_class = value["class_components_j"]
    assert sum(sum(parts.values()) for parts in by_class.values()) == pytest.approx(value["summary"]["active_j"])


# --- other runs ----------------------------------------------------------------------------------------------------


def test_live_traffic_counts_from_arrival(served: object, tmp_path: Path, make_run: Callable[..., RunDir]) -> None:
    run = make_run(tmp_path / "live", served, dispatch=False, power=False)
    facts = gather(run)
    assert not facts.planned and all(r.due_ns is None for r in facts.requests)
    found = latencies(facts)
    assert found["ttft"]["due"] is None and found["ttft"]["sent"] is not None and found["lateness"]["due"] is None
    assert any("no power journal" in n for n in facts.notes) and any("attribution" in n for n in facts.notes)
    assert {c.name: c.verdict for c in checks(facts)}["lateness"] == "unknown"
    assert {c.name: c.verdict for c in checks(facts)}["energy"] == "unknown"
    rows = class_rows(facts)
    assert rows[0].ttft_p50_ns is not None and rows[0].j_per_workflow is None and rows[0].idle_share is None


def test_damage_is_said_and_an_empty_run_is_refused(
    served: object, tmp_path: Path, make_run: Callable[..., RunDir]
) -> None:
    run = make_run(tmp_path / "torn", served, proxy=False, power=False)
    with run.journal("dispatch", "0").open("ab") as file:
        file.write(b'not json\n{"wire_id": "r-x", "req')
    facts = gather(run)
    assert len(facts.requests) == 238
    assert any("1 damaged lines and 1 torn last line" in n for n in facts.notes)
    empty = RunDir.create(tmp_path / "empty")
    JournalWriter(empty.journal("dispatch", "0"), "dispatch", mono_ns=0, wall_ns=0).close()
    with pytest.raises(UserError, match="recorded no request"):
        gather(empty)


def test_fates_and_their_columns() -> None:
    fates = {
        "complete": ["ok", "ok"],
        "rejected": ["ok", "rejected", "skipped"],
        "failed": ["ok", "error", "skipped"],
    }
    workflows = [
        Workflow(name, "c", tuple(request(f"{name}{i}", outcome=o) for i, o in enumerate(outcomes)))
        for name, outcomes in fates.items()
    ]
    assert [w.fate for w in workflows] == list(fates)
    assert [w.makespan_ns for w in workflows] == [10 * MS, None, None]
    (row,) = class_rows(made_facts(workflows))
    assert (row.workflows, row.failed, row.rejected, row.requests) == (3, 1, 1, 8)
    found = {c.name: c for c in checks(made_facts(workflows))}
    assert found["requests"].verdict == "warn" and "1 error, 1 rejected, 2 skipped of 8" in found["requests"].sentence


def test_joules_per_workflow_are_of_complete_ones_and_per_token_of_all() -> None:
    spent = Joules(active=6_000_000, full=8_000_000, low=5_000_000, high=7_000_000)
    good = Workflow("a", "c", (request("a", joules=spent),))
    bad = Workflow("b", "c", (request("b", outcome="error", joules=spent),))
    refused = Workflow("d", "c", (request("d", outcome="rejected"),))
    (row,) = class_rows(made_facts([good, bad, refused]))
    assert row.j_per_workflow == 6.0 and row.j_per_workflow_low == 5.0 and row.j_per_output_token == 12 / 5
    assert row.idle_share == 0.25
    assert refused.uj() is None and class_rows(made_facts([refused]))[0].active_j is None


def test_a_critical_path_splits_the_makespan() -> None:
    first = request("a", 0, 10)
    quick = request("b", 12, 20, deps=(Dep("a"),), delay_ns=2 * MS)
    slow = request("c", 10, 40, deps=(Dep("a"),))
    last = request("d", 40, 50, deps=(Dep("b"), Dep("c")))
    workflow = Workflow("w", "c", (first, quick, slow, last))
    assert [s.request_id for s in workflow.critical] == ["a", "c", "d"]
    value = document(made_facts([workflow]))["critical_paths"]["worst"]
    assert value["makespan_ms"] == 50 and value["late_ms"] == 3 and value["serving_ms"] == 47
    assert value["active_j"] is None and value["steps"][1]["active_j"] is None


def test_notable_workflows_are_the_median_and_the_worst_with_several_requests() -> None:
    alone = [Workflow(f"s{i}", "c", (request(f"s{i}", 0, 500),)) for i in range(9)]
    several = [Workflow(f"m{i}", "c", (request("x", 0, i), request("y", 0, i))) for i in (10, 20, 30)]
    chosen = notable(made_facts(alone + several))
    assert {k: w.workflow_id for k, w in chosen.items()} == {"median": "m20", "worst": "m30"}
    assert notable(made_facts(alone))["worst"].workflow_id.startswith("s") and notable(made_facts([])) == {}
    assert [w.workflow_id for w in top_workflows(made_facts(several), 1)] == ["m30"]


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({"info": {"state": "invalid", "why": "too late"}}, "run", "bad"),
        ({"info": {"state": "interrupted", "why": None}}, "run", "warn"),
        ({"info": {"state": "running"}}, "run", "warn"),
        ({"ledger": {"measured_uj": 100, "unmeasured_uj": 5, "scale": None}}, "coverage", "warn"),
        ({"ledger": {"measured_uj": 9, "components": {"gpu": {}, "cpu": {"closure_uj": -3}}}}, "ledger", "bad"),
        ({"ledger": {"measured_uj": 9, "scale": {"p5": 0.5, "p50": 1.0, "p95": 1.0}}}, "model", "warn"),
        ({"ledger": {"measured_uj": 9}, "truth": {"median": 0.2, "p95": 0.9}}, "truth", "warn"),
        ({"sampling": {"ticks": 100, "missed": 0, "gap": 2, "reset": 0, "lost": 0}}, "sampler", "warn"),
        ({"sampling": {"ticks": 100, "missed": 0, "gap": 0, "reset": 0, "lost": 0}}, "sampler", "good"),
        ({"sensors": [{"simulated": True}]}, "sensors", "warn"),
    ],
)  # fmt: skip
def test_checks_tell_what_is_wrong(change: dict[str, object], name: str, verdict: str) -> None:
    facts = made_facts([Workflow("w", "c", (request("a"),))], **change)
    found = {c.name: c for c in checks(facts)}
    assert found[name].verdict == verdict and found[name].sentence.endswith(".")


def test_a_late_generator_and_wrong_tokens_are_told() -> None:
    late = request("a", sent_ns=30 * MS, planned_tokens=(10, 6))
    found = {c.name: c for c in checks(made_facts([Workflow("w", "c", (late,))]))}
    assert found["lateness"].verdict == "bad" and "30.0 ms" in found["lateness"].sentence
    assert found["tokens"].verdict == "warn" and "0 of 1" in found["tokens"].sentence


def test_what_was_not_measured_is_said() -> None:
    ledger = {
        "level": "L2",
        "components": {"gpu": {}},
        "devices": [{"device": "gpu0", "integrated_power": True, "lag_known": False}],
        "notes": ["three requests without usage", "sim.cpu0.energy: no CPU time"],
    }
    said = not_measured(made_facts([], ledger=ledger, notes=["no truth"]))
    assert [s for s in said if s.startswith(("CPU energy", "DRAM energy", "HBM energy"))] and len(said) == 8
    assert "gpu0: joules are integrated from power readings, not from an energy counter." in said
    assert "Three requests without usage." in said and "No truth." in said
    assert "sim.cpu0.energy: no CPU time." in said, "a name stays as it is"


def test_the_command_line_can_be_typed_again() -> None:
    config = {
        "trace": "a b.jsonl",
        "embedded": "p",
        "real_time": True,
        "from_s": 2.0,
        "limit": None,
        "json": True,
        "proxy": False,
        "scheduling": "",
        "seed": 0,
    }
    assert (
        command_line({"command": "replay", "config": config})
        == "joulegraph replay 'a b.jsonl' --embedded p --real-time --from 2.0 --seed 0"
    )
    assert command_line({"command": "joulegraph demo --seed 1"}) == "joulegraph demo --seed 1"
    assert command_line({}) is None


# --- pure pieces ---------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 8_000), st.integers(1, 8_000)), min_size=1, max_size=30)
)
def test_the_areas_of_waiting_and_decoding_are_exact(spans: list[tuple[int, int, int]]) -> None:
    requests = [
        request(str(i), sent_ns=a * MS, due_ns=a * MS, first_ns=(a + w) * MS, end_ns=(a + w + d) * MS)
        for i, (a, w, d) in enumerate(spans)
    ]
    line = timeline(requests, [])
    assert line is not None
    width = np.diff(line.edges_s)
    assert float(np.dot(line.waiting, width)) == pytest.approx(sum(w for _, w, _ in spans) / 1000, rel=1e-6)
    assert float(np.dot(line.decoding, width)) == pytest.approx(sum(d for _, _, d in spans) / 1000, rel=1e-6)
    assert min(line.waiting) > -1e-6 and timeline([], []) is None


@given(st.lists(st.one_of(st.none(), st.integers(0, 10**12)), max_size=40))
def test_quantiles_leave_the_unknown_out(values: list[int | None]) -> None:
    known = [v for v in values if v is not None]
    found = quantiles(values)
    if not known:
        assert found is None
    else:
        assert found is not None and found["n"] == len(known) and found["max"] == max(known)
        assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= found["max"]


def test_figures_as_text() -> None:
    assert [figure(v) for v in (None, 0.0, 0.0123456, 12.345, 123.4, 98765.0)] == [
        "–",
        "0",
        "0.0123",
        "12.3",
        "123",
        "98,765",
    ]
