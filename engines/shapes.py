"""What the plain events of one stream look like byte for byte, so that most of them need no JSON parser.

An engine repeats an event but for its text. From one parsed token event come the bytes before the text and after it;
from one parsed last event, what a finish looks like. A shape is only a shortcut: it says what the parser would say, or
nothing. May not know: how reads become events, sockets, time, what the counts are for.
"""

from __future__ import annotations

import re
from typing import Any, Final

from engines.observers import Observer, Reader, Usage

_LF: Final = 10
_CR: Final = 13
_QUOTE: Final = 34
_BACKSLASH: Final = 92
_ENDS_LIMIT: Final = 64
"""forms of a last event kept per template"""
_CHOICES: Final = b'"choices":['
_N: Final = rb"(0|[1-9][0-9]{0,14})"
_OTHER: Final = rb'(?:,"(?!cached_tokens")[a-z_]{1,40}":(?:null|[1-9][0-9]{0,14}|0))*'
_SAID: Final = (
    rb'\],"usage":\{"prompt_tokens":' + _N + rb',"total_tokens":[1-9][0-9]{0,14},"completion_tokens":' + _N
    + rb'(?:,"prompt_tokens_details":\{"cached_tokens":' + _N + _OTHER + rb"\})?\}"
    + rb'(?:,"system_fingerprint":"[0-9A-Za-z._-]{0,80}")?\}'
)  # fmt: skip
USAGE: Final = re.compile(_SAID)
"""The event that states usage alone, from the end of its empty list of choices: prompt, completion, cached tokens."""
USAGE_AND_END: Final = re.compile(_SAID + rb"\n\ndata: \[DONE\]\n\n")


class Template:
    """What streams of one dialect have in common: the bytes before the reply's id, from its end to the text, after the
    text, and the last events seen so far."""

    __slots__ = ("at", "ending", "ends", "head", "middle", "suffix")

    def __init__(self, head: bytes, middle: bytes, suffix: bytes) -> None:
        self.head = head
        self.at = len(head)
        self.middle = middle
        self.suffix = suffix
        self.ending = suffix + b"\n\n"
        self.ends: dict[bytes, str] = {}
        """what follows the text of a last event (led by its opening quote where there is no text) -> finish reason"""


