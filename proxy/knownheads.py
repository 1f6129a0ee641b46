"""Request heads met before: an SDK sends the same lines with every request, apart from a few.

A line gets a number once llhttp has taken it twice as part of whole heads that were accepted. The numbers of a head's
lines, in order, name a plan: what was decided about these lines. Lines that differ from request to request (lengths,
tags, credentials, ids) have no number; each is read by itself, strictly. Whatever does not fit a plan byte for byte is
left to llhttp and proxy/heads.py (`read` gives None), so nothing passes here that would not pass there: the two ways
agree, which a property test holds. Credentials are never kept. May not know: sockets, clocks, bodies.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.config import ProxyConfig
from proxy.heads import KINDS, NOTED, PASSED, TAGGED, TAKEN, Pairs, RequestHead, check_key, credentials, field_line
from proxy.heads import new_request_id as new_id
from proxy.refusal import Refusal
from proxy.routes import api_of
from traces.tags import clean

MAX_LINES, MAX_LINE, MAX_HEAD = 4096, 256, 8192
MAX_PLANS, MAX_NAMES = 512, 512
VARIETY = 16
"""values of one field name that never came twice, after which it counts as one that always differs"""
_VARYING = frozenset({b"content-length", b"x-request-id", b"authorization", b"x-api-key", *TAGGED})
_SECRET = frozenset({b"authorization", b"x-api-key", b"cookie", b"proxy-authorization"})
_NEVER = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings", b"connection"})
"""fields that only llhttp may judge; Connection passes where it says keep-alive or close and comes once"""
_VISIBLE = bytes(range(32, 127))
_BLANK = 32
Key = tuple[int | None, ...]


@dataclass(slots=True)
class _Plan:
    """What was decided about a head with these lines."""

    method: str
    target: bytes
    path: str
    api: str | None
    keep_alive: bool
    varying: list[tuple[int, int]]
    """where each varying line stands, and its place in `parts`"""
    parts: list[bytes]
    """the pieces to send: runs of numbered lines as they go on, empty for the varying ones"""
    single: frozenset[bytes]
    """names among the numbered lines; none of them may come again"""
    start: bytes
    """the head up to its first varying value, or all of it"""
    shape: list[_Value] | None
    """the varying values with what stood between them where the plan was made; None where names repeat"""
    lines: int


@dataclass(slots=True)
class _Value:
    """One varying value of a head in the plan's own spelling."""

    low: bytes
    before: bytes
    """its name as spelled, colon and space"""
    slot: int
    passed: bool
    tag: str | None
    behind: bytes
    """from the value's end to the next varying value, or to the end of the head"""


