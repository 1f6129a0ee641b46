"""A chunk straight to the client's socket, past the transport's own bookkeeping, where that comes to the same.

That is while the transport holds nothing back. What the socket does not take, and every error, goes to the transport,
which does then what it always does (keep, pause, end). The socket is a copy: its number stays ours until we close it,
whenever the transport closes. And send(2) is the shorter way: write(2) leads through the file system. May not know:
what is written, who reads it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from socket import SocketType
from typing import Any


class Straight:
    """Writes to one client."""

    __slots__ = ("_clear", "_plain", "_send", "_socket", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._plain: Any = transport.get_extra_info("socket")
        """the transport's socket, unless something lies between (TLS), or there is none"""
        if transport.get_extra_info("sslcontext") is not None:
            self._plain = None
        self._socket: SocketType | None = None
        self._send: Callable[[bytes], int] = _takes_nothing
        self._clear = False
        """the transport held nothing back, and only we wrote since"""

    def write(self, data: bytes) -> None:
        """Write now, behind everything written before."""
        self._clear = False
        self.again(data)

    def again(self, data: bytes) -> None:
        """Write now, where nobody else has written to the transport since the last time."""
        if not self._clear and not self._is_clear():
            self._transport.write(data)
            return
        try:
            sent = self._send(data)
        except OSError:  # it takes nothing just now, or the client is gone: the transport finds out
            sent = 0
        if sent != len(data):
            self._clear = False
            self._transport.write(data[sent:])

    def _is_clear(self) -> bool:
        transport, plain = self._transport, self._plain
        if plain is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        if self._socket is None:
            try:
                copy = os.dup(plain.fileno())
            except OSError:  # as many files are open as may be
                self._plain = None
                return False
            self._socket = SocketType(plain.family, plain.type, plain.proto, copy)
            self._send = self._socket.send
        self._clear = True
        return True

    def close(self) -> None:
        """The transport is lost."""
        self._clear, self._plain, self._send = False, None, _takes_nothing
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _takes_nothing(data: bytes) -> int:
    return 0
