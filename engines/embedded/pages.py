"""The routes that generate nothing: models, tokenizer, health, version, load, metrics.

May not know: streams, plans.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from engines.embedded import checks, errors, prometheus
from engines.embedded.http_in import answer, read_object
from engines.embedded.profiles import Profile
from engines.embedded.shell import Engine
from engines.embedded.tokenizer import Tokenizer
from engines.embedded.turns import chat_turns, message_turns
from engines.embedded.wire_out import FINGERPRINT
from traces.seams import NowNs

VERSION = "0.32.0"
"""of vLLM, whose bytes this server follows"""
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Ids:
    """Random ids and creation stamps. They follow from the clock: the same in every virtual run, new in a real one."""

    def __init__(self, seed: int, now_ns: NowNs) -> None:
        self._random = random.Random(f"{seed}/{now_ns()}")
        self._now_ns = now_ns
        self._start_ns = now_ns()
        self._start_wall = time.time()

    def hex(self, digits: int) -> str:
        """A new random id."""
        return f"{self._random.getrandbits(4 * digits):0{digits}x}"

    def created(self) -> int:
        """Unix seconds on the engine's own axis."""
        return int(self._start_wall + (self._now_ns() - self._start_ns) / 1e9)


class Pages:
    """Handlers over one engine."""

    def __init__(
        self,
        engine: Engine,
        model: str,
        profile: Profile,
        tokenizer: Tokenizer,
        histograms: prometheus.Histograms,
        ids: Ids,
        in_flight: Callable[[], int],
    ) -> None:
        self._engine, self._model, self._profile, self._tokenizer = engine, model, profile, tokenizer
        self._histograms, self._ids, self._in_flight = histograms, ids, in_flight

    def routes(self) -> dict[str, tuple[str, Handler]]:
        """Path -> method and handler."""
        return {
            "/v1/messages/count_tokens": ("POST", self._count_tokens),
            "/v1/models": ("GET", self._models),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/health": ("GET", self._health),
            "/ping": ("GET", self._health),
            "/version": ("GET", self._version),
            "/load": ("GET", self._load),
            "/metrics": ("GET", self._metrics),
        }

    async def _count_tokens(self, request: web.BaseRequest) -> web.Response:
        body = await read_object(request)
        checks.schema("count", body)
        if body["model"] != self._model:
            raise errors.unknown_model(str(body["model"]), self._model)
        count = len(self._tokenizer.chat(message_turns(body)))
        reply = {"input_tokens": count, "context_management": {"original_input_tokens": count}}
        return answer(200, orjson.dumps(reply))

    async def _models(self, request: web.BaseRequest) -> web.Response:
        permission = {
            "id": f"modelperm-{self._ids.hex(16)}", "object": "model_permission", "created": self._ids.created(),
            "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
            "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False, "organization": "*",
            "group": None, "is_blocking": False,
        }  # fmt: skip
        model = {
            "id": self._model, "object": "model", "created": self._ids.created(), "owned_by": FINGERPRINT,
            "root": self._profile.model, "parent": None, "max_model_len": self._engine.max_model_len,
            "permission": [permission],
        }  # fmt: skip
        return answer(200, orjson.dumps({"object": "list", "data": [model]}))

    async def _tokenize(self, request: web.BaseRequest) -> web.Response:
        body = await read_object(request)
        if "messages" in body:
            tokens = self._tokenizer.chat(chat_turns(body))
        elif isinstance(body.get("prompt"), str):
            tokens = self._tokenizer.encode(body["prompt"])
        else:
            names = ("prompt", "messages")
            raise errors.invalid(*(errors.problem("missing", f"body.{n}", "Field required", body) for n in names))
        strings = self._tokenizer.strings(tokens) if body.get("return_token_strs") else None
        reply = {
            "count": len(tokens), "max_model_len": self._engine.max_model_len, "tokens": tokens, "token_strs": strings,
        }  # fmt: skip
        return answer(200, orjson.dumps(reply))

    async def _detokenize(self, request: web.BaseRequest) -> web.Response:
        body = await read_object(request)
        if "tokens" not in body:
            raise errors.missing("tokens", body)
        text = self._tokenizer.decode(token for token in checks.tokens(body) if token < self._tokenizer.limit)
        return answer(200, orjson.dumps({"prompt": text}))

    async def _health(self, request: web.BaseRequest) -> web.Response:
        if self._engine.failed is not None:
            return answer(503, b"")
        return answer(200, b"")

    async def _version(self, request: web.BaseRequest) -> web.Response:
        return answer(200, orjson.dumps({"version": f"{VERSION}+{FINGERPRINT}"}))

    async def _load(self, request: web.BaseRequest) -> web.Response:
        return answer(200, orjson.dumps({"server_load": max(0, self._in_flight() - 1)}))

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        page = prometheus.page(self._engine, self._histograms, self._model)
        return web.Response(body=page, headers={"content-type": "text/plain; version=1.0.0; charset=utf-8"})
