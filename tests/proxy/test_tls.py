"""TLS on both sides, with a certificate made on the spot."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from proxy.config import ProxyConfig
from proxy.process import ProcessConfig, proxy_process
from proxy.server import start
from traces.child import spawn
from traces.errors import UserError
from traces.records import RequestRecord
from traces.rundir import RunDir

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; it makes the certificate of this test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


async def exchange(cert: str, key: str, trusted: str | None) -> tuple[bytes, list[RequestRecord]]:
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(cert, key)

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REPLY)
        await writer.drain()
        await reader.read()
        writer.close()

    loop: Any = asyncio.get_running_loop()
    upstream = await asyncio.start_server(engine, "127.0.0.1", 0, ssl=server_context)
    records: list[RequestRecord] = []
    url = f"https://127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    proxy = await start(
        ProxyConfig((url,), upstream_ca=trusted, tls_cert=cert, tls_key=key, run_key=b"k"),
        host="127.0.0.1",
        port=0,
        now_ns=time.monotonic_ns,
        connect=loop.create_connection,
        serve=loop.create_server,
        write=records.append,
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=ssl.create_default_context(cafile=cert))
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n")
    got = await reader.read()
    writer.close()
    await writer.wait_closed()
    await proxy.close()
    upstream.close()
    await asyncio.sleep(0.05)
    return got, records


def test_both_sides(certificate: tuple[str, str]) -> None:
    got, records = asyncio.run(exchange(*certificate, certificate[0]))
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert records[0].outcome == "ok"


def test_an_untrusted_engine_is_refused(certificate: tuple[str, str]) -> None:
    got, records = asyncio.run(exchange(*certificate, None))
    assert got.startswith(b"HTTP/1.1 502 ")
    assert records[0].outcome == "unreachable"


@pytest.mark.parametrize("what", ["upstream_ca", "tls_cert"])
def test_missing_files_are_one_sentence(what: str) -> None:
    async def begin() -> None:
        loop: Any = asyncio.get_running_loop()
        files: dict[str, Any] = {what: "/nowhere.pem"}
        await start(
            ProxyConfig(("https://127.0.0.1:1",), **files),
            host="127.0.0.1",
            port=0,
            now_ns=time.monotonic_ns,
            connect=loop.create_connection,
            serve=loop.create_server,
            write=print,
        )

    with pytest.raises(UserError, match=r"/nowhere\.pem"):
        asyncio.run(begin())


def test_a_client_that_never_says_hello_is_cut_off_like_one_that_never_sends_a_head(
    tmp_path: Path, certificate: tuple[str, str]
) -> None:
    run = RunDir.create(tmp_path / "run")
    cert, key = certificate
    config = ProxyConfig(("http://127.0.0.1:9",), tls_cert=cert, tls_key=key, run_key=b"k", head_timeout_ns=500_000_000)
    child = spawn(proxy_process, ProcessConfig(config, "127.0.0.1", 0, run.path), name="proxy")
    with socket.create_connection(("127.0.0.1", child.lifeline.recv()["port"]), timeout=20) as client:
        assert client.recv(1) == b""
    assert child.stop() == 0
