"""Put a modern engine under Parrot's serve layer: register there as an engine and generate on an OpenAI-style server.

The server behind must take prompts as token ids and return them (vLLM, SGLang, llama.cpp, our embedded engine).
With --record every call is written down as the engine served it: give the file to `joulegraph replay --bridge`, or the
run directory of the proxy in front, and joules land on Parrot's calls. Ctrl-C leaves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joulegraph.flags import port, whole


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", choices=("parrot",), help="whose serve layer")
    parser.add_argument("--core", required=True, metavar="URL", help="serve layer, for instance http://127.0.0.1:9000")
    parser.add_argument("--upstream", required=True, metavar="URL", help="server that generates, http://host:port")
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="DIR|words:N",
        help="tokenizer folder that the core loads; words:N writes one for a model of N token ids in which a word is a "
        "token, for exact lengths (replay with --prompts words)",
    )
    parser.add_argument("--model", help="model to ask for (default: the first the server lists)")
    parser.add_argument("--port", type=port, default=0, help="port for the core's requests on 127.0.0.1 (default: any)")
    parser.add_argument(
        "--tasks", type=whole(1), default=256, metavar="N", help="tasks the core may place here at once"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="journal of every call (or a run directory to write it into)"
    )
    parser.add_argument("--json", action="store_true", help="one line with the port on stdout once it listens")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from engines.parrot.bridge import BridgeOptions
    from engines.parrot.registration import EngineConfig
    from joulegraph.targets import ask
    from loadgen.target import split_url
    from traces.errors import UserError

    core_host, core_port, core_base, core_tls = split_url(args.core)
    host, port, base, tls = split_url(args.upstream)
    if core_tls or tls or core_base or base:
        raise UserError(
            "--core, --upstream: plain http://host:port only; put `joulegraph proxy` before an https server"
        )
    server = ask(args.upstream)
    model = args.model or server.models[0]
    with _tokenizer(args.tokenizer) as folder:
        name = f"{model}/words" if args.tokenizer.startswith("words:") else model
        engine = EngineConfig(model, folder, model_name=name, tasks_capacity=args.tasks)
        ids: Any = "logprobs" if server.owner == "llamacpp" else "token_ids"
        options = BridgeOptions(core_host, core_port, host, port, engine, ids)
        return _serve(options, args.port, _journal(args.record), as_json=args.json)


@contextmanager
def _tokenizer(given: str) -> Iterator[str]:
    """The folder to name to the core: as given, or of words and there as long as the bridge is."""
    from tempfile import TemporaryDirectory

    from engines.parrot.words import write_tokenizer
    from loadgen.vocabulary import WORDS
    from traces.errors import UserError

    kind, _, size = given.partition(":")
    if kind != "words":
        if not Path(given).is_dir():
            raise UserError(f"--tokenizer {given}: no such folder; give the model's, or words:N")
        yield str(Path(given).resolve())
        return
    if not size.isdigit():
        raise UserError(f"--tokenizer {given}: give the size of the model's vocabulary, like words:128256")
    with TemporaryDirectory(prefix="joulegraph-words-") as folder:
        try:
            write_tokenizer(Path(folder), int(size), WORDS)
        except ValueError as error:
            raise UserError(f"--tokenizer {given}: {error}") from error
        yield folder


def _journal(record: Path | None) -> Any:
    """The journal at a path, or in a run directory; None without one."""
    import time

    from traces.journal import JournalWriter, QueuedWriter
    from traces.rundir import RunDir

    if record is None:
        return None
    path = RunDir(record).journal("bridge", "parrot") if record.is_dir() else record
    return QueuedWriter(JournalWriter(path, "bridge", mono_ns=time.monotonic_ns(), wall_ns=time.time_ns()))


def _serve(options: Any, port: int, journal: Any, *, as_json: bool) -> int:
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
        write = journal.put if journal is not None else lambda record: None
        seams: Any = {"write": write, "say": _say, "connect": loop.create_connection, "serve": loop.create_server}
        try:
            running = await start(options, port=port, now_ns=time.monotonic_ns, sleep_until=sleep_until, **seams)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror or error}; choose a free one") from None
        told = {"port": running.port, "model": options.engine.model}
        if as_json:
            sys.stdout.write(orjson.dumps(told).decode() + "\n")
            sys.stdout.flush()
        _say(f"for {options.engine.model} listens on 127.0.0.1:{running.port}; Ctrl-C leaves")
        await stop.wait()
        bridge = running.bridge
        await running.close()
        last = f"; last error: {bridge.last_error}" if bridge.last_error is not None else ""
        _say(f"{bridge.generated} calls, {bridge.failed} failed{last}")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main())
        finally:
            if journal is not None:
                journal.close()
    return 0


def _say(sentence: str) -> None:
    sys.stderr.write(f"bridge: {sentence}\n")
