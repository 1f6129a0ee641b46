"""Our proxy before a Parrot that runs, opt-in: hazards never reach it, deadlines let go, passive reads change nothing.

JOULEGRAPH_PARROT_URL=http://127.0.0.1:9000 pytest -m parrot tests/proxy/test_parrot_running.py
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

URL = os.environ.get("JOULEGRAPH_PARROT_URL", "")
pytestmark = [
    pytest.mark.parrot,
    pytest.mark.skipif(not URL, reason="set JOULEGRAPH_PARROT_URL to a serve layer that runs, with a token engine"),
]
OUT = {"name": "o", "is_output": True, "sampling_config": {"max_gen_length": 6, "ignore_tokenizer_eos": True}}


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "joulegraph", "proxy", "--upstream", URL, "--engine", "parrot", "--json"]
    command += [
        "--listen",
        "127.0.0.1:0",
        "--control",
        "0",
        "--record",
        str(tmp_path / "run"),
        "--parrot-deadline",
        "2",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        listen = str(json.loads(child.stdout.readline())["listen"])
        yield listen if listen.startswith("http") else f"http://{listen}"
        child.terminate()


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    found = [json.loads(x) for f in (tmp_path / "run").glob("requests.*.jsonl") for x in f.read_text().splitlines()]
    return [r for r in found if "journal" not in r]


async def ask(base: str, method: str, path: str, body: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
        http.request(method, base + path, json=body) as reply,
    ):
        raw = await reply.read()
        return reply.status, json.loads(raw) if raw.startswith(b"{") else raw


async def session(base: str) -> int:
    return int((await ask(base, "POST", "/v1/session", {}))[1]["session_id"])


async def submit(base: str, s: int, template: str, *inputs: dict[str, Any]) -> str:
    body = {"session_id": s, "template": template, "parameters": [*inputs, OUT]}
    status, reply = await ask(base, "POST", "/v1/semantic_call", body)
    assert status == 200, reply
    return str(next(p["var_id"] for p in reply["param_info"] if p["is_output"]))


HAZARDS: dict[str, dict[str, Any]] = {
    "model_type": {"model_type": "magic"},
    "fuse_fill": {"fuse_fill": True},
    "criteria": {"output_criteria": "TTFT"},
    "begins": {"template": "{{o}} x"},
    "twice": {"template": "a {{o}} b {{o}}"},
    "outputs": {"template": "a {{o}} b {{q}}", "parameters": [OUT, {**OUT, "name": "q"}]},
}


@pytest.mark.parametrize("name", HAZARDS)
def test_a_hazard_is_refused_and_the_core_lives(proxy: str, name: str) -> None:
    async def work() -> None:
        s = await session(proxy)
        base = {"session_id": s, "template": "a{{o}}", "parameters": [OUT]}
        status, reply = await ask(proxy, "POST", "/v1/semantic_call", base | HAZARDS[name])
        assert status == 400 and reply["error"]["code"] == "parrot_hazard", reply
        value = await submit(proxy, s, "still there{{o}}")
        assert (await ask(proxy, "GET", f"/v1/semantic_var/{value}", {"session_id": s, "criteria": "latency"}))[
            0
        ] == 200
        assert (await ask(proxy, "DELETE", f"/v1/session/{s}", {}))[0] == 200

    asyncio.run(work())


def test_native_code_and_a_bad_criteria_of_a_get_are_refused(proxy: str) -> None:
    async def work() -> None:
        s = await session(proxy)
        native = {"session_id": s, "func_name": "f", "func_code": "", "parameters": []}
        assert (await ask(proxy, "POST", "/v1/py_native_call", native))[0] == 400
        value = await submit(proxy, s, "go{{o}}")
        assert (await ask(proxy, "GET", f"/v1/semantic_var/{value}", {"session_id": s, "criteria": "TPOT"}))[0] == 400
        assert (await ask(proxy, "GET", f"/v1/semantic_var/{value}", {"session_id": s, "criteria": "latency"}))[
            0
        ] == 200

    asyncio.run(work())


def test_a_get_past_the_deadline_is_answered_and_a_later_one_gets_the_value(proxy: str, tmp_path: Path) -> None:
    async def work() -> None:
        s = await session(proxy)
        made = await ask(proxy, "POST", "/v1/semantic_var", {"session_id": s, "session_auth": "1", "var_name": "x"})
        path = f"/v1/semantic_var/{made[1]['var_id']}"
        loop, body = asyncio.get_running_loop(), {"session_id": s, "session_auth": "1", "criteria": "latency"}
        start = loop.time()
        assert (await ask(proxy, "GET", path, body))[0] == 504
        assert 1.9 < loop.time() - start < 10
        assert (await ask(proxy, "POST", path, {"session_id": s, "session_auth": "1", "content": "late"}))[0] == 200
        assert await ask(proxy, "GET", path, body) == (200, {"content": "late"})

    asyncio.run(work())


def test_a_chain_is_a_workflow_with_recorded_edges_and_every_end_seen(proxy: str, tmp_path: Path) -> None:
    async def work() -> None:
        s = await session(proxy)
        made = [await submit(proxy, s, "first{{o}}")]
        for k in range(3):
            made.append(await submit(proxy, s, f"then {k}{{{{x}}}} more{{{{o}}}}", {"name": "x", "is_output": False,
                                                                                 "var_id": made[-1]}))  # fmt: skip
        body = {"session_id": s, "criteria": "latency"}
        assert (await ask(proxy, "GET", f"/v1/semantic_var/{made[-1]}", body))[0] == 200
        await asyncio.sleep(0.5)
        await ask(proxy, "DELETE", f"/v1/session/{s}", {})
        await asyncio.sleep(1.5)

    asyncio.run(work())
    calls = sorted((r for r in rows(tmp_path) if r["api"] == "parrot"), key=lambda r: int(r["t_arrival_ns"]))
    assert [r["outcome"] for r in calls] == ["ok"] * 4 and len({r["workflow_id"] for r in calls}) == 1
    assert [[d["on"] for d in r["deps"]] for r in calls] == [[], *([r["node_id"]] for r in calls[:-1])]
    ends = [r["t_end_ns"] for r in calls]
    assert ends == sorted(ends) and all(r["note"] is None for r in calls)  # passive reads saw each one end
