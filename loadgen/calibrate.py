"""What a server adds to a prompt of safe words: found by asking it, so that planned lengths come out exact.

Why: chat templates, BOS tokens and system prompts put 1 to 30 tokens around a text, and no tokenizer lives on our side.
Three probes: two lengths give overhead and tokens per word, the third checks them; of conversations a fourth, with an
answer in it, tells what a further turn costs. Counts come from /tokenize where the
server has it, else from `usage.prompt_tokens` of a one-token reply. May not know: the graph, arrivals.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import orjson

from engines import dialects
from engines.pool import Pool
from loadgen.bodies import Bodies
from loadgen.heads import Heads
from loadgen.prompts import Segment, Words
from loadgen.target import Target
from traces.errors import UserError
from traces.seams import Connect, NowNs
from traces.workflow import Manifest, Node

PROBES = (64, 192, 333)
"""words: two to fit, one to check"""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How many tokens a prompt of n words becomes: overhead_tokens + n * tokens_per_word."""

    overhead_tokens: int
    tokens_per_word: float
    exact: bool
    """the check came out as predicted, and a word is a token"""
    how: str
    """tokenize | usage"""
    turn_tokens: int = 0
    """an answer and the message after it cost so much beside their words; 0 where there are no conversations"""

    @property
    def sentence(self) -> str:
        """For run.json."""
        quality = "exact" if self.exact else f"NOT exact: {self.tokens_per_word:.3f} tokens per word"
        found = f"the server adds {self.overhead_tokens} tokens, taken off"
        turns = f", and {self.turn_tokens} for an answer and the next message" if self.turn_tokens else ""
        return f"Word prompts calibrated by {self.how}: {found}{turns}; {quality}."

    def applied(self, target: Target) -> Target:
        """The target with the overhead to take off."""
        return replace(target, overhead_tokens=self.overhead_tokens, turn_tokens=self.turn_tokens)


async def calibrate(target: Target, api: str, *, now_ns: NowNs, connect: Connect) -> Calibration:
    """Ask the server. api: the dialect to be replayed. UserError when it answers neither way."""
    tls = None if target.ssl is None else target.ssl.context()
    pool = Pool(target.host, target.port, connect=connect, now_ns=now_ns, ssl=tls)
    asker = _Asker(replace(target, prompts="words", overhead_tokens=0, exact=False), api, pool)
    try:
        how, ask = "tokenize", asker.tokenize
        counts = [await ask(_probe(n)) for n in PROBES]
        if None in counts:
            how, ask = "usage", asker.usage
            counts = [await ask(_probe(n)) for n in PROBES]
        turns = None if api == "completions" else await ask(_conversation())
    except OSError as error:
        raise UserError(f"calibration: {error}; start the server or correct --target") from error
    finally:
        pool.close()
    found = fitted([c for c in counts if c is not None], how)
    if turns is None:
        return found
    words = 3 * PROBES[0] * found.tokens_per_word
    return replace(found, turn_tokens=max(0, turns - found.overhead_tokens - round(words)))


def _probe(words: int) -> Node:
    return Node("calibration", f"probe-{words}", 0, words, 1, stream=False)


def _conversation() -> Node:
    """PROBES[0] words asked, answered, and asked on."""
    text = Words("calibration", block_size=PROBES[0])
    said = [text.text([Segment(role, PROBES[0], False)]) for role in ("first", "answer", "next")]
    roles = ("user", "assistant", "user")
    messages = tuple({"role": role, "content": content} for role, content in zip(roles, said, strict=True))
    return Node("calibration", "probe-turn", 0, 3 * PROBES[0], 1, stream=False, messages=messages)


def fitted(counts: list[int], how: str) -> Calibration:
    """The line through the first two probes, checked by the third."""
    if len(counts) != len(PROBES):
        raise UserError("calibration: the server states no token counts (neither /tokenize nor usage); use id prompts")
    per_word = (counts[1] - counts[0]) / (PROBES[1] - PROBES[0])
    overhead = counts[0] - round(PROBES[0] * per_word)
    predicted = overhead + round(PROBES[2] * per_word)
    return Calibration(overhead, per_word, per_word == 1.0 and predicted == counts[2], how)


class _Asker:
    def __init__(self, target: Target, api: str, pool: Pool) -> None:
        self._target, self._api, self._pool = target, api, pool
        self._bodies = Bodies(replace(target, api=api), Manifest(), "calibration")  # type: ignore[arg-type]
        self._heads = Heads(target)

    async def tokenize(self, node: Node) -> int | None:
        """Tokens by /tokenize; None where the server has no such thing (or speaks another dialect there)."""
        if self._api not in ("chat", "completions"):
            return None
        sent = orjson.loads(self._bodies.render(node).data)
        content = {k: sent[k] for k in ("model", "messages", "prompt") if k in sent}
        data = orjson.dumps(content)
        head = (
            f"POST {self._target.base}/tokenize HTTP/1.1\r\nhost: {self._target.authority}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
        )
        if self._target.api_key is not None:
            head += f"authorization: Bearer {self._target.api_key}\r\n"
        status, body = await self._ask(head.encode() + b"\r\n" + data)
        try:
            count = orjson.loads(body).get("count") if status == 200 else None
        except (orjson.JSONDecodeError, AttributeError):
            count = None
        return count if isinstance(count, int) else None

    async def usage(self, node: Node) -> int | None:
        """Tokens by the usage of a one-token reply."""
        body = self._bodies.render(node)
        status, data = await self._ask(self._heads.request(body, node, "calibration", f"calibration-{node.request_id}"))
        observer = dialects.observer(self._api, False)
        observer.feed(data)
        observer.finish()
        return observer.usage.prompt_tokens if status == 200 else None

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        connection = await self._pool.acquire()
        reply = _Reply()
        connection.send(request, reply)
        await reply.over.wait()
        if reply.why is None:
            self._pool.release(connection)
        return reply.status, b"".join(reply.pieces)


class _Reply:
    """Collects one reply."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[bytes] = []
        self.why: str | None = None
        self.over = asyncio.Event()

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self.status = status

    def body(self, data: bytes, now_ns: int) -> None:
        self.pieces.append(data)

    def done(self, now_ns: int) -> None:
        self.over.set()

    def lost(self, why: str, now_ns: int) -> None:
        self.status, self.why = 0, why
        self.over.set()
