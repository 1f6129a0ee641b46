"""CPU and DRAM energy through pyRAPL, for those who ask for it by name and as a cross-check of our own reader.

The module comes in as an argument: importing pyRAPL also puts a top-level `tests` package on the path and hard-codes
/sys. Its raw counters are taken (its own differences lose every wrap). Linux with Intel-style names only: it refuses
multi-die machines and knows no core or platform domain. May not know: who asked for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from energy.powercap import GRANT, ROOT, package_range
from energy.source import Found, Missing, Reading
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

_DOMAINS = (("PKG", "cpu"), ("DRAM", "dram"))


class PyRaplSource:
    """One pyRAPL device API: all sockets of one domain."""

    def __init__(self, api: Any, domain: str, sockets: list[int], poll_ns: int, root: Path = ROOT) -> None:
        self._api = api
        self._sockets = sockets
        self.name = f"pyrapl.{domain}"
        self.poll_ns = poll_ns
        self.infos: tuple[SensorInfo, ...] = tuple(
            SensorInfo(
                source=f"pyrapl.package-{socket}.{'energy' if domain == 'cpu' else domain + '.energy'}",
                domain=domain,
                device=f"package-{socket}",
                reading="counter",
                unit="uJ",
                period_ns=1_000_000,
                resolution=None,
                wraps_at=package_range(root, socket, domain),
                scope="package" if domain == "cpu" else domain,
                limits="the same counter as rapl, read through pyRAPL: a cross-check, never added to it",
            )
            for socket in sockets
        )

    def read(self, now_ns: NowNs) -> list[Reading]:
        """One sample per socket; pyRAPL reads them one after the other inside the interval."""
        t0 = now_ns()
        try:
            values, why = self._api.energy(), None
        except (OSError, ValueError) as error:
            values, why = None, str(error)
        t1 = now_ns()
        return [
            PowerSample(info.source, t0, t1, None if values is None else int(values[socket]), why)
            for info, socket in zip(self.infos, self._sockets, strict=True)
        ]

    def close(self) -> None:
        """pyRAPL never closes its files; we do."""
        for file in getattr(self._api, "_sys_files", []):
            file.close()


def find(module: Any, *, poll_ns: int = 20_000_000, root: Path = ROOT) -> Found:
    """Both domains pyRAPL knows. module: the imported pyRAPL."""
    found = Found()
    for device, domain in _DOMAINS:
        try:
            api = module.DeviceAPIFactory.create_device_api(getattr(module.Device, device), None)
            first = api.energy()
        except PermissionError:
            found.missing.append(Missing(f"pyrapl.{domain}", "energy_uj is readable by root only", GRANT))
        except Exception as error:  # noqa: BLE001  pyRAPL raises its own types, IndexError and OSError alike
            why = f"pyRAPL cannot read it here ({type(error).__name__})"
            found.missing.append(Missing(f"pyrapl.{domain}", why, "use the rapl source instead"))
        else:
            sockets = [socket for socket, value in enumerate(first) if value >= 0]
            found.sources.append(PyRaplSource(api, domain, sockets, poll_ns, root))
    return found


def load() -> tuple[Any | None, Missing | None]:
    """The pyRAPL module, or why not."""
    try:
        import pyRAPL
    except ImportError:
        return None, Missing("pyrapl", "the Python package pyRAPL is not installed", "pip install 'joulegraph[rapl]'")
    return pyRAPL, None
