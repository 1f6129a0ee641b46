"""One request's life, as events with their instants: in goes what the shells saw, out comes the RequestRecord's row.

Lives here: the times, sizes and token counts of one exchange, and the reading of the reply's usage through
engines.dialects. Every read is stamped by the caller before anything in it is parsed. May not know: sockets, the clock,
journals, how bytes are relayed.
"""

from __future__ import annotations

from array import array
from itertools import compress
from operator import sub
from typing import Any, Final

from engines.dialects import EngineMetrics, Observer, Usage, observer
from engines.shapes import Shape
from proxy.content import RequestFacts
from proxy.heads import RequestHead
from proxy.readlog import said
from traces.records import Outcome
from traces.tags import Tag
from traces.workflow import Dep, dep_row

MAX_LISTED: Final = 128
"""reads of a reply that are kept in lists: quicker than arrays, and three times as long"""
_NO_LOG: Final[list[Any]] = []
NO_TAG: Final = Tag()
NO_FACTS: Final = RequestFacts()
NO_USAGE: Final = Usage()
NO_METRICS: Final = EngineMetrics()


class Exchange:
    """Events in, one row out. Instants are monotonic ns; None until the event happened."""

    __slots__ = (
        "_last_ns", "_observer", "_settled", "_unmade", "body", "bytes_in", "bytes_out", "deadline_ns", "edges",
        "error", "facts", "fresh", "head", "last_read", "log", "note", "outcome", "parsed", "read_sizes",
        "read_times", "read_tokens", "reused", "status", "stream", "t_arrival_ns", "t_body_ns", "t_end_ns",
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
        self.log: list[Any] = _NO_LOG
        """reads of a stream that passed the short way: instant, read, instant ...; in place of a read that was found to
        be one plain token event, its size"""
        self.last_read: tuple[int, int, bytes] | None = None
        """the one after those, which ended the reply, where it was walked: instant, bytes, payload"""
        self._unmade: tuple[str, bool] | None = None
        """what a stream's observer is to be, until the first of the reply is looked at"""
        self._observer: Observer | None = None
        self._settled = False
        self._last_ns = t_arrival_ns
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
            self.log = []
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
        log, last, tokens = self.log, self.last_read, 0
        if log:
            tokens = self._look_at(log)
            log.clear()
        if last is not None:
            self.last_read = None
            tokens += self.read(*last)
        return tokens

    def read(self, now_ns: int, size: int, payload: bytes) -> int:
        """One read of the reply: `size` bytes as they came, `payload` without framing. Token events in it."""
        self.read_times.append(now_ns - self._last_ns)
        self._last_ns = now_ns
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

    def _look_at(self, log: list[Any]) -> int:
        """Reads of one small chunk of whole events each. Token events in them."""
        times, reads = log[::2], log[1::2]
        self.read_times.extend(list(map(sub, times, [self._last_ns, *times])))
        self._last_ns = times[-1]
        sizes, counts = said(reads, self._reader())
        self.read_sizes.extend(sizes)
        self.bytes_out += sum(sizes)
        self.read_tokens.extend(counts)
        if len(self.read_sizes) > MAX_LISTED and type(self.read_sizes) is list:
            self._pack()
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

    def row(self) -> dict[str, Any]:
        """Everything seen, once the exchange has ended: the fields of RequestRecord as they are journalled.

        A plain dict because building and serialising it costs a third of what the dataclass does.
        """
        seen = self.settled()
        head, facts = self.head, self.facts or NO_FACTS
        tag = self.tag if self.tag is not None else NO_TAG
        usage = seen.usage if seen is not None else NO_USAGE
        metrics = (seen.metrics if seen is not None else None) or NO_METRICS
        return {
            "request_id": head.request_id,
            "workflow_id": tag.workflow_id,
            "node_id": None if self.tag is None else self.name,
            "outcome": self.outcome,
            "t_arrival_ns": self.t_arrival_ns,
            "t_end_ns": self.t_end_ns,
            "agent_id": tag.agent_id,
            "class_name": tag.class_name,
            "deps": [dep_row(d) for d in (*tag.parents, *self.edges)] if tag.parents or self.edges else [],
            "tag_source": tag.source,
            "session_id": tag.session_id,
            "parent_agent_id": tag.parent_agent_id,
            "method": head.method,
            "path": head.path,
            "api": head.api,
            "model": facts.model,
            "stream": facts.stream,
            "t_head_ns": self.t_head_ns,
            "t_body_ns": self.t_body_ns,
            "t_queue_ns": self.t_queue_ns,
            "t_upstream_ns": self.t_upstream_ns,
            "upstream": self.upstream,
            "upstream_reused": self.reused,
            "t_first_byte_ns": self.t_first_byte_ns,
            "t_first_token_ns": self.t_first_token_ns,
            "t_last_token_ns": self.t_last_token_ns,
            "status": self.status,
            "finish_reason": seen.finish_reason if seen is not None else None,
            "error": self.error or (seen.error if seen is not None else None),
            "response_id": seen.response_id if seen is not None else None,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "engine_queue_ns": metrics.queue_ns,
            "engine_prefill_ns": metrics.prefill_ns,
            "engine_decode_ns": metrics.decode_ns,
            "draft_tokens": metrics.draft_tokens,
            "accepted_tokens": metrics.accepted_tokens,
            "read_dt_ns": list(self.read_times),
            "read_bytes": list(self.read_sizes),
            "read_tokens": list(self.read_tokens),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "usage_spliced": self.usage_spliced,
            "note": self.note,
            "max_tokens": facts.max_tokens,
            "sampling": facts.sampling,
            "messages": facts.messages,
            "block_hashes": facts.block_hashes,
            "tool_call_ids": seen.tool_call_ids if seen is not None else (),
            "previous_response_id": facts.named.previous_response,
            "content": self._content(facts, seen),
        }

    def _content(self, facts: RequestFacts, seen: Observer | None) -> dict[str, Any] | None:
        if facts.content is None:
            return None
        return {**facts.content, "output": seen.text if seen is not None else None}
