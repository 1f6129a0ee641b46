"""Draft tokens from the engine's reply to joules: read, joined, charged to the request that they were verified for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.foreign import import_run
from energy.load import load_run
from energy.reads import decode_reads
from energy.speculation import COUNTER, UNSAID, speculation, unsaid
from energy.tables import NONE, request_table
from energy.windows import windows
from energy.work import work_curve
from traces.records import DispatchRecord, RequestRecord
from traces.rundir import RunDir
from traces.speculation import speculated

S = 1_000_000_000
SUMMARY = {"num_spec_steps": 8, "num_accepted_draft_tokens": 28, "num_draft_tokens": 30, "num_spec_tokens": 4}


def row(name: str, tokens: int, drafted: int | None, accepted: int | None, steps: int) -> dict[str, object]:
    first, last = S, 3 * S
    given = np.diff(np.linspace(0, tokens - 1, steps + 1).astype(int))
    times = np.linspace(first, last, steps + 1)[1:].astype(int)
    reads = [(first, 1), *((int(t), int(k)) for t, k in zip(times, given, strict=True) if k)]
    return {
        "id": name, "sent_ns": 0, "first_ns": first, "last_ns": last, "end_ns": last, "prompt": 100, "cached": 0,
        "completion": tokens, "drafted": drafted, "accepted": accepted, "reads": reads,
    }  # fmt: skip


def test_the_summary_of_vllm_is_read_and_what_is_not_said_is_not_zero() -> None:
    assert speculated(SUMMARY) == (30, 28)
    assert speculated(None) == speculated([]) == (None, None)
    assert speculated({"num_draft_tokens": 3}) == (3, None)


@given(st.integers(2, 200), st.integers(0, 4), st.integers(1, 60))
def test_computed_is_given_less_accepted_plus_drafted(tokens: int, drafts: int, steps: int) -> None:
    steps = min(steps, tokens - 1)
    accepted = tokens - 1 - steps
    drafted = max(accepted, drafts * steps)
    table = request_table([row("a", tokens, drafted, accepted, steps)])
    work = windows(table, "L1")
    _, _, turns, computed, context = decode_reads(table, work, 0, 1)
    assert turns.sum() == pytest.approx(steps)
    assert computed.sum() == pytest.approx(steps + drafted)
    silent = replace(table, drafted=np.array([NONE]), accepted=np.array([NONE]))
    _, _, each, plain, read = decode_reads(silent, windows(silent, "L1"), 0, 1)
    assert each.sum() == plain.sum() == pytest.approx(tokens - 1)
    assert context.sum() == pytest.approx(read.sum() * steps / (tokens - 1)), "a step reads the context once"


def test_a_lone_speculating_request_takes_as_many_steps_as_it_says() -> None:
    table = request_table([row("a", 41, 40, 30, 10)])
    curve = work_curve(table, windows(table, "L1"), None, -1.0, 4.0)
    assert curve.features[-1, 0] == pytest.approx(11, abs=0.5), "ten of decode and the prefill's"
    assert curve.features[-1, 3] == pytest.approx(50)


def test_impossible_counts_are_bounded_by_what_was_given() -> None:
    work = windows(request_table([row("a", 5, 3, 900, 4), row("b", 1, 8, 4, 0)]), "L1")
    assert list(work.accepted) == [3, 0]
    assert list(work.drafted) == [3, 0]


def test_from_a_recording_and_from_journals(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    folder.mkdir()
    line = {"id": "a", "t_send_ns": 0, "t_first_ns": S, "t_end_ns": 2 * S, "token_dt_us": [1000] * 9}
    line |= {"usage": {"completion_tokens": 37}, "metrics": {"speculative_decoding": SUMMARY}}
    other = {"id": "b", "t_send_ns": 0, "t_first_ns": S, "t_end_ns": 2 * S, "usage": {"completion_tokens": 3}}
    (folder / "requests.jsonl").write_bytes(b"\n".join(orjson.dumps(x) for x in (line, other)))
    import_run(folder, tmp_path / "run")
    table = load_run(RunDir.open(tmp_path / "run")).requests
    assert list(table.drafted) == [30, NONE]
    assert list(table.accepted) == [28, NONE]
    found = speculation(table)
    assert found == {"requests": 1, "draft_tokens": 30, "accepted_tokens": 28, "acceptance": 28 / 30}

    run = RunDir.create(tmp_path / "both")
    seen = run.writer("requests", "0", mono_ns=0, wall_ns=0)
    seen.write(RequestRecord("x0", None, None, "ok", 0, S, t_upstream_ns=1))
    sent = run.writer("dispatch", "0", mono_ns=0, wall_ns=0)
    sent.write(DispatchRecord("n0", "w", "x0", "ok", 0, S, t_sent_ns=0, draft_tokens=8, accepted_tokens=5))
    sent.write(DispatchRecord("n1", "w", "x1", "ok", 0, S, t_sent_ns=0, draft_tokens=4, accepted_tokens=0))
    for writer in (seen, sent):
        writer.close()
    table = load_run(run).requests
    assert list(table.drafted) == [8, 4]
    assert list(table.accepted) == [5, 0]


def test_an_engine_that_speculates_in_silence_is_named() -> None:
    scrapes = [{"kind": "counters", "values": {COUNTER: v}} for v in (3.0, 90.0)]
    silent = request_table([row("a", 5, None, None, 4)])
    assert unsaid(silent, scrapes) == [UNSAID]
    assert unsaid(silent, scrapes[:1]) == unsaid(silent, [{"values": {}}]) == []
    assert unsaid(request_table([row("a", 5, 8, 2, 2)]), scrapes) == []
    assert speculation(silent) is None
