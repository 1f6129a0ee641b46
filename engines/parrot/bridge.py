"""An engine for Parrot's serve layer whose model is an OpenAI-compatible server: contexts here, generation there.

Registers as a token-id engine, keeps the token ids of every context, and turns a generate into one streamed
/v1/completions with the ids of the whole chain, so that prompts and outputs have exact lengths and the engine behind
sees each call with its session and task. Whatever the engine behind does, the core gets an answer: an error or a
broken stream would end its process, so a failed call yields what was generated, and is counted in `failed`.
Lives here: contexts, the engine protocol, registration, heartbeats. May not know: tokenizers, scheduling.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
from aiohttp import web

from engines.http1 import Connection, Pool
from engines.parrot.protocol import parse_json
from engines.sse import SseParser
from traces import tags
from traces.seams import Connect, NowNs, Serve, SleepUntil

HEARTBEAT_NS = 3_000_000_000
BODY_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class BridgeOptions:
    """Where the core and the engine behind are, and what the core is told."""

    core_host: str
    core_port: int
    upstream_host: str
    upstream_port: int
    model: str
    tokenizer: str
    """directory that the core loads its tokenizer from; must be the tokenizer of `model`"""
    name: str = "joulegraph-bridge"
    tasks_capacity: int = 256
    tokens_capacity: int = 99_999_999_999_999_999
    answer_timeout_s: float = 3600.0


@dataclass(slots=True)
class Context:
    """Token ids of one context and the one it continues."""

    parent: int
    ids: list[int] = field(default_factory=list)


class Contexts:
    """The tree of contexts. Pure."""

    def __init__(self) -> None:
        self._all: dict[int, Context] = {}

    def open(self, context_id: int, parent_id: int) -> Context:
        """The context, made on first sight."""
        return self._all.setdefault(context_id, Context(parent_id))

    def chain(self, context_id: int) -> list[int]:
        """All ids from the root down. A parent that is gone counts as empty."""
        parts: list[list[int]] = []
        seen: set[int] = set()
        while context_id in self._all and context_id not in seen:
            seen.add(context_id)
            context = self._all[context_id]
            parts.append(context.ids)
            context_id = context.parent
        return [token for part in reversed(parts) for token in part]

    def free(self, context_id: int) -> int:
        """Forget one; its own length."""
        context = self._all.pop(context_id, None)
        return len(context.ids) if context is not None else 0

    def clear(self) -> None:
        """The core began anew."""
        self._all.clear()

    def __len__(self) -> int:
        return len(self._all)


class _Stream:
    """Collects the token ids of one streamed completion. A Reply of engines.http1."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.error: str | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sse = SseParser()
        self._status = 0
        self._raw = b""

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self._status = status

    def body(self, data: bytes, now_ns: int) -> None:
        if self._status != 200:
            self._raw = (self._raw + data)[:4096]
            return
        for event in self._sse.feed(data):
            value = parse_json(event.data)
            if value is None:
                continue
            if value.get("error") is not None:
                self.error = str(value["error"])[:300]
            for choice in value.get("choices") or ():
                self.ids += choice.get("token_ids") or ()

    def done(self, now_ns: int) -> None:
        if self._status != 200:
            self.error = f"{self._status}: {self._raw[:300].decode('utf-8', 'replace')}"
        self._settle()

    def lost(self, why: str, now_ns: int) -> None:
        self.error = why
        self._settle()

    def _settle(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class _Told:
    """The core's answer to a registration or heartbeat. A Reply of engines.http1."""

    def __init__(self) -> None:
        self.status = 0
        self.raw = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self.status = status

    def body(self, data: bytes, now_ns: int) -> None:
        self.raw += data

    def done(self, now_ns: int) -> None:
        self.over.set_result(None)

    def lost(self, why: str, now_ns: int) -> None:
        self.status = 0
        self.over.set_result(None)


class Bridge:
    """One engine as the core sees it."""

    def __init__(
        self, options: BridgeOptions, *, now_ns: NowNs, sleep_until: SleepUntil, connect: Connect, port: int = 0
    ) -> None:
        self.options, self.port = options, port
        self.contexts = Contexts()
        self.engine_id: int | None = None
        self.generated = self.failed = 0
        self.last_error: str | None = None
        self._running = 0
        self._now_ns, self._sleep_until = now_ns, sleep_until
        self._core = Pool(options.core_host, options.core_port, connect=connect, now_ns=now_ns)
        self._upstream = Pool(options.upstream_host, options.upstream_port, connect=connect, now_ns=now_ns)

    # ------------------------------------------------------------------ the core asks

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
                return _json({"runtime_info": self._info()})
        return _json({"detail": "Not Found"}, 404)

    def _fill(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body.get("token_ids") or []
        context = self.contexts.open(int(body["context_id"]), int(body["parent_context_id"]))
        context.ids += ids
        return {"filled_len": len(ids)}

    async def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        context_id, sampling = int(body["context_id"]), body.get("sampling_config") or {}
        context = self.contexts.open(context_id, int(body["parent_context_id"]))
        stream = _Stream()
        self._running += 1
        try:
            await self._complete(self._request(body, self.contexts.chain(context_id), sampling), stream)
        finally:
            self._running -= 1
        self.generated += 1
        if stream.error is not None:
            self.failed += 1
            self.last_error = stream.error
        context.ids += stream.ids
        return {"generated_text": "", "generated_ids": stream.ids}

    async def _complete(self, data: bytes, stream: _Stream) -> None:
        connection: Connection | None = None
        try:
            connection = await self._upstream.acquire()
            connection.send(data, stream)
            async with asyncio.timeout(self.options.answer_timeout_s):
                await stream.over
        except OSError as error:  # TimeoutError is one
            stream.error = str(error) or "no answer in time"
            if connection is not None:
                connection.abort()
        except asyncio.CancelledError:  # the core left: so does its request
            if connection is not None:
                connection.abort()
            raise
        else:
            self._upstream.release(connection)

    def _request(self, body: dict[str, Any], prompt: list[int], sampling: dict[str, Any]) -> bytes:
        most = int(sampling.get("max_gen_length") or 512)
        exact = bool(sampling.get("ignore_tokenizer_eos"))
        asked = {
            "model": self.options.model,
            "prompt": prompt,
            "max_tokens": most,
            "temperature": sampling.get("temperature", 1.0),
            "top_p": sampling.get("top_p", 1.0),
            "ignore_eos": exact,
            **({"min_tokens": most} if exact else {}),
            **({"stop_token_ids": sampling["stop_token_ids"]} if sampling.get("stop_token_ids") and not exact else {}),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        raw = orjson.dumps(asked)
        tag = tags.Tag(f"parrot-session-{body.get('session_id')}", f"task-{body.get('task_id')}")
        name = f"parrot-{body.get('session_id')}-{body.get('task_id')}"
        lines = [
            "POST /v1/completions HTTP/1.1",
            f"host: {self.options.upstream_host}:{self.options.upstream_port}",
            "content-type: application/json",
            f"content-length: {len(raw)}",
            *(f"{key}: {value}" for key, value in [*tags.to_headers(tag), (tags.REQUEST_ID, name)]),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw

    # ------------------------------------------------------------------ telling the core

    async def run(self) -> None:
        """Register, then beat for ever; register again when the core does not know the engine (any more)."""
        while True:
            if self.engine_id is None:
                await self._register()
            else:
                beat = {"engine_id": self.engine_id, "engine_name": self.options.name, "runtime_info": self._info()}
                status, _ = await self._tell("/engine_heartbeat", beat)
                if status != 200:  # restarted, or gone: what it had here means nothing any more
                    self.engine_id = None
                    self.contexts.clear()
                    continue
            await self._sleep_until(self._now_ns() + HEARTBEAT_NS)

    async def _register(self) -> None:
        options = self.options
        config = {
            "model": options.model, "host": "127.0.0.1", "port": self.port, "heartbeat_interval": 3,
            "engine_name": options.name, "engine_type": "builtin", "random_seed": 0, "tokenizer": options.tokenizer,
            "fill_chunk_size": -1, "dtype": "float16", "device": "cuda", "tasks_capacity": options.tasks_capacity,
            "tokens_capacity": options.tokens_capacity,
        }  # fmt: skip
        status, answer = await self._tell("/register_engine", {"engine_config": config})
        if status == 200 and isinstance(answer.get("engine_id"), int):
            self.engine_id = answer["engine_id"]

    async def _tell(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        raw, told = orjson.dumps(body), _Told()
        head = f"POST {path} HTTP/1.1\r\nhost: {self.options.core_host}\r\ncontent-type: application/json\r\n"
        try:
            connection = await self._core.acquire(fresh=True)
        except OSError:
            return 0, {}
        connection.send(f"{head}content-length: {len(raw)}\r\nconnection: close\r\n\r\n".encode() + raw, told)
        await told.over
        connection.close()
        return told.status, parse_json(told.raw) or {}

    def _info(self) -> dict[str, int]:
        return {
            "num_cached_tokens": -1, "num_max_blocks": 0, "num_running_jobs": self._running,
            "num_total_jobs": self._running, "cache_mem": -1, "model_mem": -1, "profiled_cpu_mem": 0,
            "profiled_gpu_tensor_mem": 0, "profiled_gpu_allocate_mem": 0, "recent_average_latency": 0,
        }  # fmt: skip

    def close(self) -> None:
        """Close what is idle."""
        self._core.close()
        self._upstream.close()


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), headers={"content-type": "application/json"})


class RunningBridge:
    """A bridge that listens, registers and beats."""

    def __init__(self, bridge: Bridge, server: web.Server, listener: asyncio.AbstractServer) -> None:
        self.bridge = bridge
        self._server, self._listener = server, listener
        self._task = asyncio.ensure_future(bridge.run())

    async def close(self) -> None:
        """Stop; the core forgets the engine once its heartbeats are missed."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()
        await self._server.shutdown(0.1)
        await self._listener.wait_closed()
        self.bridge.close()


async def start(
    options: BridgeOptions, *, port: int = 0, now_ns: NowNs, sleep_until: SleepUntil, connect: Connect, serve: Serve
) -> RunningBridge:
    """Listen on the loopback address and begin to register. OSError when the port is taken."""
    bridge = Bridge(options, now_ns=now_ns, sleep_until=sleep_until, connect=connect)
    server = web.Server(bridge.handle, request_factory=_request, handler_cancellation=True, access_log=None)
    listener = await serve(cast(Any, server), "127.0.0.1", port)
    sockets = getattr(listener, "sockets", ())
    address = sockets[0].getsockname() if sockets else getattr(listener, "address", ("127.0.0.1", port))
    bridge.port = int(address[1])
    return RunningBridge(bridge, server, listener)


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """aiohttp's own limit is 1 MiB; a long fill is more."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_LIMIT)
