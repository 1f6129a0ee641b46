"""Real clients through the proxy onto the embedded engine, all as processes of their own: openai, anthropic, curl."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import anthropic
import openai
import pytest

from engines.embedded.process import EngineConfig, engine_process
from proxy.config import ProxyConfig
from proxy.process import ProcessConfig, proxy_process
from traces.child import spawn
from traces.records import RequestRecord, from_row
from traces.rundir import RunDir

EXACT = {"ignore_eos": True}
MESSAGES: Any = [{"role": "user", "content": "Say hello to the world, please."}]


@dataclass
class Stand:
    """A running proxy: its address, its run directory, and how many records were taken before."""

    url: str
    run: RunDir
    taken: int = 0

    def records(self, count: int = 1) -> list[RequestRecord]:
        """The next `count` records, once they are in the journal (flushed several times a second)."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            rows = list(self.run.rows("requests"))
            if len(rows) >= self.taken + count:
                fresh = rows[self.taken : self.taken + count]
                self.taken += count
                return [from_row(RequestRecord, row) for row in fresh]
            time.sleep(0.02)
        raise AssertionError(f"{len(rows) - self.taken} of {count} records after 10 s")


def stand_before(upstream: str, path: Path) -> Iterator[Stand]:
    run = RunDir.create(path)
    config = ProcessConfig(ProxyConfig((upstream,), run_key=b"k" * 32), "127.0.0.1", 0, run.path)
    child = spawn(proxy_process, config, name="proxy")
    yield Stand(f"http://127.0.0.1:{child.lifeline.recv()['port']}", run)
    assert child.stop() == 0


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The proxy in front of the embedded engine."""
    engine = spawn(engine_process, EngineConfig(), name="engine")
    port = engine.lifeline.recv()
    yield from stand_before(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("proxy") / "run")
    assert engine.stop() == 0


@pytest.fixture
def client(stand: Stand) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stand.url}/v1", api_key="sk-secret-of-the-client", max_retries=0) as made:
        yield made


@pytest.fixture
def model(stand: Stand, client: openai.OpenAI) -> str:
    name = next(iter(client.models.list())).id
    stand.records(1)
    return str(name)


def test_openai_chat(stand: Stand, client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=5, extra_headers={"X-Workflow-Id": "w1", "X-Workflow-Node": "a"}
    )
    assert reply.usage is not None
    (record,) = stand.records()
    assert (record.workflow_id, record.node_id, record.api, record.outcome) == ("w1", "a", "chat", "ok")
    assert (record.prompt_tokens, record.completion_tokens) == (
        reply.usage.prompt_tokens,
        reply.usage.completion_tokens,
    )
    assert record.response_id == reply.id
    assert record.request_id in reply.id  # the engine's id is built from ours


def test_openai_chat_stream_without_usage(stand: Stand, client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=6, stream=True, extra_body=EXACT)
    chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)  # the usage chunk that the client did not ask for is gone
    (record,) = stand.records()
    assert record.usage_spliced is True
    assert record.completion_tokens == 6
    assert sum(record.read_tokens) == 6
    assert record.t_first_token_ns is not None
    assert record.finish_reason == "length"


def test_openai_chat_stream_with_usage(stand: Stand, client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=EXACT,
    )
    usages = [chunk.usage for chunk in stream if chunk.usage is not None]
    assert [u.completion_tokens for u in usages] == [4]
    (record,) = stand.records()
    assert record.usage_spliced is None
    assert record.completion_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_openai_completions(stand: Stand, client: openai.OpenAI, model: str, stream: bool) -> None:
    made = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=7, stream=stream, extra_body=EXACT
    )
    if stream:
        assert len([c for c in made if c.choices[0].text]) == 7  # type: ignore[union-attr]
    (record,) = stand.records()
    assert (record.api, record.completion_tokens, record.max_tokens, record.stream) == ("completions", 7, 7, stream)


@pytest.mark.parametrize("stream", [False, True])
def test_openai_responses(stand: Stand, client: openai.OpenAI, model: str, stream: bool) -> None:
    made: Any = client.responses.create(model=model, input="Tell me a tale.", max_output_tokens=5, stream=stream)
    if stream:
        events = list(made)
        assert events[0].type == "response.created"
        assert events[-1].type in ("response.completed", "response.incomplete")
        made = events[-1].response
    (record,) = stand.records()
    assert (record.api, record.outcome) == ("responses", "ok")
    assert (record.prompt_tokens, record.completion_tokens) == (made.usage.input_tokens, made.usage.output_tokens)
    assert record.response_id == made.id


def test_openai_tools_pass(stand: Stand, client: openai.OpenAI, model: str) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=3, tools=[tool])
    (record,) = stand.records()
    assert [m["role"] for m in record.messages] == ["tools", "user"]


def test_openai_errors_are_the_engines(stand: Stand, client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=-5)
    with pytest.raises(openai.NotFoundError, match="not passed on"):
        client.fine_tuning.jobs.list()
    (record,) = stand.records()
    assert (record.outcome, record.status) == ("rejected", 400)


def test_openai_client_that_stops_reading(stand: Stand, client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=2000, stream=True, extra_body=EXACT
    )
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    (record,) = stand.records()
    assert record.outcome == "client_left"
    assert 0 < sum(record.read_tokens) < 2000


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_messages(stand: Stand, model: str, stream: bool) -> None:
    with anthropic.Anthropic(base_url=stand.url, api_key="sk-secret-of-the-client", max_retries=0) as client:
        if stream:
            with client.messages.stream(model=model, max_tokens=5, messages=MESSAGES) as made:
                usage = made.get_final_message().usage
        else:
            usage = client.messages.create(model=model, max_tokens=5, messages=MESSAGES).usage
    (record,) = stand.records()
    assert (record.api, record.outcome) == ("messages", "ok")
    prompt = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert (record.prompt_tokens, record.completion_tokens) == (prompt, usage.output_tokens)


def test_curl(stand: Stand, model: str, tmp_path: Path) -> None:
    body = json.dumps({"model": model, "prompt": "x" * 2_000_000, "max_tokens": 1})  # curl sends Expect for this size
    (tmp_path / "body").write_text(body)
    for path, more in (("/v1/completions", ["-d", f"@{tmp_path / 'body'}"]), ("/health", []), ("/v1/models", ["-I"])):
        result = subprocess.run(
            ["curl", "-sS", "-i", "-m", "20", stand.url + path, "-H", "Content-Type: application/json", *more],
            capture_output=True,
            check=True,
        )
        assert result.stdout.startswith(b"HTTP/1.1 ")
    large, health, models = stand.records(3)
    assert (large.bytes_in, health.status) == (len(body), 200)
    assert large.note is not None
    assert models.method == "HEAD"


def test_no_secret_and_no_prompt_in_the_run(stand: Stand, client: openai.OpenAI, model: str) -> None:
    client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "my password is swordfish"}], max_tokens=2
    )
    with pytest.raises(openai.BadRequestError, match="swordfish"):  # the engine's error quotes the prompt
        client.chat.completions.create(model=model, messages="swordfish")  # type: ignore[call-overload]
    _, refused = stand.records(2)
    assert (refused.outcome, refused.error) == ("rejected", "1 validation error ...")
    for file in stand.run.path.iterdir():
        data = file.read_bytes()
        assert b"sk-secret-of-the-client" not in data
        assert b"swordfish" not in data
        assert (b"k" * 32) not in data


class ToolEngine(BaseHTTPRequestHandler):
    """Calls a tool until it was given the result."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        call = {"id": "call_77", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        done = asked["messages"][-1]["role"] == "tool"
        message = {"role": "assistant", "content": "42"} if done else {"role": "assistant", "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if done else "tool_calls"}
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        row = {"id": f"chatcmpl-{len(asked['messages'])}", "object": "chat.completion", "created": 1, "model": "m"}
        body = json.dumps({**row, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_an_agent_loop_leaves_an_exact_edge(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ToolEngine)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for stand in stand_before(f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "run"):
        with openai.OpenAI(base_url=f"{stand.url}/v1", api_key="k", max_retries=0) as client:
            turns = list(MESSAGES)
            first = client.chat.completions.create(model="m", messages=turns)
            (maker,) = stand.records()
            call = first.choices[0].message.tool_calls[0]  # type: ignore[index]
            turns += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
            client.chat.completions.create(model="m", messages=turns)
        (user,) = stand.records()
        assert maker.tool_call_ids == ("call_77",)
        assert [(d["on"], d["kind"]) for d in user.deps] == [(maker.request_id, "tool")]
        assert user.messages[-1]["tool_ids"] == ["call_77"]
    server.shutdown()
    thread.join()
    server.server_close()