class KnownHeads:
    """Bounded memory of request lines and of what heads made of them were judged to be, for one configuration."""

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        self._max_head = min(MAX_HEAD, config.max_head)
        self._open = config.key is None and config.upstream_key is None
        self._numbers: dict[bytes, int] = {}
        self._next = 0
        self._once: set[bytes] = set()
        self._plans: dict[Key, _Plan] = {}
        self._last: _Plan | None = None
        """the plan met last: most heads are the same again"""
        self._names: dict[bytes, tuple[bytes, bool, str | None]] = {}
        """spellings of the names of lines without a number -> lower case, whether the line goes on, its tag's name"""
        self._variety: dict[bytes, int] = {}

    def read(self, raw: bytes) -> RequestHead | Refusal | None:
        """Judge a head (without its final blank line); None when it is not one of those met before."""
        last = self._last
        if last is not None and raw.startswith(last.start):
            found = self._read_as(last, raw)
            if found is not None:
                return found
        lines = raw.split(b"\r\n")
        plan = self._plans.get(tuple(map(self._numbers.get, lines)))
        if plan is None or len(raw) + len(lines) > self._max_head:
            return None
        self._last = plan
        parts = plan.parts.copy()
        seen: dict[bytes, bytes] = {}
        tags: dict[str, str] = {}
        names, single = self._names, plan.single
        for at, slot in plan.varying:
            line = lines[at]
            name, _, value = line.partition(b": ")
            known = names.get(name)
            if known is None or not value or value[0] == _BLANK or value[-1] == _BLANK:
                return None
            low, passed, tag = known
            if low in seen or low in single:
                return None
            seen[low] = value
            if passed:
                parts[slot] = line + b"\r\n"
            if tag is not None:
                tags[tag] = value.decode("latin-1")
        if b"".join(seen.values()).translate(None, _VISIBLE):
            return None
        return self._judge(plan, parts, seen, tags)

    def _read_as(self, plan: _Plan, raw: bytes) -> RequestHead | Refusal | None:
        """The same for a head that differs from the last one in its values alone, without looking at each line."""
        shape = plan.shape
        if shape is None or len(raw) + plan.lines > self._max_head:
            return None
        parts = plan.parts.copy()
        seen: dict[bytes, bytes] = {}
        tags: dict[str, str] = {}
        at = len(plan.start)
        for want in shape:
            end = raw.find(b"\r\n", at)
            if end < 0:
                end = len(raw)
            if not raw.startswith(want.behind, end):
                return None
            value = seen[want.low] = raw[at:end]
            if not value or value[0] == _BLANK or value[-1] == _BLANK:
                return None
            if want.passed:
                parts[want.slot] = want.before + value + b"\r\n"
            if want.tag is not None:
                tags[want.tag] = value.decode("latin-1")
            at = end + len(want.behind)
        if at != len(raw) or b"".join(seen.values()).translate(None, _VISIBLE):
            return None
        return self._judge(plan, parts, seen, tags)

    def _judge(
        self, plan: _Plan, parts: list[bytes], seen: dict[bytes, bytes], tags: dict[str, str]
    ) -> RequestHead | Refusal | None:
        """What heads.read_request decides by the values of the varying lines."""
        config = self._config
        size = 0
        given = seen.get(b"content-length")
        if given is not None:
            if not given.isdigit() or len(given) > 18:
                return None
            size = int(given)
            if size > config.max_body:
                return None
        if self._open:
            if b"authorization" in seen:
                parts.append(b"Authorization: " + seen[b"authorization"] + b"\r\n")
            if b"x-api-key" in seen:
                parts.append(b"X-Api-Key: " + seen[b"x-api-key"] + b"\r\n")
        else:
            refusal = check_key(seen, config)
            if refusal is not None:
                return refusal
            parts += credentials(seen, config)
        own = seen.get(b"x-request-id")
        request_id = clean(own.decode()) if own is not None else None
        return RequestHead(
            plan.method,
            plan.target,
            plan.path,
            plan.api,
            plan.keep_alive,
            False,
            size,
            False,
            False,
            b"",
            request_id or new_id(),
            parts,
            tags,
        )

    # ---- learning

    def learn(self, raw: bytes, headers: Pairs, head: RequestHead) -> None:
        """A head that llhttp parsed into `headers` and that was accepted as `head`."""
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
        for line, (name, _), low in zip(lines[1:], headers, lows, strict=True):
            fresh |= self._name(name, low) if self._varies(low) else self._number(line, low)
        if not fresh:
            self._plan(lines, headers, lows, head)

    def _varies(self, low: bytes) -> bool:
        return low in _VARYING or low in _SECRET or self._variety.get(low, 0) > VARIETY

    def _name(self, name: bytes, low: bytes) -> bool:
        """Know a spelling of a varying field's name; whether it was new."""
        if name in self._names:
            return False
        if len(self._names) >= MAX_NAMES:
            self._forget()
        tag = low.decode() if low in TAGGED else None
        self._names[name] = (low, KINDS.get(low, PASSED) in (PASSED, NOTED), tag)
        return True

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
        self._last = None
        self._names.clear()
        self._variety.clear()

    def _plan(self, lines: list[bytes], headers: Pairs, lows: list[bytes], head: RequestHead) -> None:
        """Write down what `head` says of the numbered lines, where all others are varying ones."""
        numbers = self._numbers
        fixed = [line if line in numbers else b"" for line in lines]
        if not fixed[0] or any(not line and not self._varies(low) for line, low in zip(fixed[1:], lows, strict=True)):
            return
        parts = [b""]
        varying: list[tuple[int, int]] = []
        single: set[bytes] = set()
        for at, (name, value) in enumerate(headers, 1):
            low = lows[at - 1]
            kind = KINDS.get(low, PASSED)
            if not fixed[at]:
                varying.append((at, len(parts)))
                parts += (b"", b"")
            elif kind in (PASSED, NOTED):
                parts[-1] += field_line(name, value)
            elif kind == TAKEN:
                single.add(low)
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
            self._last = None
        start, shape = self._shape(lines, varying, single)
        self._plans[tuple(map(numbers.get, lines))] = _Plan(
            head.method,
            head.target,
            head.path,
            api_of(head.path) if head.method == "POST" else None,
            head.keep_alive,
            varying,
            parts,
            frozenset(single),
            start,
            shape,
            len(lines),
        )

    def _shape(
        self, lines: list[bytes], varying: list[tuple[int, int]], single: set[bytes]
    ) -> tuple[bytes, list[_Value] | None]:
        """A head's text cut at its varying values: what is before the first, and each with what is behind it."""
        spelled = {at: lines[at].partition(b": ")[0] for at, _ in varying}
        known = {at: self._names.get(name) for at, name in spelled.items()}
        lows = [entry[0] for entry in known.values() if entry is not None]
        if len(lows) != len(set(lows)) or len(lows) != len(varying) or not single.isdisjoint(lows):
            return b"", None
        marked = [spelled[at] + b": \x00" if at in spelled else line for at, line in enumerate(lines)]
        start, *behind = b"\r\n".join(marked).split(b"\x00")
        shape = [
            _Value(entry[0], spelled[at] + b": ", slot, entry[1], entry[2], rest)
            for (at, slot), entry, rest in zip(varying, known.values(), behind, strict=True)
            if entry is not None
        ]
        return start, shape


def _same(lines: list[bytes], headers: Pairs) -> bool:
    """llhttp's fields are these lines, one each."""
    return all(
        line.startswith(name + b":") and line[len(name) + 1 :].strip(b" \t") == value.strip(b" \t")
        for line, (name, value) in zip(lines[1:], headers, strict=True)
    )
