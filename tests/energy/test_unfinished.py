"""Recordings as clients leave them: aborted and refused requests, whole replies, requests that no meter saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from energy.attribute import Attribution, attribute
from energy.foreign import import_run
from energy.joining import joined
from energy.load import load_run
from energy.reads import decode_reads
from energy.tables import request_table
from energy.windows import windows
from traces.rundir import RunDir

S = 1_000_000_000


def _row(name: str, at_s: float, tokens: int, each: int = 1, **more: Any) -> dict[str, Any]:
    """A stream of `tokens`, one each 20 ms, delivered `each` at a time."""
    sent = round(at_s * S)
    reads = (tokens - 1) // each
    first = sent + S // 20
    return {
        "id": name, "t_send_ns": sent, "t_first_ns": first, "t_end_ns": first + reads * each * S // 50,
        "token_dt_us": [20_000 * each] * reads, "n_in": 300, "n_out": tokens,
        "usage": {"prompt_tokens": 300, "completion_tokens": 1 + reads * each}, **more,
    }  # fmt: skip


def _attributed(folder: Path, rows: list[dict[str, Any]], first_s: float = 5.0, last_s: float = 60.0) -> Attribution:
    (folder / "requests.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    t = np.arange(first_s, last_s, 0.1)
    lines = [f"{round(x * S)},{round((x - first_s) * 200_000)}\n" for x in t.tolist()]
    (folder / "power.csv").write_text("t0_ns,energy_mj\n" + "".join(lines))
    import_run(folder, folder / "run")
    return attribute(load_run(RunDir.open(folder / "run")))


@pytest.mark.parametrize("each", [1, 8])
def test_who_left_pays_for_what_was_computed_not_for_what_was_asked(tmp_path: Path, each: int) -> None:
    rows = [_row(f"r{k}", 10 + 2 * k, 81, each) for k in range(10)]
    left = _row("left", 31, 41, each, usage=None, error="client left") | {"n_out": 1000}
    result = _attributed(tmp_path, [*rows, left])
    table = result.requests
    w = windows(table, "L1")
    mine = int(np.flatnonzero(w.row == table.ids.index("left"))[0])
    assert w.decode[mine] == pytest.approx(40, abs=each)
    active = dict(zip(table.ids, result.figures[0].active.sum(1).tolist(), strict=True))
    assert active["left"] < 0.65 * active["r5"]


@pytest.mark.parametrize("status", [400, 429, 503])
def test_who_was_refused_pays_nothing(tmp_path: Path, status: int) -> None:
    rows = [_row(f"r{k}", 10 + 2 * k, 81) for k in range(10)]
    no = {"t_first_ns": None, "t_end_ns": 13 * S, "token_dt_us": [], "usage": None, "error": f"HTTP {status}"}
    result = _attributed(tmp_path, [*rows, _row("no", 12.5, 81, status=status) | no])
    assert result.figures[0].active[result.requests.ids.index("no")].sum() == 0
    assert result.totals["closure_uj"] == 0


def test_a_reply_that_came_whole_decodes_all_the_time(tmp_path: Path) -> None:
    """Its only read says nothing of its first token: the pace of the streamed prompts does."""
    rows = [_row(f"r{k}", 10 + 2 * k, 81) for k in range(10)]
    whole = _row("whole", 31, 81) | {"token_dt_us": []}
    whole["t_first_ns"] = whole["t_end_ns"] - 1000
    result = _attributed(tmp_path, [*rows, whole])
    w = windows(result.requests, "L1")
    mine = int(np.flatnonzero(w.row == result.requests.ids.index("whole"))[0])
    assert w.first[mine] - w.sent[mine] == pytest.approx(0.05, rel=0.05)
    _, when, _, tokens, _ = decode_reads(result.requests, w, mine, mine + 1)
    assert tokens.sum() == 80
    assert np.ptp(when) > 1.4
    active = dict(zip(result.requests.ids, result.figures[0].active.sum(1).tolist(), strict=True))
    assert active["whole"] == pytest.approx(active["r5"], rel=0.05)


@pytest.mark.parametrize(("first_s", "last_s"), [(15.0, 60.0), (5.0, 25.0)])
def test_requests_that_no_meter_saw_are_named(tmp_path: Path, first_s: float, last_s: float) -> None:
    result = _attributed(tmp_path, [_row(f"r{k}", 10 + 2 * k, 81) for k in range(10)], first_s, last_s)
    said = [n for n in result.notes if "before its first or after its last reading" in n]
    assert len(said) == 1
    assert "2 of them wholly" in said[0] if first_s == 15.0 else "3 requests" in said[0]


def test_a_prompt_joins_at_the_end_of_the_step_that_runs() -> None:
    """Sent in the middle of steps of 40 ms that another's reads show: it waits, drawing nothing, until the next."""
    reads = [(S + k * S // 25, 1) for k in range(100)]
    rows = [
        _seen("d", 0, S, 100) | {"last_ns": reads[-1][0], "end_ns": reads[-1][0], "completion": 100, "reads": reads}
    ]
    for k in range(8):
        step = S + (20 + 8 * k) * S // 25
        rows.append(_seen(f"p{k}", step + (1 + 5 * k) * S // 1000, step + 2 * S // 25, 500))
    table = request_table(rows)
    before = windows(table, "L1")
    w, notes = joined(table, before)
    assert np.allclose((w.first - w.start)[1:], 0.04, atol=0.002)
    assert notes == []
    w, notes = joined(table, before, most_reads=99)
    assert w is before
    assert len(notes) == 1


def _seen(name: str, sent_ns: int, first_ns: int, prompt: int) -> dict[str, Any]:
    return {
        "id": name, "sent_ns": sent_ns, "first_ns": first_ns, "end_ns": first_ns, "last_ns": None, "prompt": prompt,
        "cached": 0, "completion": 1, "reads": [(first_ns, 1)],
    }  # fmt: skip
