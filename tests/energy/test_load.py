"""Run directories as tables: joins, torn and damaged journals, and sentences for what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from energy.attribute import attribute_run, choose_level
from energy.fit import Profile
from energy.load import load_requests, load_run
from energy.tables import NONE
from energy.truth import score_truth
from joulegraph.finish import count
from joulegraph.report.gather import gather_workflows
from traces.errors import UserError
from traces.records import DispatchRecord, EngineRecord, PowerSample, RequestRecord, SensorInfo, StepRecord, TruthRecord
from traces.rundir import RunDir

S = 1_000_000_000


def _run(path: Path) -> RunDir:
    """Two requests through the proxy, three in the generator (one refused), a counter, two steps, truth."""
    run = RunDir.create(path)
    with_proxy = run.writer("requests", "0", mono_ns=0, wall_ns=0)
    load = run.writer("dispatch", "0", mono_ns=0, wall_ns=0)
    for i in range(2):
        begin = (5 + 4 * i) * S
        reads = (S // 2, *([S // 10] * 20))
        with_proxy.write(
            RequestRecord(
                f"x{i}",
                None,
                None,
                "ok",
                begin,
                begin + 3 * S,
                t_upstream_ns=begin + 1000,
                t_first_token_ns=begin + S // 2,
                t_last_token_ns=begin + S // 2 + 2 * S,
                prompt_tokens=100,
                cached_tokens=0,
                completion_tokens=21,
                read_dt_ns=reads,
                read_tokens=(1,) * 21,
            )
        )
        load.write(
            DispatchRecord(
                f"n{i}",
                "w",
                f"x{i}",
                "ok",
                begin - 100,
                begin + 3 * S,
                class_name="chain",
                t_sent_ns=begin,
                deps=({"on": "n0", "kind": "data"},) if i else (),
            )
        )
    load.write(DispatchRecord("n2", "w", "x2", "skipped", 20 * S, 20 * S, class_name="chain"))
    power = run.writer("power", "host", mono_ns=0, wall_ns=0)
    power.write(SensorInfo("c", "gpu", "gpu0", "counter", "uJ", S // 10, 1000))
    value = 0
    for k in range(1000):
        t = k * S // 50
        value += (
            (40 if any(5 + 4 * i <= t / S < 7.5 + 4 * i for i in range(2)) else 10) * 1_000_000 if k % 5 == 0 else 0
        )
        power.write(PowerSample("c", t, t + 1000, value))
    steps = run.writer("engine", mono_ns=0, wall_ns=0)
    steps.write(StepRecord(6 * S, 1, 0, 0.1, 1, 100, 0, 0))
    steps.write(StepRecord(7 * S, 1, 0, 0.1, 0, 0, 1, 1))
    truth = run.writer("truth", mono_ns=0, wall_ns=0)
    for i in range(2):
        truth.write(TruthRecord(f"x{i}", "gpu", 0, 1_000_000_000, 0, 0))
    for writer in (with_proxy, load, power, steps, truth):
        writer.close()
    run.write_info({"state": "complete"})
    return run


def test_proxy_rows_take_identity_from_the_generator(tmp_path: Path) -> None:
    data = load_run(_run(tmp_path / "r"))
    r = data.requests
    assert r.ids == ["x0", "x1", "x2"]
    assert r.nodes == ["n0", "n1", "n2"]
    assert [r.workflow.at(i) for i in range(3)] == ["w", "w", "w"]
    assert [r.classes.at(i) for i in range(3)] == ["chain"] * 3
    assert r.sent_ns[2] == NONE
    assert r.due_ns[0] == 5 * S - 100
    assert list(r.read_start) == [0, 21, 42, 42]
    assert r.read_ns[0] == r.first_ns[0]
    assert data.steps is not None
    assert len(data.steps) == 2


def test_scrapes_are_no_requests(tmp_path: Path) -> None:
    run = _run(tmp_path / "r")
    writer = run.writer("requests", "1", mono_ns=0, wall_ns=0)
    scrape = RequestRecord("m", None, None, "ok", 6 * S, 7 * S, method="GET", path="/metrics", read_dt_ns=(S,))
    embedding = RequestRecord("e", None, None, "ok", 8 * S, 9 * S, path="/v1/embeddings", read_dt_ns=(S,))
    for record in (scrape, embedding, scrape):
        writer.write(record)
    writer.close()
    requests = load_run(run).requests
    assert requests.ids == ["x0", "x1", "e", "x2"]
    assert list(requests.read_start) == [0, 21, 42, 43, 43]
    assert count(run)["requests"] == 2, "the generator's rows, where there are some"
    run.journal("dispatch", "0").unlink()
    assert count(run)["requests"] == 3
    assert [r.wire_id for w in gather_workflows(run) for r in w.requests] == ["x0", "x1", "e"]


def test_torn_and_damaged_lines_are_counted(tmp_path: Path) -> None:
    run = _run(tmp_path / "r")
    path = run.journal("requests", "0")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1], b"{broken", lines[2], lines[1][:40]]))
    data = load_run(run)
    assert sum(i.startswith("x") for i in data.requests.ids) == 3
    assert any("damaged" in n for n in data.notes)
    assert any("cut short" in n for n in data.notes)


def test_attribution_files_and_truth(tmp_path: Path) -> None:
    run = _run(tmp_path / "r")
    result = attribute_run(run)
    assert result.totals["closure_uj"] == 0
    assert result.totals["measured_uj"] == result.devices[0].curve.total_uj
    for name in ("attribution.parquet", "workflows.parquet", "ledger.json"):
        assert run.file(name).is_file()
    error = score_truth(run)
    assert error is not None
    assert error == score_truth(run, result)
    assert error["median"] < 0.1


def test_nothing_measured_is_no_zero(tmp_path: Path) -> None:
    run = _run(tmp_path / "r")
    run.journal("power", "host").unlink()
    result = attribute_run(run)
    assert result.level == "L0"
    assert result.totals["measured_uj"] is None
    assert any("nothing" in n for n in result.notes)


def test_a_profile_gives_estimates_marked_so(tmp_path: Path) -> None:
    run = _run(tmp_path / "r")
    run.journal("power", "host").unlink()
    joules = {"idle_s": 100.0, "tail_s": 100.0, "busy_s": 300.0, "decode": 0.01}
    result = attribute_run(run, profile=Profile("p", joules, {}, {"steps": 0.01}))
    totals = result.totals
    assert (result.level, totals["estimated"], totals["measured_uj"]) == ("L0", True, None)
    assert totals["attributed_uj"] == pytest.approx(2 * (2.5 * 300 + 20 * 0.01) * 1e6, rel=0.02)
    assert totals["closure_uj"] == 0


def test_sentences(tmp_path: Path) -> None:
    run = _run(tmp_path / "r")
    with pytest.raises(UserError, match="--policy 'best'"):
        attribute_run(run, policy="best")
    with pytest.raises(UserError, match="--level 'L9'"):
        attribute_run(run, level="L9")
    run.journal("engine").unlink()
    with pytest.raises(UserError, match="holds only L1"):
        attribute_run(run, level="L3")
    run.journal("requests", "0").write_text('{"request_id": "a", "t_end_ns": "soon"}\n')
    with pytest.raises(UserError, match="wrong type"):
        load_run(run)
    head = run.journal("dispatch", "0").read_text().splitlines(keepends=True)[0]
    run.journal("requests", "0").unlink()
    run.journal("dispatch", "0").write_text(head)
    with pytest.raises(UserError, match=r"no request in dispatch\S*; nothing to attribute"):
        load_run(run)
    run.journal("dispatch", "0").unlink()
    with pytest.raises(UserError, match="nothing to attribute"):
        load_run(run)


def _told(run: RunDir, name: str, **values: float) -> None:
    spans = run.writer("engine", "spans", mono_ns=0, wall_ns=0)
    spans.write(EngineRecord("span", 9 * S, values, name))
    spans.close()


def test_spans_give_the_engine_times_that_replies_did_not(tmp_path: Path) -> None:
    run = _run(tmp_path / "r")
    times = {"engine_queue_ns": 1000.0, "engine_prefill_ns": 2000.0, "engine_decode_ns": 3000.0, "prompt_tokens": 7.0}
    _told(run, "cmpl-x1-0", **times)
    data = load_run(run)
    row = data.requests.ids.index("x1")
    got = [int(getattr(data.requests, name)[row]) for name in ("queue_ns", "prefill_ns", "decode_ns", "prompt")]
    assert got == [1000, 2000, 3000, 100]  # the count of the reply stands
    other = data.requests.ids.index("x0")
    assert data.requests.prefill_ns[other] == NONE
    assert any("OTLP spans" in note and "1 request" in note for note in data.notes)


def test_spans_of_all_requests_make_level_l2(tmp_path: Path) -> None:
    run = _run(tmp_path / "r")
    assert choose_level(replace(load_run(run), steps=None), None) == "L1"
    spans = run.writer("engine", "spans", mono_ns=0, wall_ns=0)
    for i in range(2):
        values = {"engine_queue_ns": 0.0, "engine_prefill_ns": S / 2, "engine_decode_ns": 2.0 * S}
        spans.write(EngineRecord("span", 9 * S, values, f"chatcmpl-x{i}"))
    spans.close()
    assert choose_level(replace(load_run(run), steps=None), None) == "L2"


def test_ids_link_what_different_workers_of_a_proxy_recorded(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "live")
    maker = RequestRecord("a", "w", None, "ok", S, 2 * S, api="chat", tool_call_ids=("c",), deps=({"on": "z"},))
    answer = ({"role": "tool", "length": 1, "digest": "d", "tool_ids": ["c"]},)
    user = RequestRecord("b", "w", None, "ok", 3 * S, 4 * S, api="chat", messages=answer)
    for worker, record in enumerate((user, maker)):
        writer = run.writer("requests", str(worker), mono_ns=0, wall_ns=0)
        writer.write(record)
        writer.close()
    requests = load_requests(run, [])
    found = {i: [d["on"] for d in deps or []] for i, deps in zip(requests.ids, requests.deps.to_pylist(), strict=True)}
    assert found == {"a": ["z"], "b": ["a"]}
