"""What is written straight to a socket arrives as if the transport had written it: whole, in order, once."""

from __future__ import annotations

import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.straight import straight


class Holding:
    """A transport that keeps what its socket does not take until it is told to go on, as asyncio's do."""

    def __init__(self, end: socket.socket, **info: Any) -> None:
        self.end = end
        self.info = {"socket": end, **info}
        self.kept = b""
        self.through: list[bytes] = []
        self.closing = False

    def get_extra_info(self, name: str) -> Any:
        return self.info.get(name)

    def get_write_buffer_size(self) -> int:
        return len(self.kept)

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.through.append(data)
        if not self.closing:
            self.kept += data
            self.go_on()

    def go_on(self) -> None:
        try:
            self.kept = self.kept[self.end.send(self.kept) :] if self.kept else b""
        except BlockingIOError:
            pass


def pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return near, far


def taken(far: socket.socket) -> bytes:
    got = b""
    try:
        while piece := far.recv(1 << 16):
            got += piece
    except BlockingIOError:
        pass
    return got


pieces = st.lists(st.binary(min_size=1, max_size=3000) | st.none(), max_size=40)


@given(pieces)
def test_every_byte_comes_once_and_in_order(script: list[bytes | None]) -> None:
    """None: the client reads and the transport goes on; before that the socket fills up in the middle of a piece."""
    near, far = pair()
    with near, far:
        transport = Holding(near)
        write = straight(transport)  # type: ignore[arg-type]
        got = b""
        for piece in script:
            if piece is None:
                got += taken(far)
                transport.go_on()
            else:
                write(piece)
        while transport.kept:
            got += taken(far)
            transport.go_on()
        assert got + taken(far) == b"".join(p for p in script if p is not None)


def test_the_transport_is_passed_only_while_it_holds_nothing() -> None:
    near, far = pair()
    with near, far:
        transport = Holding(near)
        write = straight(transport)  # type: ignore[arg-type]
        write(b"one")
        assert (transport.through, taken(far)) == ([], b"one")
        transport.kept = b"two"
        write(b"three")
        assert (transport.through, taken(far)) == ([b"three"], b"twothree")


def test_a_closing_transport_decides_itself() -> None:
    """Its socket may be closed by now, and its number another's."""
    near, far = pair()
    with near, far:
        transport = Holding(near)
        write = straight(transport)  # type: ignore[arg-type]
        transport.closing = True
        write(b"late")
        assert (transport.through, taken(far)) == ([b"late"], b"")


def test_a_client_that_is_gone_is_found_by_the_transport() -> None:
    near, far = pair()
    with near:
        transport = Holding(near)
        write = straight(transport)  # type: ignore[arg-type]
        far.close()
        try:
            write(b"x")
        except BrokenPipeError:
            pass  # of the transport's own send
        assert transport.through == [b"x"]


def test_what_lies_between_is_never_passed() -> None:
    near, far = pair()
    with near, far:
        for transport in (Holding(near, sslcontext=object()), Holding(near, socket=None)):
            straight(transport)(b"secret")  # type: ignore[arg-type]
            assert transport.through == [b"secret"]
