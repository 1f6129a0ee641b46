"""Request heads met before: an SDK sends the same lines with every request, apart from a few.

A line gets a number once llhttp has taken it twice as part of whole heads that were accepted. Lines that differ from
request to request (lengths, tags, credentials, ids) have no number, only a name. The numbers and names of a head's
lines, in order, find a plan: what was decided about such heads, and an expression that takes a head of this kind apart.
Whatever does not fit a plan byte for byte is left to llhttp and proxy/heads.py (`read` gives None), so nothing passes
here that would not pass there: the two ways agree, which a property test holds. Credentials are never kept.
May not know: sockets, clocks, bodies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from proxy.config import ProxyConfig
from proxy.heads import KINDS, NOTED, PASSED, TAGGED, TAKEN, Pairs, RequestHead, check_key, credentials, field_line
from proxy.heads import new_request_id as new_id
from proxy.refusal import Refusal
from proxy.routes import api_of
from traces.tags import clean

MAX_LINES: Final = 4096
MAX_LINE: Final = 256
MAX_HEAD: Final = 8192
MAX_PLANS: Final = 512
MAX_NAMES: Final = 512
MAX_RECENT: Final = 4
VARIETY: Final = 16
"""values of one field name that never came twice, after which it counts as one that always differs"""
_SECRET: Final = (b"authorization", b"x-api-key")
_VARYING: Final = frozenset({b"content-length", b"x-request-id", b"cookie", b"proxy-authorization", *_SECRET, *TAGGED})
_NEVER: Final = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings", b"connection"}
)
"""fields that only llhttp may judge; Connection passes where it says keep-alive or close and comes once"""
_VALUE: Final = rb"([!-~][ -~]*+)(?<! )"
"""a value of visible ASCII without blanks around it; whatever else a field may hold is for llhttp to read"""
_END: Final = b"\r\n\r\n"
Key = tuple[int | bytes, ...]


@dataclass(slots=True)
class _Plan:
    """What was decided about a head with these lines. Indices are those of its varying values."""

    method: str
    target: bytes
    path: str
    api: str | None
    keep_alive: bool
    start: bytes
    """the head up to its first varying value, or all of it"""
    size: int
    """bytes of `start`"""
    rest: Callable[[bytes, int], re.Match[bytes] | None]
    """matches from there to the end of the head; its groups are the varying values"""
    count: int
    """lines"""
    length: int | None
    request_id: int | None
    tags: tuple[tuple[str, int], ...]
    secrets: tuple[tuple[bytes, int], ...]
    passed: bytes
    """the lines that go on, a %-format"""
    pick: Callable[[tuple[bytes, ...]], Any]
    """the values that go into it"""


class KnownHeads:
    """Bounded memory of request lines and of what heads made of them were judged to be, for one configuration."""

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        self._max_head = min(MAX_HEAD, config.max_head)
        self._open = config.key is None and config.upstream_key is None
        self._numbers: dict[bytes, int] = {}
        self._next = 1
        self._once: set[bytes] = set()
        self._plans: dict[Key, _Plan] = {}
        self._recent: list[_Plan] = []
        """the plans met last: most heads are of one of these kinds"""
        self._variety: dict[bytes, int] = {}

    def read(self, data: bytes) -> tuple[RequestHead | Refusal, int] | None:
        """Judge the head that `data` begins with, and where it ends; None when it is not one of those met before."""
        for plan in self._recent:
            if data.startswith(plan.start):
                match = plan.rest(data, plan.size)
                if match is not None:
                    return self._judge(plan, match)
        found = self._find(data)
        if found is None:
            return None
        match = found.rest(data, found.size)
        if match is None:
            return None
        self._recent.insert(0, found)
        del self._recent[MAX_RECENT:]
        return self._judge(found, match)

    def _find(self, data: bytes) -> _Plan | None:
        """The plan of a head of another kind than the last ones."""
        at = data.find(_END)
        if at < 0 or not self._plans:
            return None
        plan = self._plans.get(self._key(data[:at].split(b"\r\n")))
        return plan if plan is not None and plan not in self._recent else None

    def _key(self, lines: list[bytes]) -> Key:
        number = self._numbers.get
        return tuple([number(line) or line.partition(b": ")[0] for line in lines])

    def _judge(self, plan: _Plan, match: re.Match[bytes]) -> tuple[RequestHead | Refusal, int] | None:
        """What heads.read_request decides by the varying values."""
        config = self._config
        values, end = match.groups(), match.end()
        if end - 4 + plan.count > self._max_head:
            return None
        size = 0
        if plan.length is not None:
            given = values[plan.length]
            if not given.isdigit() or len(given) > 18:
                return None
            size = int(given)
            if size > config.max_body:
                return None
        lines = plan.passed % plan.pick(values)
        if not self._open:
            seen = {low: values[at] for low, at in plan.secrets}
            refusal = check_key(seen, config)
            if refusal is not None:
                return refusal, end
            lines += b"".join(credentials(seen, config))
        own = clean(values[plan.request_id].decode()) if plan.request_id is not None else None
        tags = {name: values[at].decode() for name, at in plan.tags} if plan.tags else {}
        head = RequestHead(
            plan.method, plan.target, plan.path, plan.api, plan.keep_alive, False, size, False, False, b"",
            own or new_id(), lines, tags,
        )  # fmt: skip
        return head, end

    # ---- learning

    def learn(self, raw: bytes, headers: Pairs, head: RequestHead) -> None:
        """A head (without its final blank line) that llhttp parsed into `headers` and that was accepted as `head`."""
        lines = raw.split(b"\r\n")
        if len(raw) > self._max_head or head.http10 or len(lines) != len(headers) + 1 or not _same(lines, headers):
            return
        lows = [name.lower() for name, _ in headers]
        if any(low in _NEVER for low in lows if low != b"connection") or lows.count(b"connection") > 1:
            return
        at = lows.index(b"connection") if b"connection" in lows else -1
        if at >= 0 and headers[at][1].lower() not in (b"keep-alive", b"close"):
            return
        fresh = self._number(lines[0], None)
        for line, low in zip(lines[1:], lows, strict=True):
            fresh |= not self._varies(low) and self._number(line, low)
        if not fresh:
            self._plan(lines, headers, lows, head)

    def _varies(self, low: bytes) -> bool:
        return low in _VARYING or self._variety.get(low, 0) > VARIETY

    def _number(self, line: bytes, low: bytes | None) -> bool:
        """Give a line its number at its second coming; whether that, or its first coming, was just now."""
        if line in self._numbers or len(line) > MAX_LINE:
            return False
        if line not in self._once:
            if len(self._once) >= MAX_LINES:
                self._once.clear()
            self._once.add(line)
            if low is not None and KINDS.get(low, PASSED) == PASSED and len(self._variety) < MAX_NAMES:
                self._variety[low] = self._variety.get(low, 0) + 1
            return True
        self._once.discard(line)
        if len(self._numbers) >= MAX_LINES:
            self._forget()
        self._numbers[line] = self._next
        self._next += 1
        if low is not None and low in self._variety:
            self._variety[low] -= 1
        return True

    def _forget(self) -> None:
        """Start anew; numbers are never given twice, so no old plan can be met again."""
        self._numbers.clear()
        self._plans.clear()
        self._recent.clear()
        self._variety.clear()

    def _plan(self, lines: list[bytes], headers: Pairs, lows: list[bytes], head: RequestHead) -> None:
        """Write down what `head` says of the numbered lines, where all others vary and have a name of their own."""
        fixed = [line in self._numbers for line in lines]
        varying = [low for low, known in zip(lows, fixed[1:], strict=True) if not known]
        taken = {low for low, known in zip(lows, fixed[1:], strict=True) if known and KINDS.get(low) == TAKEN}
        if not fixed[0] or len(varying) != len(set(varying)) or not taken.isdisjoint(varying):
            return
        text, passed, go_on = lines[0], b"", []
        for line, (name, value), low, known in zip(lines[1:], headers, lows, fixed[1:], strict=True):
            if not known and not (self._varies(low) and line.startswith(name + b": ")):
                return
            kind = KINDS.get(low, PASSED)
            text += b"\r\n" + (line if known else name + b": \x00")
            if kind in (PASSED, NOTED):
                passed += (field_line(name, value) if known else field_line(name, b"\x00")).replace(b"%", b"%%")
                go_on += [] if known else [varying.index(low)]
        secrets = tuple((low, varying.index(low)) for low in _SECRET if low in varying)
        if self._open:
            passed += b"".join(b"%b: \x00\r\n" % _SHOWN[low] for low, _ in secrets)
            go_on += [at for _, at in secrets]
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
            self._recent.clear()
        start, *behind = (text + _END).split(b"\x00")
        self._plans[self._key(lines)] = _Plan(
            head.method,
            head.target,
            head.path,
            api_of(head.path) if head.method == "POST" else None,
            head.keep_alive,
            start,
            len(start),
            re.compile(b"".join(_VALUE + re.escape(piece) for piece in behind)).match,
            len(lines),
            varying.index(b"content-length") if b"content-length" in varying else None,
            varying.index(b"x-request-id") if b"x-request-id" in varying else None,
            tuple((low.decode(), at) for at, low in enumerate(varying) if low in TAGGED),
            secrets,
            passed.replace(b"\x00", b"%b"),
            itemgetter(*go_on) if go_on else _nothing,
        )


_SHOWN: Final = {b"authorization": b"Authorization", b"x-api-key": b"X-Api-Key"}


def _nothing(_: tuple[bytes, ...]) -> tuple[()]:
    return ()


def _same(lines: list[bytes], headers: Pairs) -> bool:
    """llhttp's fields are these lines, one each."""
    return all(
        line.startswith(name + b":") and line[len(name) + 1 :].strip(b" \t") == value.strip(b" \t")
        for line, (name, value) in zip(lines[1:], headers, strict=True)
    )
