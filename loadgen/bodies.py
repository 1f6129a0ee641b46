"""A trace node becomes a request: path and JSON body in one of four dialects, prompts synthetic or recorded.

Lives here: which content a node is given (token ids, words, recorded text, parents' live output) and how each dialect
spells it. May not know: sockets, time, the graph walk. Bytes out; the same node and salt give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from loadgen.prompts import Segment, TokenIds, Words, addition, segments
from loadgen.target import PATHS, Target
from traces.errors import UserError
from traces.workflow import Manifest, Node

Outputs = Literal["recorded", "continued", "live"]
"""Whose answers stand in prompts. recorded: planned content in their place; continued: the live ones, where a prompt
goes on from an earlier prompt and its answer (Dep.extends); live: those of all parents"""
_RESTS = 4096


@dataclass(frozen=True, slots=True)
class Output:
    """What a parent really answered. tokens: as the engine counted, else the planned length."""

    text: str
    tokens: int
    messages: tuple[dict[str, Any], ...] = ()
    """the prompt that was answered, as it was sent; empty where it was no conversation"""
    prompt_tokens: int = 0


@dataclass(slots=True)
class Body:
    """One request without its head."""

    api: str
    path: str
    data: bytes
    stream: bool
    model: str
    messages: tuple[dict[str, Any], ...] = ()
    """of a conversation; kept only where another may go on from it"""


class Bodies:
    """Renders nodes for one target. Synthetic content depends on (salt, block id) alone."""

    def __init__(self, target: Target, manifest: Manifest, salt: str, outputs: Outputs = "live") -> None:
        if manifest.block_unit != "tokens" and target.prompts == "ids":
            manifest = _tokenless(manifest)
        self._target = target
        self._outputs = outputs
        self._manifest = manifest
        self._ids = TokenIds(salt, block_size=manifest.block_size, vocab=target.vocab)
        self._words = Words(salt, block_size=manifest.block_size)
        self._paths = {api: target.base + path for api, path in PATHS.items()}
        self._opening = b'{"model":' + orjson.dumps(target.model)
        self._rests: dict[tuple[str, bool, int], bytes] = {}

    def render(self, node: Node, known: Mapping[str, Output] | None = None) -> Body:
        """The body for a node. known: what earlier nodes of its workflow were asked and answered, by request id; None:
        nobody will go on from this node, nor does it go on from another.

        UserError for a dialect this client does not speak.
        """
        target = self._target
        api = target.api or node.api
        path = self._paths.get(api)
        if path is None:
            raise UserError(
                f"node {node.request_id}: api {api!r} cannot be replayed over HTTP; use one of {', '.join(PATHS)}"
            )
        named = target.force_model or not node.model
        model = target.model if named else node.model or ""
        opening = self._opening if named else b'{"model":' + orjson.dumps(model)
        live = known if self._outputs == "live" else None
        messages: tuple[dict[str, Any], ...] = ()
        match api:
            case "completions":
                content, given = b',"prompt":', self._completion_prompt(node, live)
            case "responses" if node.messages is None and known is None:
                content, given = b',"input":', orjson.dumps(self._text(node, live))
            case _:
                messages = self._messages(node, known)
                content, given = b',"input":' if api == "responses" else b',"messages":', orjson.dumps(messages)
        kind = (api, node.stream, node.output_length)
        rest = self._rests.get(kind) or self._remember(kind)
        kept = messages if known is not None else ()
        extra = self._extra(node, api) if node.sampling or node.tools else b""
        return Body(api, path, b"".join((opening, content, given, rest, extra, b"}")), node.stream, model, kept)

    def _remember(self, kind: tuple[str, bool, int]) -> bytes:
        """What follows the prompt, but for sampling and tools: length, exactness, streaming."""
        api, stream, tokens = kind
        out = b',"%s":%d' % (b"max_output_tokens" if api == "responses" else b"max_tokens", tokens)
        if self._target.exact and api in ("completions", "chat"):
            out += b',"min_tokens":%d,"ignore_eos":true' % tokens
        if stream:
            out += b',"stream":true'
            if api in ("completions", "chat"):
                out += b',"stream_options":{"include_usage":true}'
        if len(self._rests) >= _RESTS:
            self._rests.clear()
        self._rests[kind] = out
        return out

    def _extra(self, node: Node, api: str) -> bytes:
        """Sampling and tools as recorded, without what we set ourselves."""
        extra = {k: v for k, v in node.sampling.items() if k not in _OURS}
        out = b"," + orjson.dumps(extra)[1:-1] if extra else b""
        if node.tools and api != "completions":
            out += b',"tools":' + orjson.dumps(node.tools)
        return out

    # ------------------------------------------------------------------ content

    def _completion_prompt(self, node: Node, live: Mapping[str, Output] | None) -> bytes:
        if node.token_ids is not None:
            return orjson.dumps(node.token_ids)
        if node.prompt is not None or node.messages is not None or live or self._target.prompts == "words":
            return orjson.dumps(self._text(node, live))
        return self._ids.json(segments(node, self._manifest))

    def _messages(self, node: Node, known: Mapping[str, Output] | None) -> tuple[dict[str, Any], ...]:
        """A conversation: as recorded; or gone on with from an earlier node's; or one message of synthetic words."""
        extended = known is not None and any(d.extends is not None for d in node.deps)
        if node.messages is not None:
            replacing = self._outputs == "live" or (self._outputs == "continued" and extended)
            return tuple([_with_live(m, known if replacing else None) for m in node.messages])
        gone_on = self._gone_on(node, known) if known is not None and extended else None
        if gone_on is not None:
            return gone_on
        return ({"role": "user", "content": self._text(node, known if self._outputs == "live" else None)},)

    def _gone_on(self, node: Node, known: Mapping[str, Output]) -> tuple[dict[str, Any], ...] | None:
        """What was sent and answered before, and a new message of the length that is left; None: not from here."""
        dep = next(d for d in node.deps if d.extends is not None)
        before = known.get(dep.on)
        if before is None or not before.messages:
            return None
        room = node.input_length - before.prompt_tokens - self._target.turn_tokens
        if room < 2:
            return None
        tokens = min(before.tokens, room - 1)
        if dep.extends == "answer" and self._outputs != "recorded" and tokens == before.tokens:
            answer = before.text
        else:
            answer = self._words.text([Segment(f"answer\0{node.workflow_id}\0{dep.on}", tokens, False)])
        new = self._words.text(addition(node, self._manifest, room - tokens))
        return (*before.messages, {"role": "assistant", "content": answer}, {"role": "user", "content": new})

    def _text(self, node: Node, live: Mapping[str, Output] | None) -> str:
        if node.prompt is not None:
            return _replaced(node.prompt, node, live)
        if node.messages is not None:
            return "\n".join(str(_with_live(m, live).get("content") or "") for m in node.messages)
        given = [live[d.on] for d in node.deps if d.on in live] if live else []
        room = node.input_length - self._target.overhead_tokens - sum(o.tokens for o in given)
        own = segments(node, self._manifest, max(1, room))
        if not given:
            return self._words.text(own)
        # shared blocks first (prefix sharing survives), then what the parents said, then the node's own words
        first: list[Segment] = [s for s in own if s.shared]
        last = [s for s in own if not s.shared]
        return self._words.text(first) + "".join(o.text for o in given) + self._words.text(last)


