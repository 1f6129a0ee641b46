"""What all launchers share: a started engine as a value, waiting for health, and the decisive line of a log.

May not know: any particular engine.
"""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from traces.errors import UserError

_DECISIVE = re.compile(
    r"(\w*(Error|Exception|Exit)\b: .+|error: .+|CUDA out of memory.*|No such file.*|"
    r"engine core exited unexpectedly)"
)
_FOLLOW_UPS = ("Engine core initialization failed", "EngineCore encountered an issue")
_PREFIX = re.compile(r"^\(\w+ pid=\d+\)\s*|^\w+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s*")


@dataclass
class Launched:
    """An engine that answers. Leaving the `with` block stops it (attached ones are left alone)."""

    host: str
    port: int
    model: str
    facts: dict[str, Any] = field(default_factory=dict)
    """version, flags, model, what the run directory should say of it"""
    stop: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def check_port(host: str, port: int) -> None:
    """UserError when something listens there already."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose a free --port") from None


def get(host: str, port: int, path: str, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """One GET. OSError or http.client.HTTPException when there is no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def healthy(host: str, port: int) -> bool:
    """Whether /health says 200."""
    try:
        return get(host, port, "/health", 2.0)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def models(host: str, port: int) -> list[str]:
    """Model names an engine serves; empty where it does not say."""
    try:
        status, body = get(host, port, "/v1/models")
        rows = orjson.loads(body).get("data") or [] if status == 200 else []
        return [str(row["id"]) for row in rows]
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return []


TELL_S = 5.0


def await_health(
    host: str, port: int, *, alive: Callable[[], bool], timeout_s: float, progress: Callable[[float], None]
) -> bool:
    """Wait for /health; False when the engine ended or the time is over. progress(seconds waited) every TELL_S."""
    start = told = time.monotonic()
    while (now := time.monotonic()) - start < timeout_s:
        if healthy(host, port):
            return True
        if not alive():
            return False
        if now - told >= TELL_S:
            told = now
            progress(now - start)
        time.sleep(0.1)
    return False


def tail(log: Path, lines: int = 12) -> list[str]:
    """The last lines of a log."""
    try:
        return log.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def _with_detail(rows: list[str], index: int, line: str) -> str:
    """pydantic says in the first line how many errors there are and in the next which."""
    return (
        f"{line}: {rows[index + 1]}"
        if re.search(r"\d+ validation errors? for \w+$", line) and index + 1 < len(rows)
        else line
    )


def decisive_line(log: Path) -> str:
    """The line of a log that says why it ended: the last error, else the last line."""
    rows = [_PREFIX.sub("", row).strip() for row in tail(log, 4000)]
    found = [_with_detail(rows, i, match.group(0)) for i, row in enumerate(rows) if (match := _DECISIVE.search(row))]
    # The last error that is no follow-up of another names the cause; every request under way repeats the follow-up.
    causes = [line for line in found if not any(word in line for word in _FOLLOW_UPS)]
    chosen = (causes or found or [row for row in rows if row] or ["the log is empty"])[-1]
    return chosen[:400]
