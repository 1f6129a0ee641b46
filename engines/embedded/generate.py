"""Generation on the embedded engine: one request of any dialect from its body to its last byte.

Lives here: submission, whole replies and streams, clients that leave, conversations of /v1/responses.
May not know: routes, how steps are formed (core), how replies are worded (wire_out), what is valid (wire_in).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aiohttp import HttpVersion11, web

from engines.embedded import errors, prometheus
from engines.embedded.http_in import answer, read_object
from engines.embedded.options import EngineOptions
from engines.embedded.pages import Ids
from engines.embedded.profiles import Profile
from engines.embedded.replica import Sink, Ticket
from engines.embedded.shell import Engine
from engines.embedded.stream import Collect, Reply, Stream, Wire
from engines.embedded.tokenizer import Tokenizer
from engines.embedded.tokens import output_key, plan_output
from engines.embedded.turns import response_turns
from engines.embedded.types import EngineRequest
from engines.embedded.voices import voice
from engines.embedded.wire_in import Context, Plan, parse
from engines.embedded.wire_out import Names, Result
from traces.errors import UserError

_REMEMBERED = 1024


def _ignore_late(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()


class Generator:
    """What the four generating routes do. headers: those that every reply to a request carries."""

    def __init__(
        self,
        engine: Engine,
        options: EngineOptions,
        profile: Profile,
        *,
        model: str,
        tokenizer: Tokenizer,
        histograms: prometheus.Histograms,
        ids: Ids,
        headers: Callable[[web.BaseRequest], dict[str, str]],
    ) -> None:
        self.engine, self.options, self.profile = engine, options, profile
        self.model, self.tokenizer, self.histograms, self.ids = model, tokenizer, histograms, ids
        self.context = Context(model, engine.max_model_len, tokenizer, options.force_include_usage)
        self._id_headers = headers
        self._histories: dict[str, list[tuple[str, str]]] = {}

    async def answer(self, api: str, request: web.BaseRequest) -> web.StreamResponse:
        body = await read_object(request)
        if api == "responses":
            self._continue(body)
        plan = parse(api, body, self.context)
        header = request.headers.get("X-Request-Id")
        if header is not None:  # vLLM reads headers as latin-1
            plan.wire_id = header.encode("utf-8", "surrogateescape").decode("latin-1")
        wire_id = plan.wire_id or self.ids.hex(16)
        names = self._names(api, wire_id, plan)
        words = voice(
            plan,
            names,
            details=self.options.prompt_tokens_details,
            per_request_metrics=self.options.per_request_metrics,
        )
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ready.add_done_callback(_ignore_late)
        limits = self.options.limits
        block = limits.block_size if limits.enable_prefix_caching else 0
        reply = Reply(plan, words, self.tokenizer, ready, cache_block=block)
        requests = self._requests(plan, wire_id, reply)
        if plan.stream:
            return await self._stream(request, reply, requests, wire_id)
        tickets = self._submit(requests, wire_id, lambda i: Collect(reply, i), streams=False)
        await self._wait(tickets, reply)
        self._remember(names.response_id, plan, reply.in_order()[0])
        return answer(200, words.body(reply.in_order()))

    def _names(self, api: str, wire_id: str, plan: Plan) -> Names:
        prefix = {"completions": "cmpl-", "responses": "resp_"}.get(api, "chatcmpl-")
        response_id = prefix + (self.ids.hex(16) if api == "responses" else wire_id)
        item = "chatcmpl-tool-" if plan.tool else "msg_"
        return Names(response_id, self.ids.created(), self.model, item + self.ids.hex(16))

    def _requests(self, plan: Plan, wire_id: str, reply: Reply) -> list[EngineRequest]:
        total, out = reply.total, []
        asked = self.histograms.by_name["request_params_max_tokens"]
        for index in range(total):
            at, choice = divmod(index, plan.n)
            asked.observe(plan.max_tokens[at])
            seed = plan.seeds[at]
            request = EngineRequest(
                request_id=wire_id if total == 1 else f"{wire_id}-{index}",
                prompt=plan.prompts[at],
                max_tokens=plan.max_tokens[at],
                min_tokens=plan.min_tokens,
                ignore_eos=plan.ignore_eos,
                cache_salt=plan.cache_salt,
                seed=None if seed is None else seed + choice,
            )
            out.append(self._until_stop(request, plan, index, reply) if plan.stop else request)
        return out

    def _until_stop(self, request: EngineRequest, plan: Plan, index: int, reply: Reply) -> EngineRequest:
        """What will be said is known beforehand, so a stop string becomes a length."""
        if request.seed is None:  # pin the output: the id may yet get a suffix
            request = replace(request, seed=output_key(self.engine.limits.seed, request) & 0xFFFF_FFFF)
        tokens, _ = plan_output(
            output_key(self.engine.limits.seed, request),
            request,
            vocab_size=self.profile.vocab_size,
            eos_token_id=self.profile.eos_token_id,
            eos_mean_tokens=self.profile.eos_mean_tokens,
        )
        words = self.tokenizer.strings(tokens.tolist())
        text = "".join(words)
        floor = len("".join(words[: plan.min_tokens]))
        found = [(at, len(stop), stop) for stop in plan.stop if stop and (at := text.find(stop, floor)) >= 0]
        if not found:
            return request
        first, size, stop = min(found)
        ends = first + size
        length, count = 0, 0
        while length < ends:
            length += len(words[count])
            count += 1
        whole = bool(plan.body.get("include_stop_str_in_output"))
        reply.stop_text[index] = (ends if whole else first, stop)
        return replace(request, max_tokens=count, min_tokens=min(plan.min_tokens, count), ignore_eos=True)

    def _submit(
        self, requests: list[EngineRequest], wire_id: str, sink: Callable[[int], Sink], *, streams: bool
    ) -> list[Ticket]:
        tickets: list[Ticket] = []
        try:
            for index, request in enumerate(requests):
                ticket = self.engine.submit(request, wire_id, sink(index), streams=streams, parts=len(requests))
                tickets.append(ticket)
        except UserError as error:
            for ticket in tickets:
                self.engine.abort(ticket)
            raise errors.refused(str(error)) from None
        return tickets

    async def _wait(self, tickets: list[Ticket], reply: Reply) -> None:
        """Until all sequences are complete. A client that leaves cancels us: then the engine forgets them."""
        try:
            await reply.ready
        finally:
            for ticket in tickets:
                self.engine.abort(ticket)

    async def _stream(
        self, request: web.BaseRequest, reply: Reply, requests: list[EngineRequest], wire_id: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=self._id_headers(request))
        response.headers["Content-Type"] = "text/event-stream; charset=utf-8"
        chunked = request.version >= HttpVersion11
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.force_close()
        writer = await response.prepare(request)
        transport = request.transport
        if writer is None or transport is None:
            raise ConnectionResetError("the client left before the reply began")
        wire = reply.wire = Wire(transport, writer.drain, chunked=chunked)
        try:
            tickets = self._submit(requests, wire_id, lambda i: Stream(reply, i, wire), streams=True)
        except errors.ApiError as error:
            wire.write(wire.frame(b"data: " + error.body() + b"\n\n"))
        else:
            try:
                await self._wait(tickets, reply)
                await wire.flushed()
            except asyncio.CancelledError:
                wire.drop()
                raise
            self._remember(reply.voice.names.response_id, reply.plan, reply.in_order()[0])
        await response.write_eof()
        return response

    # ------------------------------------------------------------------ conversations of /v1/responses

    def _continue(self, body: dict[str, Any]) -> None:
        previous = body.get("previous_response_id")
        body.pop("_history", None)
        if previous is None:
            return
        history = self._histories.get(str(previous))
        if history is None:
            raise errors.no_response(str(previous))
        body["_history"] = history

    def _remember(self, response_id: str, plan: Plan, result: Result) -> None:
        """Keep a Responses conversation for `previous_response_id`, the last _REMEMBERED of them."""
        if plan.api != "responses" or plan.body.get("store") is False:
            return
        body = {k: v for k, v in plan.body.items() if k not in ("tools", "instructions")}
        self._histories[response_id] = [*response_turns(body), ("assistant", result.text)]
        while len(self._histories) > _REMEMBERED:
            del self._histories[next(iter(self._histories))]
