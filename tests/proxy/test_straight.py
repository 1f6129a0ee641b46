"""What is written straight to a socket arrives as if the transport had written it: whole, in order, once."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.straight import Straight


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


@contextmanager
def opened(**info: Any) -> Iterator[tuple[Holding, Straight, socket.socket]]:
    """A transport, what writes past it, and the client's end."""
    near, far = pair()
    with near, far:
        transport = Holding(near, **info)
        straight = Straight(transport)  # type: ignore[arg-type]
        yield transport, straight, far
        straight.close()


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


pieces = st.lists(st.tuples(st.binary(min_size=1, max_size=3000) | st.none(), st.booleans()), max_size=40)


@given(pieces)
def test_every_byte_comes_once_and_in_order(script: list[tuple[bytes | None, bool]]) -> None:
    """None: the client reads and the transport goes on; before that the socket fills up in the middle of a piece. A
    piece comes as one right behind others, or, with True, the transport wrote one of its own before it."""
    with opened() as (transport, straight, far):
        got, sent = b"", b""
        for piece, other in script:
            if piece is None:
                got += taken(far)
                transport.go_on()
                continue
            sent += piece + b"own" * other + piece * other
            straight.again(piece)
            if other:
                transport.write(b"own")
                straight.write(piece)
        while transport.kept:
            got += taken(far)
            transport.go_on()
        assert got + taken(far) == sent


def test_the_transport_is_passed_only_while_it_holds_nothing() -> None:
    with opened() as (transport, straight, far):
        straight.write(b"one")
        assert (transport.through, taken(far)) == ([], b"one")
        transport.kept = b"two"
        straight.write(b"three")
        straight.again(b"four")
        assert (transport.through, taken(far)) == ([b"three"], b"twothreefour")


def test_a_full_socket_is_left_to_the_transport_until_it_holds_nothing() -> None:
    with opened() as (transport, straight, far):
        straight.write(b"a" * 300_000)
        straight.again(b"b")
        assert transport.through[-1] == b"b"
        while transport.kept:
            taken(far)
            transport.go_on()
        taken(far)
        straight.again(b"c")
        assert (transport.through[-1], taken(far)) == (b"b", b"c")


def test_a_closing_transport_decides_itself() -> None:
    with opened() as (transport, straight, far):
        transport.closing = True
        straight.write(b"late")
        assert (transport.through, taken(far)) == ([b"late"], b"")


def test_nothing_is_written_past_a_lost_transport() -> None:
    """Its socket's number may be another's by now."""
    with opened() as (transport, straight, far):
        straight.write(b"x")
        straight.close()
        transport.closing = True
        straight.again(b"late")
        assert (transport.through, taken(far)) == ([b"late"], b"x")


def test_the_client_sees_the_end_when_the_transport_closes() -> None:
    """Our copy of the socket does not hold the connection open."""
    near, far = pair()
    with far:
        straight = Straight(Holding(near))  # type: ignore[arg-type]
        straight.write(b"x")
        straight.close()
        near.close()
        assert (far.recv(2), far.recv(2)) == (b"x", b"")


def test_a_client_that_is_gone_is_found_by_the_transport() -> None:
    with opened() as (transport, straight, far):
        straight.write(b"x")
        far.close()
        try:
            straight.again(b"x")
        except BrokenPipeError:
            pass  # of the transport's own send
        assert transport.through == [b"x"]


def test_what_lies_between_is_never_passed() -> None:
    for info in ({"sslcontext": object()}, {"socket": None}):
        with opened(**info) as (transport, straight, _):
            straight.write(b"secret")
            straight.again(b"more")
            assert transport.through == [b"secret", b"more"]


def test_where_no_more_files_may_be_open_the_transport_writes() -> None:
    with opened() as (transport, straight, far):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            straight.write(b"one")
            straight.again(b"two")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert (transport.through, taken(far)) == ([b"one", b"two"], b"onetwo")
