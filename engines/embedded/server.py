"""The embedded engine as a server: vLLM's routes over aiohttp, in real and in virtual time.

Lives here: routing, keys, start and stop. May not know: how a reply is made (generate), how steps are formed (core).
"""

from __future__ import annotations

from functools import partial
from hmac import compare_digest

from aiohttp import web

from engines.embedded import errors, prometheus
from engines.embedded.generate import Generator
from engines.embedded.http_in import BODY_LIMIT, answer
from engines.embedded.listening import Listening, Outlets, engine_of, listen
from engines.embedded.options import EngineOptions, sensors_of, status_names
from engines.embedded.pages import Handler, Ids, Pages
from engines.embedded.profiles import Profile
from engines.embedded.shell import Engine
from engines.embedded.tokenizer import Tokenizer
from traces.journal import JournalWriter
from traces.records import StepRecord
from traces.seams import NowNs, Serve, SleepUntil
from traces.status import StatusPage

__all__ = ["BODY_LIMIT", "EngineOptions", "RunningEngine", "Server", "sensors_of", "start", "status_names"]

_ALSO = {("/ping", "POST"), ("/metrics", "POST"), ("/metrics", "HEAD")}
"""other methods that vLLM answers"""


class Server:
    """Routes of one engine."""

    def __init__(self, engine: Engine, options: EngineOptions, profile: Profile) -> None:
        self.engine, self.options = engine, options
        self.model = options.limits.served_model_name or profile.name
        self.tokenizer = Tokenizer(profile.vocab_size, profile.eos_token_id)
        self.profile = profile
        self.histograms = prometheus.Histograms()
        engine.on_end = self.histograms.ended
        engine.on_step = self._on_step
        self.ids = Ids(options.limits.seed, engine.now_ns)
        self.in_flight = 0
        pages = Pages(engine, self.model, profile, self.tokenizer, self.histograms, self.ids, lambda: self.in_flight)
        generator = Generator(
            engine,
            options,
            profile,
            model=self.model,
            tokenizer=self.tokenizer,
            histograms=self.histograms,
            ids=self.ids,
            headers=self._id_headers,
        )
        self.routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", partial(generator.answer, "chat")),
            "/v1/completions": ("POST", partial(generator.answer, "completions")),
            "/v1/responses": ("POST", partial(generator.answer, "responses")),
            "/v1/messages": ("POST", partial(generator.answer, "messages")),
            **pages.routes(),
        }

    def _on_step(self, record: StepRecord) -> None:
        tokens = record.num_ctx_tokens + record.num_generation_tokens
        self.histograms.by_name["iteration_tokens_total"].observe(tokens)

    # ------------------------------------------------------------------ every request

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request: route, refuse, or answer."""
        route = self.routes.get(request.path)
        headers = self._id_headers(request)
        if route is None:
            return answer(404, b'{"detail":"Not Found"}', headers)
        if not self._allowed(request):
            return answer(401, b'{"error":"Unauthorized"}', headers)
        method, handler = route
        if request.method != method and (request.path, request.method) not in _ALSO:
            return answer(405, b'{"detail":"Method Not Allowed"}', headers | {"allow": method})
        self.in_flight += 1
        try:
            response = await handler(request)
        except errors.ApiError as error:
            response = answer(error.status, error.body("messages" if "/messages" in request.path else None))
        except web.HTTPBadRequest as error:
            response = answer(400, (error.text or "").encode())
        except web.HTTPRequestEntityTooLarge:
            response = answer(413, b'{"detail":"Request body too large"}')
        finally:
            self.in_flight -= 1
        if not response.prepared:
            response.headers.update(headers)
        return response

    def _allowed(self, request: web.BaseRequest) -> bool:
        key = self.options.api_key
        if key is None or not request.path.startswith("/v1"):
            return True
        shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        other = request.headers.get("x-api-key", "").encode("utf-8", "surrogateescape")  # Anthropic's clients
        return compare_digest(shown, f"Bearer {key}".encode()) or compare_digest(other, key.encode())

    def _id_headers(self, request: web.BaseRequest) -> dict[str, str]:
        if not self.options.request_id_headers:
            return {}
        return {"x-request-id": request.headers.get("X-Request-Id") or self.ids.hex(32)}


# ---------------------------------------------------------------------------------------------- start and stop


class RunningEngine:
    """A started engine. `close` settles the truth and closes; `drain` first lets running requests end."""

    def __init__(self, server: Server, listening: Listening) -> None:
        self.server, self.port = server, listening.port
        self._listening = listening

    @property
    def engine(self) -> Engine:
        """The shell over the cores."""
        return self.server.engine

    async def drain(self, timeout_s: float) -> bool:
        """Take no new connections and wait for running requests; whether all ended in time."""
        self._listening.refuse()
        engine = self.server.engine
        until = engine.now_ns() + round(timeout_s * 1e9)
        while self.server.in_flight and engine.now_ns() < until:
            await engine.sleep_until(min(until, engine.now_ns() + 20_000_000))
        return self.server.in_flight == 0

    async def close(self) -> None:
        """Stop serving, stop stepping, write what is left of the journals."""
        await self._listening.close()
        await self.server.engine.close()


async def start(
    options: EngineOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    now_ns: NowNs,
    sleep_until: SleepUntil,
    serve: Serve,
    truth: JournalWriter | None = None,
    steps: JournalWriter | None = None,
    status: StatusPage | None = None,
) -> RunningEngine:
    """Start the engine and listen; OSError when the port is taken. status needs the slots of status_names()."""
    engine, profile = engine_of(options, now_ns, sleep_until, Outlets(truth, steps, status))
    server = Server(engine, options, profile)
    listening = await listen(server.handle, serve, host, port)
    engine.start()
    return RunningEngine(server, listening)
