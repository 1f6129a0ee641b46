"""What the connections of one worker share: the engines, the concurrency limit, the counters, the way to the journal.

May not know: bytes on the wire, the command line.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from proxy.config import ProxyConfig, parse_target
from proxy.content import unquoted
from proxy.exchange import Exchange
from proxy.gate import Gate
from proxy.knownheads import KnownHeads
from proxy.lineage import Lineage
from proxy.outbox import Outbox
from proxy.page import Page
from proxy.parrot import Parrot
from proxy.row import row
from proxy.rowline import line
from proxy.study import find_tag, read_request
from proxy.upstream import Pool
from traces.seams import Connect, NowNs
from traces.status import StatusPage

if TYPE_CHECKING:
    from proxy.front import Front
    from proxy.relay import Relay

SWEEP_S: Final = 0.5
LATER_S: Final = 0.05
MAX_LATER: Final = 16
"""requests are read and recorded this much later, or once so many wait: one at a time, between two system calls, it
costs three times as much as in a row, and a reply that is on its way does not wait for it"""
MAX_LOOK: Final = 64 << 10
"""bytes of request bodies that are read in one turn of the loop (or one longer body): replies do not wait for more.
What has no body, or a short one, counts as the share of one of `MAX_LATER`; a stream, whose reads are written down with
it, as all of it"""


class Hub:
    """One worker's shared state. Nothing here blocks."""

    def __init__(
        self,
        config: ProxyConfig,
        *,
        now_ns: NowNs,
        connect: Connect,
        write: Callable[[dict[str, Any]], None],
        write_line: Callable[[bytes], None] | None = None,
        status: StatusPage | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.config = config
        self.now_ns = now_ns
        self.connect = connect
        self.extra_paths = frozenset(config.allow)
        self.known = KnownHeads(config)
        self.keep_text = config.record_content == "text"
        self.gate: Gate[Relay] = Gate(config.max_concurrency, config.max_queue)
        self.page = Page(status)
        self.page.set("limit", config.max_concurrency or 0)
        self.lineage = Lineage()
        self.fronts: set[Front] = set()
        self.draining = False
        self.in_flight = 0
        self._write = write
        self._write_line = write_line
        """takes the journal's line where that is all that is wanted: cheaper than a row and its JSON"""
        self.parrot: Parrot | None = None
        self.loop = asyncio.get_running_loop()
        self._sweeper: asyncio.TimerHandle | None = None
        self.outbox = Outbox(self.loop, self._find_tags)
        self._sent: list[Exchange] = []
        """went on in this turn of the loop: their tags are to be found"""
        self._unread: dict[Exchange, None] = {}
        """went on: the rest of their requests is to be read"""
        self._record = self._write_down
        self._waiting: list[tuple[Callable[[Exchange], None], Exchange]] = []
        """what is left to do, in the order of its events: edges are found by what ended before"""
        self._later: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        targets = [parse_target(url) for url in config.upstreams]
        self.pools = [
            Pool(t, connect=connect, now_ns=now_ns, idle_ns=config.upstream_idle_ns, tls=tls if t.tls else None)
            for t in targets
        ]
        self.single = len(self.pools) == 1
        self._max_later = MAX_LATER
        if config.engine == "parrot":
            self.parrot = Parrot(self, write, tls)
            self._max_later = 1  # a session's opening is understood before its first call comes

    def choose(self) -> Pool:
        """The engine with the fewest requests under way, the first of equals, among those that can be reached."""
        return self.ranked()[0]

    def ranked(self) -> list[Pool]:
        """The engines, the best choice first."""
        now = self.now_ns()
        return sorted(self.pools, key=lambda pool: (pool.health.out(now), pool.busy))

    # ---- after the bytes went out

    def look_later(self, exchange: Exchange) -> None:
        """A request goes on: find its tag once it is written, read the rest later."""
        self._sent.append(exchange)

    def look_at_reads(self, exchange: Exchange) -> None:
        """Look at what was read of a reply, and count the tokens."""
        tokens = exchange.look()
        if tokens:
            self.page.tokens(tokens)

    def settle(self, exchange: Exchange) -> None:
        """An exchange ended: record it later."""
        self.in_flight = in_flight = self.in_flight - 1
        self.page.left(in_flight)
        if in_flight == 0:
            self._idle.set()
        self._waiting.append((self._record, exchange))
        if len(self._waiting) == self._max_later:
            self.loop.call_soon(self._catch_up, MAX_LOOK)
        else:
            self._wait()

    def _find_tags(self) -> None:
        if not self._sent:
            return
        sent, self._sent = self._sent, []
        for exchange in sent:
            try:
                find_tag(exchange, self.lineage)
            except Exception as error:  # noqa: BLE001 - a bug is shown, but must not take the others of this turn along
                self._show(error)
            self._unread[exchange] = None
        self._wait()

    def _wait(self) -> None:
        if self._later is None:
            self._later = self.loop.call_later(LATER_S, self._time_is_up)

    def _time_is_up(self) -> None:
        """What ended is recorded first: most requests are read then, and only the others here."""
        self._later = None
        self._waiting += [(self._look, exchange) for exchange in self._unread]
        self._unread.clear()
        self._catch_up(MAX_LOOK)

    def _catch_up(self, most: int) -> None:
        """Do what waits, in order; the rest in the next turn once `most` bytes of bodies were read."""
        waiting, self._waiting = self._waiting, []
        for at, (work, exchange) in enumerate(waiting, 1):
            most -= MAX_LOOK if exchange.stream else max(len(exchange.body), MAX_LOOK // MAX_LATER)
            try:
                work(exchange)
            except Exception as error:  # noqa: BLE001 - as above
                self._show(error)
            if most <= 0 and at < len(waiting):
                self._waiting = waiting[at:] + self._waiting
                self.loop.call_soon(self._catch_up, MAX_LOOK)
                return

    def _show(self, error: Exception) -> None:
        self.loop.call_exception_handler({"message": "while a request was recorded", "exception": error})

    def _look(self, exchange: Exchange) -> None:
        read_request(exchange, self.config, self.lineage)

    # ---- life of an exchange

    def begun(self) -> None:
        """A request head was accepted."""
        self.in_flight = in_flight = self.in_flight + 1
        if in_flight == 1:
            self._idle.clear()
        self.page.begun(in_flight)

    def admit(self, relay: Relay, now: int) -> bool:
        """Ask the concurrency limit. False when even the queue is full."""
        verdict = self.gate.enter(relay)
        relay.gated = verdict
        if verdict == "in":
            relay.start(now)
        else:
            self.page.set("queued", self.gate.queued)
        return verdict != "full"

    def set_limit(self, limit: int | None) -> None:
        """Change the concurrency limit now."""
        self.page.set("limit", limit or 0)
        self._let_in(self.gate.set_limit(limit))

    def leave(self, relay: Relay) -> None:
        """A relay ended: its place is free."""
        if relay.gated == "queued":
            self.gate.withdraw(relay)
        elif relay.gated == "in":
            free = self.gate.leave()
            if free:
                self._let_in(free)
        relay.gated = "full"
        if self.gate.limit is not None:
            self.page.set("queued", self.gate.queued)

    def _let_in(self, relays: list[Relay]) -> None:
        now = self.now_ns()
        for relay in relays:
            relay.gated = "in"
            relay.start(now, waited=True)
        self.page.set("queued", self.gate.queued)

    def _write_down(self, exchange: Exchange) -> None:
        self.look_at_reads(exchange)
        self._unread.pop(exchange, None)
        read_request(exchange, self.config, self.lineage)
        seen, tag = exchange.settled(), exchange.tag
        prompt_tokens = 0
        if seen is not None:
            prompt_tokens = seen.usage.prompt_tokens or 0
            if seen.error is not None and not self.keep_text:
                seen.error = unquoted(seen.error)
            response = seen.response_id if exchange.head.api == "responses" else None  # the one API that names it again
            if response is not None or seen.tool_call_ids:
                workflow = tag.workflow_id if tag is not None else None
                self.lineage.learn(exchange.name, workflow, response, seen.tool_call_ids)
        self.page.ended(exchange, prompt_tokens)
        if self.parrot is not None:
            self.parrot.take(exchange, row(exchange))
        elif self._write_line is not None:
            self._write_line(line(exchange))
        else:
            self._write(row(exchange))

    async def idle(self) -> None:
        """Until every exchange is recorded."""
        await self._idle.wait()
        self._catch_up(sys.maxsize)

    # ---- timers

    def watch(self) -> None:
        """Start the sweeper; it stops by itself when nothing is open."""
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self.now_ns()
        for front in list(self.fronts):
            front.sweep(now)
        for pool in self.pools:
            pool.sweep(now)
        self.page.set("connections", len(self.fronts))
        if self.fronts or any(pool.open for pool in self.pools):
            self.watch()

    def stop(self) -> None:
        """No more timers."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._later is not None:
            self._later.cancel()
            self._later = None
