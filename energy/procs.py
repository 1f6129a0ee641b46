"""Who used the CPU and who else is on the GPU: CPU time per process tree, and the processes a GPU lists.

Shares of CPU joules and the `foreign` bucket rest on these. Which process does what (its role) is told by run.json
("processes": {pid: role}), which grows while parts start; a process's descendants have its role unless they have one of
their own. May not know: joules.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from energy.source import Found, Missing, Reading
from traces.records import ProcessSample, SensorInfo
from traces.seams import NowNs

_SECOND = 1_000_000_000
_SCAN_NS = 10 * _SECOND
"""how often all processes are looked through for descendants: milliseconds on a machine with thousands"""
PROC = Path("/proc")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LISTEN = "0A"
Roles = Callable[[], dict[int, str]]


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says, in clock ticks."""

    command: str
    parent: int
    used: int
    """user and system time, its reaped children's included: a child that ends hands its time over"""


def stat(pid: int, root: Path = PROC) -> Stat | None:
    """One process; None when it is gone or hidden."""
    try:
        text = (root / str(pid) / "stat").read_text()
    except OSError:
        return None
    command, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return Stat(command, int(fields[1]), sum(int(field) for field in fields[11:15]))


def busy_ticks(root: Path = PROC) -> int | None:
    """User, nice, system, irq, softirq of all CPUs in clock ticks; None where /proc/stat is not readable."""
    try:
        fields = (root / "stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    return sum(int(fields[i]) for i in (1, 2, 3, 6, 7))


class RunRoles:
    """Roles as run.json tells them, read again whenever the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._roles: dict[int, str] = {}

    def __call__(self) -> dict[int, str]:
        """pid -> role; the last known where the file cannot be read."""
        try:
            found = os.stat(self._path)
            if (found.st_mtime_ns, found.st_ino) != self._seen:
                told = orjson.loads(self._path.read_bytes()).get("processes") or {}
                self._roles = {int(pid): str(role) for pid, role in told.items()}
                self._seen = (found.st_mtime_ns, found.st_ino)
        except (OSError, ValueError, AttributeError):
            pass
        return self._roles


class CpuTimes:
    """CPU time of the processes with a role, descendants included, and of the whole host (pid 0), once a second."""

    name = "proc"
    infos: tuple[SensorInfo, ...] = ()
    poll_ns = _SECOND

    def __init__(self, roles: Roles, root: Path = PROC, tick_ns: int | None = None) -> None:
        self._roles = roles
        self._root = root
        self._tick_ns = tick_ns or _SECOND // os.sysconf("SC_CLK_TCK")
        self._trees: dict[int, list[int]] = {}
        self._told: set[int] = set()
        self._most: dict[int, int] = {}
        self._scan_ns = 0

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One record per process with a role (the time of its whole tree), one for the host, and one without a time for
        each descendant when it is first seen."""
        t_ns = now_ns()
        roles = self._roles()
        readings: list[Reading] = [ProcessSample("proc", t_ns, 0, cpu_ns=self._host_ns())]
        if t_ns >= self._scan_ns or self._trees.keys() != roles.keys():
            self._scan_ns = t_ns + _SCAN_NS
            self._trees = trees(set(roles), self._root) if roles else {}
        for pid, members in self._trees.items():
            used, command = 0, None
            for member in members:
                if (seen := stat(member, self._root)) is None:
                    continue
                used += seen.used
                if member == pid:
                    command = seen.command
                elif member not in self._told:
                    self._told.add(member)
                    readings.append(ProcessSample("proc", t_ns, member, seen.command, role=roles[pid] or None))
            if used or command is not None:
                # a descendant that ends unreaped takes its time along: the tree's never goes back
                self._most[pid] = max(used, self._most.get(pid, 0))
                spent_ns = self._most[pid] * self._tick_ns
                readings.append(ProcessSample("proc", t_ns, pid, command, spent_ns, role=roles[pid] or None))
        return readings

    def _host_ns(self) -> int | None:
        busy = busy_ticks(self._root)
        return None if busy is None else busy * self._tick_ns

    def close(self) -> None:
        """Nothing is open."""


def trees(roots: set[int], root: Path = PROC) -> dict[int, list[int]]:
    """Each root with its descendants, without the trees of other roots among them."""
    parents = {pid: seen.parent for pid in _pids(root) if (seen := stat(pid, root)) is not None}
    found: dict[int, list[int]] = {pid: [pid] for pid in roots}
    for pid in parents:
        at: int | None = pid
        while at and at not in roots:
            at = parents.get(at)
        if at and at != pid:
            found[at].append(pid)
    return found


def listener(host: str, port: int, root: Path = PROC) -> int | None:
    """The process that listens at a port of this host, the eldest where several hold the socket. None: it is on
    another host, or another user's."""
    if host not in _LOOPBACK:
        return None
    sockets = {f"socket:[{inode}]" for name in ("tcp", "tcp6") for inode in _listening(root / "net" / name, port)}
    holders = {pid for pid in _pids(root) if sockets and not sockets.isdisjoint(_open(root / str(pid) / "fd"))}
    eldest = [pid for pid in holders if (seen := stat(pid, root)) is not None and seen.parent not in holders]
    return min(eldest, default=None)


def _pids(root: Path) -> list[int]:
    return [int(name) for name in os.listdir(root) if name.isdecimal()]


def _listening(table: Path, port: int) -> list[str]:
    """Inodes of the sockets that listen at a port."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _open(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    links = []
    for name in names:
        try:
            links.append(os.readlink(folder / name))
        except OSError:
            continue
    return links


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
    """CPU times of the host and of processes: those named ("12,345"), or those of a run ("RUN/run.json")."""
    if not (root / "stat").is_file():
        return Found(missing=[Missing("proc", f"no {root}/stat: not Linux, or hidden", None)])
    if all(pid.strip().isdecimal() or not pid.strip() for pid in where.split(",")):
        named = dict.fromkeys((int(pid) for pid in where.split(",") if pid.strip()), "")
        return Found([CpuTimes(lambda: named, root)])
    return Found([CpuTimes(RunRoles(Path(where)), root)])
