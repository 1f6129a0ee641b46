"""The recorded vLLM exchanges, cut into requests and replies (tests only)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exchange:
    """One recorded request with its raw reply: head bytes and chunked body as on the wire."""

    title: str
    path: str
    headers: dict[str, str]
    request: bytes
    raw: bytes

    @property
    def chunks(self) -> list[bytes]:
        """The HTTP chunks of the reply's body."""
        rest = self.raw.partition(b"\r\n\r\n")[2]
        out = []
        while True:
            size, _, rest = rest.partition(b"\r\n")
            n = int(size, 16)
            if n == 0:
                return out
            out.append(rest[:n])
            rest = rest[n + 2 :]

    @property
    def body(self) -> bytes:
        """The de-chunked body."""
        return b"".join(self.chunks)


def streams(data: Path) -> list[Exchange]:
    """Every exchange of sse.txt."""
    text = (data / "vllm" / "sse.txt").read_bytes()
    out = []
    for part in re.split(rb"##### REQUEST \d+: ", text)[1:]:
        title, _, rest = part.partition(b"\n")
        request, raw = re.split(rb"##### RESPONSE \d+[^\n]*\n", rest)
        head, _, body = request.replace(b"\r\n", b"\n").partition(b"\n\n")
        lines = head.decode().split("\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        out.append(Exchange(title.decode(), lines[0].split()[1], headers, body.strip(), raw))
    return out


def errors(data: Path) -> dict[str, tuple[int, dict[str, str], str]]:
    """errors.txt by title: status, headers, body."""
    text = (data / "vllm" / "errors.txt").read_text()
    out = {}
    for part in text.split("\n===== "):
        title, _, rest = part.removeprefix("===== ").partition("\n")
        line, _, body = rest.partition("\n")
        status = int(line.split()[1])
        headers = dict(item.split(": ", 1) for item in re.findall(r"'([^']*)'", line))
        out[title] = (status, headers, body.rstrip("\n"))
    return out
