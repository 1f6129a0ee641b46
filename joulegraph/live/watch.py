"""From status pages to a LiveState: counters read, differences taken over the last seconds.

Each part may run as several workers with a page each (status.proxy.0, status.proxy.1 ...): counters and histograms add.
May not know: rich, who started the parts. Time comes in as an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from joulegraph.live.state import UNKNOWN, Device, Engine, LiveState, Load, Proxy, Quantiles, Sampling
from traces.errors import UserError
from traces.status import HISTOGRAM_BUCKETS, StatusReader, percentile_ns

PARTS = ("loadgen", "proxy", "sampler", "engine", "classes")
RATE_NS = 3_000_000_000
"""tokens per second are a mean over about this long"""
WATT_NS = 1_000_000_000
HISTORY = 60


@dataclass
class _Trail:
    """Readings of one counter over the last seconds."""

    points: deque[tuple[int, int]] = field(default_factory=deque)

    def rate(self, t_ns: int, value: int, span_ns: int) -> float | None:
        """Units per second between now and the newest reading at least span_ns old (or the oldest); None before two."""
        if self.points and value < self.points[-1][1]:
            self.points.clear()  # a wrap or a restart: what lies across it is not known
        if not self.points or t_ns > self.points[-1][0]:
            self.points.append((t_ns, value))
        while len(self.points) > 2 and self.points[1][0] <= t_ns - span_ns:
            self.points.popleft()
        t0, v0 = self.points[0]
        t1, v1 = self.points[-1]
        return (v1 - v0) * 1e9 / (t1 - t0) if t1 > t0 else None


class Watch:
    """Reads the pages of one run. `pages`: part -> its readers; parts that are missing are shown as absent."""

    def __init__(self, pages: Mapping[str, Sequence[StatusReader]], *, title: str = "joulegraph") -> None:
        self.pages = {part: list(readers) for part, readers in pages.items()}
        self.title = title
        self._run_dir: Path | None = None
        self._known: set[Path] = set()
        self._tokens: dict[str, _Trail] = {}
        self._watts: dict[str, _Trail] = {}
        self._first_uj: dict[str, int] = {}
        self._last_uj: dict[str, int] = {}
        self._history: dict[str, deque[float]] = {}

    @classmethod
    def of_run(cls, run_dir: Path, *, title: str | None = None) -> Watch:
        """The pages of a run directory (status.<part> or status.<part>.<worker>). UserError when there is none yet."""
        watch = cls({}, title=title or f"joulegraph {run_dir.name}")
        watch._run_dir = run_dir
        watch.look()
        if not watch.pages:
            raise UserError(
                f"{run_dir}: no status page of a running part there; give the directory of a run in progress"
            )
        return watch

    def look(self) -> None:
        """Take up pages of parts that have started since."""
        for part, path in _page_files(self._run_dir) if self._run_dir else ():
            if path in self._known:
                continue
            try:
                reader = StatusReader(path)
            except UserError:
                continue  # its writer is just making it
            self._known.add(path)
            self.pages.setdefault(part, []).append(reader)

    def alive(self) -> bool:
        """Whether any part still runs."""
        return any(reader.alive() for readers in self.pages.values() for reader in readers)

    def read(self, now_ns: int, joules: Mapping[str, float | None] | None = None, note: str | None = None) -> LiveState:
        """One refresh. joules: per class so far, from whoever attributes while the run goes on."""
        self.look()
        return LiveState(
            title=self.title,
            load=self._load(now_ns),
            proxy=self._proxy(now_ns),
            engine=self._engine(),
            sampling=self._sampling(),
            devices=self._devices(),
            joules=joules if joules is not None else self._classes(),
            note=note,
        )

    def _sum(self, part: str, name: str) -> int:
        """A counter over all workers; 0 where no worker has the slot."""
        return sum(r.get(name) for r in self.pages.get(part, ()) if name in r.index)

    def _quantiles(self, part: str, name: str) -> Quantiles:
        counts = [0] * HISTOGRAM_BUCKETS
        for reader in self.pages.get(part, ()):
            if f"{name}.0" in reader.index:
                counts = [a + b for a, b in zip(counts, reader.histogram(name), strict=True)]
        if not any(counts):
            return UNKNOWN
        return Quantiles(*(percentile_ns(counts, q) for q in (0.5, 0.95, 0.99)))

    def _rate(self, part: str, now_ns: int, tokens: int) -> float | None:
        return self._tokens.setdefault(part, _Trail()).rate(now_ns, tokens, RATE_NS)

    def _load(self, now_ns: int) -> Load | None:
        readers = self.pages.get("loadgen")
        if not readers:
            return None
        started = [t for r in readers if "t_start_ns" in r.index and (t := r.get("t_start_ns")) > 0]
        finished = all(r.get("finished") != 0 for r in readers if "finished" in r.index)
        tokens = self._sum("loadgen", "tokens_out")
        counts = {
            name: self._sum("loadgen", name)
            for name in (
                "workflows_started",
                "workflows_done",
                "workflows_failed",
                "requests_sent",
                "requests_done",
                "requests_failed",
                "requests_rejected",
                "requests_over",
            )
        }
        return Load(
            workflows_total=self._sum("loadgen", "workflows_total") or None,
            **counts,
            tokens_out=tokens,
            elapsed_ns=max(0, now_ns - min(started)) if started else None,
            finished=finished,
            ttft=self._quantiles("loadgen", "ttft"),
            e2e=self._quantiles("loadgen", "e2e"),
            lateness=self._quantiles("loadgen", "lateness"),
            makespan=self._quantiles("loadgen", "makespan"),
            tokens_per_s=self._rate("loadgen", now_ns, tokens),
        )

    def _proxy(self, now_ns: int) -> Proxy | None:
        if not self.pages.get("proxy"):
            return None
        names = ("requests", "in_flight", "queued", "done", "errors", "client_left", "journal_depth", "journal_dropped")
        looks = self._sum("proxy", "looks")
        counts = {name: self._sum("proxy", name) for name in names}
        counts["done"] -= looks
        tokens = self._sum("proxy", "tokens_out")
        return Proxy(
            **counts,
            tokens_out=tokens,
            ttft=self._quantiles("proxy", "ttft"),
            e2e=self._quantiles("proxy", "e2e"),
            itl=self._quantiles("proxy", "itl"),
            tokens_per_s=self._rate("proxy", now_ns, tokens),
        )

    def _engine(self) -> Engine | None:
        readers = [r for r in self.pages.get("engine", ()) if "running" in r.index]
        if not readers:
            return None
        lag = max(r.get("lag_ns") for r in readers) if all("lag_ns" in r.index for r in readers) else 0
        usage = max(r.get("kv_usage_ppm") for r in readers) if all("kv_usage_ppm" in r.index for r in readers) else 0
        return Engine(self._sum("engine", "running"), self._sum("engine", "waiting"), usage / 1e6, lag)

    def _sampling(self) -> Sampling | None:
        if not self.pages.get("sampler"):
            return None
        sensors = sum(n.endswith(".value") for reader in self.pages["sampler"] for n in reader.names)
        return Sampling(sensors, *(self._sum("sampler", name) for name in ("ticks", "missed", "cpu_ns")))

    def _classes(self) -> dict[str, float | None]:
        """<class>.uj slots of the status page that continuous attribution keeps."""
        out: dict[str, float | None] = {}
        for reader in self.pages.get("classes", ()):
            for name in reader.names:
                if name.endswith(".uj"):
                    key = name.removesuffix(".uj")
                    out[key] = (out.get(key) or 0.0) + reader.get(name) / 1e6
        return out

    def _devices(self) -> tuple[Device, ...]:
        """One line per device: its counter where it has one, else its gauge."""
        found: dict[str, Device] = {}
        for reader in self.pages.get("sampler", ()):
            for slot in reader.names:
                source, _, what = slot.rpartition(".")
                if what != "value" or not source.endswith((".energy", ".power")):
                    continue
                name = device_name(source)
                counter = source.endswith(".energy")
                if counter or name not in found:
                    found[name] = self._device(name, source, reader, counter=counter)
        gpus = {n for n in found if n.startswith("gpu")}
        return tuple(
            _within(found[name], gpus) for name in sorted(found, key=lambda n: (not n.startswith(("gpu", "hbm")), n))
        )

    def _device(self, name: str, source: str, reader: StatusReader, *, counter: bool) -> Device:
        slots = reader.group((f"{source}.value", f"{source}.t_ns"))
        value, t_ns = slots[f"{source}.value"], slots[f"{source}.t_ns"]
        watts: float | None = None
        joules: float | None = None
        if t_ns > 0 and counter:
            watts_uj = self._watts.setdefault(source, _Trail()).rate(t_ns, value, WATT_NS)
            watts = watts_uj / 1e6 if watts_uj is not None else None
            first = self._first_uj.setdefault(source, value)
            if value >= self._last_uj.get(source, value):
                joules = (value - first) / 1e6
            else:  # wrapped or reset: count on from here
                self._first_uj[source] = value - (self._last_uj[source] - first)
                joules = (value - self._first_uj[source]) / 1e6
            self._last_uj[source] = value
        elif t_ns > 0:
            watts = value / 1e3
        history = self._history.setdefault(source, deque(maxlen=HISTORY))
        if watts is not None:
            history.append(watts)
        shown = f"{name}, estimated" if source.startswith("tdp.") else name
        return Device(shown, source, watts, joules, tuple(history), simulated=source.startswith("sim."))


def device_name(source: str) -> str:
    """nvml.gpu0.energy -> gpu0; rapl.package-0.dram.energy -> package-0 dram."""
    return " ".join(source.split(".")[1:-1]) or source


def _within(device: Device, gpus: set[str]) -> Device:
    """Mark HBM as part of its GPU's reading, so that nobody adds the two."""
    if not device.name.startswith("hbm") or (gpu := "gpu" + device.name[3:]) not in gpus:
        return device
    return Device(
        device.name, device.source, device.watts, device.joules, device.history, inside=gpu, simulated=device.simulated
    )


def _page_files(run_dir: Path) -> list[tuple[str, Path]]:
    """(part, file) of every page there, workers in order."""
    found = ((part, {*run_dir.glob(f"status.{part}"), *run_dir.glob(f"status.{part}.*")}) for part in PARTS)
    return [(part, path) for part, paths in found for path in sorted(paths) if path.is_file()]
