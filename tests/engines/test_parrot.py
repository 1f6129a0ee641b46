"""The embedded Parrot against what was observed of the real one: activation, criteria, edges of ids, errors, hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from engines.embedded.server import EngineOptions
from engines.embedded.types import Limits
from engines.parrot.scheduler import Scheduling
from engines.parrot.server import ParrotOptions, RunningParrot, start
from engines.parrot.state import ServeOptions
from joulegraph.virtual import VirtualLoop, run_virtual

from .harness import Answer, Client

T = TypeVar("T")
MS = 1_000_000


class Parrot(Client):
    """Requests as a Parrot client words them."""

    running: Any

    async def ask(self, method: str, path: str, body: Any = None) -> Answer:
        return await self.call(path, body, method=method)

    async def session(self) -> int:
        return int((await self.ask("POST", "/v1/session", {"api_key": "1"})).json["session_id"])

    async def submit(self, session: int, template: str, *, n: int = 8, **more: Any) -> str:
        """A call with inputs `name=var_id` in `refs`, `name=text` in `texts`; the output's var_id."""
        inputs = [{"name": k, "is_output": False, "var_id": v} for k, v in more.pop("refs", {}).items()]
        inputs += [{"name": k, "is_output": False, "value": v} for k, v in more.pop("texts", {}).items()]
        sampling = {"max_gen_length": n, "ignore_tokenizer_eos": True}
        output = {"name": "o", "is_output": True, "sampling_config": sampling}
        body = {"session_id": session, "template": template, "parameters": [*inputs, output], **more}
        answer = await self.ask("POST", "/v1/semantic_call", body)
        assert answer.status == 200, answer.body_bytes
        return str(next(p["var_id"] for p in answer.json["param_info"] if p["is_output"]))

    async def get(self, session: int, var: str, criteria: Any = "latency") -> Answer:
        body = {"session_id": session, "session_auth": "1", "criteria": criteria}
        return await self.ask("GET", f"/v1/semantic_var/{var}", body)


def with_parrot(work: Callable[[Parrot], Awaitable[T]], replicas: int = 1, **serve: Any) -> T:
    async def main(loop: VirtualLoop) -> T:
        options = ParrotOptions(EngineOptions(limits=Limits(replicas=replicas)), ServeOptions(**serve))
        running: RunningParrot = await start(
            options, now_ns=loop.now_ns, sleep_until=loop.sleep_until, serve=loop.create_server
        )
        client = Parrot(loop, running)  # type: ignore[arg-type]
        try:
            return await work(client)
        finally:
            client.pool.close()
            await running.close()

    return run_virtual(main)


def test_a_chain_runs_when_its_sink_is_asked_for_and_not_before() -> None:
    async def work(c: Parrot) -> None:
        s = await c.session()
        a = await c.submit(s, "the doc{{d}} sum{{o}}", texts={"d": " one two three"})
        b = await c.submit(s, " more{{a}} text{{o}}", refs={"a": a})
        await asyncio.sleep(2)
        assert c.running.engine.counters.steps == 0
        answer = await c.get(s, b)
        assert answer.status == 200 and len(answer.json["content"].split()) == 8
        before = c.loop.now_ns()
        assert len((await c.get(s, a)).json["content"].split()) == 8
        assert c.loop.now_ns() == before  # a value that is there costs nothing
        # the chain's second prompt held the first output: 1 + 8 + 1 tokens
        assert c.running.engine.counters.prompt_tokens == (2 + 3 + 1) + (1 + 8 + 1)

    with_parrot(work)


def test_output_criteria_start_a_call_at_once() -> None:
    async def work(c: Parrot) -> int:
        s = await c.session()
        await c.submit(s, "go{{o}}", output_criteria="throughput")
        await asyncio.sleep(2)
        return int(c.running.engine.counters.generation_tokens)

    assert with_parrot(work) == 8


@pytest.mark.parametrize(("criteria", "most"), [("latency", 4), ("throughput", 12)])
def test_latency_caps_an_engine_at_four(criteria: str, most: int) -> None:
    async def work(c: Parrot) -> list[int]:
        s = await c.session()
        variables = [await c.submit(s, f"call {i}{{{{o}}}}") for i in range(12)]
        await asyncio.gather(*(c.get(s, v, criteria) for v in variables))
        return list(c.running.core.runner.peak)

    assert with_parrot(work) == [most]


