"""The plots of a sweep, as SVG and PNG: means with 95 % intervals over repeats; a factor that varies gets a line of its
own, it is never averaged over.

May not know: how runs were made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from joulegraph.report.plots import DEVICE_COLOURS, PALETTE
from joulegraph.sweep.config import BATCH
from joulegraph.sweep.rows import ALL
from joulegraph.sweep.stats import Interval, front, line, plateau

JOB = ("workload", "preset", "trace", "count", "scale", "input_length", "output_length")
"""factors that say what is asked for; SETTINGS say how it is served"""
SETTINGS = ("engine", "model", *BATCH, "max_num_batched_tokens", "prefix_caching", "power_cap_w", "sm_clock_mhz",
            "rate", "users")  # fmt: skip
Row = dict[str, Any]
_context: Any = mpl.rc_context
Series = dict[str, list[Row]]
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "joulegraph", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E5E5E5",
    "lines.linewidth": 1.3, "legend.frameon": False, "legend.fontsize": 7,
}  # fmt: skip


class Means:
    """The table of means by point and figure, for all classes of a run together."""

    def __init__(self, means: Sequence[Row], varying: Sequence[str]) -> None:
        self.varying = list(varying)
        self.points: dict[str, Row] = {}
        self._values: dict[tuple[str, str], Interval] = {}
        for row in means:
            if row["class"] == ALL:
                self.points.setdefault(row["point"], row)
                found = Interval(row["n"], row["mean"], row["low95"], row["high95"])
                self._values[row["point"], row["figure"]] = found
        self.points = dict(sorted(self.points.items(), key=lambda item: self._place(item[1])))

    def _place(self, row: Row) -> list[str]:
        """By factors, numbers by their size."""
        values = [row.get(name) for name in self.varying]
        return [f"{v:020.6f}" if isinstance(v, int | float) else str(v or "") for v in values]

    def get(self, row: Row, figure: str) -> Interval | None:
        """A figure of a point."""
        return self._values.get((row["point"], figure))

    def series(self, axis: str) -> Series:
        """Points that differ in `axis` alone, by what they have in common, sorted along it."""
        out: Series = {}
        for row in self.points.values():
            if row.get(axis) is not None:
                out.setdefault(self.label(row, axis), []).append(row)
        return {name: sorted(rows, key=lambda r: float(r[axis])) for name, rows in out.items()}

    def spreads(self, axis: str) -> bool:
        """Whether points differ in the value of a factor (and not only in having it)."""
        return len({row[axis] for row in self.points.values() if row.get(axis) is not None}) > 1

    def job(self, row: Row) -> str:
        """What a point is asked to do, whatever serves it."""
        names = [n for n in row if n in JOB or n.startswith("param.")]
        words = [_word(n, row[n]) for n in names if row.get(n) is not None and (n in self.varying or n == "workload")]
        return ", ".join(words) or "all"

    def label(self, row: Row, without: str | None = None) -> str:
        """What sets a point apart from the others."""
        words = [_word(n, row[n]) for n in self.varying if n != without and row.get(n) is not None]
        return ", ".join(words) or "all"


INCH = 0.055
"""width of a letter in labels and legends"""


def _word(name: str, value: Any) -> str:
    return str(value) if name in ("workload", "preset", "engine", "trace") else f"{name}={value}"


def draw(means: Sequence[Row], varying: Sequence[str], folder: Path) -> list[Path]:
    """Every plot for which the sweep has the factors; the files written."""
    table = Means(means, varying)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def save(
        name: str, columns: int, fill: Callable[[Figure, list[Axes]], None], height: float = 3.6, more: float = 0.0
    ) -> None:
        with _context(_STYLE):
            figure = Figure(figsize=(4.8 * columns + more, height), layout="constrained")
            FigureCanvasAgg(figure)
            fill(figure, list(figure.subplots(1, columns, squeeze=False)[0]))
            for suffix in ("svg", "png"):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)

    wide = INCH * _longest({table.label(row) for row in table.points.values()}) + 0.8
    for factor in BATCH:
        if table.spreads(factor):
            save(f"batch-{factor}", 2, lambda _, axes, f=factor: _batch(table, axes, f), more=wide)  # type: ignore[misc]
    for axis in ("output_length", "param.output"):
        if table.spreads(axis):
            save("energy-output-length", 1, lambda _, axes, a=axis: _output(table, axes[0], a), more=wide)  # type: ignore[misc]
    for cap in ("power_cap_w", "sm_clock_mhz"):
        if table.spreads(cap):
            save(cap.replace("_", "-"), 2, lambda _, axes, c=cap: _cap(table, axes, c), more=wide)  # type: ignore[misc]
    jobs = {table.job(row) for row in table.points.values()}
    if len(table.points) > 1:
        save("pareto", 1, lambda _, axes: _pareto(table, axes[0]), max(3.6, 0.15 * len(jobs)), INCH * _longest(jobs))
    if table.points:
        height = max(2.4, 0.24 * len(table.points) + 1)
        save("components", 1, lambda _, axes: _components(table, axes[0]), height, wide)
    return written


def _curves(table: Means, axis: str, figure: str) -> dict[str, list[tuple[float, Interval]]]:
    """Series of at least two points: a single one beside the lines says nothing about this factor."""
    out = {}
    for name, rows in table.series(axis).items():
        found = [(float(row[axis]), value) for row in rows if (value := table.get(row, figure)) is not None]
        if len(found) > 1:
            out[name] = found
    return out


def _lines(
    table: Means, axes: Axes, axis: str, figure: str, label: str, *, log: bool = False, log_y: bool = False
) -> None:
    for index, (name, found) in enumerate(_curves(table, axis, figure).items()):
        x, values = [a for a, _ in found], [v for _, v in found]
        axes.errorbar(
            x,
            [v.mean for v in values],
            yerr=_bars(values),
            marker="o",
            markersize=3.5,
            capsize=2,
            color=PALETTE[index % len(PALETTE)],
            label=name,
        )
    axes.set_xlabel(axis)
    axes.set_ylabel(label)
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.06 * max(axes.get_ylim()[1], 1e-9))
    if log:
        axes.set_xscale("log", base=2)
        ticks = sorted({float(row[axis]) for row in table.points.values() if row.get(axis) is not None})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    """Error bars; none where there was one repeat."""
    return [
        [v.mean - v.low if v.low is not None else 0.0 for v in values],
        [v.high - v.mean if v.high is not None else 0.0 for v in values],
    ]


def _batch(table: Means, axes: list[Axes], factor: str) -> None:
    _lines(table, axes[0], factor, "makespan_s_mean", "workflow makespan, mean (s)", log=True, log_y=True)
    _lines(table, axes[1], factor, "j_per_output_token", "active energy (J per output token)", log=True)
    _legend(axes[1])


def _output(table: Means, axes: Axes, axis: str) -> None:
    """Energy of a request against what it really made, with the line through it."""
    groups = table.series(axis) if axis == "output_length" else _text_series(table, axis)
    for index, (name, rows) in enumerate(groups.items()):
        pairs = [(table.get(row, "output_tokens_mean"), table.get(row, "j_per_request")) for row in rows]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known:
            continue
        x, colour = [a.mean for a, _ in known], PALETTE[index % len(PALETTE)]
        y = [b.mean for _, b in known]
        fit = line(x, y)
        label = name
        if fit is not None:
            r2 = "" if fit.r2 is None else f", R² {fit.r2:.4f}"
            label += f": {fit.intercept:.3g} + {fit.slope:.3g} J/token{r2}"
            ends = [min(x), max(x)]
            axes.plot(ends, [fit.intercept + fit.slope * v for v in ends], color=colour, linewidth=0.9)
        axes.errorbar(
            x, y, yerr=_bars([b for _, b in known]), fmt="o", markersize=4, capsize=2, color=colour, label=label
        )
    axes.set_xlabel("output tokens per request, mean")
    axes.set_ylabel("active energy (J per request)")
    _legend(axes)


def _text_series(table: Means, axis: str) -> Series:
    """Series along a workload parameter, which is text."""
    out: Series = {}
    for row in table.points.values():
        if row.get(axis) is not None:
            out.setdefault(table.label(row, axis), []).append(row)
    return out


def _cap(table: Means, axes: list[Axes], cap: str) -> None:
    _lines(table, axes[0], cap, "j_per_workflow", "active energy (J per workflow)")
    _lines(table, axes[1], cap, "makespan_s_mean", "workflow makespan, mean (s)")
    _legend(axes[1])
    for index, found in enumerate(_curves(table, cap, "makespan_s_mean").values()):
        flat = plateau([a for a, _ in found], [b.mean for _, b in found])
        if flat is not None:
            colour = PALETTE[index % len(PALETTE)]
            for one in axes:
                one.axvline(flat, color=colour, linewidth=0.8, linestyle=":")
            axes[1].annotate(f"flat from {flat:g}", (flat, 0), color=colour, fontsize=7, rotation=90, va="bottom")


def _pareto(table: Means, axes: Axes) -> None:
    """Joules against seconds, one cloud per job: other lengths or workloads are other jobs, and get their own front."""
    clouds: Series = {}
    for row in table.points.values():
        clouds.setdefault(table.job(row), []).append(row)
    for index, (name, rows) in enumerate(clouds.items()):
        colour = PALETTE[index % len(PALETTE)]
        pairs = [(table.get(row, "makespan_s_mean"), table.get(row, "j_per_workflow"), row) for row in rows]
        known = [(a.mean, b.mean, row) for a, b, row in pairs if a is not None and b is not None]
        axes.scatter([a for a, _, _ in known], [b for _, b, _ in known], s=14, color=colour, alpha=0.5)
        best = [known[i] for i in front([(a, b) for a, b, _ in known])]
        axes.step([a for a, _, _ in best], [b for _, b, _ in best], where="post", color=colour, label=name or "all")
        for a, b, row in best:
            differ = [n for n in SETTINGS if n in table.varying and len({str(r.get(n)) for r in rows}) > 1]
            words = [_word(n, row[n]) for n in differ if row.get(n) is not None]
            axes.annotate(", ".join(words), (a, b), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set_xlabel("workflow makespan, mean (s)")
    axes.set_ylabel("active energy (J per workflow)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Beside the axes: names of factors are long."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)


def _longest(words: Collection[str]) -> int:
    return max(map(len, words), default=0)


def _components(table: Means, axes: Axes) -> None:
    """GPU, CPU and DRAM shares of a workflow's joules (HBM is part of the GPU's)."""
    rows = list(table.points.values())
    left = [0.0] * len(rows)
    names = [table.label(row) for row in rows]
    for device in ("gpu", "cpu", "dram"):
        values = [_per_workflow(table, row, f"{device}_j") for row in rows]
        axes.barh(range(len(rows)), values, left=left, color=DEVICE_COLOURS[device], label=device.upper())
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_yticks(range(len(rows)), names, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("active energy (J per workflow)")
    _legend(axes)


def _per_workflow(table: Means, row: Row, figure: str) -> float:
    joules, count = table.get(row, figure), table.get(row, "workflows")
    return joules.mean / count.mean if joules is not None and count is not None and count.mean else 0.0
