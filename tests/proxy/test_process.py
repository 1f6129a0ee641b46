"""One worker as a real process: it says its port, records, and leaves on SIGTERM or when its parent is gone."""

from __future__ import annotations

import http.client
import os
import signal
from pathlib import Path

import pytest

from proxy.config import ProxyConfig
from proxy.process import ProcessConfig, proxy_process
from traces.child import Child, spawn
from traces.records import RequestRecord, from_row
from traces.rundir import RunDir
from traces.status import StatusReader


@pytest.fixture
def engine(one_answer: int) -> int:
    return one_answer


def begin(tmp_path: Path, engine: int) -> tuple[Child, RunDir, int]:
    run = RunDir.create(tmp_path / "run")
    config = ProxyConfig((f"http://127.0.0.1:{engine}",), run_key=b"k" * 32)
    child = spawn(
        proxy_process, ProcessConfig(config, "127.0.0.1", 0, run.path, run.file("proxy.status")), name="proxy-0"
    )
    message = child.lifeline.recv()
    assert "port" in message, message
    return child, run, message["port"]


def ask(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/completions", b'{"model":"m","prompt":"p"}', {"X-Workflow-Id": "w"})
    body = connection.getresponse().read()
    connection.close()
    return body


@pytest.mark.parametrize("how", ["lifeline", "sigterm"])
def test_it_records_and_leaves(tmp_path: Path, engine: int, how: str) -> None:
    child, run, port = begin(tmp_path, engine)
    assert b'"prompt_tokens":3' in ask(port)
    if how == "sigterm":
        os.kill(child.process.pid or 0, signal.SIGTERM)
        child.process.join(10)
    assert child.stop() == 0
    (row,) = run.rows("requests")
    record = from_row(RequestRecord, row)
    assert (record.outcome, record.prompt_tokens, record.workflow_id) == ("ok", 3, "w")
    page = StatusReader(run.file("proxy.status"))
    assert (page.get("done"), page.get("in_flight"), page.get("journal_dropped")) == (1, 0, 0)


def test_hangup_reopens_the_journal(tmp_path: Path, engine: int) -> None:
    child, run, port = begin(tmp_path, engine)
    ask(port)
    journal = run.journal("requests", "0")
    rotated = tmp_path / "rotated.jsonl"
    journal.rename(rotated)
    os.kill(child.process.pid or 0, signal.SIGHUP)
    ask(port)
    assert child.stop() == 0
    assert len(rotated.read_text().splitlines()) + len(list(run.rows("requests"))) == 3  # header, two records
    assert journal.exists()


def test_a_port_in_use_is_one_sentence(tmp_path: Path, engine: int) -> None:
    run = RunDir.create(tmp_path / "run")
    config = ProxyConfig(("http://127.0.0.1:9",), run_key=b"k" * 32)
    child = spawn(proxy_process, ProcessConfig(config, "127.0.0.1", engine, run.path), name="proxy-0")
    error = child.lifeline.recv()["error"]
    assert str(engine) in error
    assert "in use" in error
    assert child.stop() == 0
