"""Append-only JSON Lines: the interface between the parts. Written inline or by a thread, read back after any crash.

First line: {"journal": name, "version": 1, "mono_ns": ..., "wall_ns": ...}. Flushed at least once a second; a torn last
line is tolerated and counted; a damaged line elsewhere is counted and named, never silently dropped.
May not know: what the records mean.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import orjson

from traces.errors import UserError

VERSION = 1
_BATCH = 256
"""records joined for one write"""
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


class JournalWriter:
    """Appends records (dataclasses or dicts) to one file. `write` never blocks on the disk beyond a buffered write.

    The caller flushes through `flush()` (inline use: virtual time, tests, sampler) or lets `Flusher` do so.
    """

    def __init__(self, path: Path, name: str, *, mono_ns: int, wall_ns: int) -> None:
        self.path = path
        self.name = name
        self.written = 0
        self._header = {"journal": name, "version": VERSION, "mono_ns": mono_ns, "wall_ns": wall_ns}
        self._open()

    def _open(self) -> None:
        try:
            self._mend()
            self._file = self.path.open("ab", buffering=1 << 18)
            if self._file.tell() == 0:
                self._file.write(orjson.dumps(self._header, option=_OPTIONS))
                self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write the journal ({error.strerror}); choose a writable --out directory"
            ) from error

    def _mend(self) -> None:
        """Cut a torn last line left by a crash before appending to it."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        keep = data.rfind(b"\n") + 1
        if keep != len(data):
            os.truncate(self.path, keep)

    def write(self, record: Any) -> None:
        """Append one record; on disk at the next flush. A record in bytes is its whole line, line feed included."""
        self._file.write(record if type(record) is bytes else orjson.dumps(record, option=_OPTIONS))
        self.written += 1

    def write_all(self, records: list[Any]) -> None:
        """Append several records at once: cheaper than one by one where they are lines."""
        self._file.write(b"".join([r if type(r) is bytes else orjson.dumps(r, option=_OPTIONS) for r in records]))
        self.written += len(records)

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._file.flush()

    def reopen(self) -> None:
        """After log rotation (SIGHUP): close and open the path again."""
        self._file.close()
        self._open()

    def close(self) -> None:
        """Flush and close; further writes are a bug."""
        if not self._file.closed:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            finally:
                self._file.close()


class QueuedWriter:
    """A JournalWriter off the hot path: `put` is an append to a bounded deque, a thread serialises and flushes.

    A full queue drops the record and counts it (`dropped`); a failing disk is kept in `error`, and what it did not take
    is counted too. Neither ever raises into the data path: a failing recorder never fails a request.
    """

    def __init__(self, writer: JournalWriter, *, limit: int = 100_000, every_s: float = 0.25) -> None:
        self.writer = writer
        self.limit = limit
        self.dropped = 0
        self.error: str | None = None
        self._safe = writer.written
        """records that the operating system has"""
        self._every_s = every_s
        self._queue: deque[Any] = deque()
        self._stop = Event()
        self._reopen = False
        self._thread = Thread(target=self._run, name=f"journal-{writer.name}", daemon=True)
        self._thread.start()

    def put(self, record: Any) -> None:
        """Queue one record; drop and count it past the limit."""
        if len(self._queue) >= self.limit:
            self.dropped += 1
        else:
            self._queue.append(record)

    @property
    def depth(self) -> int:
        """Records waiting to be written: queued, or held back by a disk that takes nothing."""
        return len(self._queue) + self.writer.written - self._safe

    def reopen(self) -> None:
        """Ask the thread to reopen the file before its next write."""
        self._reopen = True

    def close(self) -> None:
        """Write what is queued and close."""
        self._stop.set()
        self._thread.join()
        self._drain()
        try:
            self.writer.close()
        except OSError as error:
            self.dropped += self.writer.written - self._safe
            self.error = str(error)
        self._safe = self.writer.written

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._drain()

    def _drain(self) -> None:
        batch: list[Any] = []
        try:
            if self._reopen:  # until it works: what comes meanwhile waits in the queue
                self.writer.reopen()
                self._reopen = False
            take = self._queue.popleft
            while waiting := min(len(self._queue), _BATCH):
                batch = [take() for _ in range(waiting)]
                self.writer.write_all(batch)
                batch = []
            self.writer.flush()
            self._safe = self.writer.written
        except (OSError, UserError, TypeError) as error:
            self.dropped += len(batch)
            self.error = str(error)


@dataclass
class JournalReader:
    """Streams the objects of one journal (header left out). After iteration `torn` and `damaged` say what was lost."""

    path: Path
    torn: int = 0
    """1 when the last line was cut short by a crash"""
    damaged: list[int] = field(default_factory=list)
    """line numbers that are not JSON objects"""
    header: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.torn, self.damaged = 0, []
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot read the journal ({error.strerror}); check the run directory"
            ) from error
        with file:
            for number, line in enumerate(file, 1):
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError:
                    if line.endswith(b"\n"):
                        self.damaged.append(number)
                    else:
                        self.torn = 1
                    continue
                if not isinstance(row, dict):
                    self.damaged.append(number)
                elif "journal" in row and "version" in row:
                    self.header = row
                else:
                    yield row
