"""Scraper and receiver beside a run, over sockets; a run's share of a stream that outlives it."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegraph.join.steps import mark, take
from joulegraph.join.watch import watching
from traces.errors import UserError
from traces.rundir import RunDir


def exported() -> bytes:
    """One resource, one scope, one llm_request span."""
    attribute = b"\x0a\x11gen_ai.request.id" + b"\x12\x0c\x0a\x0achatcmpl-a"
    span = b"\x2a\x0bllm_request" + b"\x39" + (1).to_bytes(8, "little") + b"\x41" + (2).to_bytes(8, "little")
    span += b"\x4a" + bytes([len(attribute)]) + attribute
    scope = b"\x12" + bytes([len(span)]) + span
    resource = b"\x12" + bytes([len(scope)]) + scope
    return b"\x0a" + bytes([len(resource)]) + resource


class Engine(BaseHTTPRequestHandler):
    """Answers /metrics with a counter that grows; tells when it was asked three times."""

    asked = 0
    thrice = Event()

    def do_GET(self) -> None:
        Engine.asked += 1
        body = b"vllm:generation_tokens_total %d\nvllm:kv_cache_usage_perc 0.5\n" % Engine.asked
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if Engine.asked >= 3:
            Engine.thrice.set()

    def log_message(self, *args: object) -> None:
        """Quiet."""


def post(port: int, body: bytes) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/traces", body, {"Content-Type": "application/x-protobuf"}
    )
    try:
        with opener.open(request, timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_both_beside_a_run(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    server = HTTPServer(("127.0.0.1", 0), Engine)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        with watching(run, f"http://127.0.0.1:{server.server_address[1]}", otlp_port=0) as watch:
            assert watch.otlp_port is not None
            assert post(watch.otlp_port, exported()) == 200
            assert post(watch.otlp_port, b"\xff\xff") == 400
            assert Engine.thrice.wait(20)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    rows = list(run.rows("engine"))
    counters = [r for r in rows if r["kind"] == "counters"]
    assert len(counters) >= 3 and watch.scrapes == len(counters)
    assert "vllm:kv_cache_usage_perc" in counters[0]["values"]
    assert counters[1]["values"]["vllm:generation_tokens_total"] == 2.0
    assert counters[2]["t_ns"] - counters[0]["t_ns"] > 400_000_000
    assert [r["text"] for r in rows if r["kind"] == "span"] == ["chatcmpl-a"] and watch.spans == 1


def test_nothing_there_is_a_line_and_no_failure(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with watching(run, url):
            pass
    assert [r["kind"] for r in run.rows("engine")] == ["log"]


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run, port = RunDir.create(tmp_path / "run"), taken.getsockname()[1]
        with pytest.raises(UserError, match="cannot be listened on"), watching(run, None, otlp_port=port):
            pass


@given(st.lists(st.lists(st.integers(0, 10**6), max_size=6), min_size=1, max_size=5), st.binary(max_size=4))
def test_each_run_gets_its_own_lines(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[int]], torn: bytes
) -> None:
    folder = tmp_path_factory.mktemp("steps")
    source = folder / "stream.jsonl"
    header = b'{"journal":"engine","version":1}\n'
    assert mark(source) == 0
    for n, stamps in enumerate(runs):
        start = mark(source)
        with source.open("ab") as file:
            if source.stat().st_size == 0:
                file.write(header)
            file.writelines(b'{"t_ns":%d,"kind":"step"}\n' % t for t in stamps)
        run = RunDir.create(folder / f"run{n}")
        assert take(run, source, start) == len(stamps)
        assert [row["t_ns"] for row in run.rows("engine")] == stamps
    with source.open("ab") as file:
        start = mark(source)
        file.write(torn.replace(b"\n", b""))
    assert take(RunDir.create(folder / "last"), source, start) == 0


def test_no_stream_no_file(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    assert take(run, tmp_path / "none", 0) == 0
    assert run.journals("engine") == []
