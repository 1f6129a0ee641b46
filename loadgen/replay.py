"""Replay workflows against a target, open loop: the one entry, for an OpenAI-style server as for a Parrot.

May not know: files, command lines, what energy is. The loop itself is loadgen.shell, for
a Parrot loadgen.parrot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from engines.pool import Pool
from loadgen.client import Row
from loadgen.options import ReplayOptions as ReplayOptions
from loadgen.shell import Shell
from loadgen.tally import Tally
from loadgen.target import Target
from loadgen.totals import ReplayTotals
from traces.seams import Connect, NowNs, SleepUntil
from traces.status import StatusPage
from traces.workflow import Workflow


async def replay(
    workflows: Iterable[Workflow],
    target: Target,
    *,
    t0_ns: int,
    now_ns: NowNs,
    sleep_until: SleepUntil,
    connect: Connect,
    write: Callable[[Row], None],
    status: StatusPage | None = None,
    stop: asyncio.Event | None = None,
    options: ReplayOptions | None = None,
) -> ReplayTotals:
    """Replay workflows (sorted by arrival, see loadgen.arrivals.plan) against a target.

    t0_ns: the instant of trace time 0 on the axis of now_ns. write: takes one dispatch row (dict) per node, at its end.
    stop: once set nothing more is sent; what is in flight may finish within options.drain_ns. UserError on bad input.
    """
    options = options or ReplayOptions()
    tls = None if target.ssl is None else target.ssl.context()
    pool = Pool(target.host, target.port, connect=connect, now_ns=now_ns, ssl=tls)
    graphs = target.api == "parrot"  # it is given the graph and walks it itself
    start = _parrot_shell if graphs else Shell
    shell = start(target, pool, now_ns, sleep_until, write, Tally(status, now_ns()), options)
    try:
        if options.prewarm and not graphs:
            await pool.prewarm(options.prewarm)
        await shell.run(iter(workflows), t0_ns, stop or asyncio.Event())
    finally:
        await shell.close()
        pool.close()
    return shell.tally.close(now_ns(), options.bounds, connections=pool.opened, stopped=shell.stopped)


def _parrot_shell(*args: Any) -> Any:
    """Its modules are loaded only where a Parrot is asked: they would cost every start milliseconds."""
    from loadgen.parrot import ParrotShell

    return ParrotShell(*args)