def test_maps_for_throughput_and_reduce_for_latency_end_sooner() -> None:
    def took(maps: str | None) -> int:
        async def work(c: Parrot) -> int:
            s = await c.session()
            at = c.loop.now_ns()
            refs = {}
            for i in range(12):
                refs[f"m{i}"] = await c.submit(s, f"map {i}{{{{o}}}}", n=40, output_criteria=maps)
            template = "".join(f" and{{{{m{i}}}}}" for i in range(12)) + " all{{o}}"
            assert (await c.get(s, await c.submit(s, template, refs=refs))).status == 200
            return c.loop.now_ns() - at

        return with_parrot(work)

    assert took("throughput") < 0.6 * took(None)


def test_session_ids_come_back_in_the_order_they_were_freed() -> None:
    async def work(c: Parrot) -> list[int]:
        first = [await c.session() for _ in range(3)]
        for s in (1, 0):
            assert (await c.ask("DELETE", f"/v1/session/{s}", {})).json == {}
        return first + [await c.session() for _ in range(3)]

    assert with_parrot(work) == [0, 1, 2, 1, 0, 3]


def test_a_get_outlives_its_session_and_a_lost_client_cancels_nothing() -> None:
    async def work(c: Parrot) -> None:
        s = await c.session()
        v = await c.submit(s, "long{{o}}", n=200)
        waiting = asyncio.ensure_future(c.get(s, v))
        left, _ = await c.open(f"/v1/semantic_var/{v}", {"session_id": s, "criteria": "latency"}, method="GET")
        await asyncio.sleep(0.05)
        left.abort()
        assert (await c.ask("DELETE", f"/v1/session/{s}", {"session_auth": "1"})).status == 200
        assert (await waiting).status == 200
        assert (await c.get(s, v)).status == 500

    with_parrot(work)


def test_a_registered_variable_blocks_until_it_is_set_and_is_set_once() -> None:
    async def work(c: Parrot) -> None:
        s = await c.session()
        var = (await c.ask("POST", "/v1/semantic_var", {"session_id": s, "var_name": "late"})).json["var_id"]
        out = await c.submit(s, "Using{{d}} now{{o}}", refs={"d": var})
        waiting = [asyncio.ensure_future(c.get(s, v)) for v in (var, out)]
        await asyncio.sleep(1)
        assert not any(w.done() for w in waiting)
        path = f"/v1/semantic_var/{var}"
        assert (await c.ask("POST", path, {"session_id": s, "content": "late text"})).json == {}
        assert (await waiting[0]).json == {"content": "late text"}
        assert (await waiting[1]).status == 200
        again = await c.ask("POST", path, {"session_id": s, "content": "again"})
        assert (again.status, again.body_bytes) == (500, b"Internal Server Error")
        assert (await c.get(s, var, "zzz")).status == 200

    with_parrot(work)


ERRORS: list[tuple[dict[str, Any], str | None]] = [
    ({"session_id": 999, "template": "hi {{o}}", "parameters": [{"name": "o", "is_output": True}]}, "not found"),
    ({"session_id": 0, "parameters": []}, None),
    ({"parameters": [{"name": "o", "is_output": True, "var_id": "x"}]}, "Output parameter should not have var_id."),
    ({"parameters": [{"name": "o", "is_output": False}]}, "either var_id or value"),
    ({"parameters": [{"name": "o", "is_output": False, "value": "x", "bogus": 1}]}, "unexpected keyword argument"),
    ({"parameters": [{"name": "o", "is_output": False, "var_id": "nope"}]}, None),
    ({"template": "hi {{zz}}"}, None),
    ({"template": "{{o}}"}, None),
    ({"template": "plain", "parameters": []}, None),
    ({"parameters": [{"name": "o", "is_output": True, "sampling_config": {"bogus": 3}}]}, "argument 'bogus'"),
    ({"output_criteria": "bogus"}, None),
]


