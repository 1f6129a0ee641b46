"""One suite, two serve layers: the embedded Parrot in virtual time, and any that runs, given by URL.

    JOULEGRAPH_PARROT_URL=http://127.0.0.1:9000 pytest -m parrot tests/engines/test_parrot_conformance.py

The running one needs a token engine (`joulegraph bridge parrot`). No case kills or hangs it for good.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from engines.embedded.server import EngineOptions
from engines.parrot.server import ParrotOptions, start
from joulegraph.virtual import VirtualLoop, run_virtual

from .harness import Client
from .parrot_cases import CASES, DIFFERS, EXPECTED, Said

URL = os.environ.get("JOULEGRAPH_PARROT_URL", "")
ROOT = Path(__file__).resolve().parents[2]


class Embedded:
    """The embedded one, in memory."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ask(self, method: str, path: str, body: Any = None) -> Said:
        answer = await self._client.call(path, body, method=method)
        return Said(answer.status, answer.headers.get("content-type", ""), answer.body_bytes)


class Running:
    """One that listens somewhere."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def ask(self, method: str, path: str, body: Any = None) -> Said:
        data = None if body is None else orjson.dumps(body)
        kind = {"Content-Type": "application/json"}
        async with self._http.request(method, URL + path, data=data, headers=kind, allow_redirects=False) as reply:
            return Said(reply.status, reply.headers.get("Content-Type", ""), await reply.read())


def on_embedded(name: str) -> Any:
    async def main(loop: VirtualLoop) -> Any:
        running = await start(
            ParrotOptions(EngineOptions()), now_ns=loop.now_ns, sleep_until=loop.sleep_until, serve=loop.create_server
        )
        client = Client(loop, running)  # type: ignore[arg-type]
        try:
            return await CASES[name](Embedded(client))
        finally:
            client.pool.close()
            await running.close()

    return run_virtual(main)


def on_running(name: str) -> Any:
    async def main() -> Any:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            return await CASES[name](Running(http))

    return asyncio.run(main())


@pytest.mark.parametrize("name", CASES)
def test_embedded(name: str) -> None:
    assert on_embedded(name) == (DIFFERS[name].embedded if name in DIFFERS else EXPECTED[name])


@pytest.mark.parrot
@pytest.mark.skipif(not URL, reason="set JOULEGRAPH_PARROT_URL to a serve layer that runs, with a token engine")
@pytest.mark.parametrize("name", CASES)
def test_running(name: str) -> None:
    assert on_running(name) == (DIFFERS[name].real if name in DIFFERS else EXPECTED[name])


def test_every_case_has_one_expectation_and_every_difference_is_documented() -> None:
    assert set(CASES) == set(EXPECTED) | set(DIFFERS) and not set(EXPECTED) & set(DIFFERS)
    text = " ".join((ROOT / "docs" / "parrot.md").read_text().split())
    assert [d.why for d in DIFFERS.values() if d.why not in text] == []
