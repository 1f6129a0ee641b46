"""The plots of a sweep, as SVG and PNG: means with 95 % intervals over repeats.

What was not measured is not drawn. May not know: how runs were made, which points belong together (curves).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from joulegraph.report.plots import DEVICE_COLOURS, PALETTE
from joulegraph.sweep.config import BATCH
from joulegraph.sweep.curves import Means, Row, Series
from joulegraph.sweep.stats import Interval, front, line, plateau

_context: Any = mpl.rc_context
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "joulegraph", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E5E5E5",
    "lines.linewidth": 1.3, "legend.frameon": False, "legend.fontsize": 7,
}  # fmt: skip


INCH = 0.055
"""width of a letter in labels and legends"""


def draw(means: Sequence[Row], varying: Sequence[str], folder: Path) -> list[Path]:
    """Every plot for which the sweep has the factors; the files written."""
    table = Means(means, varying)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def save(
        name: str,
        title: str,
        shape: tuple[int, int],
        fill: Callable[[list[Axes]], None],
        height: float = 3.6,
        more: float = 0.0,
    ) -> None:
        """shape: rows and columns of panels; height: inches of a row; more: inches for a legend at the right."""
        with _context(_STYLE):
            figure = Figure(figsize=(4.8 * shape[1] + more, height * shape[0] + 0.3), layout="constrained")
            FigureCanvasAgg(figure)
            figure.suptitle(title, fontsize=10)
            fill([axes for row in figure.subplots(*shape, squeeze=False) for axes in row])
            for suffix in ("svg", "png"):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)

    wide = INCH * _longest({table.label(row) for row in table.points.values()}) + 0.8
    joules = table.has("j_per_workflow")
    for factor in BATCH:
        if table.spreads(factor):
            shape = (1, 2 if joules else 1)
            save(f"batch-{factor}", f"Batch size as {factor}", shape, partial(_batch, table, factor), more=wide)
    if not joules:
        return written
    for axis in ("output_length", "param.output"):
        if table.spreads(axis):
            fill = partial(_output, table, axis)
            name = "energy-" + axis.replace("_", "-").replace(".", "-")
            save(name, "Energy of a request against its output", (1, 1), fill, more=wide + 2.0)
    for cap, title in (("power_cap_w", "GPU power cap (W)"), ("sm_clock_mhz", "SM clock (MHz)")):
        if table.spreads(cap):
            save(cap.replace("_", "-"), title, (1, 2), partial(_cap, table, cap), more=wide + 1.0)
    jobs = table.jobs("j_per_workflow")
    columns = min(3, len(jobs))
    shape = (-(-len(jobs) // columns), columns)
    if len(table.points) > 1:
        title = "Energy against time; the line joins what nothing beats in both"
        save("pareto", title, shape, partial(_pareto, table, jobs), 3.0)
    height = max(1.6, 0.17 * max(map(len, jobs.values())) + 0.9)
    save("components", "Where a workflow's energy goes", shape, partial(_components, table, jobs, columns), height, 0.8)
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


def _batch(table: Means, factor: str, axes: list[Axes]) -> None:
    _lines(table, axes[0], factor, "makespan_s_mean", "workflow makespan, mean (s)", log=True, log_y=True)
    if len(axes) > 1:
        _lines(table, axes[1], factor, "j_per_output_token", "active energy (J per output token)", log=True)
    _legend(axes[-1])


def _output(table: Means, axis: str, panels: list[Axes]) -> None:
    """Energy of a request against what it really made, with the line through it."""
    axes = panels[0]
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


def _cap(table: Means, cap: str, axes: list[Axes]) -> None:
    """Relative to the highest cap, so that small and large jobs share a picture; a ring marks where time is flat."""
    times = _curves(table, cap, "makespan_s_mean")
    for panel, (figure, what) in zip(axes, (("j_per_workflow", "active energy"), ("makespan_s_mean", "makespan"))):
        for index, (name, found) in enumerate(_curves(table, cap, figure).items()):
            colour, last = PALETTE[index % len(PALETTE)], found[-1][1]
            x, y = [a for a, _ in found], [100 * b.mean / last.mean if last.mean else 0.0 for _, b in found]
            ends = _bars([b for _, b in found])
            bars = [[100 * v / last.mean if last.mean else 0.0 for v in side] for side in ends]
            flat = plateau([a for a, _ in times.get(name, [])], [b.mean for _, b in times.get(name, [])])
            label = name if flat is None else f"{name}: flat from {flat:g}"
            panel.errorbar(x, y, yerr=bars, marker="o", markersize=3, capsize=2, color=colour, label=label)
            if flat is not None:
                at = x.index(flat)
                panel.plot([x[at]], [y[at]], "o", markersize=9, markerfacecolor="none", color=colour)
        panel.set_xlabel(cap)
        panel.set_ylabel(f"{what} per workflow (% of that at the highest)")
    _legend(axes[1])


def _pareto(table: Means, jobs: dict[str, list[Row]], panels: list[Axes]) -> None:
    """Joules against seconds, a panel per job: other lengths or workloads are other jobs, and get their own front."""
    for axes, (name, rows) in zip(panels, jobs.items()):
        pairs = [(table.get(row, "makespan_s_mean"), table.get(row, "j_per_workflow"), row) for row in rows]
        known = [(a.mean, b.mean, row) for a, b, row in pairs if a is not None and b is not None]
        axes.scatter([a for a, _, _ in known], [b for _, b, _ in known], s=14, color=PALETTE[0], alpha=0.5)
        best = [known[i] for i in front([(a, b) for a, b, _ in known])]
        axes.step([a for a, _, _ in best], [b for _, b, _ in best], where="post", color=PALETTE[1])
        for rank, (a, b, _) in enumerate(best, 1):
            axes.annotate(str(rank), (a, b), fontsize=7, xytext=(3, 4), textcoords="offset points")
        words = "\n".join(f"{rank}  {table.setting(row, rows)}" for rank, (_, _, row) in enumerate(best[:8], 1))
        axes.text(0.03, 0.97, words, transform=axes.transAxes, va="top", fontsize=6)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("workflow makespan, mean (s)")
        axes.set_ylabel("J per workflow")
        for one, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
            one("log")
            for ticks in (axis.set_major_formatter, axis.set_minor_formatter):
                ticks(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.7)))
        axes.margins(x=0.1, y=0.2)
    _blank(panels[len(jobs) :])


def _blank(panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.set_axis_off()


def _legend(axes: Axes) -> None:
    """Beside the axes: names of factors are long."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)


def _longest(words: Collection[str]) -> int:
    return max(map(len, words), default=0)


def _components(table: Means, jobs: dict[str, list[Row]], columns: int, panels: list[Axes]) -> None:
    """GPU, CPU and DRAM shares of a workflow's joules (HBM is part of the GPU's), each job on its own scale."""
    for axes, (name, rows) in zip(panels, jobs.items()):
        left = [0.0] * len(rows)
        for device in ("gpu", "cpu", "dram"):
            values = [_per_workflow(table, row, f"{device}_j") for row in rows]
            axes.barh(range(len(rows)), values, left=left, color=DEVICE_COLOURS[device], label=device.upper())
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set_yticks(range(len(rows)), [table.setting(row, rows) for row in rows], fontsize=5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("active energy (J per workflow)")
    _blank(panels[len(jobs) :])
    handles, names = panels[0].get_legend_handles_labels()
    panels[columns - 1].legend(handles, names, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)


def _per_workflow(table: Means, row: Row, figure: str) -> float:
    joules, count = table.get(row, figure), table.get(row, "workflows")
    return joules.mean / count.mean if joules is not None and count is not None and count.mean else 0.0
