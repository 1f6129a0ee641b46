"""A chunk straight to the client's socket, past the transport's own bookkeeping, where that comes to the same.

That is while the transport holds nothing back and does not close. What the socket does not take, and every error, goes
to the transport, which does then what it always does (keep, pause, end). May not know: what is written, who reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from os import write


class Straight:
    """Writes to one plain socket."""

    __slots__ = ("_closing", "_kept", "_send", "_socket", "_through")

    def __init__(self, transport: asyncio.Transport, socket: int) -> None:
        self._socket = socket
        self._send: Callable[[int, bytes], int] = write
        self._through: Callable[[bytes], None] = transport.write
        self._kept: Callable[[], int] = transport.get_write_buffer_size
        self._closing: Callable[[], bool] = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write now, behind everything written before."""
        if self._kept() == 0 and not self._closing():
            try:
                sent = self._send(self._socket, data)
            except OSError:  # it takes nothing just now, or the client is gone: the transport finds out
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self._through(data)


def straight(transport: asyncio.Transport) -> Callable[[bytes], None]:
    """How to write to this transport at once: to its socket, unless something lies between (TLS), or there is none."""
    socket = transport.get_extra_info("socket")
    if socket is None or transport.get_extra_info("sslcontext") is not None:
        return transport.write
    return Straight(transport, socket.fileno()).write
