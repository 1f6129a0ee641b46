"""A trace node becomes a request: path and JSON body in one of four dialects, prompts synthetic or recorded.

Lives here: which content a node is given (token ids, words, recorded text, parents' live output) and how each dialect
spells it. May not know: sockets, time, the graph walk. Bytes out; the same node and salt give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from loadgen.prompts import Segment, TokenIds, Words, segments
from loadgen.target import PATHS, Target
from traces.errors import UserError
from traces.workflow import Manifest, Node

Outputs = Literal["recorded", "live"]
_RESTS = 4096


@dataclass(frozen=True, slots=True)
class Output:
    """What a parent really answered. tokens: as the engine counted, else the planned length."""

    text: str
    tokens: int


@dataclass(slots=True)
class Body:
    """One request without its head."""

    api: str
    path: str
    data: bytes
    stream: bool
    model: str


class Bodies:
    """Renders nodes for one target. Synthetic content depends on (salt, block id) alone."""

    def __init__(self, target: Target, manifest: Manifest, salt: str) -> None:
        if manifest.block_unit != "tokens" and target.prompts == "ids":
            manifest = _tokenless(manifest)
        self._target = target
        self._manifest = manifest
        self._ids = TokenIds(salt, block_size=manifest.block_size, vocab=target.vocab)
        self._words = Words(salt, block_size=manifest.block_size)
        self._paths = {api: target.base + path for api, path in PATHS.items()}
        self._opening = b'{"model":' + orjson.dumps(target.model)
        self._rests: dict[tuple[str, bool, int], bytes] = {}

    def render(self, node: Node, live: Mapping[str, Output] | None = None) -> Body:
        """The body for a node. live: outputs of parents by request id, to be used instead of recorded content.

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
        match api:
            case "completions":
                content, given = b',"prompt":', self._completion_prompt(node, live)
            case "chat" | "messages":
                content, given = b',"messages":', self._messages(node, live)
            case _:
                content, given = b',"input":', self._input(node, live)
        kind = (api, node.stream, node.output_length)
        rest = self._rests.get(kind) or self._remember(kind)
        extra = self._extra(node, api) if node.sampling or node.tools else b""
        return Body(api, path, b"".join((opening, content, given, rest, extra, b"}")), node.stream, model)

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

    def _messages(self, node: Node, live: Mapping[str, Output] | None) -> bytes:
        if node.messages is not None:
            return orjson.dumps([_with_live(m, live) for m in node.messages])
        return b'[{"role":"user","content":' + orjson.dumps(self._text(node, live)) + b"}]"

    def _input(self, node: Node, live: Mapping[str, Output] | None) -> bytes:
        if node.messages is not None:
            return self._messages(node, live)
        return orjson.dumps(self._text(node, live))

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