_OURS = frozenset(
    {"model", "prompt", "messages", "input", "max_tokens", "max_output_tokens", "min_tokens", "ignore_eos", "stream"}
    | {"stream_options"}
)


def _tokenless(manifest: Manifest) -> Manifest:
    raise UserError(
        f"block_unit {manifest.block_unit!r}: prompts cannot be built from blocks counted in bytes; "
        "convert the trace to tokens first"
    )


def _with_live(message: dict[str, Any], live: Mapping[str, Output] | None) -> dict[str, Any]:
    """A recorded message; where it was put in place of a parent's answer ("output_of": id), the live answer."""
    source = message.get("output_of")
    if source is None:
        return message
    plain = {k: v for k, v in message.items() if k != "output_of"}
    if live and source in live:
        plain["content"] = live[source].text
    return plain


def _replaced(prompt: str, node: Node, live: Mapping[str, Output] | None) -> str:
    """A recorded text prompt with each `{{output:<request_id>}}` slot filled by the live answer, else left out."""
    if "{{output:" not in prompt:
        return prompt
    for dep in node.deps:
        text = live[dep.on].text if live and dep.on in live else ""
        prompt = prompt.replace("{{output:" + dep.on + "}}", text)
    return prompt


def asks_nothing(node: Node) -> bool:
    """Its planned output or prompt is 0 tokens long: nothing can be asked for it."""
    has_content = node.prompt is not None or node.messages is not None or node.token_ids is not None
    return node.output_length < 1 or (node.input_length < 1 and not has_content)
