"""Requests of a load generator to a Parrot: one after the other on pooled connections, every failure as data.

Lives here: the bytes of a request, its deadline, what came back. May not know: workflows, when anything is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from engines.http1 import Connection
from engines.parrot.protocol import parse_json
from engines.pool import Pool
from loadgen.target import Target
from traces.records import Outcome
from traces.seams import NowNs


@dataclass(slots=True)
class Answer:
    """How one request ended; body None where there is no whole reply."""

    outcome: Outcome
    error: str | None = None
    status: int | None = None
    body: dict[str, Any] | None = None
    sent_ns: int | None = None
    first_byte_ns: int | None = None
    end_ns: int = 0
    reused: bool | None = None


class _Reply:
    """Collects one reply. A Reply of engines.http1."""

    def __init__(self) -> None:
        self.answer = Answer("error")
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self.answer.status, self.answer.first_byte_ns = status, now_ns

    def body(self, data: bytes, now_ns: int) -> None:
        self._parts.append(data)

    def done(self, now_ns: int) -> None:
        answer, raw = self.answer, b"".join(self._parts)
        answer.body, answer.end_ns = parse_json(raw), now_ns
        if answer.status == 200 and answer.body is not None:
            answer.outcome = "ok"
        else:
            answer.outcome = "rejected" if 400 <= (answer.status or 0) < 500 else "error"
            answer.error = f"{answer.status}: {raw[:300].decode('utf-8', 'replace')}"
        self._settle()

    def lost(self, why: str, now_ns: int) -> None:
        self.answer.outcome, self.answer.error, self.answer.end_ns = "upstream_died", why, now_ns
        self._settle()

    def _settle(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class Asker:
    """One target. timeout_ns: what a request's deadline was made of, for its sentence."""

    def __init__(self, target: Target, pool: Pool, now_ns: NowNs, timeout_ns: int) -> None:
        self._target, self._pool, self._now_ns, self._timeout_ns = target, pool, now_ns, timeout_ns

    async def ask(
        self, method: str, path: str, body: dict[str, Any], headers: Iterable[tuple[str, str]], deadline_ns: int | None
    ) -> Answer:
        """One request; every failure is data. A POST is never sent twice."""
        reply = _Reply()
        raw = orjson.dumps(body)
        target = self._target
        lines = [
            f"{method} {target.base}{path} HTTP/1.1",
            f"host: {target.authority}",
            "content-type: application/json",
            f"content-length: {len(raw)}",
            *(f"{name}: {value}" for name, value in headers),
            *([f"authorization: Bearer {target.api_key}"] if target.api_key is not None else []),
        ]
        try:
            connection = await self._pool.acquire(fresh=method == "POST")
        except OSError as error:
            return Answer("unreachable", str(error), end_ns=self._now_ns())
        reply.answer.reused, reply.answer.sent_ns = connection.reused, self._now_ns()
        connection.send("\r\n".join(lines).encode() + b"\r\n\r\n" + raw, reply)
        return await self._await(reply, connection, deadline_ns)

    async def _await(self, reply: _Reply, connection: Connection, deadline_ns: int | None) -> Answer:
        left = None if deadline_ns is None else max(0.0, (deadline_ns - self._now_ns()) / 1e9)
        try:
            async with asyncio.timeout(left):
                await reply.over
        except TimeoutError:
            connection.abort()
            allowed = self._timeout_ns / 1e9
            return Answer("timeout", f"no complete reply within {allowed:g} s", end_ns=self._now_ns())
        except asyncio.CancelledError:
            connection.abort()
            raise
        if reply.answer.outcome != "upstream_died":
            self._pool.release(connection)
        return reply.answer


def output_of(reply: dict[str, Any] | None) -> str | None:
    """The output's variable in a reply to a call."""
    for entry in (reply or {}).get("param_info") or []:
        if isinstance(entry, dict) and entry.get("is_output") and isinstance(entry.get("var_id"), str):
            return str(entry["var_id"])
    return None
