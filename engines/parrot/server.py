"""The embedded Parrot as a server: its public API over aiohttp, in real and in virtual time.

Lives here: routes, the bytes of replies and errors, blocking GETs, start and stop. May not know: what a call means
(protocol), when it runs (embedded, scheduler).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from engines.embedded.listening import Listening, Outlets, engine_of, listen
from engines.embedded.options import EngineOptions
from engines.embedded.shell import Engine
from engines.embedded.tokenizer import Tokenizer
from engines.parrot.embedded import ServeCore
from engines.parrot.protocol import SESSION_AUTH, Fault, Route, parse_json, read_call, route, session_of
from engines.parrot.state import ServeOptions, Session, Variable
from traces.journal import JournalWriter
from traces.seams import NowNs, Serve, SleepUntil
from traces.status import StatusPage

_PLAIN = Fault("")


@dataclass(frozen=True, slots=True)
class ParrotOptions:
    """The engine below (limits.replicas = number of Parrot engines) and the serve layer above."""

    engine: EngineOptions = field(default_factory=EngineOptions)
    serve: ServeOptions = field(default_factory=ServeOptions)


class _Refused(Exception):
    """Carries the fault a request ends with."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def _sure(value: Any) -> Any:
    if isinstance(value, Fault):
        raise _Refused(value)
    return value


class ParrotServer:
    """Routes of one serve layer."""

    def __init__(self, core: ServeCore) -> None:
        self.core = core

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request."""
        raw = await request.read()
        path = request.path
        if path in ("/docs", "/openapi.json") and request.method == "GET":
            return _json({"openapi": "3.1.0"})
        asked = route(request.method, path)
        if asked.kind == "other" and not path.startswith(("/v1/session", "/v1/semantic_var")):
            return _json({"detail": "Not Found"}, 404)
        if asked.kind == "session_close" and not asked.name.lstrip("-").isdigit():
            return _json(_not_an_integer(asked.name), 422)
        try:
            return await self._answer(asked, parse_json(raw), request.headers.get("X-Request-Id"))
        except _Refused as refused:
            kind, body = refused.fault.body()
            return web.Response(status=500, body=body, headers={"content-type": kind})

    async def _answer(self, asked: Route, body: dict[str, Any] | None, wire_id: str | None) -> web.Response:
        if body is None or asked.kind in ("other", "native"):
            raise _Refused(_PLAIN)
        core = self.core
        if asked.kind == "session_open":
            return _json({"session_id": core.open_session(), "session_auth": SESSION_AUTH})
        if asked.kind == "session_close":
            _sure(core.close_session(int(asked.name)))
            return _json({})
        session_id = session_of(body)
        if session_id is None:
            raise _Refused(_PLAIN)
        session: Session = _sure(core.session(session_id))
        match asked.kind:
            case "call":
                return self._call(session, body, wire_id)
            case "var_new":
                return _json({"var_id": core.new_variable(session, _text(body, "var_name")).var_id})
            case "var_set":
                _sure(core.set_variable(self._variable(session, asked.name), _text(body, "content")))
                return _json({})
        return await self._get(session, asked.name, body)

    def _call(self, session: Session, body: dict[str, Any], wire_id: str | None) -> web.Response:
        session.requests += 1  # a number is consumed by calls that are refused, too
        call = _sure(read_call(body))
        request_id, variables = _sure(self.core.submit(session, call, wire_id))
        info = [
            {"parameter_name": p.name, "is_output": p.is_output, "var_name": v.name, "var_id": v.var_id}
            for p, v in zip(call.parameters, variables, strict=True)
        ]
        return _json({"request_id": request_id, "param_info": info})

    def _variable(self, session: Session, var_id: str) -> Variable:
        found = session.variables.get(var_id)
        if found is None:
            raise _Refused(Fault(f"Unknown Semantic Variable ID: {var_id}", "ValueError"))
        return found

    async def _get(self, session: Session, var_id: str, body: dict[str, Any]) -> web.Response:
        if "criteria" not in body:
            raise _Refused(_PLAIN)
        future: asyncio.Future[str] = _sure(self.core.get(self._variable(session, var_id), body["criteria"]))
        return _json({"content": await future})


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise _Refused(_PLAIN)
    return value


def _not_an_integer(given: str) -> dict[str, Any]:
    why = "Input should be a valid integer, unable to parse string as an integer"
    return {"detail": [{"type": "int_parsing", "loc": ["path", "session_id"], "msg": why, "input": given}]}


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), headers={"content-type": "application/json"})


class RunningParrot:
    """A started serve layer over a started engine."""

    def __init__(self, core: ServeCore, listening: Listening) -> None:
        self.core, self.port = core, listening.port
        self._listening = listening

    @property
    def engine(self) -> Engine:
        """The shell over the engine's cores."""
        return self.core.engine

    async def close(self) -> None:
        """Stop serving, stop stepping, settle the truth."""
        self._listening.refuse()
        self.core.close()
        await self._listening.close()
        await self.core.engine.close()


async def start(
    options: ParrotOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    now_ns: NowNs,
    sleep_until: SleepUntil,
    serve: Serve,
    truth: JournalWriter | None = None,
    steps: JournalWriter | None = None,
    status: StatusPage | None = None,
    calls: JournalWriter | None = None,
) -> RunningParrot:
    """Start engine and serve layer and listen; OSError when the port is taken. Journals as engines.embedded.server;
    calls: a record of every task, as the bridge writes them."""
    engine, profile = engine_of(options.engine, now_ns, sleep_until, Outlets(truth, steps, status))
    model = options.engine.limits.served_model_name or profile.name
    tokenizer = Tokenizer(profile.vocab_size, profile.eos_token_id)
    core = ServeCore(engine, tokenizer, model, options.serve, *([calls.write] if calls is not None else []))
    listening = await listen(ParrotServer(core).handle, serve, host, port)
    engine.start()
    return RunningParrot(core, listening)
