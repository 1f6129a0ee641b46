"""WebSockets through the proxy: bytes both ways once the engine has switched, and no way past the allow-list."""

from __future__ import annotations

from typing import Any

import pytest

HANDSHAKE = (
    b"GET /v1/realtime?model=m HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: abc\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_websocket_tunnel(rig: Any) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(HANDSHAKE + b"early")
        engine = await r.accepted()
        await engine.has(b"\r\n\r\n")
        assert b"Sec-WebSocket-Key: abc\r\n" in engine.got
        assert b"Upgrade: websocket\r\n" in engine.got
        client.send(b", too")
        reply = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi"
        engine.send(reply[:10])
        await r.sleep(0.1)
        engine.send(reply[10:40])
        await r.sleep(0.1)
        assert engine.got.endswith(b"\r\n\r\n")  # nothing of the client before the engine has switched
        engine.send(reply[40:])
        await client.has(b"hi")
        await engine.has(b"early, too")
        assert client.got == reply
        client.send(b"\x81\x82....")
        await engine.has(b"\x81\x82....")
        client.transport.close()
        await engine.end()
        record = await r.settle()
        assert (record.outcome, record.status, record.path) == ("ok", 101, "/v1/realtime")
        assert (record.bytes_in, sum(record.read_bytes)) == (16, len(reply))

    rig(scenario)


@pytest.mark.parametrize("cut", [5, 40, 1000])
@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope", "rejected"),
        (b"HTTP/1.1 426 Upgrade Required\r\ntransfer-encoding: chunked\r\n\r\n4\r\nnope\r\n0\r\n\r\n", "rejected"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\nnope", "error"),
    ],
)
def test_a_refused_websocket_is_no_way_past_the_allow_list(rig: Any, reply: bytes, outcome: str, cut: int) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(HANDSHAKE + b"POST /sleep HTTP/1.1\r\nHost: p\r\n\r\n")
        engine = await r.accepted()
        await engine.has(b"\r\n\r\n")
        engine.send(reply[:cut])
        await r.sleep(0.1)
        engine.send(reply[cut:])
        await client.has(b"nope")
        client.send(b"POST /sleep HTTP/1.1\r\nHost: p\r\n\r\n")
        await engine.end()
        await client.end()
        assert b"sleep" not in engine.got
        assert b"Connection: close\r\n" in client.got
        record = await r.settle()
        assert (record.outcome, record.status) == (outcome, int(reply[9:12]))

    rig(scenario)


@pytest.mark.parametrize(
    "answer_", [b"", b"HTTP/1.1 101 Switch", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 101 X\r\n" + b"a: b\r\n" * 20_000]
)
def test_an_engine_that_does_not_answer_the_handshake(rig: Any, answer_: bytes) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(HANDSHAKE)
        engine = await r.accepted()
        await engine.has(b"\r\n\r\n")
        if answer_:
            engine.send(answer_)
        await r.sleep(0.1)
        engine.transport.close()
        await client.has(b"502 Bad Gateway")
        await client.end()
        assert (await r.settle()).outcome in ("error", "upstream_died")

    rig(scenario)


@pytest.mark.parametrize("engine_leaves", [False, True])
def test_a_client_that_takes_nothing_out_of_a_tunnel_is_cut_off(rig: Any, engine_leaves: bool) -> None:
    async def scenario(r: Any) -> None:
        client = await r.client(HANDSHAKE)
        engine = await r.accepted()
        engine.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        await client.has(b"\r\n\r\n")
        client.transport.pause_reading()
        engine.send(b"x" * 300_000)
        await r.sleep(1)
        if engine_leaves:
            engine.transport.close()
        await client.end()
        await engine.end()
        await r.settle()

    rig(scenario)
