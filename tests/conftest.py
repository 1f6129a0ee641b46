"""Fixtures that several packages' tests share: recorded real data (skipped with a reason where absent), an HTTP server
of one fixed answer."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite started in the background of a script ignores Ctrl-C, and so would the commands that its tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("joulegraph", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("joulegraph")  # how long an example takes beside other load says nothing about the code

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data() -> Path:
    """The recorded real data beside the project (JOULEGRAPH_DATA, else ../shared/data)."""
    path = Path(os.environ.get("JOULEGRAPH_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"recorded data not found at {path}; set JOULEGRAPH_DATA to run this test")
    return path


class OneAnswer(BaseHTTPRequestHandler):
    """Every POST gets the same short chat completion."""

    protocol_version = "HTTP/1.1"
    reply = b'{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}'

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(self.reply)))
        self.end_headers()
        self.wfile.write(self.reply)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def one_answer() -> Iterator[int]:
    """The port of a server that answers every POST alike (3 prompt tokens, 1 completion token)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), OneAnswer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()
