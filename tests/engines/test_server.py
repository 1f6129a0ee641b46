"""What the embedded engine does beyond its bytes: exact lengths, caching, batches, tools, disconnects, journals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.dialects import observer
from engines.embedded.server import EngineOptions, status_names
from engines.embedded.stream import HIGH_WATER, QUEUE_LIMIT, Wire
from engines.embedded.types import Limits
from traces.journal import JournalReader, JournalWriter
from traces.status import StatusPage, StatusReader

from .harness import Answer, Client, with_engine

CHAT = "/v1/chat/completions"
TURNS = [{"role": "user", "content": "Say hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


def ask(path: str, body: Any, options: EngineOptions | None = None, **more: Any) -> Answer:
    async def work(client: Client) -> Answer:
        return await client.call(path, body, **more)

    return with_engine(work, options)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 127_999), min_size=1, max_size=60), st.integers(1, 40), st.booleans())
def test_completions_have_exact_lengths_and_ids(prompt: list[int], n: int, stream: bool) -> None:
    body = {"prompt": prompt, "max_tokens": n, "min_tokens": n, "ignore_eos": True, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    answer = ask("/v1/completions", body)
    seen = observer("completions", stream, keep_text=True)
    seen.feed(answer.body_bytes)
    seen.finish()
    assert (seen.usage.prompt_tokens, seen.usage.completion_tokens) == (len(prompt), n)
    assert seen.finish_reason == "length"
    if stream:
        assert seen.tokens == n
    assert seen.text is not None
    assert len(seen.text.split(" ")) == n + 1


def test_a_second_prompt_finds_its_prefix_cached_and_a_salt_hides_it() -> None:
    prompt = list(range(100))

    async def work(client: Client) -> list[int]:
        out = []
        for more in ({}, {}, {"cache_salt": "a"}, {"cache_salt": "a"}):
            answer = await client.call("/v1/completions", {"prompt": prompt, "max_tokens": 1} | more)
            out.append(answer.json["usage"]["prompt_tokens_details"]["cached_tokens"])
        return out

    assert with_engine(work) == [0, 96, 0, 96]
    off = EngineOptions(limits=Limits(enable_prefix_caching=False))
    assert with_engine(work, off) == [0, 0, 0, 0]


def test_what_it_said_is_cached_when_it_comes_back() -> None:
    async def work(client: Client) -> tuple[int, int]:
        first = await client.call(CHAT, {"messages": TURNS, "max_tokens": 64, "ignore_eos": True})
        said = first.json["choices"][0]["message"]["content"]
        turns = [*TURNS, {"role": "assistant", "content": said}, {"role": "user", "content": "go on"}]
        usage = (await client.call(CHAT, {"messages": turns, "max_tokens": 1})).json["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    prompt, cached = with_engine(work)
    assert cached >= (10 + 63) // 16 * 16
    assert cached < prompt


def test_times_of_the_engine_are_those_on_the_wire() -> None:
    async def work(client: Client) -> None:
        body = {"messages": TURNS, "max_tokens": 20, "ignore_eos": True, "stream": True}
        start = client.loop.now_ns()
        answer = await client.call(CHAT, body | {"stream_options": {"include_usage": True}})
        figures = next(row["metrics"] for _, row in answer.events if "metrics" in row)
        first, last = answer.reads[0][0], answer.reads[-1][0]
        assert figures["queue_time_ms"] == 0
        assert figures["time_to_first_token_ms"] == pytest.approx((first - start) / 1e6)
        assert figures["generation_time_ms"] == pytest.approx((last - first) / 1e6)
        assert figures["mean_itl_ms"] == pytest.approx(figures["generation_time_ms"] / 19)

    with_engine(work)


def test_queueing_shows_when_the_batch_is_full() -> None:
    async def work(client: Client) -> list[float]:
        body = {"messages": TURNS, "max_tokens": 10, "ignore_eos": True}
        answers = await asyncio.gather(*(client.call(CHAT, body) for _ in range(3)))
        return sorted(a.json["metrics"]["queue_time_ms"] for a in answers)

    first, second, third = with_engine(work, EngineOptions(limits=Limits(max_num_seqs=1)))
    assert first == 0
    assert 50 < second < third


def test_virtual_runs_are_alike_and_greedy_replies_depend_on_the_prompt_only() -> None:
    async def work(client: Client) -> list[str]:
        answers = [await client.call(CHAT, {"messages": TURNS, "max_tokens": 5}) for _ in range(2)]
        for temperature in (0, 0):
            answers.append(await client.call(CHAT, {"messages": TURNS, "max_tokens": 5, "temperature": temperature}))
        return [a.json["id"] + a.json["choices"][0]["message"]["content"] for a in answers]

    once, again = with_engine(work), with_engine(work)
    assert once == again
    texts = [x[len("chatcmpl-") + 16 :] for x in once]
    assert texts[0] != texts[1]
    assert texts[2] == texts[3]


def test_two_requests_with_one_id_both_succeed() -> None:
    async def work(client: Client) -> list[str]:
        body = {"messages": TURNS, "max_tokens": 5}
        calls = (client.call(CHAT, body, headers={"X-Request-Id": "same"}) for _ in range(2))
        return [a.json["id"] for a in await asyncio.gather(*calls)]

    assert with_engine(work) == ["chatcmpl-same"] * 2


def test_an_id_may_come_back_while_its_first_user_is_still_leaving() -> None:
    async def work(client: Client) -> int:
        body = {"messages": TURNS, "max_tokens": 1000, "ignore_eos": True}
        connection, _ = await client.open(CHAT, body, headers={"X-Request-Id": "again"})
        await asyncio.sleep(0.1)
        connection.abort()
        again = await client.call(CHAT, body | {"max_tokens": 3}, headers={"X-Request-Id": "again"})
        return again.status

    assert with_engine(work) == 200


def test_stop_strings_end_the_text_before_them() -> None:
    async def work(client: Client) -> None:
        fixed = {"messages": TURNS, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
        whole = (await client.call(CHAT, fixed)).json["choices"][0]["message"]["content"]
        words = whole.split(" ")
        stop = words[4][2:]
        for stream in (False, True):
            answer = await client.call(CHAT, fixed | {"stop": [stop, "never"], "stream": stream})
            seen = observer("chat", stream, keep_text=True)
            seen.feed(answer.body_bytes)
            seen.finish()
            assert seen.text == whole[: whole.index(stop)]
            assert seen.finish_reason == "stop"
        kept = await client.call(CHAT, fixed | {"stop": stop, "include_stop_str_in_output": True})
        assert kept.json["choices"][0]["message"]["content"] == whole[: whole.index(stop) + len(stop)]
        assert kept.json["usage"]["completion_tokens"] == 4

    with_engine(work)


def test_an_early_end_counts_its_token_and_shows_no_text() -> None:
    async def work(client: Client) -> tuple[Any, ...]:
        for seed in range(2000):
            body = {"messages": TURNS, "max_tokens": 300, "seed": seed, "stream": True}
            answer = await client.call(CHAT, body | {"stream_options": {"include_usage": True}})
            seen = observer("chat", True)
            seen.feed(answer.body_bytes)
            if seen.finish_reason == "stop":
                last = answer.events[-3][1]["choices"][0]
                return seen.tokens, seen.usage.completion_tokens, last["delta"]["content"]
        raise AssertionError("no early end in 2000 requests")

    events, tokens, text = with_engine(work)
    assert (tokens, text) == (events + 1, "")


def test_echo_and_batches_of_prompts() -> None:
    body = {"prompt": ["one two", "three"], "n": 2, "max_tokens": 2, "echo": True}
    answer = ask("/v1/completions", body)
    assert [c["index"] for c in answer.json["choices"]] == [0, 1, 2, 3]
    assert answer.json["usage"] == answer.json["usage"] | {"prompt_tokens": 3, "completion_tokens": 8}
    streamed = ask("/v1/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
    texts = dict.fromkeys(range(4), "")
    ends = 0
    for _, row in streamed.events[:-1]:
        for choice in row["choices"]:
            texts[choice["index"]] += choice["text"]
            ends += choice["finish_reason"] is not None
    assert ends == 4
    assert [len(t.split()) for t in texts.values()] == [4, 4, 3, 3]
    assert streamed.events[-2][1]["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}])
def test_tools_are_called_with_arguments_that_fit(stream: bool, choice: Any) -> None:
    body = {"messages": TURNS, "tools": [TOOL], "tool_choice": choice, "max_tokens": 7, "stream": stream}
    answer = ask(CHAT, body)
    if stream:
        calls = [c for _, r in answer.events[:-1] for c in r["choices"][0]["delta"].get("tool_calls", [])]
        name = calls[0]["function"]["name"]
        text = "".join(c["function"]["arguments"] for c in calls)
        end = answer.events[-2][1]["choices"][0]["finish_reason"]
    else:
        choice_row = answer.json["choices"][0]
        call = choice_row["message"]["tool_calls"][0]
        name, text, end = call["function"]["name"], call["function"]["arguments"], choice_row["finish_reason"]
    arguments = orjson.loads(text)
    assert (name, end) == ("weather", "tool_calls")
    assert (type(arguments["city"]), type(arguments["days"])) == (str, int)


def test_an_answer_follows_a_tool_result_and_an_unknown_tool_is_refused() -> None:
    turns = [*TURNS, {"role": "tool", "tool_call_id": "x", "content": "sunny"}]
    answer = ask(CHAT, {"messages": turns, "tools": [TOOL], "max_tokens": 3})
    assert answer.json["choices"][0]["message"]["content"]
    named = {"type": "function", "function": {"name": "nope"}}
    refused = ask(CHAT, {"messages": TURNS, "tools": [TOOL], "tool_choice": named})
    assert refused.status == 400
    assert refused.json["error"]["param"] == "tool_choice"


def test_a_responses_conversation_goes_on() -> None:
    async def work(client: Client) -> None:
        first = (await client.call("/v1/responses", {"input": "one two", "max_output_tokens": 3})).json
        body = {"input": "three", "previous_response_id": first["id"], "max_output_tokens": 3}
        second = (await client.call("/v1/responses", body)).json
        assert second["usage"]["input_tokens"] == first["usage"]["input_tokens"] + 3 + 1 + 10
        missing = await client.call("/v1/responses", {"input": "x", "previous_response_id": "resp_none"})
        assert (missing.status, missing.json["error"]["type"]) == (404, "invalid_request_error")

    with_engine(work)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place_within_a_step(stream: bool) -> None:
    async def work(client: Client) -> None:
        body = {"messages": TURNS, "max_tokens": 5000, "ignore_eos": True, "stream": stream}
        connection, answer = await client.open(CHAT, body)
        await asyncio.sleep(1)
        engine = client.running.engine
        assert engine.running == 1
        connection.abort()
        await asyncio.sleep(0.05)
        assert (engine.running, engine.replicas[0].tickets) == (0, {})
        made = engine.counters.generation_tokens
        await asyncio.sleep(1)
        assert engine.counters.generation_tokens == made < 300
        assert sum(engine.counters.finished.values()) == 0
        assert answer.status == (200 if stream else 0)

    with_engine(work)


def test_a_slow_reader_loses_nothing_and_the_others_do_not_wait() -> None:
    async def work(client: Client) -> None:
        body = {"prompt": [1], "max_tokens": 6000, "min_tokens": 6000, "ignore_eos": True, "stream": True}
        connection, slow = await client.open("/v1/completions", body)
        connection.pause_reading()
        start = client.loop.now_ns()
        quick = await client.call("/v1/completions", body)
        assert client.loop.now_ns() - start < 60e9
        assert not slow.reads
        connection.resume_reading()
        await slow.over.wait()
        assert len(slow.chunks) == len(quick.chunks) == 6001

    with_engine(work)


def test_a_key_is_asked_for_where_one_is_set() -> None:
    body = {"prompt": "a", "max_tokens": 1}
    shown = [{}, {"Authorization": "Bearer no"}, {"Authorization": "Bearer se"}, {"x-api-key": "x"}]
    right = [{"Authorization": "Bearer secret"}, {"x-api-key": "secret"}]

    async def work(client: Client) -> list[int]:
        answers = [await client.call("/v1/completions", body, headers=h) for h in [*shown, *right]]
        answers.append(await client.call("/health"))
        assert answers[0].json == {"error": "Unauthorized"}
        return [a.status for a in answers]

    assert with_engine(work, EngineOptions(api_key="secret")) == [401] * 4 + [200] * 3


def test_bodies_far_over_a_megabyte_are_taken() -> None:
    text = "word " * 400_000
    answer = ask(CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 1})
    assert answer.status == 400
    assert answer.json["error"]["param"] == "input_tokens"


class Stuck(asyncio.Transport):
    """A transport that takes nothing away."""

    def __init__(self) -> None:
        super().__init__()
        self.held = bytearray()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.held += data

    def get_write_buffer_size(self) -> int:
        return len(self.held)

    def abort(self) -> None:
        self.aborted = True


def test_a_reader_that_never_reads_is_dropped_at_the_bound() -> None:
    async def main() -> None:
        transport, taken = Stuck(), asyncio.Event()
        wire = Wire(transport, taken.wait, chunked=True)
        piece = b"x" * 100_000
        while not transport.aborted:
            wire.write(piece)
        assert len(transport.held) < HIGH_WATER + 33 * len(piece)
        assert QUEUE_LIMIT <= wire.queued <= QUEUE_LIMIT + len(piece)
        wire.drop()
        assert wire.queued == 0
        await wire.flushed()

    asyncio.run(main())


class Closed(Stuck):
    """A transport of uvloop after it was closed."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.aborted:
            raise RuntimeError("unable to perform operation on a closed transport; the handler is closed")
        super().write(data)


