"""`joulegraph proxy` as a composition: workers, control port, and on request the sampler and continuous attribution.

The parent relays nothing. It holds the run key (in memory only), the limits, which it splits over the workers, and the
control port; it passes SIGHUP on, drains on SIGTERM or the first Ctrl-C, and leaves at once on the second.
May not know: HTTP, energy figures.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from typing import Any

from energy.procs import listener
from joulegraph.continuous import class_joules
from joulegraph.control import Control, serve_control
from joulegraph.host import anchor, describe, versions
from joulegraph.live.view import LiveView
from joulegraph.live.watch import Watch
from joulegraph.parts import tell_roles
from joulegraph.proxyworkers import ProxyPlan, Workers, split_limit
from loadgen.target import split_url
from traces import compiled
from traces.child import Child, spawn
from traces.errors import UserError
from traces.rundir import RunDir

WATCH_S = 0.25
LEFT = "left by a second Ctrl-C; requests under way were cut, what was recorded is kept"


def _must_be_free(option: str, host: str, port: int) -> None:
    """Asked before anything is made: a taken port must not leave a run directory behind, and SO_REUSEPORT would share
    it with another proxy of the same user without a word."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"{option} {host}:{port}: {error.strerror}; choose another address or port") from error


def run_proxy(plan: ProxyPlan) -> None:
    """Until SIGTERM or Ctrl-C. UserError when something cannot start or a worker dies."""
    split_limit(plan.proxy.max_concurrency, plan.workers)
    _must_be_free("--listen", plan.host, plan.port)
    _must_be_free("--control", "127.0.0.1", plan.control_port)
    made = not plan.record.exists()
    run = RunDir.create(plan.record)
    run.update_info(
        kind="proxy",
        host=describe(),
        versions=versions(),
        clock={"start": anchor()},
        config=_public(plan),
        **_manifest(plan),
    )
    workers = Workers(plan, run)
    beside: list[Child] = []
    started = time.monotonic()
    state = "interrupted"
    why: str | None = "the proxy could not start"
    listened = False
    try:
        if plan.sample:
            beside = _sampling(run, plan)
        workers.start()
        listened = True
        why = _until_told(plan, run, workers, beside)
        state = "complete" if why is None else "invalid"
    except UserError as error:
        why = str(error)
        raise
    finally:
        try:
            workers.stop(plan.drain_s + 5.0)
        except KeyboardInterrupt:
            state, why = "interrupted", LEFT
            workers.cut()
        for child in beside:
            child.stop()
        if made and not listened:  # it could not start, and shall not be in the way of the next attempt
            shutil.rmtree(run.path)
        else:
            clock = {**run.info["clock"], "end": anchor()}
            run.update_info(state=state, why=why, clock=clock, wall_s=round(time.monotonic() - started, 3))
    if why is LEFT:
        raise KeyboardInterrupt(LEFT)
    if why is not None:
        raise UserError(why)


def _until_told(plan: ProxyPlan, run: RunDir, workers: Workers, beside: list[Child]) -> str | None:
    """Serve the control port until a signal; why the run is broken, or None."""
    return asyncio.run(_serve(plan, run, workers, beside))


async def _serve(plan: ProxyPlan, run: RunDir, workers: Workers, beside: list[Child]) -> str | None:
    loop = asyncio.get_running_loop()
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    loop.add_signal_handler(signal.SIGHUP, workers.signal, signal.SIGHUP)
    control = Control(run, workers.pages(), workers.alive, workers.set_limit)
    server = await serve_control(control, "127.0.0.1", plan.control_port)
    try:
        listen = f"[{plan.host}]:{workers.port}" if ":" in plan.host else f"{plan.host}:{workers.port}"
        plan.say(
            {
                "listen": listen,
                "control": f"127.0.0.1:{server.port}",
                "run": str(run.path),
                "hot_modules": compiled.FORM,
            }
        )
        with _view(run, f"joulegraph proxy on {listen}") as view:
            while not leave.is_set():
                try:
                    async with asyncio.timeout(WATCH_S):
                        await leave.wait()
                except TimeoutError:
                    pass
                if not view.quiet:  # four times a second what nobody sees costs as much as a worker at rest
                    view.update(time.monotonic_ns(), class_joules(run))
                for child in [c for c in beside if not c.process.is_alive()]:
                    beside.remove(child)
                    _say_unmeasured(run, child)
                if not workers.alive():
                    return "a proxy worker died; its journal is kept, see the lines above"
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.default_int_handler)  # the second one, whichever, leaves at once
        return None
    finally:
        await server.close()


def _view(run: RunDir, title: str) -> LiveView:
    """The live view on a terminal; nothing elsewhere, where a server's log should hold only what happened to it."""
    view = LiveView(Watch.of_run(run.path, title=title))
    view.quiet = not view.fancy
    return view


def _say_unmeasured(run: RunDir, child: Child) -> None:
    """The sampler or continuous attribution is gone. Requests matter more: they pass and are recorded on."""
    why = f"the {child.process.name} process ended (exit code {child.process.exitcode}); joules end there"
    sys.stderr.write(f"joulegraph: {why}, requests are recorded on\n")
    run.update_info(ended_early={**run.info.get("ended_early", {}), child.process.name: why})


def _sampling(run: RunDir, plan: ProxyPlan) -> list[Child]:
    """The sampler, and continuous attribution in a second process."""
    from energy.sampling import SamplerConfig, start_sampler
    from joulegraph.continuous import continuous_process

    journal, status = str(run.power_journal()), str(run.file("status.sampler"))
    upstream = {listener(*split_url(url)[:2]): "engine" for url in plan.proxy.upstreams}
    tell_roles(run, {**upstream, os.getpid(): "proxy"})
    sources = (*plan.sources, f"proc:{run.file('run.json')}")
    child, found = start_sampler(SamplerConfig(journal=journal, sources=sources, status=status))
    tell_roles(run, {child.process.pid: "sampler"})
    run.update_info(sensors=found.sensors, missing_sensors=found.missing)
    live = spawn(continuous_process, run.path, name="continuous")
    live.lifeline.recv()
    return [live, child]


def _public(plan: ProxyPlan) -> dict[str, Any]:
    """What of the configuration may be written: no key, not even whether which."""
    config = plan.proxy
    return {
        "upstreams": list(config.upstreams),
        "engine": config.engine,
        "workers": plan.workers,
        "max_concurrency": config.max_concurrency,
        "deadline_s": config.deadline_ns / 1e9 if config.deadline_ns is not None else None,
        "record_content": config.record_content,
        "splice_usage": config.splice_usage,
        "allow": list(config.allow),
    }


def _manifest(plan: ProxyPlan) -> dict[str, Any]:
    """How the block ids of this recording are to be read."""
    config = plan.proxy
    mode = {"none": "lengths", "hash": "hash", "text": "text"}[config.record_content]
    return {
        "manifest": {
            "block_size": config.block_bytes,
            "block_unit": "bytes",
            "block_rounding": "floor",
            "hash_scope": "global",
            "chained": True,
            "content_mode": mode,
            "source": "joulegraph proxy",
        }
    }
