"""Who used the CPU and who else is on the GPU: CPU time per process, and the processes a GPU lists.

Shares of CPU joules and the `foreign` bucket rest on these. May not know: joules.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from energy.source import Found, Missing, Reading
from traces.records import ProcessSample, SensorInfo
from traces.seams import NowNs

_SECOND = 1_000_000_000
PROC = Path("/proc")


class CpuTimes:
    """CPU time of chosen processes and of the whole host (pid 0), once a second."""

    name = "proc"
    infos: tuple[SensorInfo, ...] = ()
    poll_ns = _SECOND

    def __init__(self, pids: list[int], root: Path = PROC, tick_ns: int | None = None) -> None:
        self._pids = pids
        self._root = root
        self._tick_ns = tick_ns or _SECOND // os.sysconf("SC_CLK_TCK")

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One record per process that still lives, and one for all together."""
        t_ns = now_ns()
        readings: list[Reading] = [ProcessSample("proc", t_ns, 0, cpu_ns=self._host_ns())]
        for pid in self._pids:
            try:
                text = (self._root / str(pid) / "stat").read_text()
            except OSError:
                continue
            command, _, rest = text.partition("(")[2].rpartition(")")
            fields = rest.split()
            used = (int(fields[11]) + int(fields[12])) * self._tick_ns
            readings.append(ProcessSample("proc", t_ns, pid, command, used))
        return readings

    def _host_ns(self) -> int | None:
        """User, nice, system, irq, softirq of all CPUs; None where /proc/stat is not readable."""
        try:
            fields = (self._root / "stat").read_text().splitlines()[0].split()
        except OSError:
            return None
        return sum(int(fields[i]) for i in (1, 2, 3, 6, 7)) * self._tick_ns

    def close(self) -> None:
        """Nothing is open."""


class GpuProcesses:
    """Compute processes a GPU lists, every 30 s (the call takes milliseconds on some drivers)."""

    infos: tuple[SensorInfo, ...] = ()
    poll_ns = 30 * _SECOND

    def __init__(self, nvml: Any, handle: Any, device: str, root: Path = PROC) -> None:
        self._nvml, self._handle, self._root = nvml, handle, root
        self.name = f"nvml.{device}.processes"
        self._device = f"nvml.{device}"

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One record per process; pids are the host's, so a name may be missing inside a container."""
        t_ns = now_ns()
        try:
            listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return []
        return [
            ProcessSample(self._device, t_ns, p.pid, self._command(p.pid), gpu_memory_bytes=p.usedGpuMemory)
            for p in listed
        ]

    def _command(self, pid: int) -> str | None:
        try:
            return (self._root / str(pid) / "comm").read_text().strip()
        except OSError:
            return None

    def close(self) -> None:
        """The library is shared; nothing to close."""


def find(where: str, root: Path = PROC) -> Found:
    """CPU times of the host and of the processes named: "12,345"."""
    if not (root / "stat").is_file():
        return Found(missing=[Missing("proc", f"no {root}/stat: not Linux, or hidden", None)])
    return Found([CpuTimes([int(pid) for pid in where.split(",") if pid.strip()], root)])
