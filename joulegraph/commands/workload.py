"""Write a synthetic workflow trace: sequential, interactive, agentic, composite, tool-loop, debate, plan-execute or
chat, with every length, fan-out, round count and mix a parameter and published figures as presets: see --list.
NAME may also be FILE.py:FUNCTION, a workload of your own (docs/workloads.md)."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from joulegraph.flags import real, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traces.workflow import Workflow
    from traces.workloads import Stream


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", help="workload, or FILE.py:FUNCTION")
    parser.add_argument("--list", action="store_true", help="show workloads, their parameters and presets, and leave")
    parser.add_argument("-o", "--out", metavar="FILE", help="trace to write (.jsonl, .jsonl.gz or .parquet)")
    parser.add_argument("--preset", metavar="P", help="published figures by name (see --list)")
    parser.add_argument(
        "--param", action="append", default=[], metavar="KEY=VALUE", help="one parameter; may be repeated (see --list)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="workflows in all (default 10, or the preset's)")
    parser.add_argument(
        "--rate", type=real(), metavar="R", help="workflows per second, open loop; 0: all at once (default 0)"
    )
    parser.add_argument(
        "--cv",
        type=float,
        metavar="CV",
        help="variation of the gaps: 1 Poisson, 0 constant, above 1 bursts (default 1)",
    )
    parser.add_argument("--users", type=whole(1), metavar="N", help="sessions the workflows are dealt to in turn")
    parser.add_argument("--scale", type=real(), metavar="X", help="multiply every text length, for smaller contexts")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
    parser.add_argument("--block-size", type=int, default=16, metavar="TOKENS", help="of prefix blocks (default 16)")
    parser.add_argument(
        "--api", choices=("completions", "chat", "responses", "messages", "parrot"), default="completions"
    )
    parser.add_argument("--model", metavar="NAME", help="model to ask for; left to the replay when absent")
    parser.add_argument("--no-stream", action="store_true", help="ask for whole replies")
    parser.add_argument("--json", action="store_true", help="one line of JSON about the trace on stdout")


def run(args: argparse.Namespace) -> int:
    """Generate and write."""
    from pathlib import Path

    import orjson

    from traces.errors import UserError
    from traces.trace import write_trace
    from traces.workloads import Wire, generate, manifest

    if args.list or not args.name:
        sys.stdout.write(listing())
        return 0 if args.list else 2
    if not args.out:
        raise UserError("workload: -o FILE is missing; say where to write the trace")
    streams = plan(args)
    tally = Tally()
    workflows = generate(
        streams,
        seed=args.seed,
        block_size=args.block_size,
        wire=Wire(api=args.api, model=args.model, stream=not args.no_stream),
    )
    source = "joulegraph workload " + " ".join(_command(args))
    write_trace(Path(args.out), manifest(source, block_size=args.block_size), tally.count(workflows))
    if args.json:
        sys.stdout.write(orjson.dumps({"file": args.out, **tally.as_dict()}).decode() + "\n")
    else:
        sys.stderr.write(f"{args.out}: {tally.sentence()}\n")
    return 0


class Tally:
    """What went by: counts, span, tokens, the largest request, requests per class."""

    def __init__(self) -> None:
        self.workflows = self.nodes = self.tokens_in = self.tokens_out = self.largest = self.span_ns = 0
        self.classes: dict[str, int] = {}

    def count(self, workflows: Iterator[Workflow]) -> Iterator[Workflow]:
        """Pass workflows through."""
        for workflow in workflows:
            self.workflows += 1
            self.classes[workflow.class_name] = self.classes.get(workflow.class_name, 0) + 1
            self.span_ns = max(self.span_ns, workflow.arrival_ns)
            self.nodes += len(workflow.nodes)
            for node in workflow.nodes:
                self.tokens_in += node.input_length
                self.tokens_out += node.output_length
                self.largest = max(self.largest, node.input_length + node.output_length)
            yield workflow

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "workflows": self.workflows,
            "classes": self.classes,
            "requests": self.nodes,
            "span_s": round(self.span_ns / 1e9, 3),
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "largest_request_tokens": self.largest,
        }

    def sentence(self) -> str:
        """For people."""
        classes = ", ".join(f"{name} {n}" for name, n in sorted(self.classes.items()))
        return (
            f"{self.workflows:,} workflows ({classes}), {self.nodes:,} requests arriving over "
            f"{self.span_ns / 1e9:.1f} s, "
            f"{self.tokens_in:,} prompt and {self.tokens_out:,} output tokens, largest request {self.largest:,} tokens"
        )


def plan(args: argparse.Namespace) -> list[Stream]:
    """The streams asked for: a preset's or one of the workload's, with the command line's changes."""
    from dataclasses import replace

    from traces.errors import UserError
    from traces.workloads import Stream
    from traces.workloads.generate import resolve
    from traces.workloads.presets import PRESETS

    params = dict(_pair(p) for p in args.param)
    pattern = _own(args.name) if ".py:" in args.name else args.name
    resolve(pattern)
    changes = {k: getattr(args, k) for k in ("count", "rate", "cv", "users", "scale") if getattr(args, k) is not None}
    if not args.preset:
        return [replace(Stream(pattern, 10, params=params), **changes)]
    known = PRESETS.get(args.name, {})
    if args.preset not in known:
        raise UserError(f"--preset {args.preset!r} is unknown for {args.name}; it has {', '.join(known) or 'none'}")
    streams = known[args.preset].streams
    if len(streams) == 1:
        return [replace(streams[0], **changes, params={**streams[0].params, **params})]
    return _several(args, streams, params)