def test_a_connection_closed_under_a_stream_does_not_reach_the_engine() -> None:
    async def main() -> None:
        transport, taken = Closed(), asyncio.Event()
        wire = Wire(transport, taken.wait, chunked=True)
        wire.write(b"seen")
        transport.abort()
        wire.write(b"lost")
        assert transport.held == b"seen"
        lagging = Wire(Closed(), taken.wait, chunked=True)
        while not lagging.queued:
            lagging.write(b"x" * 100_000)
        lagging._transport.abort()
        taken.set()
        await lagging.flushed()
        assert lagging.queued == 0

    asyncio.run(main())


def test_http_1_0_gets_no_chunks() -> None:
    async def work(client: Client) -> bytes:
        body = orjson.dumps({"prompt": [1], "max_tokens": 3, "stream": True})
        request = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        connection, answer = await client.pool.acquire(), Answer()
        connection.send(request % len(body) + body, answer)
        await answer.over.wait()
        assert answer.why is None
        return answer.body_bytes

    body = with_engine(work)
    assert body.count(b"data: {") == 3
    assert body.endswith(b"data: [DONE]\n\n")


def test_replicas_share_the_load() -> None:
    async def work(client: Client) -> list[int]:
        body = {"messages": TURNS, "max_tokens": 50, "ignore_eos": True}
        calls = [asyncio.ensure_future(client.call(CHAT, body)) for _ in range(6)]
        await asyncio.sleep(0.1)
        loads = [r.load for r in client.running.engine.replicas]
        await asyncio.gather(*calls)
        return loads

    assert with_engine(work, EngineOptions(limits=Limits(replicas=3))) == [2, 2, 2]


