"""Recordings as other tools write them: other number formats, missing cells, another clock; damage is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from energy.attribute import Attribution, attribute
from energy.foreign import import_run
from energy.load import load_run
from traces.errors import UserError
from traces.rundir import RunDir

S = 1_000_000_000


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{k}", "workflow": f"w{k}", "t_send_ns": (10 + k) * S, "t_first_ns": (10 + k) * S + S // 10,
            "t_end_ns": (11 + k) * S, "token_dt_us": [20_000] * 40, "status": 200, "error": None,
            "usage": {"prompt_tokens": 300, "completion_tokens": 41}, "metrics": None,
        }
        for k in range(12)
    ]  # fmt: skip


def _power() -> list[str]:
    rows = [(5 * S + k * S // 20, 10_000 * k) for k in range(600)]
    return ["t0_ns,energy_mj,instant_mw", *(f"{t},{e},200000" for t, e in rows)]


def _imported(folder: Path, rows: list[dict[str, Any]], power: list[str], steps: list[dict[str, Any]]) -> Attribution:
    (folder / "requests.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    (folder / "power.csv").write_text("\n".join(power) + "\n")
    (folder / "steps.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in steps))
    import_run(folder, folder / "run")
    return attribute(load_run(RunDir.open(folder / "run")))


def _float_times(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: float(row[name]) for name in ("t_send_ns", "t_first_ns", "t_end_ns")}


@pytest.mark.parametrize(
    "change",
    [
        _float_times,
        lambda r: r | {"token_dt_us": [20_000.5] * 40},
        lambda r: r | {"workflow": 3, "node": 4, "kind": 5, "error": None},
        lambda r: r | {"metrics": {"queue_time_ms": None, "time_to_first_token_ms": None}},
        lambda r: r | {"usage": r["usage"] | {"prompt_tokens_details": None}},
        lambda r: r | {"t_end_ns": None},
        lambda r: r | {"deps": "r0"},
    ],
)
def test_whatever_a_client_wrote_is_attributed(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    plain = _imported(_folder(tmp_path / "plain"), _rows(), _power(), [])
    odd = _imported(_folder(tmp_path / "odd"), [change(r) for r in _rows()], _power(), [])
    assert odd.totals["closure_uj"] == 0
    assert odd.totals["attributed_uj"] == pytest.approx(plain.totals["attributed_uj"], rel=0.02)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("cell", ["nan", "N/A", "[N/A]", "", "[Unknown Error]"])
def test_cells_that_say_nothing_are_missing_readings(tmp_path: Path, cell: str) -> None:
    power = [line if k % 50 or not k else f"{line.split(',')[0]},{cell},{cell}" for k, line in enumerate(_power())]
    result = _imported(tmp_path, _rows(), power, [])
    assert result.totals["measured_uj"] == pytest.approx(5990e6, rel=0.01)


@pytest.mark.parametrize("head", ["\ufefft0_ns,energy_mj,instant_mw", "t0_ns, energy_mj, instant_mw "])
def test_head_lines_of_other_tools(tmp_path: Path, head: str) -> None:
    assert _imported(tmp_path, _rows(), [head, *_power()[1:]], []).totals["measured_uj"] > 0


def test_a_request_that_never_ended_and_gave_nothing_pays_nothing(tmp_path: Path) -> None:
    hung = _rows()[3] | {"id": "hung", "t_first_ns": None, "t_end_ns": None, "token_dt_us": [], "usage": None}
    result = _imported(tmp_path, [*_rows(), hung | {"error": "still running"}], _power(), [])
    active = result.figures[0].active.sum(1)
    assert active[result.requests.ids.index("hung")] < 0.001 * active.max()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"metrics": "x"}, "line 1: field 'metrics'"), ({"usage": [1]}, "line 1: field 'usage'")],
)
def test_a_field_of_the_wrong_type_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        _imported(tmp_path, [r | change for r in _rows()], _power(), [])


def test_a_step_without_its_counts_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: field 'num_ctx_requests'"):
        _imported(tmp_path, _rows(), _power(), [{"t_ns": 1, "num_ctx_tokens": 3}])


def test_steps_of_another_clock_are_left_out(tmp_path: Path) -> None:
    counts = {"num_ctx_requests": 1, "num_ctx_tokens": 9, "num_generation_requests": 1, "num_generation_tokens": 1}
    result = _imported(tmp_path, _rows(), _power(), [{"t_ns": 10**15 + k, **counts} for k in range(9)])
    assert result.level == "L1"
    assert any("one monotonic clock" in n for n in result.notes)
