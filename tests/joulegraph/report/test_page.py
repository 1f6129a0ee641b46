"""The page: one file, offline, well formed, escaped, the same bytes for the same run; and its command."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegraph import cli
from joulegraph.figures import wanted, write_figures
from joulegraph.report import plots, write_report
from joulegraph.report.document import document
from joulegraph.report.facts import Timeline, Workflow
from joulegraph.report.gather import gather
from joulegraph.report.perfetto import lanes
from joulegraph.report.render import render_html
from traces.errors import UserError
from traces.rundir import RunDir

VOID = frozenset(("meta", "br", "link", "img", "hr", "input", "path", "use"))


class Balance(HTMLParser):
    """Counts open tags, collects ids, links and anything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.anchors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            elif name == "href" and tag == "a":
                self.anchors.append(value or "")
            elif name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.fetched.append(value)
        assert tag not in ("script", "link", "iframe", "img", "object")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Balance:
    balance = Balance()
    balance.feed(page)
    balance.close()
    assert balance.open == []
    return balance


@pytest.fixture(scope="module")
def page(whole_run: RunDir) -> str:
    return write_report(whole_run).read_text()


def test_the_page_stands_alone(page: str) -> None:
    balance = parsed(page)
    assert balance.fetched == [] and "@import" not in page and not re.search(r"url\((?!#)", page)
    assert len(set(balance.ids)) == len(balance.ids), "ids of inlined plots do not clash"
    assert {a.removeprefix("#") for a in balance.anchors} <= set(balance.ids)
    for reference in re.findall(r"url\(#([^)]+)\)", page) + re.findall(r'href="#([^"]+)"', page):
        assert reference in balance.ids


def test_the_page_says_everything_that_was_asked(page: str) -> None:
    for words in (
        "Can these figures be believed?", "Workflow classes", "Energy ledger", "Power over time", "Latency",
        "Critical paths", "Where the joules go", "How joules were put on requests", "How to repeat it", "simulated",
        "Level <strong>L1</strong>",
        "agentic", "copilot", "0 µJ", "TPOT", "median makespan", "joulegraph replay t.jsonl", "arrivals as recorded",
    ):  # fmt: skip
        assert words in page
    assert page.count("<svg") == 6 and len(page) < 1_500_000


def test_the_books_say_what_stays_unaccounted_and_what_workflows_came_to(whole_run: RunDir) -> None:
    facts = gather(whole_run)
    node = {
        "source": "ipmi", "seconds": 90.0, "node_uj": 9_000_000_000, "parts_uj": {"gpu": 6_500_000_000},
        "measured_uj": 6_500_000_000, "unaccounted_uj": 2_500_000_000,
    }  # fmt: skip
    classes = {k: {**row, "gco2e": 1.5} for k, row in facts.ledger["workflow_classes"].items()}  # type: ignore[index]
    carbon = {"gco2e": 6.0, "grid_gco2e_per_kwh": 380.0, "grid_source": "a year's mean", "pue": 1.2}
    hit = {"requests": 3, "recomputed_tokens": 4567, "listed": []}
    drafts = {"requests": 9, "draft_tokens": 1234, "accepted_tokens": 617, "acceptance": 0.5}
    more = {"node": node, "carbon": carbon, "workflow_classes": classes, "preempted": hit, "speculation": drafts}
    whole = replace(facts, ledger={**(facts.ledger or {}), **more})
    value = document(whole)
    page = render_html(whole, value)
    parsed(page)
    for words in (
        "Unaccounted: 2,500 J",
        "gCO2e",
        "380 g/kWh",
        "a year's mean".replace("'", "&#39;"),
        "4,567",
        "1,234",
    ):
        assert words in page, words
    for row in value["class_energy"]:
        assert row["j_per_successful_workflow"] > 0
        assert 0 < row["critical_path_j"] <= row["active_j"]
        assert row["edp_js"] > 0
    assert sum(r["active_j"] for r in value["class_energy"]) == pytest.approx(value["summary"]["active_j"])
    assert all(w["edp_js"] == pytest.approx(w["active_j"] * w["makespan_ms"] / 1e3) for w in value["top_workflows"])
    plain = render_html(facts, document(facts))
    assert "Unaccounted" not in plain
    assert "gCO2e" not in plain
    assert "EDP" in plain