def journal(path: Path, name: str) -> JournalWriter:
    return JournalWriter(path, name, mono_ns=0, wall_ns=0)


def test_journals_and_status_page_close_to_the_last_microjoule(tmp_path: Path) -> None:
    truth, steps = journal(tmp_path / "truth.jsonl", "truth"), journal(tmp_path / "engine.jsonl", "engine")
    options = EngineOptions(limits=Limits(replicas=2))
    page = StatusPage(status_names(options))

    async def work(client: Client) -> None:
        body = {"messages": TURNS, "max_tokens": 30, "ignore_eos": True, "n": 2}
        calls = [client.call(CHAT, body, headers={"X-Request-Id": f"r{i}"}) for i in range(5)]
        await asyncio.gather(*calls)
        connection, _ = await client.open(CHAT, body | {"max_tokens": 5000, "n": 1}, headers={"X-Request-Id": "left"})
        await asyncio.sleep(0.5)
        connection.abort()
        await client.open(CHAT, body | {"max_tokens": 5000}, headers={"X-Request-Id": "cut"})
        await asyncio.sleep(1.5)

    with_engine(work, options, truth=truth, steps=steps, status=page)
    truth.close()
    steps.close()
    rows = list(JournalReader(tmp_path / "truth.jsonl"))
    totals = [row for row in rows if row.get("kind") == "totals"]
    requests = [row for row in rows if row.get("kind") != "totals"]
    assert {row["request_id"] for row in requests} == {*(f"r{i}" for i in range(5)), "left", "cut"}
    assert len(requests) == 7 * 4
    for component in ("gpu", "hbm", "cpu", "dram"):
        active = sum(row["active_uj"] for row in requests if row["component"] == component)
        own = [row for row in totals if row["component"] == component]
        assert active == sum(row["active_uj"] for row in own) > 0
        assert all(row["active_uj"] + row["idle_uj"] == row["total_uj"] for row in own)
    lines = list(JournalReader(tmp_path / "engine.jsonl"))
    assert {row["kind"] for row in lines} == {"step", "lag"}
    assert all(row["values"]["lag_ns_max"] == 0 for row in lines if row["kind"] == "lag")
    shown = StatusReader(page).all()
    generated = sum(row["num_generation_tokens"] for row in lines if row["kind"] == "step")
    assert shown["steps"] == sum(row["kind"] == "step" for row in lines)
    firsts = 5 * 2 + 1 + 2  # a prefill ends with a token too; an aborted sequence gets none from the step in flight
    assert shown["tokens_out"] == generated + firsts - 1 - 2
    assert shown["sim.gpu0.energy.value"] > 0
    assert shown["sim.gpu0.energy.period_ns"] == 100_000_000


def test_a_draining_engine_lets_running_requests_end() -> None:
    async def work(client: Client) -> None:
        call = asyncio.ensure_future(client.call(CHAT, {"messages": TURNS, "max_tokens": 100, "ignore_eos": True}))
        await asyncio.sleep(0.1)
        assert await client.running.drain(30)
        assert (await call).status == 200
        with pytest.raises(OSError, match="cannot connect"):
            await client.call("/health")

    with_engine(work)
