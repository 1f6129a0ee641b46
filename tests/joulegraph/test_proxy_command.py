"""`joulegraph proxy` as a whole: workers on one port, control port, limits, signals, bad input; views of traffic."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engines.embedded.process import EngineConfig, engine_process
from joulegraph.commands.proxy import control_port
from joulegraph.control import Control, prometheus
from joulegraph.proxyworkers import split_limit
from joulegraph.traffic import Traffic
from proxy.page import slot_names
from traces.child import spawn
from traces.errors import UserError
from traces.rundir import RunDir
from traces.status import StatusPage, StatusReader


@pytest.fixture
def engine(one_answer: int) -> str:
    return f"http://127.0.0.1:{one_answer}"


def command(*args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "joulegraph", "proxy", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def ask(address: str, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    return reply.status, json.loads(data) if reply.headers.get_content_subtype() == "json" else data.decode()


def ends(child: subprocess.Popen[str], timeout: float = 20) -> tuple[int, str]:
    _, err = child.communicate(timeout=timeout)
    return child.returncode, err


def test_the_command(tmp_path: Path, engine: str) -> None:
    run = tmp_path / "run"
    child = command(
        "--upstream", engine, "--listen", "127.0.0.1:0", "--control", "0", "--workers", "2", "--max-concurrency", "5",
        "--record", str(run), "--key-env", "PROXY_KEY", "--json", PROXY_KEY="s3cret-of-the-proxy",
    )  # fmt: skip
    assert child.stdout is not None
    told = json.loads(child.stdout.readline())
    data, control = told["listen"], told["control"]
    tags = {"X-Workflow-Id": "w/1", "X-Workflow-Node": "a", "X-Workflow-Class": "agentic"}
    key = {"Authorization": "Bearer s3cret-of-the-proxy"}
    assert ask(data, "POST", "/v1/completions", "{}", **tags)[0] == 401
    for _ in range(8):
        assert ask(data, "POST", "/v1/completions", '{"model":"m","prompt":"p"}', **tags, **key)[0] == 200
    assert ask(data, "GET", "/workflows", **key)[0] == 404  # not through the data port
    assert ask(data, "GET", "/healthz", **key)[0] == 404
    assert ask(control, "GET", "/healthz") == (200, {"status": "ok", "workers": 2})
    for _ in range(5000):  # a request is recorded within 50 ms of its end
        status, found = ask(control, "GET", "/workflows/w/1")
        if status == 200 and found["requests"] == 8:
            break
    assert (found["class"], found["requests"], found["prompt_tokens"]) == ("agentic", 8, 24)
    assert {n["node_id"] for n in found["nodes"]} == {"a"}
    assert ask(control, "GET", "/workflows")[1]["workflows"][0]["workflow_id"] == "w/1"
    assert ask(control, "GET", "/workflows/unknown")[0] == 404
    metrics = ask(control, "GET", "/metrics")[1]
    assert "joulegraph_proxy_requests_total 8\n" in metrics
    assert "joulegraph_proxy_concurrency_limit 5\n" in metrics
    assert 'gen_ai_client_token_usage_total{gen_ai_token_type="input"} 24\n' in metrics
    assert ask(control, "PUT", "/limit", '{"max_concurrency": 7}')[0] == 200
    for bad in ('{"max_concurrency": 1}', '{"max_concurrency": true}', "{}", "x", "[]"):
        assert ask(control, "PUT", "/limit", bad)[0] == 400
    child.send_signal(signal.SIGTERM)
    assert ends(child)[0] == 0
    info = RunDir.open(run).info
    assert (info["state"], info["manifest"]["block_unit"], info["config"]["workers"]) == ("complete", "bytes", 2)
    assert len(list(RunDir.open(run).rows("requests"))) == 8
    for file in run.iterdir():
        assert b"s3cret" not in file.read_bytes()


def test_kill_of_the_parent_leaves_no_worker(tmp_path: Path, engine: str) -> None:
    run = tmp_path / "run"
    child = command("--upstream", engine, "--listen", "127.0.0.1:0", "--control", "0", "--record", str(run), "--json")
    assert child.stdout is not None
    told = json.loads(child.stdout.readline())
    assert ask(told["listen"], "POST", "/v1/completions", '{"prompt":"p"}')[0] == 200
    child.kill()
    child.communicate(timeout=20)  # the worker holds our pipe until it leaves
    with pytest.raises(OSError):
        ask(told["listen"], "POST", "/v1/completions", "{}")
    assert len(list(RunDir.open(run).rows("requests"))) == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--upstream", "ftp://x"], "not an http"),
        (["--upstream", "http://u:p@h"], "credentials"),
        (["--upstream", "http://127.0.0.1:1", "--listen", "0.0.0.0:0"], "not a loopback"),
        (["--upstream", "http://127.0.0.1:1", "--listen", "nonsense"], "HOST:PORT"),
        (["--upstream", "http://127.0.0.1:1", "--key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["--upstream", "http://127.0.0.1:1", "--workers", "0"], "at least 1"),
        (["--upstream", "http://127.0.0.1:1", "--workers", "3", "--max-concurrency", "2"], "3 workers"),
        (["--upstream", "http://127.0.0.1:1", "--record", "/proc/no"], "run directory"),
        (["--upstream", "http://127.0.0.1:1", "--control", "70000"], "--control 70000: not a port"),
        (["--upstream", "http://127.0.0.1:1", "--tls-cert", "no.pem"], "--tls-cert no.pem: cannot be used"),
        (["--upstream", "http://localhost:9", "--listen", "127.0.0.1:9"], "is where this proxy listens"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, args: list[str], says: str) -> None:
    more = [] if "--record" in args else ["--record", str(tmp_path / "run")]
    if "--listen" not in args:
        more += ["--listen", "127.0.0.1:0"]
    more += [] if "--control" in args else ["--control", "0"]
    code, err = ends(command(*args, *more))
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_the_control_port_is_beside_the_listen_port() -> None:
    assert [control_port(None, listen) for listen in (8001, 65535, 0)] == [8002, 65534, 0]
    assert control_port(0, 8001) == 0
    with pytest.raises(UserError, match="listens on that port"):
        control_port(8001, 8001)


def test_a_taken_port_leaves_no_run_directory(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for flags in (["--listen", port, "--control", "0"], ["--listen", "0", "--control", port]):
            child = command("--upstream", "http://127.0.0.1:1", *flags, "--record", str(tmp_path / "run"))
            code, err = ends(child)
            assert code == 2
            assert f"{flags[0 if flags[1] == port else 2]} 127.0.0.1:{port}: Address already in use" in err
            assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("limit", "workers", "shares"), [(None, 2, [None, None]), (5, 2, [3, 2]), (4, 4, [1, 1, 1, 1]), (7, 1, [7])]
)
def test_limits_are_split_whole(limit: int | None, workers: int, shares: list[int | None]) -> None:
    assert split_limit(limit, workers) == shares


def test_a_limit_below_the_workers_is_refused() -> None:
    with pytest.raises(UserError):
        split_limit(1, 2)


def row(workflow: str | None, name: str, start: int, end: int, *on: str) -> dict[str, Any]:
    return {
        "request_id": f"r-{name}", "node_id": name, "workflow_id": workflow, "outcome": "ok", "t_arrival_ns": start,
        "t_end_ns": end, "t_first_token_ns": start + 1, "completion_tokens": 2, "deps": [{"on": o} for o in on],
    }  # fmt: skip


def test_a_workflow_as_a_graph() -> None:
    traffic = Traffic()
    for made in (
        row("w", "a", 0, 10),
        row("w", "c", 12, 40, "a"),
        row("w", "b", 11, 20, "a"),
        row("w", "d", 45, 60, "b", "c"),
    ):
        traffic.take(made)
    traffic.take(row(None, "x", 0, 1))
    found = traffic.detail("w", {"w": {"active_uj": 7}})
    assert found is not None
    assert found["critical_path"] == ["a", "c", "d"]
    assert (found["makespan_ns"], found["energy"], found["completion_tokens"]) == (60, {"active_uj": 7}, 8)
    assert [n["node_id"] for n in found["nodes"]] == ["a", "b", "c", "d"]
    assert traffic.overview({})["untagged_requests"] == 1
    assert traffic.detail("x", {}) is None


def test_memory_of_workflows_is_bounded() -> None:
    traffic = Traffic(max_workflows=2, max_requests=3)
    for k in range(5):
        for name in ("w1", f"v{k}"):
            traffic.take(row(name, f"n{k}", k, k + 1))
    names = [w["workflow_id"] for w in traffic.overview({})["workflows"]]
    assert names == ["v4", "w1"]
    found = traffic.detail("w1", {})
    assert found is not None
    assert (found["requests"], len(found["nodes"]), found["nodes_left_out"]) == (5, 3, 2)


def test_prometheus_adds_workers_up() -> None:
    pages = [StatusPage(slot_names()) for _ in range(2)]
    for page in pages:
        page.add("requests", 3)
        page.observe("e2e", 5_000_000)
        page.add("e2e_sum_ns", 5_000_000)
    text = prometheus([StatusReader(p) for p in pages], {"classes": {'a"b': 1_500_000}})
    assert "joulegraph_proxy_requests_total 6\n" in text
    assert "gen_ai_server_request_duration_seconds_count 2\n" in text
    assert "gen_ai_server_request_duration_seconds_sum 0.010000000\n" in text
    assert 'joulegraph_active_joules{class="a\\"b"} 1.500000\n' in text
    edges = [line for line in text.splitlines() if line.startswith("gen_ai_server_request_duration_seconds_bucket")]
    counts = [int(line.rpartition(" ")[2]) for line in edges]
    assert counts == sorted(counts)
    assert counts[-1] == 2


def test_joules_appear_beside_the_traffic(tmp_path: Path) -> None:
    """--sample on the embedded engine's sensors: a workflow's joules show while the proxy runs. How soon is measured by
    scripts/bench_live_joules.py; here only that they come."""
    page, run = tmp_path / "page", tmp_path / "run"
    engine = subprocess.Popen(
        [sys.executable, "-m", "joulegraph", "engine", "--port", "0", "--status", str(page), "--json",
         "--served-model-name", "m"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert engine.stdout is not None
    url = json.loads(engine.stdout.readline())["url"]
    child = command(
        "--upstream", url, "--listen", "127.0.0.1:0", "--control", "0", "--record", str(run), "--json",
        "--sample", "--source", f"simulated:{page}",
    )  # fmt: skip
    try:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        body = json.dumps({"model": "m", "prompt": "p " * 300, "max_tokens": 40, "ignore_eos": True})
        energy = None
        for k in range(200):
            tags = {"X-Workflow-Id": "w", "X-Workflow-Node": f"n{k}", "X-Workflow-Class": "agentic"}
            tags["Content-Type"] = "application/json"
            assert ask(told["listen"], "POST", "/v1/completions", body, **tags)[0] == 200
            energy = ask(told["control"], "GET", "/workflows/w")[1].get("energy")
            if energy is not None and energy["active_uj"] > 0:
                break  # a first window may hold a request that has not drawn anything yet
        assert energy is not None
        assert energy["active_uj"] > 0
        assert energy["provisional"] is True
        assert 'joulegraph_active_joules{class="agentic"}' in ask(told["control"], "GET", "/metrics")[1]
        roles = RunDir.open(run).info["processes"]
        os.kill(next(int(pid) for pid, role in roles.items() if role == "sampler"), signal.SIGKILL)
        until = time.monotonic() + 20
        while "ended_early" not in RunDir.open(run).info and time.monotonic() < until:
            time.sleep(0.05)
        assert list(RunDir.open(run).info["ended_early"]) == ["sampler"]
        assert ask(told["listen"], "POST", "/v1/completions", body, **tags)[0] == 200
    finally:
        child.send_signal(signal.SIGTERM)
        engine.send_signal(signal.SIGTERM)
        code, said = ends(child)
        engine.communicate(timeout=20)
    assert code == 0
    assert "the sampler process ended" in said


def test_joules_are_parsed_once_per_look_and_anew_when_replaced(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    control = Control(run, [], lambda: True, lambda _: None)
    assert control.live() == {}
    run.write_json("live.json", {"workflows": {"w": {"active_uj": 1}}})
    first = control.live()
    assert first["workflows"]["w"]["active_uj"] == 1 and control.live() is first
    run.write_json("live.json", {"workflows": {"w": {"active_uj": 2}}})
    assert control.live()["workflows"]["w"]["active_uj"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_cuts_what_runs_and_keeps_its_record(tmp_path: Path, second: signal.Signals) -> None:
    """The signal goes to the whole group, as a terminal sends it; the stream would take minutes."""
    engine = spawn(engine_process, EngineConfig(), name="engine")
    upstream = f"http://127.0.0.1:{engine.lifeline.recv()}"
    run = tmp_path / "run"
    proxy = subprocess.Popen(
        [sys.executable, "-m", "joulegraph", "proxy", "--upstream", upstream, "--listen", "127.0.0.1:0",
         "--control", "0", "--workers", "2", "--record", str(run), "--drain", "100", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert proxy.stdout is not None
    host, port = json.loads(proxy.stdout.readline())["listen"].split(":")
    client = http.client.HTTPConnection(host, int(port), timeout=60)
    body = {"model": "h100-llama8b", "prompt": "a", "max_tokens": 90_000, "ignore_eos": True, "stream": True}
    client.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    assert client.getresponse().read(200)
    os.killpg(proxy.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        proxy.wait(2)  # it drains
    os.killpg(proxy.pid, second) if second == signal.SIGINT else proxy.terminate()
    _, said = proxy.communicate(timeout=20)
    client.close()
    assert engine.stop() == 0
    assert proxy.returncode == 130 and "second Ctrl-C" in said and "Traceback" not in said
    assert RunDir.open(run).info["state"] == "interrupted"
    assert [row["outcome"] for row in RunDir.open(run).rows("requests")] == ["cancelled"]
