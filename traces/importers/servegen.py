"""ServeGen client models: fitted arrival and length distributions, sampled into a trace with a seed.

Not rows but a generator: <client>-trace.csv (windows of rate, CV, pattern, shape, scale) beside <client>-dataset.json
(windows of length histograms). Give one of the files or the folder with many clients. Clients are independent.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, S, document, header_of
from traces.lines import raw_lines
from traces.workflow import Manifest, Node, Workflow

TITLE = "ServeGen client models (sampled into a trace; file or folder of *-trace.csv with *-dataset.json)"
_WINDOW_S = 3600.0
"""Sampled when no duration is asked for: one hour."""


def recognises(head: Head) -> bool:
    """A file of such a pair whose partner is there too, or a folder of them."""
    return bool(_clients(head.path))


def _clients(path: Path) -> list[tuple[Path, Path]]:
    """(trace, dataset) of each client."""
    if path.is_dir():
        traces = sorted(path.glob("*-trace.csv"))
    else:
        name = path.name.removesuffix("-dataset.json").removesuffix("-trace.csv")
        traces = [path.with_name(f"{name}-trace.csv")] if name != path.name else []
    pairs = [(t, t.with_name(t.name.removesuffix("-trace.csv") + "-dataset.json")) for t in traces]
    return [(t, d) for t, d in pairs if t.is_file() and d.is_file()]


def read(path: Path, options: ImportOptions) -> Imported:
    """Arrivals by window (Gamma, Weibull or Poisson gaps), lengths by inverse transform; all from options.seed."""
    pairs = _clients(path)
    if not pairs:
        raise UserError(f"{path}: no client model; give <client>-trace.csv with <client>-dataset.json beside it")
    duration = options.duration_s if options.duration_s is not None else _WINDOW_S
    notes = Notes()
    notes.say(
        f"sampled, not recorded: seed {options.seed}, window {options.start_s:g} s to {options.start_s + duration:g} s "
        f"of the models of {len(pairs)} client(s); input and output lengths are drawn independently"
    )
    clients = [_Client(t, d, random.Random(f"{options.seed}/{t.name}")) for t, d in pairs]
    streams = [c.requests(options.start_s, options.start_s + duration, notes) for c in clients]
    manifest = Manifest(content_mode="lengths", source=f"{path.name} (ServeGen)")
    return Imported(manifest, _workflows(heapq.merge(*streams), options.start_s), notes)


def _workflows(requests: Iterator[tuple[float, str, int, int]], start_s: float) -> Iterator[Workflow]:
    for number, (at, client, tokens_in, tokens_out) in enumerate(requests, 1):
        name = f"row{number}"
        arrival = round((at - start_s) * S)
        yield Workflow(name, (Node(name, name, arrival, tokens_in, tokens_out, attrs={"client": client}),), client)


@dataclass(frozen=True, slots=True)
class _Window:
    start_s: float
    rate: float
    cv: float
    pattern: str
    shape: float
    scale: float


class _Client:
    """One client's model. windows in order of time; datasets by window start."""

    def __init__(self, trace: Path, dataset: Path, rng: random.Random) -> None:
        self.name = trace.name.removesuffix("-trace.csv")
        self.windows = list(_windows(trace))
        if not self.windows:
            raise UserError(f"{trace}: holds no windows; give a ServeGen trace.csv")
        self.step_s = self.windows[1].start_s - self.windows[0].start_s if len(self.windows) > 1 else 600.0
        self._tables = _tables(dataset)
        self._starts = sorted(self._tables)
        self._rng = rng

    def requests(self, start_s: float, end_s: float, notes: Notes) -> Iterator[tuple[float, str, int, int]]:
        """(time s, client, input, output) in order; a gap drawn in one window may reach into the next."""
        at = None
        for window in self.windows:
            until = min(window.start_s + self.step_s, end_s)
            if until <= start_s or window.start_s >= end_s or window.rate <= 0:
                continue
            begin = max(window.start_s, start_s)
            # a stationary start: the first gap of a window is cut at a random point
            at = begin + self._gap(window) * self._rng.random() if at is None or at < begin else at
            while at < until:
                lengths = self._lengths(at)
                if lengths is None:
                    notes.count("a request falls in a window without length data: left out")
                else:
                    yield (at, self.name, *lengths)
                at += self._gap(window)

    def _gap(self, window: _Window) -> float:
        """Seconds to the next request: the fitted distribution, exponential where the source names none."""
        if window.pattern == "Gamma" and window.shape > 0 and window.scale > 0:
            return self._rng.gammavariate(window.shape, window.scale)
        if window.pattern == "Weibull" and window.shape > 0 and window.scale > 0:
            return self._rng.weibullvariate(window.scale, window.shape)
        return self._rng.expovariate(window.rate)

    def _lengths(self, at: float) -> tuple[int, int] | None:
        index = bisect_right(self._starts, at) - 1
        table = self._tables[self._starts[index]] if index >= 0 else None
        if table is None or not table[0][0] or not table[1][0]:
            return None
        return _draw(table[0], self._rng), _draw(table[1], self._rng)


_Histogram = tuple[list[int], list[float]]


def _draw(histogram: _Histogram, rng: random.Random) -> int:
    values, cumulative = histogram
    return values[min(bisect_right(cumulative, rng.random() * cumulative[-1]), len(values) - 1)]


def _windows(path: Path) -> Iterator[_Window]:
    for number, line in raw_lines(path):
        cells = header_of(line)
        where = Where(str(path), number, number)
        if len(cells) != 6:
            raise UserError(where.fault("row", ",".join(cells), "give start,rate,cv,pattern,shape,scale"))
        try:
            start, rate, cv, shape, scale = (float(cells[i] or 0) for i in (0, 1, 2, 4, 5))
        except ValueError:
            raise UserError(where.fault("row", ",".join(cells), "give numbers for all but the pattern")) from None
        yield _Window(start, rate, cv, cells[3], shape, scale)


def _tables(path: Path) -> dict[float, tuple[_Histogram, _Histogram]]:
    value = document(path)
    where = Where(str(path), 1, 1)
    if not isinstance(value, dict):
        raise UserError(where.fault("dataset", value, "give an object of windows"))
    out = {}
    for start, table in value.items():
        if not isinstance(table, dict):
            raise UserError(where.fault(start, table, "give input_tokens and output_tokens"))
        try:
            out[float(start)] = (_histogram(where, table, "input_tokens"), _histogram(where, table, "output_tokens"))
        except ValueError:
            raise UserError(where.fault("window", start, "give the start of the window in seconds")) from None
    return out


def _histogram(where: Where, table: dict[str, Any], name: str) -> _Histogram:
    """'{39: 0.0003, 40: ...}' (keys without quotes) as values and cumulative weights."""
    text = table.get(name)
    try:
        if isinstance(text, dict):
            pairs = [(int(k), float(v)) for k, v in text.items()]
        else:
            inner = str(text).strip().strip("{}").strip()
            pairs = [(int(k), float(v)) for k, v in (item.split(":") for item in inner.split(",") if item.strip())]
    except ValueError:
        raise UserError(where.fault(name, text, "give {length: probability, ...}")) from None
    pairs = sorted((k, v) for k, v in pairs if v > 0 and k >= 0)
    return [k for k, _ in pairs], list(accumulate(v for _, v in pairs))
