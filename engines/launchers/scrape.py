"""An engine's /metrics page into the run: counters and gauges summed over labels, a few times a second.

Histograms give their sums and counts, buckets are left out. A failed read is a record with the reason, never a gap in
silence. May not know: which engine it is, what the numbers are for.
"""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable
from threading import Event, Thread

from engines.launchers.common import get
from traces.records import EngineRecord
from traces.seams import NowNs

EVERY_NS = 250_000_000
_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LEFT_OUT = ("_bucket", "_created", "_info")
_OURS = ("vllm:", "llamacpp:", "sglang:", "tgi_")


def parse(text: str, prefixes: tuple[str, ...] = _OURS) -> dict[str, float]:
    """Metric name -> value, summed over labels, of names with these prefixes. NaN and infinities are left out."""
    out: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or not match[1].startswith(prefixes) or match[1].endswith(_LEFT_OUT):
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if value - value == 0:  # finite
            out[match[1]] = out.get(match[1], 0.0) + value
    return out


def read(host: str, port: int, now_ns: NowNs = time.monotonic_ns) -> EngineRecord:
    """One scrape, stamped in its middle: kind "counters", or "log" with why there is none."""
    before = now_ns()
    try:
        status, body = get(host, port, "/metrics", 2.0)
    except (OSError, http.client.HTTPException) as error:
        return EngineRecord("log", now_ns(), text=f"metrics of {host}:{port} not read: {error}")
    stamp = (before + now_ns()) // 2
    if status != 200:
        return EngineRecord("log", stamp, text=f"metrics of {host}:{port} not read: status {status}")
    return EngineRecord("counters", stamp, parse(body.decode(errors="replace")))


class Scraper:
    """A thread that reads every EVERY_NS until close(). write is called from it; repeated failures are written once."""

    def __init__(
        self, host: str, port: int, write: Callable[[EngineRecord], None], *, every_ns: int = EVERY_NS
    ) -> None:
        self._host, self._port, self._write, self._every_ns = host, port, write, every_ns
        self._stop = Event()
        self.reads = self.failures = 0
        self._thread = Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic_ns()
        silent = False
        while not self._stop.wait(max(0, due - time.monotonic_ns()) / 1e9):
            record = read(self._host, self._port)
            self.reads += 1
            if record.kind == "log":
                self.failures += 1
                if not silent:
                    self._write(record)
                silent = True
            else:
                silent = False
                self._write(record)
            due = max(due + self._every_ns, time.monotonic_ns())

    def close(self) -> None:
        """Stop and wait for the read in progress."""
        self._stop.set()
        self._thread.join()
