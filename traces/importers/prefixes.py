"""Recorded prompts without their text: which begin alike, and how many tokens far; which goes on from which answer.

A proxy's recording knows a prompt by keyed digests: of each message, and of everything up to the end of each block of
bytes. Both are marks on the way from the first byte to the last; prompts that begin alike pass the same marks. Usage
gives the tokens at a prompt's end, so a mark's tokens are known where an earlier prompt ended there, and interpolated
by bytes in between. Token blocks are then named after the marks. Pure. May not know: files, times, graphs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import gcd
from typing import Any

from traces.records import RequestRecord
from traces.workflow import Extends

BLOCK_TOKENS = 16
"""of the blocks made: as fine as engines cache"""
ANSWERS = frozenset({"assistant", "function_call", "reasoning"})
"""roles (Responses: types) of what a model said"""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a prompt. name: equal exactly for equal beginnings."""

    name: int
    byte: int
    message: int | None
    """index of the message that ends here"""


@dataclass(slots=True)
class Path:
    """A prompt as its marks, in order."""

    marks: list[Mark]
    length: int
    """bytes"""

    @property
    def end(self) -> int | None:
        """The name of the whole prompt, where its messages are known to the end."""
        last = self.marks[-1] if self.marks else None
        return last.name if last is not None and last.message is not None and last.byte == self.length else None


class Prefixes:
    """Feed recorded requests in order of arrival."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._names: dict[Hashable, int] = {}
        self._tokens: dict[int, int] = {}
        self._blocks: dict[tuple[int, int], int] = {}

    def path(self, record: RequestRecord) -> Path:
        """The marks of a request's prompt."""
        events: list[tuple[int, int | None, Hashable]] = [
            ((k + 1) * self._block_bytes, None, value) for k, value in enumerate(record.block_hashes)
        ]
        at = 0
        for index, message in enumerate(record.messages):
            role, length = str(message.get("role")), message.get("length")
            at += 2 + len(role.encode()) + (length if isinstance(length, int) else 0)
            events.append((at, index, (role, message.get("digest"))))
        events.sort(key=lambda e: (e[0], e[1] is not None))
        marks, name = [], 0
        for byte, message_index, key in events:
            name = self._names.setdefault((name, byte, key), len(self._names) + 1)
            marks.append(Mark(name, byte, message_index))
        length = at or round((len(record.block_hashes) + 0.5) * self._block_bytes)
        return Path(marks, length)

    def hash_ids(self, path: Path, prompt_tokens: int) -> tuple[int, ...]:
        """Names of the whole token blocks of a prompt."""
        ids: list[int] = []
        seen_byte = seen = 0
        for mark in path.marks:
            there = self._tokens.get(mark.name)
            if there is None:
                share = (mark.byte - seen_byte) / max(1, path.length - seen_byte)
                there = self._tokens[mark.name] = seen + round(share * max(0, prompt_tokens - seen))
            seen_byte, seen = mark.byte, max(seen, min(there, prompt_tokens))
            while (len(ids) + 1) * BLOCK_TOKENS <= seen:
                ids.append(self._blocks.setdefault((mark.name, len(ids)), len(self._blocks)))
        return tuple(ids)


@dataclass(frozen=True, slots=True)
class Continued:
    """The request (by its place in the order of arrival) whose prompt and answer another goes on from."""

    before: int
    extends: Extends


def continuations(requests: Iterable[RequestRecord], paths: list[Path]) -> list[Continued | None]:
    """For each request, in order of arrival, the earlier one of the same workflow that it continues: the longest prompt
    that it begins with, followed by what a model said, of which an answer had come by then."""
    found: list[Continued | None] = []
    asked: dict[tuple[str | None, int], list[int]] = {}
    rows = list(requests)
    step = gcd(*(r.cached_tokens for r in rows if r.cached_tokens))
    for index, (record, path) in enumerate(zip(rows, paths, strict=True)):
        owner = record.workflow_id or record.session_id
        found.append(None)
        for mark in reversed(path.marks[:-1]):
            if mark.message is None or not _answered(record.messages, mark.message + 1):
                continue
            earlier = [
                i
                for i in asked.get((owner, mark.name), ())
                if rows[i].outcome == "ok" and rows[i].t_end_ns <= record.t_arrival_ns
            ]
            if earlier:
                before = max(earlier, key=lambda i: rows[i].t_end_ns)
                found[-1] = Continued(before, _how(rows[before], record, step))
                break
        if path.end is not None:
            asked.setdefault((owner, path.end), []).append(index)
    return found


def _answered(messages: tuple[dict[str, Any], ...], index: int) -> bool:
    return index < len(messages) and messages[index].get("role") in ANSWERS


def _how(before: RequestRecord, record: RequestRecord, step: int) -> Extends:
    """Whether the engine knew the answer again. step: the block size of its cache, as its cached counts show it.

    Told only where the earlier prompt was still held and the answer fills a block; else an answer is taken for one.
    """
    prompt, answer, cached = before.prompt_tokens or 0, before.completion_tokens or 0, record.cached_tokens
    if prompt + answer > (record.prompt_tokens or 0):
        return "prompt"
    if cached is None or step < 1 or (prompt + answer) // step <= prompt // step:
        return "answer"
    return "prompt" if cached // step == prompt // step else "answer"