class Shape:
    """The bytes around the text of one stream's plain token events."""

    __slots__ = ("at", "between", "ending", "frame", "prefix", "suffix", "template")

    def __init__(self, prefix: bytes, template: Template) -> None:
        self.prefix = prefix
        self.template = template
        self.suffix = suffix = template.suffix
        self.ending = template.ending
        self.between = self.ending + prefix
        """end of a plain token event and beginning of the next"""
        self.at = at = len(prefix)
        """where the text begins"""
        self.frame = at + len(suffix)

    def is_event(self, read: bytes, start: int, ending: bytes) -> bool:
        """Whether a read is one plain token event from `start` on, whole, and what follows it. ending: our own, and
        what is to follow."""
        text, close = start + self.at, len(read) - len(ending)
        if close <= text or read[start:text] != self.prefix or read[close:] != ending:
            return False
        said = read[text:close]
        return said[0] != _QUOTE and _LF not in said and _CR not in said  # a quote: no text in it

    def last(self, raw: bytes) -> tuple[str, int] | None:
        """Finish reason and tokens of a last event of known form; it begins with the prefix."""
        at = self.at
        end = raw.find(b'"', at)
        if end == at:
            reason = self.template.ends.get(raw[at - 1 :])
            return None if reason is None else (reason, 0)
        reason = self.template.ends.get(raw[end:])
        return None if reason is None or not _plain(raw[at:end]) else (reason, 1)

    def usage(self, raw: bytes, at: int, form: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """An event of this stream that begins at `at` and is of that form (USAGE, USAGE_AND_END), to the end of raw."""
        stem = self.prefix.find(_CHOICES) + len(_CHOICES)
        return form.fullmatch(raw, at + stem) if raw.startswith(self.prefix[:stem], at) else None


_TEMPLATES: Final[dict[tuple[Reader, bool], Template]] = {}
"""The last one seen per dialect (and whether text is kept, which needs the text's own member)."""


def recalled(read: Reader, keep_text: bool, raw: bytes) -> tuple[Shape, str] | None:
    """The shape of a stream and its id, from its first token event, if that begins like the last stream's, its id
    apart."""
    template = _TEMPLATES.get((read, keep_text))
    if template is None or not raw.startswith(template.head):
        return None
    at, middle = template.at, template.middle
    end = raw.find(b'"', at)
    if not raw.startswith(middle, end):
        return None
    identity = raw[at:end]
    if _BACKSLASH in identity or not identity.isascii():
        return None
    return Shape(raw[: end + len(middle)], template), identity.decode()


def learned(read: Reader, keep_text: bool, members: tuple[bytes, ...], raw: bytes, row: dict[str, Any]) -> Shape | None:
    """The shape that a parsed event of one token shows; None where it says more than that.

    members: `"name":"` of the strings that may be a token's text; the first alone where text is kept.
    """
    if row.get("usage") is not None:
        return None
    seen = Observer()
    if read(seen, row) != 1 or seen.finish_reason is not None or not _silent(seen):
        return None
    for key in members[:1] if keep_text else members:
        at = raw.find(key)
        start = at + len(key)
        end = string_end(raw, start) if at >= 0 else -1
        if end > start and raw.endswith(b"}"):
            prefix, suffix = raw[:start], raw[_after_sequence(raw, end) :]
            return Shape(prefix, _remembered(read, keep_text, prefix, suffix, seen.response_id))
    return None


def _remembered(read: Reader, keep_text: bool, prefix: bytes, suffix: bytes, identity: str | None) -> Template:
    """The template, kept for the next stream of this dialect."""
    quoted = b'"%s"' % (identity or "").encode()
    at = prefix.find(quoted)
    if len(quoted) <= 2 or at < 0 or _BACKSLASH in quoted:
        return Template(prefix, b"", suffix)
    template = Template(prefix[: at + 1], prefix[at + len(quoted) - 1 :], suffix)
    _TEMPLATES[(read, keep_text)] = template
    return template


def learn_last(read: Reader, shape: Shape, raw: bytes, row: dict[str, Any]) -> None:
    """Remember the form of a parsed last event, where all it says is the finish reason (and one token of text)."""
    at = shape.at
    ends = shape.template.ends
    if not raw.startswith(shape.prefix) or len(ends) >= _ENDS_LIMIT:
        return
    end = raw.find(b'"', at)
    if end < 0 or not _plain(raw[at:end]):
        return
    seen = Observer()
    if read(seen, row) == (end > at) and seen.finish_reason is not None and _silent(seen):
        ends[raw[end if end > at else at - 1 :]] = seen.finish_reason


def _silent(seen: Observer) -> bool:
    """The event read said nothing but its token and the end: no usage, times, error, tools."""
    nothing = seen.metrics is None and seen.error is None and not seen.tool_call_ids and not seen.ended
    return nothing and seen.usage == Usage()


# ---------------------------------------------------------------------------------------------- texts


def _plain(text: bytes) -> bool:
    """The inside of a JSON string, of ASCII without escapes (or nothing)."""
    return text.isascii() and _BACKSLASH not in text and text.decode().isprintable()


def string_end(raw: bytes, start: int) -> int:
    """Index of the quote that closes the JSON string whose first character is at `start`; -1 if none."""
    at = start
    while True:
        at = raw.find(b'"', at)
        if at < 0:
            return -1
        slashes = 0
        while at - 1 - slashes >= start and raw[at - 1 - slashes] == 92:
            slashes += 1
        if slashes % 2 == 0:
            return at
        at += 1


def _after_sequence(raw: bytes, end: int) -> int:
    """Where the constant rest of an event begins: after its text, or after the Responses API's running number."""
    at = raw.find(b'"sequence_number":', end)
    if at < 0:
        return end
    at += len(b'"sequence_number":')
    while raw[at : at + 1].isdigit():
        at += 1
    return at
