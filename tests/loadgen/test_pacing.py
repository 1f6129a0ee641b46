"""The pacer on real loops: never early, in order, one timer for many sleepers."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from loadgen.pacing import Pacer, TimerFd

MS = 1_000_000


@pytest.mark.parametrize("factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_sleepers_wake_in_order_and_never_early(factory: object) -> None:
    async def main() -> list[tuple[int, int]]:
        now = time.monotonic_ns
        woke: list[tuple[int, int]] = []
        with Pacer(asyncio.get_running_loop(), now) as pacer:
            start = now()
            dues = [start + (i * 37 % 50) * MS for i in range(50)]

            async def sleeper(due: int) -> None:
                await pacer.sleep_until(due)
                woke.append((due, now()))

            await asyncio.gather(*map(sleeper, dues))
            await pacer.sleep_until(start)  # already past: at once
        return woke

    with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]
        woke = runner.run(main())
    assert len(woke) == 50 and all(at >= due for due, at in woke)
    assert [due for due, _ in woke] == sorted(due for due, _ in woke)


def test_an_earlier_sleeper_may_come_later_and_a_cancelled_one_is_harmless() -> None:
    async def main() -> list[str]:
        now, order = time.monotonic_ns, []
        with Pacer(asyncio.get_running_loop(), now) as pacer:
            start = now()
            late = asyncio.ensure_future(pacer.sleep_until(start + 20 * MS))
            dropped = asyncio.ensure_future(pacer.sleep_until(start + 10 * MS))
            await asyncio.sleep(0)
            pacer.call_at(start + 5 * MS, lambda: order.append("early"))
            dropped.cancel()
            await late
            order.append("late")
        return order

    assert asyncio.run(main()) == ["early", "late"]


def test_timer_can_be_closed_twice() -> None:
    timer = TimerFd()
    timer.arm(1)
    timer.clear()
    timer.close()
    timer.close()
