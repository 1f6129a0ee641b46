"""AMD GPUs through amdsmi: accumulated energy and socket power.

The counter is energy_accumulator x counter_resolution (uJ); on some boards it is frozen or wrong, so it is looked at
twice while the socket draws power, and left out with the reason when it stands still. The module comes in as an
argument; it must match the ROCm of the host. May not know: sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from energy.source import Found, Missing, Reading
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

_MS = 1_000_000
_FAILURES = (OSError, ValueError, KeyError, TypeError)


class AmdSource:
    """One call of one GPU: its energy counter (uJ) or its socket power (mW)."""

    def __init__(
        self, info: SensorInfo, value: Callable[[], int], library_error: type[Exception], poll_ns: int
    ) -> None:
        self._value = value
        self._errors = (library_error, *_FAILURES)
        self.name = info.source
        self.infos: tuple[SensorInfo, ...] = (info,)
        self.poll_ns = poll_ns

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample; the library's refusal is its reason."""
        t0 = now_ns()
        try:
            return [PowerSample(self.name, t0, now_ns(), self._value())]
        except self._errors as error:
            return [PowerSample(self.name, t0, now_ns(), None, f"amdsmi: {error}")]

    def close(self) -> None:
        """The library is shared; nothing to close."""


def find(module: Any, now_ns: NowNs, *, settle: Callable[[], None], poll_ns: int = 20 * _MS) -> Found:
    """Every AMD GPU. module: the imported amdsmi; settle: wait some 200 ms between two looks at a counter."""
    errors = (module.AmdSmiException, *_FAILURES)
    try:
        module.amdsmi_init()
        handles = module.amdsmi_get_processor_handles()
    except errors as error:
        return Found(
            missing=[Missing("amdsmi", f"amdsmi: {error}", "sudo usermod -aG render,video $USER; modprobe amdgpu")]
        )
    found = Found()
    if not handles:
        found.missing.append(Missing("amdsmi", "the driver lists no AMD GPU", "check amd-smi list"))
    for index, handle in enumerate(handles):
        found.extend(_device(module, handle, index, now_ns, settle, poll_ns))
    return found


def _device(module: Any, handle: Any, index: int, now_ns: NowNs, settle: Callable[[], None], poll_ns: int) -> Found:
    device = f"gpu{index}"
    power = AmdSource(
        SensorInfo(f"amd.{device}.power", "gpu", device, "gauge", "mW", None, 1000, limits="a driver average"),
        lambda: power_mw(module.amdsmi_get_power_info(handle)),
        module.AmdSmiException,
        poll_ns,
    )
    energy = AmdSource(
        SensorInfo(f"amd.{device}.energy", "gpu", device, "counter", "uJ", None, 16, limits="by firmware"),
        lambda: energy_uj(module.amdsmi_get_energy_count(handle)),
        module.AmdSmiException,
        poll_ns,
    )
    found = Found()
    looks = []
    for source in (power, energy):
        [sample] = source.read(now_ns)
        looks.append(sample)
        if isinstance(sample, PowerSample) and sample.value is None:
            found.missing.append(Missing(source.name, sample.why or "no value", None))
        else:
            found.sources.append(source)
    if energy in found.sources and power in found.sources:
        settle()
        [again] = energy.read(now_ns)
        if again.value == looks[1].value and (looks[0].value or 0) > 0:  # type: ignore[union-attr]
            found.sources.remove(energy)
            why = "the counter stands still while the socket draws power (a known firmware fault)"
            found.missing.append(Missing(energy.name, why, "update ROCm and firmware; power is used instead"))
    return found


def energy_uj(count: dict[str, Any]) -> int:
    """Accumulator times resolution, exactly. The key was renamed from `power` in ROCm 6.2.1."""
    ticks = count["energy_accumulator"] if "energy_accumulator" in count else count["power"]
    return int(int(ticks) * Fraction(str(count["counter_resolution"])))


def power_mw(info: dict[str, Any]) -> int:
    """Socket power; which key is filled depends on the board ("N/A" elsewhere). ValueError when none is."""
    for key in ("current_socket_power", "average_socket_power", "socket_power"):
        value = info.get(key)
        if isinstance(value, int | float) and value > 0:
            return int(value * 1000)
    raise ValueError("no socket power on this board")


def load() -> tuple[Any | None, Missing | None]:
    """The amdsmi module, or why not."""
    try:
        import amdsmi
    except (ImportError, OSError, KeyError, AttributeError) as error:
        why = f"the Python package amdsmi cannot be loaded ({type(error).__name__})"
        return None, Missing("amdsmi", why, "pip install 'joulegraph[gpu]' in the version of this host's ROCm")
    return amdsmi, None
