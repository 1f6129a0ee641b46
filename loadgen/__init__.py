"""Open-loop replay: arrivals, graph walk, prompts, client, shards.

Replays workflows (traces.workflow) against an OpenAI-style server, never waiting for it: what is due is sent. May
import traces and engines; meets the proxy and the energy side only in headers and files.

In real time, from a trace file::

    import asyncio, time, uvloop
    from loadgen.arrivals import Arrivals, plan
    from loadgen.pacing import Pacer
    from loadgen.replay import ReplayOptions, replay
    from loadgen.target import Target
    from traces.trace import read_trace, workflows

    async def main(path, write, status):
        loop, manifest = asyncio.get_running_loop(), read_trace(path).manifest
        planned = plan(workflows(path), manifest, Arrivals(speed=2.0, limit=60, seed=7))
        with Pacer(loop, time.monotonic_ns) as pacer:
            return await replay(
                planned.workflows, Target("127.0.0.1", 8000, model="m"),
                t0_ns=time.monotonic_ns() + 200_000_000, now_ns=time.monotonic_ns, sleep_until=pacer.sleep_until,
                connect=loop.create_connection, write=write, status=status, stop=asyncio.Event(),
                options=ReplayOptions(manifest=manifest, salt="a run of its own"),
            )

    totals = uvloop.run(main(path, journal.write, None))  # totals.valid, totals.why; planned.sentences go to run.json

In virtual time the same call takes now_ns=loop.now_ns, sleep_until=loop.sleep_until, connect=loop.create_connection of
joulegraph.virtual.run_virtual's loop. Exact figures come from the records afterwards: loadgen.metrics.
"""

JOULEGRAPH_PACKAGE = "loadgen"
