"""Turning a GPU's knobs through NVML, and the journal of previous values that lets anyone put them back.

Every change is on disk before the driver is asked, so a process that is killed between the two leaves at worst a note
too many. May not know: when knobs are turned, signals, guardians.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from energy.source import Missing
from traces.errors import UserError

Kind = Literal["power_limit", "sm_clock"]
USER_CLOCKS = 0x2
MW = 1000


@dataclass(frozen=True, slots=True)
class Turn:
    """One knob of one device: what it was, what was asked, what the driver enforces. Power in mW, clocks in MHz."""

    knob: Kind
    device: str
    uuid: str
    previous: int | None
    """None for the SM clock: NVML cannot read a lock, putting back means unlocking"""
    wanted: int
    enforced: int | None
    """read back after setting; for the SM clock the clock shown at that moment"""
    t_ns: int


class Bench:
    """The driver's setters and the journal behind them."""

    def __init__(self, nvml: Any, journal: Path, now_ns: Callable[[], int]) -> None:
        self._nvml = nvml
        self.journal = journal
        self._now_ns = now_ns

    def devices(self, gpus: list[int] | None) -> list[tuple[int, Any]]:
        """Handles of the asked GPUs. UserError for an index that is not there."""
        count = self._nvml.nvmlDeviceGetCount()
        for index in gpus or []:
            if not 0 <= index < count:
                raise UserError(f"gpu {index}: this machine has {count}; give 0 to {count - 1}")
        return [(i, self._nvml.nvmlDeviceGetHandleByIndex(i)) for i in (range(count) if gpus is None else gpus)]

    def read_limit(self, handle: Any) -> tuple[int | None, str | None]:
        """Present power limit in mW."""
        return self._ask(self._nvml.nvmlDeviceGetPowerManagementLimit, handle)

    def constraints(self, handle: Any) -> tuple[int, int] | None:
        """Least and greatest power limit in mW."""
        got, _ = self._ask(self._nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
        return (int(got[0]), int(got[1])) if got else None

    def max_clock(self, handle: Any) -> int | None:
        """Greatest SM clock in MHz."""
        got, _ = self._ask(self._nvml.nvmlDeviceGetMaxClockInfo, handle, self._nvml.NVML_CLOCK_SM)
        return got

    def turn(self, kind: Kind, index: int, handle: Any, value: int) -> Turn | Missing:
        """Journal the previous value, set, read back. A refusal is data; nothing is journalled as turned then."""
        previous, why = self._previous(kind, handle)
        if why is not None:
            return Missing(f"gpu{index}.{kind}", why, None)
        uuid = str(self._nvml.nvmlDeviceGetUUID(handle))
        turn = Turn(kind, f"gpu{index}", uuid, previous, value, None, self._now_ns())
        self._note("turn", turn)
        try:
            self._set(kind, handle, value)
        except self._nvml.NVMLError as error:
            self._note("restored", turn)
            return Missing(f"gpu{index}.{kind}", f"the driver refused: {error}", _command(kind, index, value))
        enforced = self._enforced(kind, handle)
        turn = Turn(kind, turn.device, uuid, previous, value, enforced, turn.t_ns)
        self._note("set", turn)
        return turn

    def restore(self, owner: int | None = None) -> list[str]:
        """Put back every pending turn (of one process, or of processes that are gone). What was done, in words."""
        done = []
        for row in reversed(pending(self.journal, owner)):
            turn = Turn(**row["turn"])
            if owner is None and alive(row["pid"], row["start"]):
                raise UserError(
                    f"{turn.device}: process {row['pid']} has its {turn.knob} turned now; wait for it or stop it first"
                )
            try:
                handle = self._nvml.nvmlDeviceGetHandleByUUID(turn.uuid)
                self._set(turn.knob, handle, turn.previous)
            except self._nvml.NVMLError as error:
                done.append(f"{turn.device}: {turn.knob} could not be put back ({error})")
                continue
            self._note("restored", turn, row)
            value = f"{turn.previous // MW} W" if turn.previous is not None else "unlocked"
            done.append(f"{turn.device}: {turn.knob} put back to {value}")
        return done

    def _previous(self, kind: Kind, handle: Any) -> tuple[int | None, str | None]:
        if kind == "power_limit":
            return self.read_limit(handle)
        reasons, _ = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        if reasons and reasons & USER_CLOCKS:
            return None, "its clocks are already locked by someone else, and NVML cannot read the lock to put it back"
        return None, None

    def _set(self, kind: Kind, handle: Any, value: int | None) -> None:
        # The v2 setter of nvidia-ml-py never checks its return code; v1 raises on NO_PERMISSION.
        if kind == "power_limit":
            self._nvml.nvmlDeviceSetPowerManagementLimit(handle, value)
        elif value is None:
            self._nvml.nvmlDeviceResetGpuLockedClocks(handle)
        else:
            self._nvml.nvmlDeviceSetGpuLockedClocks(handle, value, value)

    def _enforced(self, kind: Kind, handle: Any) -> int | None:
        if kind == "power_limit":
            return self._ask(self._nvml.nvmlDeviceGetEnforcedPowerLimit, handle)[0]
        return self._ask(self._nvml.nvmlDeviceGetClockInfo, handle, self._nvml.NVML_CLOCK_SM)[0]

    def _ask(self, function: Callable[..., Any], *args: Any) -> tuple[Any | None, str | None]:
        try:
            return function(*args), None
        except self._nvml.NVMLError as error:
            return None, str(error)

    def _note(self, what: str, turn: Turn, of: dict[str, Any] | None = None) -> None:
        """One journal line, on disk before the next driver call."""
        pid, start = (of["pid"], of["start"]) if of else (os.getpid(), _start_of(os.getpid()))
        row = {"what": what, "pid": pid, "start": start, "turn": asdict(turn)}
        try:
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            with self.journal.open("ab") as file:
                file.write(orjson.dumps(row) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.journal}: previous values cannot be kept ({error.strerror}); knobs are not touched without that"
            ) from error


def _command(kind: Kind, index: int, value: int) -> str:
    if kind == "power_limit":
        return f"run as root, or sudo nvidia-smi -i {index} -pl {value // MW} by hand (and back afterwards)"
    return f"run as root, or sudo nvidia-smi -i {index} -lgc {value},{value} by hand (-rgc afterwards)"


def pending(journal: Path, owner: int | None = None) -> list[dict[str, Any]]:
    """Turns in the journal without a `restored` after them, oldest first; of one process or of all."""
    open_turns: dict[tuple[Any, ...], dict[str, Any]] = {}
    lines = journal.read_bytes().splitlines() if journal.is_file() else []
    for line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # torn by a crash before the driver was called
        key = (row["pid"], row["start"], row["turn"]["uuid"], row["turn"]["knob"])
        if row["what"] == "restored":
            open_turns.pop(key, None)
        else:
            open_turns.setdefault(key, row)
    return [row for row in open_turns.values() if owner is None or row["pid"] == owner]


def _start_of(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot: tells a reused pid from the old one."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def alive(pid: int, start: int | None) -> bool:
    return _start_of(pid) == start and start is not None
