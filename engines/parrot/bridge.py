"""An engine for Parrot's serve layer whose model is an OpenAI-compatible server: contexts here, generation there.

Registers as a token-id engine, keeps the token ids of every context, and turns a generate into one streamed
/v1/completions with the ids of the whole chain, so that prompts and outputs have exact lengths and the engine behind
sees each call with its session and task, or under the request id that the call carries. Whatever the engine behind
does, the core gets an answer: an error or a broken stream would end its process, so a failed call yields what was
generated, and is counted in `failed`. Every generation is one record (tasks).
Lives here: the engine protocol. May not know: tokenizers, scheduling, files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson
from aiohttp import web

from engines.parrot.completion import Completion, IdsFrom, Wanted, request
from engines.parrot.contexts import Contexts
from engines.parrot.protocol import marked, parse_json
from engines.parrot.registration import EngineConfig, Registration, info
from engines.parrot.tasks import Begun, TaskKey, task_record
from engines.pool import Pool
from traces import tags
from traces.records import RequestRecord
from traces.seams import Connect, NowNs, Serve, SleepUntil

BODY_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class BridgeOptions:
    """Where the core and the engine behind are, and what the core is told."""

    core_host: str
    core_port: int
    upstream_host: str
    upstream_port: int
    engine: EngineConfig
    ids_from: IdsFrom = "token_ids"
    answer_timeout_s: float = 3600.0


class Bridge:
    """One engine as the core sees it. write: takes a record of every generation, when it ended. say: sentences for a
    user: where it stands with the core."""

    def __init__(
        self,
        options: BridgeOptions,
        *,
        now_ns: NowNs,
        sleep_until: SleepUntil,
        connect: Connect,
        write: Callable[[RequestRecord], None] = lambda record: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.options = options
        self.contexts = Contexts()
        self.generated = self.failed = 0
        self.last_error: str | None = None
        self.registration = Registration(
            options.engine, options.core_host, options.core_port, now_ns=now_ns, sleep_until=sleep_until,
            connect=connect, say=say,
        )  # fmt: skip
        self._begun = Begun()
        self._running = 0
        self._now_ns, self._write = now_ns, write
        self._upstream = Pool(options.upstream_host, options.upstream_port, connect=connect, now_ns=now_ns)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request of the core."""
        body = parse_json(await request.read())
        if request.method != "POST" or body is None:
            return _json({"detail": "Not Found"}, 404)
        match request.path:
            case "/fill":
                return _json(self._fill(body))
            case "/generate":
                return _json(await self._generate(body))
            case "/free_context":
                return _json({"context_len": self.contexts.free(int(body["context_id"]))})
            case "/ping":
                return _json({"runtime_info": info(self._running)})
        return _json({"detail": "Not Found"}, 404)

    def _fill(self, body: dict[str, Any]) -> dict[str, Any]:
        self._begun.fill(self._key(body), self._now_ns())
        ids = body.get("token_ids") or []
        context = self.contexts.open(int(body["context_id"]), int(body["parent_context_id"]))
        context.ids += ids
        return {"filled_len": len(ids)}

    async def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        context_id, sampling = int(body["context_id"]), body.get("sampling_config") or {}
        context = self.contexts.open(context_id, int(body["parent_context_id"]))
        key, wanted, sent = self._key(body), Wanted.of(sampling), self._now_ns()
        name, began = marked(sampling) or key.name, self._begun.take(key, sent)
        prompt, note = self.contexts.chain(context_id), None
        if not self.contexts.whole(context_id):
            note = "its prompt is short: the core counts on a context that this bridge does not hold (restarted?)"
        made = Completion(began)
        options = self.options
        tag = tags.Tag(key.workflow, key.node)
        asked = wanted.body(options.engine.model, prompt, options.ids_from)
        data = request(options.upstream_host, options.upstream_port, asked, tag, name)
        self._running += 1
        try:
            await self._complete(data, made)
        finally:
            self._running -= 1
            self.generated += 1
            if made.outcome != "ok":
                self.failed += 1
                self.last_error = made.error
            seen = made.fields()
            seen["prompt_tokens"] = seen["prompt_tokens"] or len(prompt)
            seen |= {"model": options.engine.model, "t_upstream_ns": sent, "sampling": _told(wanted), "note": note}
            self._write(task_record(key, name, began, max_tokens=wanted.max_tokens, **seen))
        context.ids += made.ids
        return {"generated_text": "", "generated_ids": made.ids}

    async def _complete(self, data: bytes, made: Completion) -> None:
        """Until it is over, however it ends. A connection that had gone stale is not the call's fault: once more."""
        try:
            if await self._try(data, made, fresh=False):
                made.again()
                await self._try(data, made, fresh=True)
        except OSError as error:
            made.fail("unreachable", str(error), self._now_ns())

    async def _try(self, data: bytes, made: Completion, *, fresh: bool) -> bool:
        """One attempt; whether another on a fresh connection is due. Unreachable where there is no connection."""
        connection = await self._upstream.acquire(fresh=fresh)
        connection.send(data, made)
        try:
            async with asyncio.timeout(self.options.answer_timeout_s):
                await made.over
        except TimeoutError:
            made.fail("timeout", f"no complete reply within {self.options.answer_timeout_s:g} s", self._now_ns())
            connection.abort()
        except asyncio.CancelledError:  # the core left: so does its request
            made.fail("cancelled", "the core left", self._now_ns())
            connection.abort()
            raise
        else:
            self._upstream.release(connection)
        return made.outcome == "upstream_died" and connection.retryable

    def _key(self, body: dict[str, Any]) -> TaskKey:
        return TaskKey.of(self.registration.incarnation, body)

    async def run(self, port: int) -> None:
        """Stay registered with the core; a core that began anew finds no contexts here."""
        await self.registration.run(port, lambda: self._running, self.contexts.clear)

    def close(self) -> None:
        """Close what is idle."""
        self.registration.close()
        self._upstream.close()


def _told(wanted: Wanted) -> dict[str, Any]:
    return {"temperature": wanted.temperature, "top_p": wanted.top_p, "ignore_eos": wanted.exact}


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), headers={"content-type": "application/json"})


class RunningBridge:
    """A bridge that listens, registers and beats."""

    def __init__(self, bridge: Bridge, port: int, server: web.Server, listener: asyncio.AbstractServer) -> None:
        self.bridge, self.port = bridge, port
        self._server, self._listener = server, listener
        self._task = asyncio.ensure_future(bridge.run(port))

    async def close(self) -> None:
        """Stop; the core forgets the engine once its heartbeats are missed."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()
        await self._server.shutdown(0.1)
        await self._listener.wait_closed()
        self.bridge.close()


async def start(
    options: BridgeOptions,
    *,
    port: int = 0,
    now_ns: NowNs,
    sleep_until: SleepUntil,
    connect: Connect,
    serve: Serve,
    write: Callable[[RequestRecord], None] = lambda record: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> RunningBridge:
    """Listen on the loopback address and begin to register. OSError when the port is taken."""
    bridge = Bridge(options, now_ns=now_ns, sleep_until=sleep_until, connect=connect, write=write, say=say)
    server = web.Server(bridge.handle, request_factory=_request, handler_cancellation=True, access_log=None)
    listener = await serve(cast(Any, server), "127.0.0.1", port)
    sockets = getattr(listener, "sockets", ())
    address = sockets[0].getsockname() if sockets else getattr(listener, "address", ("127.0.0.1", port))
    return RunningBridge(bridge, int(address[1]), server, listener)


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """aiohttp's own limit is 1 MiB; a long fill is more."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_LIMIT)
