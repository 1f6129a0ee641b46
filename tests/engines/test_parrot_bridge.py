"""The bridge between a scripted core and the embedded engine: contexts, exact lengths, failures, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from engines.embedded.server import EngineOptions, RunningEngine
from engines.embedded.server import start as start_engine
from engines.parrot.bridge import BridgeOptions, RunningBridge, start
from engines.parrot.contexts import Contexts
from engines.parrot.protocol import mark
from engines.parrot.registration import EngineConfig
from joulegraph.virtual import VirtualLoop, run_virtual
from traces.records import RequestRecord

from .harness import Client


class Core:
    """What the bridge tells it, and how it answers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.known = True

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.told.append((request.path, orjson.loads(await request.read())))
        if request.path == "/register_engine":
            self.known = True
            return web.Response(body=b'{"engine_id": 7}', content_type="application/json")
        return web.Response(status=200 if self.known else 500, body=b"{}", content_type="application/json")


Work = Callable[[Client, RunningBridge, Core, RunningEngine], Awaitable[Any]]


def bridged(work: Work, write: Callable[[RequestRecord], None] = lambda record: None) -> Any:
    async def main(loop: VirtualLoop) -> Any:
        core = Core()
        server = web.Server(core.handle)
        listener = await loop.create_server(server, "127.0.0.1", 9000)  # type: ignore[arg-type]
        engine = await start_engine(
            EngineOptions(), now_ns=loop.now_ns, sleep_until=loop.sleep_until, serve=loop.create_server
        )
        options = BridgeOptions("127.0.0.1", 9000, "127.0.0.1", engine.port, EngineConfig("h100-llama8b", "/tok"))
        bridge = await start(
            options, now_ns=loop.now_ns, sleep_until=loop.sleep_until, connect=loop.create_connection,
            serve=loop.create_server, write=write,
        )  # fmt: skip
        client = Client(loop, bridge)  # type: ignore[arg-type]
        try:
            return await work(client, bridge, core, engine)
        finally:
            client.pool.close()
            await bridge.close()
            await engine.close()
            listener.close()
            await server.shutdown(0.1)

    return run_virtual(main)


def fill(context: int, parent: int, ids: list[int]) -> dict[str, Any]:
    base = {"session_id": 3, "task_id": 5, "end_flag": False, "text": None}
    return base | {"context_id": context, "parent_context_id": parent, "token_ids": ids}


def generate(context: int, parent: int, n: int, task: int = 5, name: str | None = None) -> dict[str, Any]:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_gen_length": n, "ignore_tokenizer_eos": True}
    sampling |= {"stop_str": mark(name) if name else None}
    base = {"session_id": 3, "task_id": task, "end_flag": False, "sampling_config": sampling}
    return base | {"context_id": context, "parent_context_id": parent}


def test_one_task_has_exact_lengths_and_its_contexts_are_freed() -> None:
    async def work(c: Client, bridge: RunningBridge, core: Core, engine: RunningEngine) -> None:
        assert (await c.call("/fill", fill(0, -1, list(range(100, 150))))).json == {"filled_len": 50}
        assert (await c.call("/fill", fill(1, 0, [7, 8]))).json == {"filled_len": 2}
        made = (await c.call("/generate", generate(2, 1, 9))).json
        assert len(made["generated_ids"]) == 9 and made["generated_text"] == ""
        counters = engine.engine.counters
        assert (counters.prompt_tokens, counters.generation_tokens) == (52, 9)
        # two forks of context 1, one of them after what was generated
        await c.call("/generate", generate(3, 1, 4, task=6))
        await c.call("/generate", generate(4, 2, 4, task=7))
        assert counters.prompt_tokens == 52 + 52 + 61 and counters.cached_tokens > 0
        lengths = [(await c.call("/free_context", {"context_id": i})).json["context_len"] for i in (4, 3, 2, 1, 0, 9)]
        assert lengths == [4, 4, 9, 2, 50, 0] and len(bridge.bridge.contexts) == 0
        assert bridge.bridge.failed == 0

    bridged(work)


