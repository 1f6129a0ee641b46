"""What answers at a URL is asked before anything starts: a Parrot by a session that is closed again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from joulegraph.targets import ask_parrot
from traces.errors import UserError


class Asked(BaseHTTPRequestHandler):
    """Answers a POST with the server's `reply`, anything else with 200; keeps what was asked."""

    server: Any

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.server.asked.append((self.command, self.path, self.rfile.read(size)))
        status, body = self.server.reply if self.command == "POST" else (200, {})
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_DELETE = do_POST

    def log_message(self, *args: object) -> None:
        """Not to stderr."""


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    made.asked, made.reply = [], (200, {"session_id": 3, "session_auth": "1"})
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def url(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_session_is_opened_and_closed_again(server: Any) -> None:
    ask_parrot(url(server) + "/v1/")
    assert server.asked == [("POST", "/v1/session", b"{}"), ("DELETE", "/v1/session/3", b"{}")]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ((404, {"detail": "Not Found"}), "/v1/session answered 404; give the address of a Parrot"),
        ((200, {"object": "list"}), "gives no session_id"),
        ((200, []), "gives no session_id"),
    ],
)
def test_what_is_no_parrot(server: Any, reply: Any, why: str) -> None:
    server.reply = reply
    with pytest.raises(UserError, match=why):
        ask_parrot(url(server))


def test_nobody_there(server: Any) -> None:
    there = url(server)
    server.server_close()
    with pytest.raises(UserError, match="no Parrot answers there"):
        ask_parrot(there)
