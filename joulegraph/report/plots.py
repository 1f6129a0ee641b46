"""Plots as SVG text: values in, one self-contained <svg> out. Same input, same bytes.

Colours come from one palette that stays apart in grey print and for colour-blind readers (Okabe and Ito). Text stays
text, so that it can be searched and copied. May not know: files, HTML.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from joulegraph.report.facts import Request, Timeline, Workflow

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
PARTS = ("attributed", "tail", "idle", "foreign", "unmeasured")
PART_COLOURS = dict(zip(PARTS, ("#0072B2", "#56B4E9", "#BBBBBB", "#E69F00", "#000000"), strict=True))
DEVICE_COLOURS = {"gpu": "#0072B2", "hbm": "#56B4E9", "cpu": "#D55E00", "dram": "#009E73"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "path.simplify": True,
}


def _style(more: dict[str, Any] | None = None) -> Any:
    """Our look, for as long as the context lasts."""
    context: Any = mpl.rc_context
    return context({**_STYLE, **(more or {})})


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an inline <svg>: no XML head, ids of its own, a title for screen readers."""
    out = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    with _style({"svg.hashsalt": name}):
        canvas.print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"(<svg[^>]*>)", rf"\1<title>{title}</title>", text, count=1)


def _legend_above(axes: Any) -> Any:
    """A legend in one row over the axes, clear of the data; None where nothing is drawn."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return None
    return axes.legend(
        handles, labels, loc="lower right", ncols=len(handles), fontsize=8, bbox_to_anchor=(1, 0.98), borderaxespad=0.2
    )


def power_timeline(timeline: Timeline) -> str:
    """Watts per device over time, above what the engine was doing: requests waiting for their first token, decoding."""
    with _style():
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        top, low = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        edges = np.array(timeline.edges_s)
        for power in timeline.power:
            watts = np.array([np.nan if w is None else w for w in power.watts])
            label = f"{power.device}{' (inside gpu)' if power.domain == 'hbm' else ''}"
            top.stairs(
                watts,
                edges,
                baseline=None,
                label=label,
                color=DEVICE_COLOURS.get(power.domain, PALETTE[6]),
                linestyle="--" if power.domain == "hbm" else "-",
                linewidth=1.3,
            )
        _legend_above(top)
        if not timeline.power:
            top.text(0.5, 0.5, "no power was measured", transform=top.transAxes, ha="center", color="#777777")
        top.set_ylabel("W")
        top.set_ylim(bottom=0)
        wait, decode = np.array(timeline.waiting), np.array(timeline.decoding)
        low.stairs(decode, edges, fill=True, color="#9DC3E6", label="decoding")
        low.stairs(decode + wait, edges, baseline=decode, fill=True, color="#D55E00", label="waiting or prefilling")
        _legend_above(low)
        low.set_ylabel("requests")
        low.set_xlabel("seconds since the first request")
        low.set_ylim(bottom=0)
        low.set_xlim(edges[0], edges[-1])
    return _svg(figure, "power", "Power and requests over time")


def components(books: Mapping[str, Mapping[str, int]]) -> str:
    """Joules per component split as the ledger has them; HBM is drawn inside the GPU's bar, never added to it."""
    names = [n for n in ("gpu", "cpu", "dram") if n in books] + sorted(set(books) - {"gpu", "cpu", "dram", "hbm"})
    with _style():
        figure = Figure(figsize=(10, 0.9 + 0.42 * max(1, len(names))), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(names))
        for part in PARTS:
            values = np.array([books[n].get(f"{part}_uj") or 0 for n in names]) / 1e6
            if values.any():
                axes.barh(names, values, left=left, color=PART_COLOURS[part], label=part, height=0.62)
            left += values
        if "hbm" in books and "gpu" in names:
            inside = (books["hbm"].get("measured_uj") or 0) / 1e6
            axes.barh(
                ["gpu"], [inside], height=0.2, facecolor="none", edgecolor="white", hatch="////", linewidth=0.8,
                label="of which HBM",
            )  # fmt: skip
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("J")
        legend = _legend_above(axes)
        for handle in legend.legend_handles if legend else ():
            if handle is not None and getattr(handle, "get_hatch", lambda: None)():
                handle.set_edgecolor("#555555")
    return _svg(figure, "components", "Joules per component")