def test_the_same_run_gives_the_same_bytes(whole_run: RunDir, page: str) -> None:
    facts = gather(whole_run)
    assert render_html(facts, document(facts)) == page


def test_report_json_is_the_same_as_data(whole_run: RunDir, page: str) -> None:
    value = orjson.loads(whole_run.file("report.json").read_bytes())
    assert value["summary"]["requests"] == 238 and value["ledger"]["closure_uj"] == 0
    assert "blocks" not in value["ledger"]["devices"][0]
    assert not re.search(r"NaN|Infinity", whole_run.file("report.json").read_text())


def test_a_run_without_energy_and_a_live_one_still_report(
    served: object, tmp_path: Path, make_run: Callable[..., RunDir]
) -> None:
    for name, how in (("dispatch", {"proxy": False}), ("live", {"dispatch": False})):
        run = make_run(tmp_path / name, served, power=False, **how)
        text = write_report(run).read_text()
        parsed(text)
        assert "joules are unknown, not zero" in text and "no power was measured" in text


def test_names_from_outside_are_escaped(whole_run: RunDir) -> None:
    facts = gather(whole_run)
    evil = "<script>alert(1)</script>&"

    def renamed(w: Workflow) -> Workflow:
        rows = tuple(
            replace(r, workflow_id=evil, class_name=evil, agent_id=evil, node_id=r.node_id + evil) for r in w.requests
        )
        return Workflow(evil, evil, rows)

    workflows = [renamed(w) for w in facts.workflows if w.class_name == "agentic"]
    changed = replace(facts, name=evil, workflows=workflows, requests=[r for w in workflows for r in w.requests])
    text = render_html(changed, document(changed))
    assert "<script" not in text
    parsed(text)


def test_odd_figures_still_draw() -> None:
    empty = Timeline((0.0, 1.0), (), (0.0,), (0.0,))
    drawn = [
        plots.power_timeline(empty),
        plots.components({"gpu": {"measured_uj": 0}}),
        plots.components({"cpu": {"attributed_uj": 5, "idle_uj": 3}}),
        plots.class_energy([("x", {})]),
        plots.distributions([("one", {"all": [0.0, 5.0]})]),
        plots.distributions([("many", {f"c{i}": [float(i + 1)] * 1000 for i in range(12)})] * 3),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg)


def test_a_wide_workflow_shows_its_critical_path_and_the_longest(facts_of_wide: Workflow) -> None:
    rows, critical = plots.waterfall_rows(facts_of_wide, 10)
    assert len(rows) == 10 and critical == {"root", "leaf-99"} and {"root", "leaf-99"} <= {r.node_id for r in rows}
    ElementTree.fromstring(plots.waterfall(facts_of_wide, "wide", 10))


@pytest.fixture
def facts_of_wide() -> Workflow:
    from joulegraph.report.facts import Request
    from traces.workflow import Dep

    def one(node: str, begin: int, end: int, deps: tuple[Dep, ...] = ()) -> Request:
        return Request(node, node, "w", "c", None, "llm", "ok", begin, begin, begin + 1, end, end, 1, 0, 1, deps=deps)

    leaves = [one(f"leaf-{i}", 100, 200 + i, (Dep("root"),)) for i in range(100)]
    return Workflow("w", "c", (one("root", 0, 100), *leaves))


