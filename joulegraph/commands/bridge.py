"""Put a modern engine under Parrot's serve layer: register there as an engine and generate on an OpenAI-style server.

The server behind must take prompts as token ids and return them (vLLM, SGLang's completions, our embedded engine).
Point --upstream at `joulegraph proxy` to have every call recorded, with its first token; Ctrl-C leaves."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", choices=("parrot",), help="whose serve layer")
    parser.add_argument("--core", required=True, metavar="URL", help="serve layer, for instance http://127.0.0.1:9000")
    parser.add_argument("--upstream", required=True, metavar="URL", help="server that generates, http://host:port")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer folder that the core loads")
    parser.add_argument("--model", help="model to ask for (default: the first the server lists)")
    parser.add_argument("--port", type=int, default=0, help="port for the core's requests on 127.0.0.1 (default: any)")
    parser.add_argument("--tasks", type=int, default=256, metavar="N", help="tasks the core may place here at once")
    parser.add_argument("--json", action="store_true", help="one line with the port on stdout once it listens")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from engines.parrot.bridge import BridgeOptions
    from joulegraph.targets import ask
    from loadgen.target import split_url
    from traces.errors import UserError

    core_host, core_port, core_base, core_tls = split_url(args.core)
    host, port, base, tls = split_url(args.upstream)
    if core_tls or tls or core_base or base:
        raise UserError(
            "--core, --upstream: plain http://host:port only; put `joulegraph proxy` before an https server"
        )
    model = args.model or ask(args.upstream).models[0]
    options = BridgeOptions(core_host, core_port, host, port, model, args.tokenizer, tasks_capacity=args.tasks)
    return _serve(options, args.port, as_json=args.json)


def _serve(options: Any, port: int, *, as_json: bool) -> int:
    import asyncio
    import signal
    import time

    import orjson
    import uvloop

    from engines.embedded.process import sleep_until
    from engines.parrot.bridge import start
    from traces.errors import UserError

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        seams: Any = {"connect": loop.create_connection, "serve": loop.create_server}
        try:
            running = await start(options, port=port, now_ns=time.monotonic_ns, sleep_until=sleep_until, **seams)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror or error}; choose a free one") from None
        told = {"port": running.bridge.port, "model": options.model}
        if as_json:
            sys.stdout.write(orjson.dumps(told).decode() + "\n")
            sys.stdout.flush()
        sys.stderr.write(f"bridge for {options.model} listens on 127.0.0.1:{running.bridge.port}; Ctrl-C leaves\n")
        await stop.wait()
        bridge = running.bridge
        await running.close()
        sys.stderr.write(f"{bridge.generated} calls, {bridge.failed} failed; last error: {bridge.last_error}\n")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    return 0
