"""In front of a Parrot: the recorded exchange byte for byte, its edges, hazards, deadlines, passive reads, death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from engines.embedded.server import EngineOptions
from engines.parrot.server import ParrotOptions, RunningParrot, start
from proxy.config import ParrotConfig, ProxyConfig, check
from traces.errors import UserError
from traces.records import RequestRecord

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows(data: Path) -> Rows:
    path = data / "parrot" / "exchange.jsonl"
    if not path.is_file():
        pytest.skip("no recorded Parrot exchange")
    read = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return sorted((r for r in read if r["link"] == "client-core"), key=lambda r: r["t_request"])


def request_bytes(row: dict[str, Any], name: str) -> bytes:
    body = b"" if row["request"] is None else orjson.dumps(row["request"])
    kind = f"Content-Type: {row['req_content_type']}\r\n" if row.get("req_content_type") else ""
    head = f"{row['method']} {row['path']} HTTP/1.1\r\nHost: p\r\nX-Request-Id: {name}\r\n{kind}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def reply_bytes(row: dict[str, Any]) -> bytes:
    given = row["response"]
    body = given.encode() if isinstance(given, str) else orjson.dumps(given)
    head = f"HTTP/1.1 {row['status']} X\r\ndate: now\r\nserver: uvicorn\r\ncontent-length: {len(body)}\r\n"
    return (head + f"content-type: {row['resp_content_type']}\r\n\r\n").encode() + body


class Core:
    """A scripted core: answers the request named by X-Request-Id with its row's reply, and keeps what it was sent."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.bodies: dict[int, bytes] = {}
        self.left: set[int] = set()
        self._taken: dict[int, int] = {}

    def __call__(self, wire: Any) -> None:
        data = wire.got[self._taken.get(id(wire), 0) :]
        head, found, rest = data.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int({k.lower(): v for k, v in fields.items()}.get(b"content-length", b"0"))
        if not found or len(rest) < size:
            return
        self._taken[id(wire)] = self._taken.get(id(wire), 0) + len(head) + 4 + size
        at = int(fields[b"X-Request-Id"].removeprefix(b"row-"))
        self.bodies[at] = rest[:size]
        row = self.rows[at]
        if row["status"] == 502:  # the recorder's way to say that the core was gone
            wire.transport.abort()
        elif row["status"] is not None:
            wire.send(reply_bytes(row))


async def play(rig: Any, core: Core, rows: Rows) -> list[bytes]:
    """Send every recorded request in order, each on its own connection; what the client got."""
    out = []
    for i, row in enumerate(rows):
        wire = await rig.client(request_bytes(row, f"row-{i}"))
        if row["status"] is None:
            await rig.sleep(0.05)
            wire.transport.abort()
        else:
            await wire.until(lambda w: whole(w.got) or w.lost_ns is not None)
        out.append(wire.got)
        wire.transport.abort()
        await rig.sleep(0.001)
    return out


