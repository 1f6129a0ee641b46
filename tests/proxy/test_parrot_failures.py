"""In front of a Parrot where things fail: what the records say of calls that were refused or of which nothing came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from traces.records import RequestRecord

WRONG = {"error": "ParrotError(type=<class 'ValueError'>, msg=Unknown sampling key (n_gram).)", "traceback": ""}


class Core:
    """A scripted core: sessions are 0, calls make the variables v0, v1 ..., and every value is the same."""

    def __init__(self, value: str, refuses: bool = False) -> None:
        self.value = value
        self.refuses = refuses
        self.calls = 0

    def __call__(self, wire: Any) -> None:
        head, _, body = wire.got.partition(b"\r\n\r\n")
        size = next(int(x[15:]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:"))
        if len(body) < size:
            return
        status, reply = self._answer(head.split()[1].decode(), orjson.loads(body))
        raw = orjson.dumps(reply)
        wire.send(b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(raw), raw))
        wire.transport.close()

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path.startswith("/v1/semantic_var/"):
            return 200, {"content": self.value}
        if path != "/v1/semantic_call":
            return 200, {"session_id": 0, "session_auth": "1"}
        if self.refuses:
            return 500, WRONG
        made = {"parameter_name": "o", "is_output": True, "var_id": f"v{self.calls}"}
        self.calls += 1
        return 200, {"request_id": self.calls - 1, "param_info": [made]}


def call(name: str, *refs: str, **more: Any) -> dict[str, Any]:
    inputs = [{"name": f"i{k}", "is_output": False, "var_id": v} for k, v in enumerate(refs)]
    sampling = {"max_gen_length": 30, "ignore_tokenizer_eos": True}
    template = "go" + "".join(f"{{{{{p['name']}}}}} the" for p in inputs) + "{{o}}"
    output = {"name": "o", "is_output": True, "sampling_config": sampling}
    return {"session_id": 0, "func_name": name, "template": template, "parameters": [*inputs, output], **more}


Told = tuple[list[bytes], dict[str | None, RequestRecord]]


@pytest.fixture
def told(rig: Any) -> Callable[..., Told]:
    """told(core, *(method, path, body)): the replies, and the records of calls by node."""

    def run(core: Core, *requests: tuple[str, str, Any]) -> Told:
        async def scenario(r: Any) -> list[bytes]:
            out = []
            for method, path, body in [("POST", "/v1/session", {}), *requests]:
                raw = orjson.dumps(body)
                wire = await r.client(f"{method} {path} HTTP/1.1\r\nHost: p\r\n".encode()
                                      + b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw))  # fmt: skip
                await wire.end()
                out.append(wire.got)
                await r.sleep(0.1)
            await r.proxy.close()
            records[:] = r.records
            return out[1:]

        records: list[RequestRecord] = []
        replies = rig(scenario, on_data=core, engine="parrot")
        return replies, {x.node_id: x for x in records if x.path == "/v1/semantic_call"}

    return run


@pytest.mark.parametrize(("value", "tokens", "note"), [("", None, "its value was empty"), ("x" * 90, 30, None)])
def test_of_an_empty_value_no_tokens_are_claimed(
    told: Callable[..., Told], value: str, tokens: int | None, note: str | None
) -> None:
    get = ("GET", "/v1/semantic_var/v1", {"session_id": 0, "criteria": "latency"})
    calls = [("POST", "/v1/semantic_call", body) for body in (call("a"), call("b", "v0"))]
    _, records = told(Core(value), *calls, get)
    found = {n: (r.outcome, r.completion_tokens, r.note) for n, r in records.items()}
    assert found == {
        "a.0": ("ok", tokens, note),
        "b.1": ("ok", tokens, note),
    }  # a was read by the proxy, b by the client


def test_a_call_that_the_core_refuses_is_one_of_its_workflow_and_says_why(told: Callable[..., Told]) -> None:
    _, records = told(Core("x", refuses=True), ("POST", "/v1/semantic_call", call("a")))
    (record,) = records.values()
    assert (record.workflow_id, record.node_id, record.tag_source) == ("parrot-0-0-0", record.request_id, "parrot")
    assert (record.outcome, record.status, record.error) == ("error", 500, "Unknown sampling key (n_gram).")


def test_a_call_that_is_refused_here_is_one_of_its_workflow(told: Callable[..., Told]) -> None:
    replies, records = told(Core("x"), ("POST", "/v1/semantic_call", call("a", fuse_fill=True)),
                            ("POST", "/v1/semantic_call", call("b", fuse_fill=True, session_id=7)))  # fmt: skip
    assert sorted(str(r.workflow_id) for r in records.values()) == ["None", "parrot-0-0-0"]
    assert {(r.outcome, r.api) for r in records.values()} == {("rejected", "parrot")}
    # Parrot's own client reads both fields of an error, and shows the first
    assert {"error", "traceback"} == set(orjson.loads(replies[0].partition(b"\r\n\r\n")[2]))
