"""A reply that is one small JSON document, kept to be read once it is whole. May not know: what it says, sockets."""

from __future__ import annotations

from typing import Any, Final

from engines.dialects import Observer
from engines.parrot.protocol import parse_json

KEEP: Final = 8 << 20
"""bytes of a reply kept for reading"""


class ReplyBody(Observer):
    """Keeps a reply's body, which is one small JSON document; a Parrot streams nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, body: bytes) -> int:
        """No token events."""
        self._size += len(body)
        if self._size <= KEEP:
            self._parts.append(body)
        return 0

    def finish(self) -> None:
        """Nothing is buffered."""

    def json(self) -> dict[str, Any] | None:
        """The document, None when it is none (or too long to keep)."""
        return parse_json(b"".join(self._parts)) if self._size <= KEEP else None
