"""The table of means as curves: points that differ in one factor alone, and the words that set a point apart.

Pure. A factor that varies gets a line of its own, it is never averaged over. May not know: how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from joulegraph.sweep.config import BATCH
from joulegraph.sweep.rows import ALL
from joulegraph.sweep.stats import Interval

Row = dict[str, Any]
Series = dict[str, list[Row]]
JOB = ("workload", "preset", "trace", "count", "scale", "input_length", "output_length")
"""factors that say what is asked for; SETTINGS say how it is served"""
SETTINGS = ("engine", "model", *BATCH, "max_num_batched_tokens", "prefix_caching", "power_cap_w", "sm_clock_mhz",
            "rate", "users")  # fmt: skip


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
        values: dict[tuple[str, str], set[str]] = {}
        for row in self.points.values():
            for name in self.varying:
                values.setdefault((_what(row), name), set()).add(str(row.get(name)))
        self._differ = {key for key, seen in values.items() if len(seen) > 1}
        """(workload, factor): what never differs between points of a workload is not worth a word beside it"""

    def _place(self, row: Row) -> list[str]:
        """By factors, numbers by their size."""
        values = [row.get(name) for name in self.varying]
        return [f"{v:020.6f}" if isinstance(v, int | float) else str(v or "") for v in values]

    def get(self, row: Row, figure: str) -> Interval | None:
        """A figure of a point."""
        return self._values.get((row["point"], figure))

    def has(self, figure: str) -> bool:
        """Whether any point has this figure: what was not measured is not drawn."""
        return any(name == figure for _, name in self._values)

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
        words = [_word(n, row[n]) for n in names if row.get(n) is not None and (self._tells(row, n) or n == "workload")]
        return ", ".join(words) or "all"

    def _tells(self, row: Row, name: str) -> bool:
        return name in self.varying and (name in ("workload", "trace") or (_what(row), name) in self._differ)

    def label(self, row: Row, without: str | None = None) -> str:
        """What sets a point apart from the others."""
        words = [
            _word(n, row[n]) for n in self.varying if n != without and row.get(n) is not None and self._tells(row, n)
        ]
        return ", ".join(words) or "all"

    def setting(self, row: Row, among: Sequence[Row]) -> str:
        """How a point is served, as far as that differs among some points."""
        differ = [n for n in SETTINGS if n in self.varying and len({str(r.get(n)) for r in among}) > 1]
        return ", ".join(_word(n, row[n]) for n in differ if row.get(n) is not None) or "as started"

    def jobs(self, figure: str) -> dict[str, list[Row]]:
        """Points with a figure by what they are asked to do; jobs served in more than two ways, if there are any."""
        out: dict[str, list[Row]] = {}
        for row in self.points.values():
            if self.get(row, figure) is not None:
                out.setdefault(self.job(row), []).append(row)
        for least in (3, 2):
            if several := {name: rows for name, rows in out.items() if len(rows) >= least}:
                return several
        return out


def _what(row: Row) -> str:
    return str(row.get("workload") or row.get("trace"))


def _word(name: str, value: Any) -> str:
    return str(value) if name in ("workload", "preset", "engine", "trace") else f"{name}={value}"
