"""The same replay over TLS on real sockets: trusted by a CA file, trusted by nobody, not verified on purpose."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from loadgen.pacing import Pacer
from loadgen.replay import ReplayOptions, replay
from loadgen.target import Target, Tls, split_url
from loadgen.totals import Bounds, ReplayTotals
from traces.errors import UserError
from traces.workflow import Node, Workflow

S = 1_000_000_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def play(kit: Any, certificate: tuple[Path, Path], tls: Tls) -> tuple[list[dict[str, Any]], ReplayTotals]:
    rows: list[dict[str, Any]] = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def main() -> ReplayTotals:
        loop = asyncio.get_running_loop()
        with Pacer(loop, time.monotonic_ns) as pacer:
            script = lambda a: kit.stream(a, first_ns=0, gap_ns=0)  # noqa: E731
            server = kit.Server(time.monotonic_ns, pacer.sleep_until, script)
            listener, port = await server.start(loop, ssl=context)
            totals = await replay(
                [Workflow(f"w{i}", (Node(f"w{i}", "a", 0, 20, 4),)) for i in range(8)],
                Target("127.0.0.1", port, ssl=tls), t0_ns=time.monotonic_ns(), now_ns=time.monotonic_ns,
                sleep_until=pacer.sleep_until, connect=loop.create_connection, write=rows.append,
                options=ReplayOptions(bounds=Bounds(S * 9, S * 9, 1, 1)),
            )  # fmt: skip
            listener.close()
            await listener.wait_closed()
            return totals

    return rows, uvloop.run(main())


def test_trusted_by_its_ca_file(kit: Any, certificate: tuple[Path, Path]) -> None:
    _, totals = play(kit, certificate, Tls(ca_file=str(certificate[0])))
    assert totals.outcomes == {"ok": 8} and totals.usage_exact == 8


def test_unverified_on_purpose(kit: Any, certificate: tuple[Path, Path]) -> None:
    assert play(kit, certificate, Tls(verify=False))[1].outcomes == {"ok": 8}


def test_untrusted_is_unreachable_and_says_why(kit: Any, certificate: tuple[Path, Path]) -> None:
    rows, totals = play(kit, certificate, Tls())
    assert totals.outcomes == {"unreachable": 8}
    assert "certificate" in rows[0]["error"].lower()


def test_urls() -> None:
    assert split_url("https://h.example/v1/") == ("h.example", 443, "", True)
    assert split_url("http://[::1]:8000/base/v1") == ("::1", 8000, "/base", False)
    assert split_url("localhost:9") == ("localhost", 9, "", False)
    for bad in ("ftp://x", "http://", "http://h:x"):
        with pytest.raises(UserError, match="--target"):
            split_url(bad)
    with pytest.raises(UserError, match="PEM"):
        Tls(ca_file="/no/such.pem").context()
    assert "secret" not in repr(replace(Target("h", 1), api_key="secret"))


def test_what_answers_is_asked_over_the_same_trust(certificate: tuple[Path, Path]) -> None:
    """joulegraph replay asks GET /v1/models first: answered with the CA file, refused in a sentence without."""
    import http.server
    import threading

    from joulegraph.targets import ask

    class Models(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"data": [{"id": "m", "owned_by": "vllm"}]}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing."""

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Models) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_address[1]}"
        assert ask(url, tls=Tls(ca_file=str(certificate[0])).context()).models == ("m",)
        assert ask(url, tls=Tls(verify=False).context()).exact_lengths
        with pytest.raises(UserError, match="no engine answers there"):
            ask(url)
        server.shutdown()
