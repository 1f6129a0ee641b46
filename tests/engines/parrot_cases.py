"""What a Parrot's serve layer answers, case by case, without knowing which one is asked (tests only).

A case drives a Peer and gives back what it observed. EXPECTED holds what every serve layer must show; DIFFERS what the
embedded one and the real one show instead, with the sentence that docs/parrot.md lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

OUT = {"max_gen_length": 6, "ignore_tokenizer_eos": True}


@dataclass(frozen=True)
class Said:
    """One reply."""

    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def short(self) -> tuple[int, str]:
        """Status and what kind of body."""
        return self.status, self.kind.partition(";")[0]


class Peer(Protocol):
    """A client of one serve layer."""

    async def ask(self, method: str, path: str, body: Any = None) -> Said:
        """One request on a connection of its own; None: no body."""


Case = Callable[[Peer], Awaitable[Any]]
CASES: dict[str, Case] = {}


def case(work: Case) -> Case:
    """Register one case under its name."""
    CASES[work.__name__] = work
    return work


async def session(p: Peer) -> int:
    return int((await p.ask("POST", "/v1/session", {"api_key": "1"})).json["session_id"])


async def close(p: Peer, s: int) -> Said:
    return await p.ask("DELETE", f"/v1/session/{s}", {"session_auth": "1"})


def body_of(s: int, template: str, *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    output = {"name": "o", "is_output": True, "sampling_config": more.pop("sampling", OUT)}
    return {"session_id": s, "template": template, "parameters": [*inputs, output], **more}


async def submit(p: Peer, s: int, template: str, *inputs: dict[str, Any], **more: Any) -> str:
    said = await p.ask("POST", "/v1/semantic_call", body_of(s, template, *inputs, **more))
    assert said.status == 200, said.body
    return str(next(x["var_id"] for x in said.json["param_info"] if x["is_output"]))


async def get(p: Peer, s: int, var: str, criteria: Any = "latency") -> Said:
    return await p.ask("GET", f"/v1/semantic_var/{var}", {"session_id": s, "criteria": criteria})


def ref(name: str, var: str) -> dict[str, Any]:
    return {"name": name, "is_output": False, "var_id": var}


def text(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "is_output": False, "value": value}


@case
async def a_freed_session_id_is_handed_out_again(p: Peer) -> Any:
    first = await session(p)
    closed = await close(p, first)
    seen = [await session(p) for _ in range(40)]
    for s in seen:
        await close(p, s)
    return closed.json, first in seen


@case
async def closing_what_is_not_there(p: Peer) -> Any:
    gone = await close(p, 1_900)
    word = await p.ask("DELETE", "/v1/session/abc", {})
    return gone.short, "not found" in gone.json["error"], word.short, list(word.json)


@case
async def every_request_needs_a_body(p: Peer) -> Any:
    s = await session(p)
    v = await submit(p, s, "go{{o}}")
    said = [await p.ask("POST", "/v1/session"), await p.ask("GET", f"/v1/semantic_var/{v}?session_id={s}")]
    await close(p, s)
    return [x.short for x in said]


@case
async def unknown_paths(p: Peer) -> Any:
    said = [await p.ask("GET", path, {}) for path in ("/health", "/v1/models", "/v1/session/0", "/v1/semantic_var")]
    return [x.short for x in said]


@case
async def a_trailing_slash(p: Peer) -> Any:
    return (await p.ask("POST", "/v1/session/", {})).status


@case
async def the_docs_page(p: Peer) -> Any:
    return (await p.ask("GET", "/docs")).status


@case
async def the_reply_to_a_call(p: Peer) -> Any:
    s = await session(p)
    body = body_of(s, "a {{x}} b {{y}} c{{o}}", text("y", "two"), text("x", "one"), retry_times=1, func_name="f")
    said = await p.ask("POST", "/v1/semantic_call", body)
    info = said.json["param_info"]
    await close(p, s)
    return said.json["request_id"], [(x["parameter_name"], x["is_output"]) for x in info], sorted(info[0])


@case
async def a_refused_call_consumes_a_number(p: Peer) -> Any:
    s = await session(p)
    refused = await p.ask("POST", "/v1/semantic_call", body_of(s, "a {{x}}{{o}}", ref("x", "nobody")))
    good = await p.ask("POST", "/v1/semantic_call", body_of(s, "a{{o}}"))
    await close(p, s)
    return refused.short, good.json["request_id"]


@case
async def an_input_by_var_id_is_named_by_its_producer(p: Peer) -> Any:
    s = await session(p)
    a = await submit(p, s, "a{{o}}")
    said = await p.ask("POST", "/v1/semantic_call", body_of(s, "b {{x}} c{{o}}", ref("x", a)))
    await close(p, s)
    given = said.json["param_info"][0]
    return given["var_id"] == a, given["parameter_name"], given["var_name"] != "x"


@case
async def a_chain_yields_values_that_stay(p: Peer) -> Any:
    s = await session(p)
    a = await submit(p, s, "first{{o}}")
    b = await submit(p, s, "then {{x}} more{{o}}", ref("x", a))
    sink = await get(p, s, b)
    again, inner = await get(p, s, b), await get(p, s, a, "anything")
    both = await asyncio.gather(get(p, s, a), get(p, s, b))
    await close(p, s)
    return (
        sink.short, list(sink.json), isinstance(sink.json["content"], str), again.body == sink.body, inner.status,
        [x.body for x in both] == [inner.body, sink.body],
    )  # fmt: skip


@case
async def wrong_auth_and_unknown_fields_pass(p: Peer) -> Any:
    s = await session(p)
    v = await submit(p, s, "go{{o}}", session_auth="wrong", whatever=[1])
    said = await p.ask("GET", f"/v1/semantic_var/{v}", {"session_id": s, "session_auth": "no", "criteria": "latency"})
    await close(p, s)
    return said.status


@case
async def criteria_it_does_not_know(p: Peer) -> Any:
    s = await session(p)
    v = await submit(p, s, "go{{o}}")
    bad = [(await get(p, s, v, word)).short for word in ("fast", "TTFT")]
    good = await get(p, s, v)
    await close(p, s)
    return bad, good.status


@case
async def variables_it_does_not_know(p: Peer) -> Any:
    s, other = await session(p), await session(p)
    mine = await submit(p, s, "go{{o}}")
    said = [await get(p, s, "nobody"), await get(p, other, mine)]
    await close(p, s)
    await close(p, other)
    return [x.short for x in said], ["Unknown Semantic Variable ID" in x.json["error"] for x in said]


@case
async def sessions_it_does_not_know(p: Peer) -> Any:
    said = [await p.ask("POST", "/v1/semantic_call", body_of(1_901, "go{{o}}")), await get(p, 1_901, "x")]
    return [x.short for x in said], ["not found" in x.json["error"] for x in said]


@case
async def a_variable_from_outside_is_set_once(p: Peer) -> Any:
    s = await session(p)
    made = await p.ask("POST", "/v1/semantic_var", {"session_id": s, "session_auth": "1", "var_name": "doc"})
    v = made.json["var_id"]
    waiting = asyncio.ensure_future(get(p, s, v))
    await asyncio.sleep(0.3)
    blocked = not waiting.done()
    value = {"session_id": s, "session_auth": "1", "content": "one two"}
    first = await p.ask("POST", f"/v1/semantic_var/{v}", value)
    second = await p.ask("POST", f"/v1/semantic_var/{v}", value)
    got = (await waiting).json
    await close(p, s)
    return list(made.json), blocked, first.json, second.short, got


@case
async def a_call_waits_for_a_variable_from_outside(p: Peer) -> Any:
    s = await session(p)
    name = {"session_id": s, "session_auth": "1", "var_name": "doc"}
    v = (await p.ask("POST", "/v1/semantic_var", name)).json["var_id"]
    out = await submit(p, s, "read {{x}} now{{o}}", ref("x", v))
    waiting = asyncio.ensure_future(get(p, s, out))
    await asyncio.sleep(0.3)
    blocked = not waiting.done()
    await p.ask("POST", f"/v1/semantic_var/{v}", {"session_id": s, "session_auth": "1", "content": "the text"})
    got = await waiting
    await close(p, s)
    return blocked, got.status


@case
async def parameters_it_refuses(p: Peer) -> Any:
    s = await session(p)
    output = {"name": "o", "is_output": True}
    rows: list[list[dict[str, Any]]] = [
        [{**output, "var_id": "v"}],
        [{"name": "x", "is_output": False}, output],
        [{"name": "x", "is_output": False, "var_id": "v", "value": "t"}, output],
        [{**output, "colour": "red"}],
        [{**output, "sampling_config": {"colour": "red"}}],
    ]
    said = []
    for given in rows:
        body = {"session_id": s, "template": "a {{x}} {{o}}" if len(given) > 1 else "a{{o}}", "parameters": given}
        said.append(await p.ask("POST", "/v1/semantic_call", body))
    await close(p, s)
    return [x.short for x in said]


@case
async def templates_it_refuses(p: Peer) -> Any:
    s = await session(p)
    said = []
    for template in ("{{o}} first", "no placeholder", "a {{missing}} b{{o}}"):
        said.append((await p.ask("POST", "/v1/semantic_call", body_of(s, template))).short)
    await close(p, s)
    return said


@case
async def a_missing_field(p: Peer) -> Any:
    s = await session(p)
    said = await p.ask("POST", "/v1/semantic_call", {"session_id": s, "template": "a{{o}}"})
    await close(p, s)
    return said.short


@case
async def two_outputs(p: Peer) -> Any:
    s = await session(p)
    rows = [{"name": n, "is_output": True, "sampling_config": OUT} for n in ("o", "q")]
    body = {"session_id": s, "template": "a{{o}} and{{q}}", "parameters": rows}
    said = await p.ask("POST", "/v1/semantic_call", body)
    variables = [x["var_id"] for x in said.json["param_info"]]
    read = [(await get(p, s, v)).short for v in variables]
    await close(p, s)
    return said.status, read


@case
async def text_after_the_output_is_dropped(p: Peer) -> Any:
    s = await session(p)
    said = await get(p, s, await submit(p, s, "a{{o}} and this"))
    await close(p, s)
    return said.status


@case
async def a_get_outlives_its_session(p: Peer) -> Any:
    s = await session(p)
    v = await submit(p, s, "long{{o}}", sampling={**OUT, "max_gen_length": 60})
    waiting = asyncio.ensure_future(get(p, s, v))
    await asyncio.sleep(0.05)
    closed = await close(p, s)
    return closed.status, (await waiting).status


@case
async def nothing_runs_before_it_is_asked_for(p: Peer) -> Any:
    """The same call takes as long after a pause as at once, unless a criteria came with it."""
    s = await session(p)
    lazy = await submit(p, s, "one{{o}}", sampling={**OUT, "max_gen_length": 120})
    eager = await submit(p, s, "two{{o}}", sampling={**OUT, "max_gen_length": 120}, output_criteria="throughput")
    await asyncio.sleep(6.0)
    loop, spans = asyncio.get_running_loop(), []
    for v in (eager, lazy):
        start = loop.time()
        await get(p, s, v)
        spans.append(loop.time() - start)
    await close(p, s)
    return spans[0] < 0.2 * spans[1]


@case
async def a_latency_call_caps_its_engine_at_four(p: Peer) -> Any:
    loop = asyncio.get_running_loop()

    async def took(criteria: str) -> float:
        s = await session(p)
        calls = [await submit(p, s, f"call {k}{{{{o}}}}", sampling={**OUT, "max_gen_length": 100}) for k in range(8)]
        start = loop.time()
        await asyncio.gather(*(get(p, s, v, criteria) for v in calls))
        await close(p, s)
        return loop.time() - start

    await took("throughput")
    return await took("latency") > 1.25 * await took("throughput")


@case
async def reading_what_is_active_changes_nothing(p: Peer) -> Any:
    """Intermediates are there before the sink, and reading them early is answered early."""
    s = await session(p)
    a = await submit(p, s, "one{{o}}")
    b = await submit(p, s, "two {{x}} more{{o}}", ref("x", a))
    ends: list[str] = []

    async def read(name: str, v: str) -> None:
        await get(p, s, v)
        ends.append(name)

    sink = asyncio.ensure_future(read("sink", b))
    await asyncio.sleep(0.02)
    await asyncio.gather(read("inner", a), sink)
    await close(p, s)
    return ends


TEXT, JSON = (500, "text/plain"), (500, "application/json")
EXPECTED: dict[str, Any] = {
    "a_freed_session_id_is_handed_out_again": ({}, True),
    "closing_what_is_not_there": (JSON, True, (422, "application/json"), ["detail"]),
    "every_request_needs_a_body": [TEXT, TEXT],
    "unknown_paths": [(404, "application/json"), (404, "application/json"), TEXT, TEXT],
    "the_docs_page": 200,
    "the_reply_to_a_call": (
        0, [("x", False), ("y", False), ("o", True)], ["is_output", "parameter_name", "var_id", "var_name"],
    ),
    "a_refused_call_consumes_a_number": (TEXT, 1),
    "an_input_by_var_id_is_named_by_its_producer": (True, "x", True),
    "a_chain_yields_values_that_stay": ((200, "application/json"), ["content"], True, True, 200, True),
    "wrong_auth_and_unknown_fields_pass": 200,
    "criteria_it_does_not_know": ([TEXT, TEXT], 200),
    "variables_it_does_not_know": ([JSON, JSON], [True, True]),
    "sessions_it_does_not_know": ([JSON, JSON], [True, True]),
    "a_variable_from_outside_is_set_once": (["var_id"], True, {}, TEXT, {"content": "one two"}),
    "a_call_waits_for_a_variable_from_outside": (True, 200),
    "parameters_it_refuses": [JSON] * 5,
    "templates_it_refuses": [TEXT] * 3,
    "a_missing_field": TEXT,
    "text_after_the_output_is_dropped": 200,
    "a_get_outlives_its_session": (200, 200),
    "nothing_runs_before_it_is_asked_for": True,
    "a_latency_call_caps_its_engine_at_four": True,
    "reading_what_is_active_changes_nothing": ["inner", "sink"],
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One case in which the two do not agree. why: as docs/parrot.md lists it."""

    embedded: Any
    real: Any
    why: str


DIFFERS = {
    "a_trailing_slash": Difference(200, 307, "a path with a trailing slash is taken, not redirected"),
    "two_outputs": Difference(
        (200, [TEXT, TEXT]),
        (200, [(200, "application/json"), TEXT]),
        "of several outputs none can be read (of the real one's, all but the first)",
    ),
}
