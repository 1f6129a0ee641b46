"""Odd and damaged recordings: one clear sentence, or a sound result."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from energy.attribute import attribute
from energy.curve import Curve, curve_of
from energy.foreign import import_run
from energy.foreign_power import COUNTER, INSTANT
from energy.load import load_run
from energy.phases import read_phases
from energy.predict import Basis, predict
from energy.tables import Series
from traces.errors import UserError
from traces.rundir import RunDir

S = 1_000_000_000


def _rows(n: int = 8) -> list[dict[str, Any]]:
    return [
        {
            "id": i, "t_send_ns": (10 + i) * S, "t_first_ns": (10 + i) * S + S // 10, "t_end_ns": (12 + i) * S,
            "token_dt_us": [20_000] * 40, "usage": {"prompt_tokens": 300, "completion_tokens": 41}, "foo": "bar",
        }
        for i in range(n)
    ]  # fmt: skip


def _write(folder: Path, rows: list[dict[str, Any]], power: str) -> Path:
    (folder / "requests.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    (folder / "power.csv").write_text(power)
    return folder


def _power(head: str, watts: int = 200) -> str:
    lines = [head]
    for k in range(600):
        t = 5 * S + k * S // 20
        value = {"t0_ns": t, "t1_ns": t + 1000, "energy_mj": f"{watts * 50 * k}.0", "instant_mw": watts * 1000, "x": 1}
        lines.append(",".join(str(value[c]) for c in head.split(",")))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "head", ["t0_ns,t1_ns,energy_mj", "t0_ns,energy_mj,x", "instant_mw,t0_ns,t1_ns", "energy_mj,instant_mw,t1_ns,t0_ns"]
)
def test_whatever_columns_there_are(tmp_path: Path, head: str) -> None:
    rows = _rows()
    import_run(_write(tmp_path, rows[::-1], _power(head)), tmp_path / "run")
    result = attribute(load_run(RunDir.open(tmp_path / "run")))
    assert sorted(result.requests.ids) == [str(i) for i in range(8)]
    assert result.totals["closure_uj"] == 0
    assert result.totals["measured_uj"] == pytest.approx(200 * 599 / 20 * 1e6, rel=0.01)
    assert result.totals["attributed_uj"] > 0


def test_without_token_times_a_request_runs_to_its_end(tmp_path: Path) -> None:
    rows = [{k: v for k, v in r.items() if k != "token_dt_us"} for r in _rows()]
    import_run(_write(tmp_path, rows, _power("t0_ns,energy_mj")), tmp_path / "run")
    device = attribute(load_run(RunDir.open(tmp_path / "run"))).devices[0]
    assert np.all(device.windows.last - device.windows.first > 1.8)


def test_power_of_another_clock_is_said(tmp_path: Path) -> None:
    rows = [{**r, **{k: r[k] + 10**15 for k in ("t_send_ns", "t_first_ns", "t_end_ns")}} for r in _rows()]
    import_run(_write(tmp_path, rows, _power("t0_ns,energy_mj")), tmp_path / "run")
    notes = attribute(load_run(RunDir.open(tmp_path / "run"))).notes
    assert any("one monotonic clock" in n for n in notes)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("requests.jsonl", "", "no request in it"),
        ("requests.jsonl", "[1]\n", "line 1: not an object"),
        ("requests.jsonl", "{oops\n", "line 1: not JSON"),
        ("power.csv", "t0_ns,foo\n1,2\n", "one of energy_mj, instant_mw, average_mw"),
        (
            "requests.jsonl",
            '{"id": 1, "t_send_ns": 1, "t_end_ns": "soon"}\n',
            "line 1: field 't_end_ns' is 'soon', needs",
        ),
        ("requests.jsonl", '{"id": 1, "t_end_ns": 1}\n', "line 1: field 't_send_ns' is missing"),
        (
            "requests.jsonl",
            '{"id": 1, "t_send_ns": 1, "t_end_ns": 2, "usage": {"prompt_tokens": -4}}\n',
            r"field 'usage\.prompt_tokens' is -4, needs a whole number, 0 or more",
        ),
        ("requests.jsonl", '{"id": 1, "t_send_ns": 1, "t_end_ns": 2, "token_dt_us": [1, "x"]}\n', "token_dt_us"),
        ("steps.jsonl", '{"it": {"num_ctx_tokens": 1}}\n', "line 1: field 't_ns' is missing"),
        ("steps.jsonl", '{"t_ns": 5, "it": {"num_ctx_tokens": 1.5}}\n', "field 'num_ctx_requests' is missing"),
        ("power.csv", "t0_ns,energy_mj\n1,two\n", "line 2: field energy_mj is 'two', not a number"),
        ("power.csv", "t0_ns,energy_mj\ninf,2\n", "line 2: field t0_ns is 'inf', not a number"),
        ("power.csv", "t0_ns,energy_mj,gpu\n1,2,-1\n", "line 2: field gpu is -1, needs 0 to 1023"),
        ("phases.json", '{"a": 1}', "needs a list `phases`"),
        ("phases.json", "{", "not JSON"),
        ("phases.json", '[{"phase": "mix"}]', r"phase 1 \(mix\): field t_ns is None, needs whole"),
        ("phases.json", '[{"phase": "mix", "t_ns": 1.5}]', "field t_ns is 1.5, needs whole"),
        ("phases.json", '[{"phase": 3, "t_ns": 1}]', "field phase is 3, needs a name"),
        ("phases.json", '[{"phase": "mix", "t_ns": 9, "end_ns": 8}]', "field end_ns is 8, before its t_ns 9"),
        ("phases.json", '[{"phase": "mix", "t_ns": 9, "rate": [1]}]', r"field rate is \[1\], needs a number"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    _write(tmp_path, _rows(), _power("t0_ns,energy_mj"))
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        import_run(tmp_path, tmp_path / "run")


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path, _rows(), _power("t0_ns,energy_mj"))
    with (tmp_path / "requests.jsonl").open("a") as file:
        file.write('{"id": "x", "t_se')
    assert import_run(tmp_path, tmp_path / "run")["requests"] == 8


def test_an_edge_after_missing_reads_is_where_the_sensor_set_it() -> None:
    """300 W on a 100 ms grid, polled every 20 ms with 1.3 s missing: every node lies on the line."""
    t = np.arange(0, 30 * S, S // 50)
    t = t[(t < 12_345_000_000) | (t > 13_655_000_000)]
    shown = (t // (S // 10)) * (S // 10)
    curve = curve_of(Series(COUNTER, t, t + 1000, shown // 1000 * 300))
    assert isinstance(curve, Curve)
    off = curve.uj - (curve.t_ns - curve.t_ns[0]) * 0.3
    assert np.abs(off).max() < 0.03 * 300e6


def _loaded(folder: Path, n: int, *, ring: bool = False) -> Path:
    """One request a second for n seconds at 300 W, read 20 ms apart, then idle at 100 W."""
    _write(folder, _rows(n), "")
    t = np.arange(8 * S, (14 + n) * S, 20_000_000)
    watts = np.where((t > 10 * S) & (t < (12 + n) * S), 300, 100)
    energy = np.cumsum(watts) * 20
    rows = [
        f"{a},{a + 1000},{e},{w * 1000}\n" for a, e, w in zip(t.tolist(), energy.tolist(), watts.tolist(), strict=True)
    ]
    gap = range((17 * S - 8 * S) // 20_000_000, (20 * S - 8 * S) // 20_000_000)
    kept = [r for k, r in enumerate(rows) if k not in gap]
    head = "t0_ns,t1_ns,energy_mj,instant_mw\n"
    if ring:
        head, kept = (
            "t0_ns,t1_ns,instant_mw\n",
            [",".join(np.array(r.strip().split(","))[[0, 1, 3]]) + "\n" for r in rows],
        )
        (folder / "ring20ms.csv").write_text(
            "wall_us,power_mw\n" + "".join(f"{a // 1000},300000\n" for a in t.tolist())
        )
        (folder / "sampler.json").write_bytes(orjson.dumps({"anchors_monotonic_wall_ns": [[0, 0], [99 * S, 99 * S]]}))
    (folder / "power.csv").write_text(head + "".join(kept))
    return folder


def test_a_phase_that_ends_in_a_gap_was_not_measured(tmp_path: Path) -> None:
    phases = [
        {"phase": "mix", "run": 0, "t_ns": 10 * S},
        {"phase": "mix", "run": 1, "t_ns": 18 * S},  # nothing was read from 17 to 20 s
        {"phase": "mix", "run": 2, "t_ns": 24 * S},  # ends nowhere: with the last answer
    ]
    run = tmp_path / "run"
    import_run(_loaded(tmp_path, 20), run)
    gpu = attribute(load_run(RunDir.open(run))).devices[0]
    rows = predict(Basis.of(gpu.curve, gpu.lag, gpu.work, gpu.windows), read_phases(phases, "phases"))
    assert [r["run"] for r in rows] == [0, 1, 2]
    assert rows[0]["measured_uj"] is None
    assert rows[0]["why"].startswith("the sensor was not read around an end of this phase")
    assert rows[1]["measured_uj"] is None
    assert rows[1]["predicted_uj"] is not None
    assert rows[2]["measured_uj"] == pytest.approx(300e6 * 5.9, rel=0.03)
    assert rows[2]["predicted_uj"] == pytest.approx(300e6 * 5.9, rel=0.05)


def test_without_a_counter_the_drivers_samples_come_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    import_run(_loaded(tmp_path, 8, ring=True), run)
    assert attribute(load_run(RunDir.open(run))).devices[0].curve.source == "nvml0.ring"


def test_a_gap_in_a_gauge_is_no_knowledge() -> None:
    t = np.array([*range(0, 2 * S, S // 50), *range(6 * S, 8 * S, S // 50)])
    curve = curve_of(Series(INSTANT, t, t, np.full(len(t), 100_000)))
    assert isinstance(curve, Curve)
    assert np.count_nonzero(curve.broken) == 1
    assert curve.between(0, 7 * S).covered == pytest.approx(3 / 7, rel=0.02)
    assert not curve.resolved(4 * S)
    assert curve.resolved(S)


RING = "wall_us,power_mw\n"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("sampler.json", "{", "not JSON"),
        ("sampler.json", '{"anchors_monotonic_wall_ns": [[1, 2], [3]]}', r"entry 2 is \[3\], needs \[monotonic ns"),
        ("ring20ms.csv", "wall,power_mw\n1,2\n", "needs a column wall_us in its head line, found wall, power_mw"),
        ("ring20ms.csv", RING + "1,2\nx,5\n", "line 3: field wall_us is 'x', not a number"),
    ],
)
def test_damage_of_the_ring_is_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    _write(tmp_path, _rows(), _power("t0_ns,energy_mj"))
    (tmp_path / "sampler.json").write_text('{"anchors_monotonic_wall_ns": [[0, 0], [9, 9]]}')
    (tmp_path / "ring20ms.csv").write_text(RING)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        import_run(tmp_path, tmp_path / "run")


def test_a_torn_archive_is_one_sentence(tmp_path: Path) -> None:
    _write(tmp_path, _rows(), "")
    whole = gzip.compress(_power("t0_ns,energy_mj").encode())
    (tmp_path / "power.csv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"power\.csv: cannot be read after line \d+"):
        import_run(tmp_path, tmp_path / "run")


@pytest.mark.parametrize("how", ["crlf", "mark", "semicolons", "blanks", "packed", "empty fields", "twice"])
def test_what_tools_make_of_a_table(tmp_path: Path, how: str) -> None:
    plain = _power("t0_ns,t1_ns,energy_mj")
    lines = plain.splitlines(keepends=True)
    text = {
        "crlf": plain.replace("\n", "\r\n"),
        "mark": "\ufeff" + plain,
        "semicolons": plain.replace(",", ";"),
        "blanks": plain.replace(",", ", "),
        "empty fields": "".join(lines[:9]) + "1,2,[N/A]\n" + "".join(lines[9:]),
    }.get(how, plain)
    rows = _rows()
    _write(tmp_path, rows + rows[:3] if how == "twice" else rows, "")
    (tmp_path / "power.csv").write_bytes(gzip.compress(text.encode()) if how == "packed" else text.encode())
    done = import_run(tmp_path, tmp_path / "run")
    assert done["requests"] == 8
    assert done.get("repeated", 0) == (3 if how == "twice" else 0)
    result = attribute(load_run(RunDir.open(tmp_path / "run")))
    assert result.totals["measured_uj"] == pytest.approx(200 * 599 / 20 * 1e6, rel=0.01)


def test_a_phase_ends_where_it_says(tmp_path: Path) -> None:
    _write(tmp_path, _rows(), _power("t0_ns,energy_mj"))
    phases = [{"phase": "mix", "t_ns": 14 * S}, {"phase": "solo", "t_ns": 10 * S, "end_ns": 12 * S}]
    (tmp_path / "phases.json").write_bytes(orjson.dumps(phases))
    import_run(tmp_path, tmp_path / "run")
    kept = orjson.loads((tmp_path / "run" / "phases.json").read_bytes())["phases"]
    assert [(p["t_ns"], p["end_ns"]) for p in kept] == [(10 * S, 12 * S), (14 * S, 19 * S)]
    assert read_phases([], "none") == []


def test_phases_of_another_clock_are_said(tmp_path: Path) -> None:
    import_run(_loaded(tmp_path, 8), tmp_path / "run")
    gpu = attribute(load_run(RunDir.open(tmp_path / "run"))).devices[0]
    basis = Basis.of(gpu.curve, gpu.lag, gpu.work, gpu.windows)
    with pytest.raises(UserError, match="none meets any; give both in ns of one monotonic clock"):
        predict(basis, read_phases([{"phase": "mix", "t_ns": 10**15, "end_ns": 10**15 + S}], "phases"))


def test_read_once_a_second_a_short_phase_is_not_measured(tmp_path: Path) -> None:
    _loaded(tmp_path, 40)
    lines = (tmp_path / "power.csv").read_text().splitlines(keepends=True)
    (tmp_path / "power.csv").write_text("".join([lines[0], *lines[1::50]]))
    import_run(tmp_path, tmp_path / "run")
    gpu = attribute(load_run(RunDir.open(tmp_path / "run"))).devices[0]
    phases = [{"phase": "mix", "t_ns": t * S, "end_ns": e * S} for t, e in ((24, 26), (28, 45))]
    short, long = predict(Basis.of(gpu.curve, gpu.lag, gpu.work, gpu.windows), read_phases(phases, "phases"))
    assert short["measured_uj"] is None
    assert "not read around an end" in short["why"]
    assert long["measured_uj"] == pytest.approx(300e6 * 17, rel=0.03)


def test_a_plan_on_almost_nothing_is_not_given(tmp_path: Path) -> None:
    """Prompts alone before it: what decodes cost is not known, and said to be so. With them it is planned."""
    rows = []
    for k in range(40):
        decode = k % 2 if k >= 24 else 0  # from the 24th second on every other request decodes
        sent = 10 * S + k * S
        rows.append(
            {"id": k, "t_send_ns": sent, "t_first_ns": sent + S // 2, "t_end_ns": sent + S // 2 + decode * 2 * S // 5,
             "token_dt_us": [20_000] * 20 * decode,
             "usage": {"prompt_tokens": 9000, "completion_tokens": 1 + 20 * decode}}
        )  # fmt: skip
    t = np.arange(8 * S, 54 * S, 20_000_000)
    since = (t - 10 * S) % S
    busy = (t >= 10 * S) & (t < 50 * S)
    decoding = busy & (t >= 34 * S) & ((t - 10 * S) // S % 2 == 1) & (since >= S // 2) & (since < 9 * S // 10)
    watts = np.where(busy & (since < S // 2), 500, np.where(decoding, 250, 100))
    energy = np.cumsum(watts) * 20
    power = "t0_ns,energy_mj\n" + "".join(f"{a},{e}\n" for a, e in zip(t.tolist(), energy.tolist(), strict=True))
    import_run(_write(tmp_path, rows, power), tmp_path / "run")
    gpu = attribute(load_run(RunDir.open(tmp_path / "run"))).devices[0]
    phases = [{"phase": "mix", "t_ns": a * S, "end_ns": b * S} for a, b in ((34, 42), (42, 50))]
    first, then = predict(Basis.of(gpu.curve, gpu.lag, gpu.work, gpu.windows), read_phases(phases, "phases"))
    assert first["planned_uj"] is None
    assert "hardly had work like its" in first["why"]
    assert then["planned_uj"] == pytest.approx(then["measured_uj"], rel=0.05)
    assert then["sd_uj"] < first["sd_uj"]