def _several(args: argparse.Namespace, streams: tuple[Stream, ...], params: dict[str, str]) -> list[Stream]:
    """A preset of several streams: --count and --rate scale them all, parameters are class.parameter=value."""
    from dataclasses import replace

    from traces.errors import UserError

    names = [s.name for s in streams]
    for key in params:
        if key.split(".", 1)[0] not in names or "." not in key:
            raise UserError(
                f"--param {key!r}: preset {args.preset} has several classes; write one of {names} before a dot"
            )
    total_count, total_rate = sum(s.count for s in streams), sum(s.rate for s in streams)
    if args.rate is not None and (not total_rate or args.rate <= 0):
        raise UserError(f"--rate {args.rate}: preset {args.preset} cannot take it; leave the rate out or use --param")
    out = []
    for stream in streams:
        own = {k.split(".", 1)[1]: v for k, v in params.items() if k.split(".", 1)[0] == stream.name}
        out.append(
            replace(
                stream,
                count=max(1, round(stream.count * (args.count / total_count)))
                if args.count is not None
                else stream.count,
                rate=stream.rate * args.rate / total_rate if args.rate is not None else stream.rate,
                cv=stream.cv if args.cv is None else args.cv,
                users=stream.users if args.users is None else args.users,
                scale=stream.scale if args.scale is None else args.scale,
                params={**stream.params, **own},
            )
        )
    return out


def _pair(text: str) -> tuple[str, str]:
    from traces.errors import UserError

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"--param {text!r} is not KEY=VALUE; write for example --param files=4")
    return key.strip(), value.strip()


def _own(name: str) -> Any:
    """A workload function from the user's own file."""
    import importlib.util
    from pathlib import Path

    from traces.errors import UserError

    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{file}: no such file; give FILE.py:FUNCTION with a function of a Flow (docs/workloads.md)")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{file}: not a Python file; give FILE.py:FUNCTION (docs/workloads.md)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{file}: has no function {function!r}; name one that takes a Flow (docs/workloads.md)")
    return found


def _command(args: argparse.Namespace) -> list[str]:
    """The options that made the trace, for its manifest; no paths."""
    words = [args.name.rsplit("/", 1)[-1]]
    for key in ("preset", "count", "rate", "cv", "users", "scale"):
        if getattr(args, key) is not None:
            words += [f"--{key}", str(getattr(args, key))]
    for param in args.param:
        words += ["--param", param]
    return [*words, "--seed", str(args.seed), "--block-size", str(args.block_size)]


def listing() -> str:
    """The text of --list."""
    from inspect import getdoc
    from textwrap import fill

    from traces.workloads.generate import parameters, resolve
    from traces.workloads.patterns import PATTERNS
    from traces.workloads.presets import PRESETS

    lines = []
    for name in (*PATTERNS, "composite"):
        summary, _, rest = (getdoc(resolve(name)) or "").partition("\n")
        lines += [name, f"  {summary}"]
        lines += [f"  {line}" for line in rest.strip().splitlines()]
        lines += ["  parameters:", *(f"    {p.name}={p.default}" for p in parameters(name).values())]
        for preset_name, preset in PRESETS.get(name, {}).items():
            ours = f" Ours: {preset.ours}." if preset.ours else ""
            text = f"--preset {preset_name}: {preset.source}.{ours}"
            lines.append(fill(text, 110, initial_indent="  ", subsequent_indent="      "))
        lines.append("")
    lines.append(
        "amounts: 50, 183-800 (uniform), 25|50|75 (one of), q(0:10,0.5:20,1:90) (quantiles), lognormal(mean,cv), "
        "exp(mean)"
    )
    return "\n".join(lines) + "\n"