def whole(got: bytes) -> bool:
    head, found, body = got.partition(b"\r\n\r\n")
    lines = [x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")]
    return bool(found) and bool(lines) and len(body) >= int(lines[0].split(b":")[1])


def replayed(rig: Any, rows: Rows, **parrot: Any) -> tuple[Core, list[bytes], dict[int, RequestRecord]]:
    core = Core(rows)

    async def scenario(r: Any) -> tuple[Core, list[bytes], dict[int, RequestRecord]]:
        got = await play(r, core, rows)
        await r.proxy.close()
        return core, got, {int(x.request_id.removeprefix("row-")): x for x in r.records}

    config = {"engine": "parrot", "allow": ("/vm_heartbeat",), "parrot": ParrotConfig(passive=False, **parrot)}
    found: tuple[Core, list[bytes], dict[int, RequestRecord]] = rig(scenario, on_data=core, **config)
    return found


def stripped(reply: bytes) -> bytes:
    """A reply without the fields that the proxy adds (request id, workflow and node, its own hop's Connection)."""
    head, _, body = reply.partition(b"\r\n\r\n")
    ours = (b"x-request-id:", b"x-workflow-", b"connection:")
    return b"\r\n".join(x for x in head.split(b"\r\n") if not x.lower().startswith(ours)) + b"\r\n\r\n" + body


def test_every_recorded_case_passes_byte_for_byte(rig: Callable[..., Any], rows: Rows) -> None:
    core, got, _ = replayed(rig, rows, guard=False)
    for i, row in enumerate(rows):
        sent = b"" if row["request"] is None else orjson.dumps(row["request"])
        assert core.bodies[i] == sent, row["path"]
        if row["status"] is None:
            assert got[i] == b""
        elif row["status"] == 502:
            assert got[i].startswith(b"HTTP/1.1 502 ")
        else:
            assert stripped(got[i]) == reply_bytes(row), (row["method"], row["path"])
    assert len(rows) > 190


def test_the_guard_refuses_the_hazards_among_them_and_nothing_else(rig: Callable[..., Any], rows: Rows) -> None:
    core, got, _ = replayed(rig, rows)
    refused = [i for i, g in enumerate(got) if b'"code":"parrot_hazard"' in g]
    assert all(got[i].startswith(b"HTTP/1.1 400 ") and i not in core.bodies for i in refused)
    why = [rows[i] for i in refused]
    assert [r["path"] for r in why].count("/v1/py_native_call") == 1
    assert sum(r["path"] == "/v1/semantic_call" and r["request"].get("model_type") == "weird" for r in why) == 1
    for i, row in enumerate(rows):
        if i not in refused and row["status"] not in (None, 502):
            assert stripped(got[i]) == reply_bytes(row)
        if i in refused and row["status"] == 200:  # what the real core took although it should not have
            assert row["path"] == "/v1/py_native_call" or row["request"].get("model_type") == "weird"


def test_the_recorder_finds_every_edge_of_the_exchange(rig: Callable[..., Any], rows: Rows) -> None:
    _, _, records = replayed(rig, rows, guard=False)
    made: dict[str, int] = {}
    edges, found = 0, 0
    for i, row in enumerate(rows):
        if row["path"] not in ("/v1/semantic_call", "/v1/py_native_call") or row["status"] != 200:
            continue
        record, request = records[i], row["request"]
        assert record.api == "parrot" and record.workflow_id is not None and record.node_id is not None
        parents = {made[p["var_id"]] for p in request["parameters"] if p.get("var_id") in made}
        edges += len(parents)
        named = {d["on"] for d in record.deps if d.get("provenance", "recorded") == "recorded"}
        assert named == {records[k].node_id for k in parents}
        assert all(records[k].workflow_id == record.workflow_id for k in parents)
        found += len(named)
        made |= {p["var_id"]: i for p in row["response"]["param_info"] if p["is_output"]}
    assert edges == found > 40
    nodes = [r for r in records.values() if r.api == "parrot" and r.outcome == "ok"]
    assert len({(r.workflow_id, r.node_id) for r in nodes}) == len(nodes)
    for record in nodes:
        assert record.t_upstream_ns is not None
        assert record.t_arrival_ns <= record.t_upstream_ns <= record.t_end_ns
    opened = sum(r["method"] == "POST" and r["path"].rstrip("/") == "/v1/session" and r["status"] == 200 for r in rows)
    assert opened > 15
    assert 10 < len({r.workflow_id for r in nodes}) <= opened


# ---------------------------------------------------------------------------------------- the embedded Parrot behind


class Live:
    """A client of the embedded Parrot, through the proxy or past it."""

    def __init__(self, rig: Any, port: int) -> None:
        self.rig, self.port = rig, port

    async def send(self, method: str, path: str, body: Any, *headers: str) -> Any:
        raw = orjson.dumps(body)
        lines = [f"{method} {path} HTTP/1.1", "Host: p", f"Content-Length: {len(raw)}", *headers]
        wire = await self.rig.loop.create_connection(lambda: self.rig.wire(), "127.0.0.1", self.port)
        wire[1].send("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)
        return wire[1]

    async def ask(self, method: str, path: str, body: Any, *headers: str) -> tuple[int, Any]:
        wire = await self.send(method, path, body, *headers)
        await wire.until(lambda w: whole(w.got) or w.lost_ns is not None, 10_000.0)
        head, _, raw = wire.got.partition(b"\r\n\r\n")
        wire.transport.abort()
        return int(head.split()[1]), orjson.loads(raw) if raw[:1] in (b"{", b"[") else raw

    async def session(self) -> int:
        return int((await self.ask("POST", "/v1/session", {}))[1]["session_id"])

    async def call(self, session: int, name: str, n: int = 40, refs: Any = (), **more: Any) -> str:
        inputs = [{"name": f"i{k}", "is_output": False, "var_id": v} for k, v in enumerate(refs)]
        output = {
            "name": "o",
            "is_output": True,
            "sampling_config": {"max_gen_length": n, "ignore_tokenizer_eos": True},
        }
        template = "head" + "".join(f" and{{{{i{k}}}}}" for k in range(len(inputs))) + " go{{o}}"
        body = {"session_id": session, "func_name": name, "template": template, "parameters": [*inputs, output], **more}
        status, reply = await self.ask("POST", "/v1/semantic_call", body)
        assert status == 200, reply
        return str(next(p["var_id"] for p in reply["param_info"] if p["is_output"]))

    async def get(self, session: int, var: str, criteria: str = "latency") -> tuple[int, Any]:
        body = {"session_id": session, "session_auth": "1", "criteria": criteria}
        return await self.ask("GET", f"/v1/semantic_var/{var}", body)


@pytest.fixture
def live(rig: Callable[..., Any]) -> Callable[..., Any]:
    """live(work, through=True, **parrot): run work(client, embedded) and give (result, records)."""

    def run(work: Callable[..., Any], through: bool = True, deadline_ns: int | None = None, **parrot: Any) -> Any:
        async def scenario(r: Any) -> Any:
            from engines.embedded.types import Limits

            running: RunningParrot = await start(
                ParrotOptions(EngineOptions(limits=Limits())), port=9000, now_ns=r.loop.now_ns,
                sleep_until=r.loop.sleep_until, serve=r.loop.create_server,
            )  # fmt: skip
            try:
                result = await work(Live(r, r.proxy.port if through else 9000), running)
                await r.proxy.close()
                return result, r.records
            finally:
                await running.close()

        config = {"engine": "parrot", "parrot": ParrotConfig(**parrot), "deadline_ns": deadline_ns}
        return rig(scenario, listen=False, **config)

    return run


async def chain(client: Live, _: Any) -> list[int]:
    """Four calls in a chain and a diamond; when each GET of the client ended, from the start."""
    began = client.rig.loop.now_ns()
    s = await client.session()
    a = await client.call(s, "a")
    b = await client.call(s, "b", refs=[a])
    c = await client.call(s, "c", 90, refs=[a])
    d = await client.call(s, "d", refs=[b, c])
    status, reply = await client.get(s, d)
    assert status == 200 and len(reply["content"].split()) == 40
    ends = [client.rig.loop.now_ns() - began]
    assert (await client.ask("DELETE", f"/v1/session/{s}", {}))[0] == 200
    return ends


def test_passive_reads_show_the_ends_of_intermediates_and_change_no_schedule(live: Callable[..., Any]) -> None:
    bare, _ = live(chain, through=False)
    plain, without = live(chain, passive=False)
    ends, records = live(chain)
    assert bare == plain == ends  # in virtual time the proxy adds nothing; to the nanosecond
    nodes = {r.node_id: r for r in records if r.api == "parrot"}
    assert set(nodes) == {"a.0", "b.1", "c.2", "d.3"} and {r.outcome for r in nodes.values()} == {"ok"}
    assert {n: {d["on"] for d in r.deps} for n, r in nodes.items()} == {
        "a.0": set(), "b.1": {"a.0"}, "c.2": {"a.0"}, "d.3": {"b.1", "c.2"},
    }  # fmt: skip
    assert nodes["a.0"].t_end_ns < nodes["b.1"].t_end_ns < nodes["c.2"].t_end_ns < nodes["d.3"].t_end_ns
    began = {
        n: r.t_upstream_ns for n, r in nodes.items()
    }  # all activated by the one GET, runnable when their inputs are
    assert began["b.1"] == began["c.2"] == nodes["a.0"].t_end_ns and began["d.3"] == nodes["c.2"].t_end_ns
    assert {r.note for r in nodes.values()} == {None}
    assert [nodes[n].completion_tokens for n in ("a.0", "c.2")] == [40, 90] and nodes["a.0"].prompt_tokens is None
    unseen = {r.node_id: r for r in without if r.api == "parrot"}
    assert unseen["d.3"].t_end_ns - unseen["d.3"].t_arrival_ns == nodes["d.3"].t_end_ns - nodes["d.3"].t_arrival_ns
    for name in ("a.0", "b.1", "c.2"):
        assert unseen[name].outcome == "ok" and "latest it can have been" in (unseen[name].note or "")
        assert unseen[name].t_end_ns == unseen["d.3"].t_end_ns


def test_sessions_that_come_back_are_new_workflows(live: Callable[..., Any]) -> None:
    async def work(client: Live, _: Any) -> None:
        for _ in range(3):
            s = await client.session()
            assert s == 0
            await client.get(s, await client.call(s, "x"))
            await client.ask("DELETE", "/v1/session/0", {})

    _, records = live(work)
    assert len({r.workflow_id for r in records}) == 3
    assert [r.session_id for r in records] == ["0"] * 3


def test_tags_of_the_client_win_and_edges_name_its_nodes(live: Callable[..., Any]) -> None:
    async def work(client: Live, _: Any) -> None:
        s = await client.session()
        output = [{"name": "o", "is_output": True, "sampling_config": {"max_gen_length": 4}}]
        body = {"session_id": s, "template": "t{{o}}", "parameters": output}
        tags = ("X-Workflow-Id: w9", "X-Workflow-Node: n1", "X-Request-Id: one")
        _, reply = await client.ask("POST", "/v1/semantic_call", body, *tags)
        made = {"name": "i", "is_output": False, "var_id": reply["param_info"][0]["var_id"]}
        body = {"session_id": s, "template": "t{{i}} u{{o}}", "parameters": [made, *output]}
        tags = ("X-Workflow-Id: w9", "X-Workflow-Node: n2", "X-Workflow-Parents: n1;kind=join", "X-Request-Id: two")
        _, reply = await client.ask("POST", "/v1/semantic_call", body, *tags)
        await client.get(s, reply["param_info"][1]["var_id"])

    _, records = live(work)
    got = {r.request_id: r for r in records if r.api == "parrot"}
    assert {r.workflow_id for r in got.values()} == {"w9"} and got["two"].node_id == "n2"
    assert [d["on"] for d in got["two"].deps] == ["n1"] and got["two"].deps[0]["kind"] == "join"
    assert "provenance" not in got["two"].deps[0]  # declared, and seen in the exchange: recorded, the default


def test_a_value_pasted_by_the_client_is_an_inferred_edge(live: Callable[..., Any]) -> None:
    async def work(client: Live, _: Any) -> None:
        s = await client.session()
        _, reply = await client.get(s, await client.call(s, "a"))
        parameters = [{"name": "x", "is_output": False, "value": reply["content"]}, {"name": "o", "is_output": True}]
        body = {"session_id": s, "func_name": "b", "template": "re{{x}} so{{o}}", "parameters": parameters}
        await client.ask("POST", "/v1/semantic_call", body)

    _, records = live(work)
    b = next(r for r in records if r.node_id == "b.1")
    assert [(d["on"], d["provenance"]) for d in b.deps] == [("a.0", "inferred:value")]
    assert (b.outcome, b.t_upstream_ns) == ("skipped", None)  # nothing ever asked for it


def test_a_waiting_get_ends_with_504_at_its_own_deadline_and_the_call_goes_on(live: Callable[..., Any]) -> None:
    async def work(client: Live, running: RunningParrot) -> tuple[int, int, float]:
        s = await client.session()
        var = await client.call(s, "slow", n=2_000)
        began = client.rig.loop.now_ns()
        status, _ = await client.get(s, var)
        waited = (client.rig.loop.now_ns() - began) / 1e9
        again = await client.session()  # other requests are not held by the GET's deadline
        assert again == s + 1
        await client.rig.sleep(60)
        second, reply = await client.get(s, var)
        assert len(reply["content"].split()) == 2_000
        return status, second, waited

    (first, second, waited), records = live(work, get_deadline_ns=3_000_000_000)
    assert (first, second) == (504, 200) and 3.0 <= waited <= 3.6
    assert [r.outcome for r in records if r.api is None] == ["timeout"]
    node = next(r for r in records if r.api == "parrot")
    assert node.outcome == "ok" and node.t_end_ns - (node.t_upstream_ns or 0) > 10e9


def test_the_death_of_the_core_ends_what_waits_and_marks_workflows_lost(live: Callable[..., Any]) -> None:
    async def work(client: Live, running: RunningParrot) -> int:
        s = await client.session()
        a = await client.call(s, "a", n=2_000)
        b = await client.call(s, "b", refs=[a])
        waiting = asyncio.ensure_future(client.get(s, b))
        await client.rig.sleep(1)
        await running.close()
        status, _ = await waiting
        await client.rig.sleep(1)
        return status

    status, records = live(work)
    assert status == 502
    lost = {r.node_id: r for r in records if r.api == "parrot"}
    assert {n: r.outcome for n, r in lost.items()} == {"a.0": "upstream_died", "b.1": "upstream_died"}
    assert {r.outcome for r in records if r.api is None} == {"unreachable"}  # a GET may be sent again: nobody there


def test_hazards_are_refused_in_front_of_a_live_core(live: Callable[..., Any]) -> None:
    async def work(client: Live, running: RunningParrot) -> list[tuple[int, str]]:
        s = await client.session()
        out = {"name": "o", "is_output": True}
        base = {"session_id": s, "template": "hi{{o}}", "parameters": [out]}
        two = {"template": "a{{o}}{{p}}", "parameters": [out, {"name": "p", "is_output": True}]}
        changes: Rows = [{"model_type": "x"}, {"fuse_fill": True}, {"template": "{{o}}"}, {"output_criteria": "x"}, two]
        replies = [await client.ask("POST", "/v1/semantic_call", base | c) for c in changes]
        replies.append(await client.ask("POST", "/v1/py_native_call", {"session_id": s}))
        var = await client.call(s, "fine")
        replies.append(await client.get(s, var, "TTFT"))
        assert (await client.get(s, var))[0] == 200
        assert (await client.get(s, var, "TTFT"))[0] == 200  # of no interest once it is there
        return [(status, reply["error"]["code"]) for status, reply in replies]

    told, records = live(work)
    assert told == [(400, "parrot_hazard")] * 7
    assert [r.outcome for r in records if r.outcome != "ok"] == ["rejected"] * 7
    assert all(r.error for r in records if r.outcome == "rejected")


def test_one_core_per_proxy() -> None:
    with pytest.raises(UserError, match="one core"):
        check(ProxyConfig(("http://127.0.0.1:1", "http://127.0.0.1:2"), engine="parrot"), "127.0.0.1")
