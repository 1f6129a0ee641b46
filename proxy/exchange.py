"""One request's life, as events with their instants: in goes what the shells saw, and proxy.row tells it.

Lives here: the times, sizes and token counts of one exchange, and the reading of the reply's usage through
engines.dialects. Every read is stamped by the caller before anything in it is parsed. May not know: sockets, the clock,
journals, how bytes are relayed.
"""

from __future__ import annotations

from array import array
from itertools import compress
from operator import sub
from typing import Any, Final

from engines.dialects import Observer, observer
from engines.shapes import Shape
from proxy.content import RequestFacts
from proxy.heads import RequestHead
from proxy.readlog import ReadLog, said
from traces.records import Outcome
from traces.tags import Tag
from traces.workflow import Dep

MAX_LISTED: Final = 128
"""reads of a reply that are kept in lists: quicker than arrays, and three times as long"""


class Exchange:
    """What was seen. Instants are monotonic ns; None until the event happened."""

    __slots__ = (
        "_observer", "_settled", "_unmade", "body", "bytes_in", "bytes_out", "deadline_ns", "edges",
        "error", "facts", "fresh", "head", "last_read", "note", "outcome", "parsed", "read_sizes",
        "read_times", "read_tokens", "reads", "reused", "status", "stream", "t_arrival_ns", "t_body_ns", "t_end_ns",
        "t_first_byte_ns", "t_first_token_ns", "t_head_ns", "t_last_token_ns", "t_queue_ns", "t_upstream_ns", "tag",
        "tagged", "tokens", "unread", "upstream", "usage_spliced", "watcher",
    )  # fmt: skip

    t_body_ns: int | None
    """the last byte of the request was here"""
    t_queue_ns: int | None
    t_upstream_ns: int | None
    t_first_byte_ns: int | None
    t_first_token_ns: int | None
    t_last_token_ns: int | None
    error: str | None
    note: str | None

    def __init__(self, head: RequestHead, t_arrival_ns: int, t_head_ns: int) -> None:
        self.head = head
        self.t_arrival_ns = t_arrival_ns
        self.t_head_ns = t_head_ns
        self.t_body_ns = self.t_queue_ns = self.t_upstream_ns = self.t_first_byte_ns = None
        self.t_first_token_ns = self.t_last_token_ns = self.error = self.note = None
        self.t_end_ns = 0
        self.outcome: Outcome | None = None
        self.body = b""
        """the request's, until it is read (study)"""
        self.parsed: Any = None
        self.unread = False
        """its facts are still to be read"""
        self.tagged = False
        """its tag was looked for"""
        self.tag: Tag | None = None
        self.edges: tuple[Dep, ...] = ()
        """exact edges found beside the tag's declared parents"""
        self.facts: RequestFacts | None = None
        self.upstream: str | None = None
        self.reused: bool | None = None
        self.usage_spliced: bool | None = None
        self.status: int | None = None
        self.stream = False
        self.watcher: Observer | None = None
        """reads the reply in place of the API's own observer"""
        self.fresh = False
        """never on a connection used before, and so never sent twice"""
        self.deadline_ns: int | None = None
        """its own, in place of the configured one"""
        self.bytes_in = 0
        self.bytes_out = 0
        """reply body bytes read from the engine so far, framing included"""
        self.tokens = 0
        self.reads = ReadLog(t_arrival_ns)
        """of a stream, those that passed the short way"""
        self.last_read: tuple[int, int, bytes] | None = None
        """the one after those, which ended the reply, where it was walked: instant, bytes, payload"""
        self._unmade: tuple[str, bool] | None = None
        """what a stream's observer is to be, until the first of the reply is looked at"""
        self._observer: Observer | None = None
        self._settled = False
        self.read_times: list[int] | array[int] = []
        """ns between the reads of the reply, the first since arrival"""
        self.read_sizes: list[int] | array[int] = []
        """bytes of each read, framing included"""
        self.read_tokens: list[int] | array[int] = []
        """token events of each read"""

    def left_queue(self, now_ns: int) -> None:
        """The concurrency limit let it go on."""
        self.t_queue_ns = now_ns

    def sent(self, upstream: str, reused: bool, now_ns: int) -> None:
        """A connection to the engine stands and the request (or its start) was written to it."""
        self.upstream, self.reused, self.t_upstream_ns = upstream, reused, now_ns

    def reply(self, status: int, event_stream: bool, encoded: bool, *, keep_text: bool) -> None:
        """The reply's head is complete."""
        self.status = status
        self.stream = event_stream
        if event_stream:
            self.reads.begin()
        if self.watcher is not None:
            self._observer = self.watcher
            return
        if self.head.api is None:
            return
        if encoded:
            self.add_note("reply is compressed: usage not read")
        elif event_stream:
            self._unmade = (self.head.api, keep_text)
        else:
            self._observer = observer(self.head.api, False, keep_text=keep_text)

    def _reader(self) -> Observer | None:
        """Who understands the reply."""
        if self._unmade is not None:
            api, keep_text = self._unmade
            self._observer = observer(api, True, keep_text=keep_text)
            self._unmade = None
        return self._observer

    def look(self) -> int:
        """Look at what was read so far. Token events in what was not looked at before."""
        last = self.last_read
        tokens = self._note_tokens() + self._look_at_kept()
        if last is not None:
            self.last_read = None
            tokens += self.read(*last)
        return tokens

    def read(self, now_ns: int, size: int, payload: bytes) -> int:
        """One read of the reply: `size` bytes as they came, `payload` without framing. Token events in it."""
        self.read_times.append(self.reads.gap(now_ns))
        self.read_sizes.append(size)
        self.bytes_out += size
        tokens = 0
        if payload and (reader := self._reader()) is not None:
            tokens = reader.feed(payload)
            if tokens:
                self.tokens += tokens
                self.t_last_token_ns = now_ns
                if self.t_first_token_ns is None:
                    self.t_first_token_ns = now_ns
        self.read_tokens.append(tokens)
        return tokens

    def _note_tokens(self) -> int:
        """Reads of one plain token event each. How many."""
        log = self.reads
        if not log.plain:
            return 0
        gaps, sizes = log.plain[::2], log.plain[1::2]
        log.plain.clear()
        found = len(gaps)
        if self.t_first_token_ns is None:
            self.t_first_token_ns = log.last_ns - sum(gaps) + gaps[0]
        self.t_last_token_ns = log.last_ns
        reader = self._reader()
        assert reader is not None  # it told what they look like
        reader.note(found)
        self.tokens += found
        self.read_times.extend(gaps)
        self._extend(sizes, [1] * found)
        return found

    def _extend(self, sizes: list[int], tokens: list[int]) -> None:
        self.read_sizes.extend(sizes)
        self.bytes_out += sum(sizes)
        self.read_tokens.extend(tokens)
        if len(self.read_sizes) > MAX_LISTED and type(self.read_sizes) is list:
            self._pack()

    def _look_at_kept(self) -> int:
        """Reads of one small chunk of whole events each. Token events in them."""
        log = self.reads.kept
        if not log:
            return 0
        times, reads = log[::2], log[1::2]
        log.clear()
        self.read_times.extend(list(map(sub, times, [self.reads.last_ns, *times])))
        self.reads.last_ns = times[-1]
        sizes, counts = said(reads, self._reader())
        self._extend(sizes, counts)
        total = sum(counts)
        if total:
            self.tokens += total
            with_tokens = times if 0 not in counts else list(compress(times, counts))
            if self.t_first_token_ns is None:
                self.t_first_token_ns = with_tokens[0]
            self.t_last_token_ns = with_tokens[-1]
        return total

    def plain(self, special: bytes | None) -> Shape | None:
        """What a read of one plain token event looks like, where everything so far was looked at and the next byte
        begins an event; None where no read is to pass unread, or each has `special` in it."""
        reader = self._observer
        shape = reader.plain() if reader is not None else None
        if shape is None or (special is not None and special in shape.between):
            return None
        return shape

    def _pack(self) -> None:
        """Many reads: 24 bytes each from now on."""
        self.read_times, self.read_sizes = array("q", self.read_times), array("l", self.read_sizes)
        self.read_tokens = array("l", self.read_tokens)

    def end(self, outcome: Outcome, now_ns: int, error: str | None = None) -> None:
        """It is over; only the first end counts."""
        if self.outcome is None:
            self.outcome, self.t_end_ns, self.error = outcome, now_ns, error

    def add_note(self, note: str) -> None:
        """Say why something is missing."""
        self.note = note if self.note is None else f"{self.note}; {note}"

    @property
    def said_all(self) -> bool:
        """The reply's own end marker ([DONE], message_stop ...) was relayed; SDKs close the connection right then."""
        reader = self._reader()
        return reader is not None and self.stream and reader.ended

    def settled(self) -> Observer | None:
        """What was seen of the reply, read to its end; once the exchange has ended."""
        if self.outcome is None:
            raise RuntimeError("an exchange has no record before its end")
        seen = self._reader()
        if seen is not None and not self._settled:
            self._settled = True
            seen.finish()
            self.tokens = seen.tokens
        return seen

    @property
    def name(self) -> str:
        """What edges call it: its node, else its request id."""
        tag = self.tag
        return self.head.request_id if tag is None else tag.node_id or self.head.request_id