def test_errors_are_worded_as_observed_and_consume_a_number() -> None:
    async def work(c: Parrot) -> None:
        s = await c.session()
        base = {"session_id": s, "template": "hi {{o}}", "parameters": [{"name": "o", "is_output": True}]}
        for change, words in ERRORS:
            body = change if "session_id" in change else base | change
            answer = await c.ask("POST", "/v1/semantic_call", body)
            assert answer.status == 500, body
            if words is None:
                assert answer.body_bytes == b"Internal Server Error", (body, answer.body_bytes)
                assert answer.headers["content-type"].startswith("text/plain")
            else:
                assert words in answer.json["error"] and answer.json["traceback"] == ""
        good = await c.ask("POST", "/v1/semantic_call", base)
        assert good.json["request_id"] == len(ERRORS) - 1  # all but the one without a session
        var = good.json["param_info"][0]["var_id"]
        for criteria in ("TTFT", "bogus", None):
            assert (await c.get(s, var, criteria)).body_bytes == b"Internal Server Error"
        assert (await c.get(s, var)).status == 200
        other = await c.session()
        assert "Unknown Semantic Variable ID" in (await c.get(other, var)).json["error"]
        assert (await c.ask("DELETE", "/v1/session/abc", {})).status == 422
        assert (await c.ask("DELETE", f"/v1/session/{other}")).status == 500  # no body
        assert (await c.ask("GET", "/v1/models", {})).json == {"detail": "Not Found"}
        assert (await c.ask("GET", "/v1/session/0", {})).status == 500
        assert (await c.ask("GET", "/docs")).status == 200
        assert (await c.ask("POST", "/v1/py_native_call", {"session_id": s})).status == 500

    with_parrot(work)


def test_what_no_engine_serves_is_never_answered() -> None:
    async def work(c: Parrot) -> bool:
        s = await c.session()
        var = await c.submit(s, "hi{{o}}", model_type="text")
        waiting = asyncio.ensure_future(c.get(s, var))
        await asyncio.sleep(3600)
        waiting.cancel()
        return waiting.done()

    assert with_parrot(work) is False


def test_a_call_too_long_for_the_engine_spoils_its_session_and_hangs() -> None:
    async def work(c: Parrot) -> None:
        s = await c.session()
        var = await c.submit(s, "hi{{d}} so{{o}}", texts={"d": " word" * 140_000})
        waiting = asyncio.ensure_future(c.get(s, var))
        await asyncio.sleep(60)
        assert not waiting.done()
        waiting.cancel()
        assert "not valid" in (await c.get(s, var)).json["error"]
        assert (await c.session()) == s  # given out again

    with_parrot(work)


def test_a_document_of_megabytes_is_taken() -> None:
    async def work(c: Parrot) -> None:
        s = await c.session()
        await c.submit(s, "hi{{d}} so{{o}}", texts={"d": " word" * 500_000})

    with_parrot(work)


def test_shared_context_goes_to_the_engine_that_holds_it() -> None:
    def cached(aware: bool) -> int:
        async def work(c: Parrot) -> int:
            s = await c.session()
            heads = ["alpha beta " * 64, "gamma delta " * 64]
            for head in heads:  # both at once: one engine each, the first being full
                await c.submit(s, head + "x{{o}}", n=400, output_criteria="throughput")
            await asyncio.sleep(1)
            for i in range(6):
                var = await c.submit(s, heads[i % 2] + "x{{t}} so{{o}}", texts={"t": f" tail {i}"})
                assert (await c.get(s, var, "throughput")).status == 200
            return int(c.running.engine.counters.cached_tokens)

        rules = Scheduling(ctx_aware=aware)
        return with_parrot(work, replicas=2, scheduling=rules, tokens_capacity=1000)

    assert cached(True) > cached(False)


def test_a_serve_layer_that_takes_time_per_piece_is_slower_by_it() -> None:
    def took(chunk_ns: int) -> int:
        async def work(c: Parrot) -> int:
            s = await c.session()
            at = c.loop.now_ns()
            await c.get(s, await c.submit(s, "a{{x}} b{{o}}", texts={"x": " y"}))
            return c.loop.now_ns() - at

        return with_parrot(work, chunk_ns=chunk_ns)

    assert took(5 * MS) - took(0) == 4 * 5 * MS  # three fills and the generation
