"""Power of the whole node from its management controller: ipmitool (DCMI) or Redfish. For closure, never for requests.

A reading takes tens of milliseconds to seconds and is a value the controller cached, so a thread of its own fetches it
every two seconds and the sampler takes what has arrived. May not know: what is done with the difference.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections import deque
from collections.abc import Callable
from threading import Event, Thread

from energy.source import Found, Missing, Reading
from traces.records import PowerSample, SensorInfo
from traces.seams import NowNs

_EVERY_S = 2.0
_TIMEOUT_S = 5.0
_POLL_NS = 500_000_000
AUTH = "JOULEGRAPH_REDFISH_AUTH"
"""user:password for Redfish, only ever sent to the given controller"""
Fetch = Callable[[], int]
"""Node power in mW. OSError, ValueError, KeyError or SubprocessError when it cannot be had."""
_FAILURES = (OSError, ValueError, KeyError, IndexError, TypeError, subprocess.SubprocessError)


class NodeSource:
    """A slow reading behind a thread. read() never waits: it hands over what arrived since the last call."""

    def __init__(self, name: str, fetch: Fetch, now_ns: NowNs, every_s: float = _EVERY_S) -> None:
        self.name = name
        self.poll_ns = _POLL_NS
        self.infos: tuple[SensorInfo, ...] = (
            SensorInfo(
                source=name,
                domain="node",
                device="node",
                reading="gauge",
                unit="mW",
                period_ns=None,
                resolution=1000,
                scope="node: everything behind the power supplies",
                limits="seconds old when read: for closure over minutes only",
            ),
        )
        self._fetch, self._now_ns, self._every_s = fetch, now_ns, every_s
        self._arrived: deque[PowerSample] = deque(maxlen=100)
        self._stop = Event()
        self._thread: Thread | None = None

    def read(self, now_ns: NowNs) -> list[Reading]:
        """Samples that arrived since the last call; the first call starts the thread."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        readings: list[Reading] = []
        while self._arrived:
            readings.append(self._arrived.popleft())
        return readings

    def once(self) -> PowerSample:
        """One fetch, now."""
        t0 = self._now_ns()
        try:
            value, why = self._fetch(), None
        except _FAILURES as error:
            value, why = None, f"{type(error).__name__}: {error}"
        return PowerSample(self.name, t0, self._now_ns(), value, why)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._arrived.append(self.once())
            self._stop.wait(self._every_s)

    def close(self) -> None:
        """Let the thread end by itself."""
        self._stop.set()


def find_ipmi(now_ns: NowNs, run: Callable[[], str] | None = None) -> Found:
    """Node power through ipmitool's DCMI command. run: gives its output (None: the real one)."""
    if run is None and shutil.which("ipmitool") is None:
        return Found(missing=[Missing("node.ipmi", "ipmitool is not installed", "sudo apt install ipmitool")])
    source = NodeSource("node.ipmi", lambda: parse_dcmi((run or _ipmitool)()), now_ns)
    return _tried(source, "sudo modprobe ipmi_devintf, and run the sampler as root")


def find_redfish(url: str, now_ns: NowNs, get: Callable[[str], bytes] | None = None) -> Found:
    """Node power from a Redfish chassis, e.g. https://bmc/redfish/v1/Chassis/1. get: fetches a path (None: https)."""
    fetch = get or _https
    source = NodeSource("node.redfish", lambda: redfish_mw(url.rstrip("/"), fetch), now_ns)
    return _tried(source, f"give redfish:https://HOST/redfish/v1/Chassis/ID and {AUTH}=user:password")


def _tried(source: NodeSource, remedy: str) -> Found:
    sample = source.once()
    if sample.value is None:
        return Found(missing=[Missing(source.name, sample.why or "no reading", remedy)])
    return Found([source])


def parse_dcmi(text: str) -> int:
    """mW from `ipmitool dcmi power reading`. ValueError when it holds no reading."""
    match = re.search(r"Instantaneous power reading:\s+(\d+)\s+Watts", text)
    if match is None:
        raise ValueError("no instantaneous power in ipmitool's reply")
    return int(match[1]) * 1000


def redfish_mw(url: str, get: Callable[[str], bytes]) -> int:
    """mW from EnvironmentMetrics (newer) or Power (older) of a chassis."""
    try:
        reading = json.loads(get(f"{url}/EnvironmentMetrics"))["PowerWatts"]["Reading"]
    except (OSError, KeyError, TypeError, ValueError):
        reading = json.loads(get(f"{url}/Power"))["PowerControl"][0]["PowerConsumedWatts"]
    return int(float(reading) * 1000)


def _ipmitool() -> str:
    command = ["ipmitool", "dcmi", "power", "reading"]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True).stdout


def _https(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    if auth := os.environ.get(AUTH):
        request.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
        body: bytes = reply.read(1 << 20)
    return body
