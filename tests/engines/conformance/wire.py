"""A blocking raw HTTP client for the conformance cases: what is on the wire, nothing hidden (tests only)."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass
class Raw:
    """A reply as it came: head and de-chunked body; chunks as they were framed."""

    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


def request_bytes(path: str, body: Any, headers: dict[str, str] | None = None, method: str | None = None) -> bytes:
    """One request, Connection: close."""
    raw = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    fields = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(raw))}
    if body is not None:
        fields["Content-Type"] = "application/json"
    fields |= headers or {}
    first = f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1"
    return "\r\n".join([first, *(f"{k}: {v}" for k, v in fields.items())]).encode() + b"\r\n\r\n" + raw


def fetch(host: str, port: int, path: str, body: Any = None, **more: Any) -> Raw:
    """A whole exchange."""
    with socket.create_connection((host, port), timeout=60) as sock:
        sock.sendall(request_bytes(path, body, **more))
        pieces = []
        while piece := sock.recv(65_536):
            pieces.append(piece)
    return parse(b"".join(pieces))


def parse(raw: bytes) -> Raw:
    """Cut a reply into its parts."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    chunks: list[bytes] = []
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while True:
            size, _, rest = rest.partition(b"\r\n")
            n = int(size, 16)
            if not n:
                break
            chunks.append(rest[:n])
            rest = rest[n + 2 :]
        rest = b"".join(chunks)
    return Raw(int(lines[0].split()[1]), headers, rest, chunks)
