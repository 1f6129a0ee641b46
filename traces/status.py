"""One small memory-mapped page of counters per running part: how parts show themselves without objects or sockets.

Layout (8-byte words): magic, sequence, slot count, names length, names (JSON list, padded), slots (int64).
One writer, any number of readers. A group of slots that belong together is written between two increments of the
sequence word (odd = being written), so a reader retries instead of mixing two states.
The writer holds a shared lock on its file as long as it lives, so a reader can tell a quiet part from a dead one.
A histogram is a run of slots: bucket k counts values in [2^(k/4), 2^((k+1)/4)) us, so percentiles are within 19 %.
"""

from __future__ import annotations

import fcntl
import mmap
from collections.abc import Iterable, Mapping
from math import log2
from pathlib import Path

import orjson

from traces.errors import UserError

MAGIC = 0x4A47_5354_4154_0001
HISTOGRAM_BUCKETS = 128
_HEAD = 4


def histogram_names(name: str) -> list[str]:
    """Slot names of one latency histogram."""
    return [f"{name}.{k}" for k in range(HISTOGRAM_BUCKETS)]


def bucket(value_ns: int) -> int:
    """Histogram bucket of a duration."""
    return 0 if value_ns < 1000 else min(HISTOGRAM_BUCKETS - 1, int(4 * log2(value_ns / 1000)))


def percentile_ns(counts: Iterable[int], q: float) -> int | None:
    """Approximate q-quantile (0..1) of a histogram, None when it is empty. Upper edge of the bucket: never flatters."""
    counts = list(counts)
    left = sum(counts) * q
    if not any(counts):
        return None
    for k, n in enumerate(counts):
        left -= n
        if n and left <= 0:
            return int(1000 * 2 ** ((k + 1) / 4))
    return int(1000 * 2 ** (HISTOGRAM_BUCKETS / 4))


class StatusPage:
    """Writer's side. In-memory (virtual time, tests) when no path is given."""

    def __init__(self, names: list[str], path: Path | None = None) -> None:
        packed = orjson.dumps(names)
        words = (len(packed) + 7) // 8
        size = 8 * (_HEAD + words + len(names))
        if path is None:
            self.buffer: bytearray | mmap.mmap = bytearray(size)
        else:
            with path.open("w+b") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # the mapping keeps it when the file object is closed
                file.truncate(size)
                self.buffer = mmap.mmap(file.fileno(), size)
        self.path = path
        view = memoryview(self.buffer).cast("q")
        self.buffer[8 * _HEAD : 8 * _HEAD + len(packed)] = packed
        view[2], view[3] = len(names), len(packed)
        self._words = view
        self.slots = view[_HEAD + words :]
        """int64 slots in the order of names; single counters may be written directly: page.slots[i] += 1"""
        self.index = {name: i for i, name in enumerate(names)}
        view[0] = MAGIC

    def set(self, name: str, value: int) -> None:
        """Write one slot (atomic by itself)."""
        self.slots[self.index[name]] = value

    def add(self, name: str, value: int = 1) -> None:
        """Add to one slot."""
        self.slots[self.index[name]] += value

    def observe(self, name: str, value_ns: int) -> None:
        """Count a duration in a histogram declared with histogram_names(name)."""
        self.slots[self.index[f"{name}.0"] + bucket(value_ns)] += 1

    def set_group(self, values: Mapping[str, int]) -> None:
        """Write slots that belong together."""
        self._words[1] += 1
        for name, value in values.items():
            self.slots[self.index[name]] = value
        self._words[1] += 1


class StatusReader:
    """Reader's side of a page file or of a StatusPage in the same process."""

    def __init__(self, source: Path | StatusPage) -> None:
        self._path = source if isinstance(source, Path) else None
        if isinstance(source, StatusPage):
            buffer: bytearray | mmap.mmap = source.buffer
        else:
            try:
                with source.open("r+b") as file:
                    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise UserError(f"{source}: no status page there ({error}); is the part running?") from error
        words = memoryview(buffer)[: len(buffer) // 8 * 8].cast("q")
        if len(words) < _HEAD or words[0] != MAGIC:
            raise UserError(f"{source}: not a status page; is it from this version?")
        count, length = words[2], words[3]
        names = orjson.loads(bytes(memoryview(buffer)[8 * _HEAD : 8 * _HEAD + length]))
        self.names: list[str] = names
        self.index = {name: i for i, name in enumerate(names)}
        self._words = words
        self._slots = words[_HEAD + (length + 7) // 8 :][:count]

    def alive(self) -> bool:
        """Whether the writer still runs; True for a page in memory."""
        if self._path is None:
            return True
        try:
            with self._path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # gone
        return False

    def get(self, name: str) -> int:
        """One slot."""
        return self._slots[self.index[name]]

    def group(self, names: Iterable[str]) -> dict[str, int]:
        """Slots that belong together, from one state of the writer."""
        wanted = list(names)
        for _ in range(1000):
            before = self._words[1]
            values = {name: self._slots[self.index[name]] for name in wanted}
            if before % 2 == 0 and self._words[1] == before:
                return values
        return values

    def histogram(self, name: str) -> list[int]:
        """Counts of one histogram."""
        at = self.index[f"{name}.0"]
        return list(self._slots[at : at + HISTOGRAM_BUCKETS])

    def all(self) -> dict[str, int]:
        """Every slot (for display)."""
        return dict(zip(self.names, self._slots.tolist(), strict=True))