def class_energy(rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Active joules per class by component (GPU without HBM, HBM, CPU, DRAM), stacked."""
    order = (("gpu", "GPU without HBM"), ("hbm", "HBM"), ("cpu", "CPU"), ("dram", "DRAM"))
    names = [name for name, _ in rows]
    with _style():
        figure = Figure(figsize=(10, 0.9 + 0.42 * max(1, len(names))), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(names))
        for key, label in order:
            values = np.array([parts.get(key, 0.0) for _, parts in rows])
            if values.any():
                axes.barh(names, values, left=left, color=DEVICE_COLOURS[key], label=label, height=0.62)
            left += values
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("J (active)")
        _legend_above(axes)
    return _svg(figure, "classes", "Active joules per class and component")


def distributions(panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> str:
    """Cumulative distributions on a logarithmic axis: panel title -> {series label: values in ns}. A label that ends in
    "(sent)" is dashed, "all" is black."""
    with _style():
        figure = Figure(figsize=(10, 3.1 * -(-len(panels) // 2)), layout="constrained")
        grid = np.atleast_1d(figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False)).ravel()
        for axes, (title, series) in zip(grid, panels, strict=False):
            colours = iter(PALETTE)
            for label, values in series.items():
                if not len(values):
                    continue
                x, y = ecdf(np.asarray(values, np.float64) / 1e6)
                sent = label.endswith("(sent)")
                colour = "#000000" if sent or label.startswith("all") else next(colours, "#000000")
                axes.step(x, y, where="post", label=label, color=colour, linestyle="--" if sent else "-")
            axes.set_xscale("log")
            axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
            axes.set_xlabel("ms")
            axes.set_ylim(0, 1)
            low, high = axes.get_xlim()
            narrow = high < 12 * low
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if narrow else (1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.legend(fontsize=7.5, loc="best")
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
    return _svg(figure, "latency", "Latency distributions")


def ecdf(values: np.ndarray[Any, Any], points: int = 400) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """x and share <= x, thinned to at most `points` quantiles for large samples; values <= 0 sit at 1 us."""
    x = np.sort(np.maximum(values, 1e-3))
    if len(x) > points:
        y = np.linspace(0, 1, points)
        return np.quantile(x, y), y
    return x, np.arange(1, len(x) + 1) / len(x)


def waterfall(workflow: Workflow, name: str, most: int = 40) -> str:
    """One workflow: a bar per request from due to end (waiting for its first token light, decoding dark), those on the
    critical path in orange. More than `most` requests: the critical ones and the longest of the others."""
    chosen, critical = waterfall_rows(workflow, most)
    begins = [r.begin_ns for r in chosen if r.begin_ns is not None]
    start = min(begins, default=0)
    with _style():
        figure = Figure(figsize=(10, 0.8 + 0.21 * len(chosen)), layout="constrained")
        axes = figure.subplots()
        for y, r in enumerate(chosen):
            first = r.first_ns if r.first_ns is not None else r.end_ns
            begin = r.begin_ns if r.begin_ns is not None else r.end_ns
            dark, light = ("#D55E00", "#F5B78A") if r.node_id in critical else ("#0072B2", "#A9CDE6")
            axes.barh(y, (first - begin) / 1e9, left=(begin - start) / 1e9, color=light, height=0.7)
            axes.barh(y, (r.end_ns - first) / 1e9, left=(first - start) / 1e9, color=dark, height=0.7)
        axes.set_yticks(range(len(chosen)), [short(r) for r in chosen], fontsize=7.5)
        axes.set_ylim(len(chosen) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds since the workflow was due")
    return _svg(figure, name, f"Requests of workflow {escape(workflow.workflow_id)}")


def waterfall_rows(workflow: Workflow, most: int) -> tuple[list[Request], set[str]]:
    """The requests shown, by begin, and the node ids on the critical path."""
    critical = {s.request_id for s in workflow.critical}
    ran = [r for r in workflow.requests if r.begin_ns is not None]
    longest = sorted(ran, key=lambda r: (r.node_id not in critical, -(r.end_ns - (r.begin_ns or 0))))[:most]
    return sorted(longest, key=lambda r: (r.begin_ns or 0, r.end_ns)), critical


def short(r: Request) -> str:
    """A node's name without its workflow's."""
    return r.node_id.removeprefix(f"{r.workflow_id}:")[:40]


def escape(text: str) -> str:
    """Text inside SVG."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