def test_every_generation_is_a_record_with_its_first_token_and_the_calls_own_name() -> None:
    records: list[RequestRecord] = []

    async def work(c: Client, bridge: RunningBridge, core: Core, engine: RunningEngine) -> None:
        await c.call("/fill", fill(0, -1, list(range(100, 150))))
        await asyncio.sleep(0.5)
        await c.call("/generate", generate(1, 0, 9, name="jg-1"))
        await c.call("/generate", generate(2, 0, 4, task=6))  # its context was there: no fill of its own
        await c.call("/generate", generate(3, 77, 4, task=8))

    bridged(work, records.append)
    named, shared, short = records
    assert (named.request_id, named.response_id, named.session_id) == ("jg-1", "3/5", "3")
    assert (named.prompt_tokens, named.completion_tokens, named.max_tokens, named.outcome) == (50, 9, 9, "ok")
    assert named.t_upstream_ns is not None and named.t_first_token_ns is not None
    assert named.t_upstream_ns - named.t_arrival_ns == 500_000_000
    assert named.t_upstream_ns < named.t_first_token_ns < named.t_end_ns and named.engine_prefill_ns
    assert sum(named.read_tokens) == 9
    assert named.t_arrival_ns + sum(named.read_dt_ns) <= named.t_end_ns
    assert (shared.request_id, shared.workflow_id, shared.node_id) == ("parrot-0-3-6", "parrot-0-session-3", "task-6")
    assert shared.t_arrival_ns == shared.t_upstream_ns and shared.note is None
    assert short.note is not None and "short" in short.note


def test_the_core_is_told_and_told_again_after_its_restart() -> None:
    async def work(c: Client, bridge: RunningBridge, core: Core, engine: RunningEngine) -> None:
        await asyncio.sleep(7)
        paths = [path for path, _ in core.told]
        assert paths == ["/register_engine", "/engine_heartbeat", "/engine_heartbeat"]
        config = core.told[0][1]["engine_config"]
        assert (config["engine_type"], config["port"], config["tokenizer"]) == ("builtin", bridge.port, "/tok")
        assert core.told[1][1]["engine_id"] == 7
        await c.call("/fill", fill(0, -1, [1]))
        core.known = False
        await asyncio.sleep(3)
        assert [path for path, _ in core.told][3:] == ["/engine_heartbeat", "/register_engine"]
        assert len(bridge.bridge.contexts) == 0

    bridged(work)


def test_where_it_stands_with_the_core_is_said_once() -> None:
    said: list[str] = []

    async def main(loop: VirtualLoop) -> None:
        core, answers = Core(), [404, 404]

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=answers.pop()) if answers else await core.handle(request)

        options = BridgeOptions("127.0.0.1", 9000, "127.0.0.1", 1, EngineConfig("h100-llama8b", "/tok"))
        bridge = await start(
            options, now_ns=loop.now_ns, sleep_until=loop.sleep_until, connect=loop.create_connection,
            serve=loop.create_server, say=said.append,
        )  # fmt: skip
        await asyncio.sleep(7)
        listener = await loop.create_server(web.Server(handle), "127.0.0.1", 9000)  # type: ignore[arg-type]
        await asyncio.sleep(12)
        core.known = False
        await asyncio.sleep(6)
        listener.close()
        await asyncio.sleep(6)
        await bridge.close()

    run_virtual(main)
    assert [sentence.split(":9000")[0] for sentence in said] == [
        "no core answers at 127.0.0.1", "127.0.0.1", "registered with the core at 127.0.0.1",
        "registered with the core at 127.0.0.1", "no core answers at 127.0.0.1",
    ]  # fmt: skip
    assert "404" in said[1] and "serve layer" in said[1]


def test_whatever_the_engine_behind_does_the_core_gets_an_answer() -> None:
    async def work(c: Client, bridge: RunningBridge, core: Core, engine: RunningEngine) -> None:
        await c.call("/fill", fill(0, -1, [1] * 140_000))
        refused = await c.call("/generate", generate(1, 0, 5))
        assert refused.status == 200 and refused.json["generated_ids"] == []
        assert "400" in (bridge.bridge.last_error or "")
        await c.call("/fill", fill(2, -1, [1, 2, 3]))
        waiting = asyncio.ensure_future(c.call("/generate", generate(3, 2, 500)))
        await asyncio.sleep(1)
        await engine.close()
        broken = await waiting
        assert broken.status == 200 and 0 < len(broken.json["generated_ids"]) < 500
        gone = await c.call("/generate", generate(4, 2, 5))
        assert gone.status == 200 and bridge.bridge.failed == 3

    bridged(work)


def test_a_core_that_leaves_takes_its_request_with_it() -> None:
    async def work(c: Client, bridge: RunningBridge, core: Core, engine: RunningEngine) -> None:
        await c.call("/fill", fill(0, -1, [1, 2, 3]))
        connection, _ = await c.open("/generate", generate(1, 0, 5_000))
        await asyncio.sleep(1)
        assert engine.engine.running == 1
        connection.abort()
        await asyncio.sleep(1)
        assert engine.engine.running == 0

    bridged(work)


def test_a_chain_survives_a_parent_that_is_gone_and_a_ring() -> None:
    contexts = Contexts()
    contexts.open(1, 0).ids += [1]
    contexts.open(2, 1).ids += [2]
    assert contexts.chain(2) == [1, 2]
    contexts.free(1)
    assert contexts.chain(2) == [2]
    contexts.open(1, 2).ids += [9]
    assert contexts.chain(2) == [9, 2]