def test_ecdf_is_a_distribution() -> None:
    import numpy as np

    x, y = plots.ecdf(np.array([3.0, 1.0, 2.0, 2.0]))
    assert x.tolist() == [1.0, 2.0, 2.0, 3.0] and y.tolist() == [0.25, 0.5, 0.75, 1.0]
    x, y = plots.ecdf(np.arange(10_000.0))
    assert len(x) == 400 and y[0] == 0 and y[-1] == 1 and (np.diff(x) >= 0).all()


# --- joulegraph report ---------------------------------------------------------------------------------------------


def test_the_command_attributes_first_where_needed(
    served: object, tmp_path: Path, make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "fresh", served)
    assert cli.run(["report", str(run.path), "--json"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and orjson.loads(said)["ledger"]["closure_uj"] == 0
    assert run.file("attribution.parquet").is_file() and run.file("report.html").is_file()
    assert cli.run(["report", str(run.path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "J per" in captured.err and "report.html" in captured.err


def test_the_command_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_the_python_in_the_docs_works(whole_run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[3] / "docs" / "report.md"
    (code,) = re.findall(r"```python\n(.*?)```", docs.read_text(), re.S)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "my-run").symlink_to(whole_run.path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["page"] == Path("runs/my-run/report.html") and len(names["facts"].workflows) == 115  # type: ignore[attr-defined]


# --- timeline.json -------------------------------------------------------------------------------------------------


def test_the_perfetto_timeline_holds_every_request_dependency_and_watt(whole_run: RunDir, page: str) -> None:
    events = orjson.loads(whole_run.file("timeline.json").read_bytes())["traceEvents"]
    facts = gather(whole_run)
    slices = [e for e in events if e["ph"] == "X" and e["cat"] == "ok"]
    assert len(slices) == 238 and min(e["ts"] for e in slices) == 0
    assert sum(e["args"]["active_j"] for e in slices) == pytest.approx(
        sum(r.joules.active for r in facts.requests if r.joules) / 1e6
    )
    starts, finishes = ({e["id"]: e for e in events if e["ph"] == ph} for ph in "sf")
    assert len(starts) == len(finishes) == sum(len(r.deps) for r in facts.requests) > 200
    assert all(starts[i]["ts"] <= finishes[i]["ts"] for i in starts)
    assert {e["name"] for e in events if e["ph"] == "C"} == {"gpu0", "hbm0", "cpu0", "dram0"}
    until: dict[tuple[int, int], float] = {}
    for e in sorted(slices, key=lambda e: e["ts"]):
        assert e["ts"] >= until.get((e["pid"], e["tid"]), 0) - 1e-3, "slices of one lane do not overlap"
        until[e["pid"], e["tid"]] = e["ts"] + e["dur"]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=40))
def test_lanes_are_as_many_as_overlap(raw: list[tuple[int, int]]) -> None:
    spans = sorted((start, start + length) for start, length in raw)
    used = lanes(spans)
    for i, (start, _) in enumerate(spans):
        for j in range(i):
            if used[i] == used[j]:
                assert max(spans[j][1], spans[j][0] + 1) <= start
    most = max((sum(a <= t < max(b, a + 1) for a, b in spans) for t in range(80)), default=0)
    assert len(set(used)) == most and set(used) == set(range(most))


def test_goodput_stands_beside_the_latencies_where_bounds_were_given(
    served: object, make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", served)
    facts = gather(run)
    assert facts.goodput is None
    assert "goodput" not in render_html(facts, document(facts))
    run.update_info(figures=wanted("ttft=500ms,makespan=30s", 0, 0))
    figures = write_figures(run)
    assert figures is not None
    facts = gather(run)
    value = document(facts)
    assert value["goodput"] == {"slo": figures["slo"], **figures["all"]["goodput"]}
    assert value["goodput"]["requests"] > 0
    page = render_html(facts, value)
    assert "goodput from due, under ttft 500 ms, makespan 30000 ms" in page
    run.file("figures.json").write_text("{")
    with pytest.raises(UserError, match=r"figures\.json: not JSON"):
        gather(run)
