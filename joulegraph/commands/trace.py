"""Check, show, import and export trace files: JSON Lines (.gz too) or Parquet, one row per call (docs/traces.md)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from joulegraph.flags import real
from traces.errors import UserError
from traces.workflow import Workflow


def configure(parser: argparse.ArgumentParser) -> None:
    """The sub-commands and their options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = commands.add_parser("check", help="find every fault of a trace; exit code 2 when there is one")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--bound", type=int, default=20, help="faults shown at most (default 20)")
    check.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    show = commands.add_parser("show", help="counts, arrivals, lengths, graph shapes, prefix sharing")
    show.add_argument("file", type=Path, metavar="FILE", help="a trace, or a file of any format that import reads")
    show.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    load = commands.add_parser(
        "import", help="convert a public trace format", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    load.add_argument("file", type=Path, metavar="FILE")
    load.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help=".jsonl, .jsonl.gz or .parquet")
    load.add_argument(
        "--format", metavar="F", help="format of FILE (default: by its content; joulegraph trace formats lists them)"
    )
    load.add_argument("--class", dest="class_name", metavar="NAME", help="class of all workflows")
    load.add_argument("--source", metavar="TEXT", help="where the data came from, for the manifest")
    load.add_argument("--licence", metavar="TEXT", help="licence of the data, for the manifest")
    load.add_argument("--limit", type=int, metavar="N", help="only the first N workflows")
    load.add_argument("--seed", type=int, default=0, help="of formats that are sampled (ServeGen; default 0)")
    load.add_argument("--start", type=real(), default=0.0, metavar="S", help="start of the sampled window (ServeGen)")
    load.add_argument("--duration", type=real(), metavar="S", help="length of the sampled window (ServeGen)")
    load.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    save = commands.add_parser("export", help="write a trace in a public format")
    save.add_argument("file", type=Path, metavar="FILE", help="a trace, or a file of any format that import reads")
    save.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    save.add_argument("--format", required=True, metavar="F", help="mooncake, agentic_mooncake, otlp or wfformat")
    save.add_argument("--limit", type=int, metavar="N", help="only the first N workflows")
    save.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    commands.add_parser("formats", help="list the formats that import reads and export writes")


def run(args: argparse.Namespace) -> int:
    """Dispatch one action; the exit code."""
    match args.action:
        case "check":
            return _check(args)
        case "show":
            return _show(args)
        case "import":
            return _import(args)
        case "export":
            return _export(args)
        case _:
            return _formats()


def _check(args: argparse.Namespace) -> int:
    from traces.check import check

    report = check(args.file, args.bound)
    for sentence in report.problems:
        sys.stderr.write(sentence + "\n")
    if report.found > len(report.problems):
        sys.stderr.write(f"{args.file}: {report.found - len(report.problems)} more faults; raise --bound to see them\n")
    for name, count in report.unknown.most_common(10):
        sys.stderr.write(f"{args.file}: note: field {name!r} ({count} rows) is not part of the format and is ignored\n")
    figures = {
        "file": str(args.file),
        "valid": report.found == 0,
        "faults": report.found,
        "rows": report.rows,
        "workflows": report.workflows,
        "edges": report.edges,
    }
    if args.json:
        sys.stdout.write(orjson.dumps(figures).decode() + "\n")
    elif report.found == 0:
        sys.stdout.write(
            f"{args.file}: valid: {report.rows:,} rows, {report.workflows:,} workflows, {report.edges:,} edges\n"
        )
    else:
        sys.stderr.write(
            f"joulegraph: {args.file}: not valid: {_count(report.found, 'fault')} in {_count(report.rows, 'row')}\n"
        )
    return 0 if report.found == 0 else 2


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def _show(args: argparse.Namespace) -> int:
    from traces import importers, stats
    from traces.trace import read_trace

    name = importers.detect(args.file)
    if name in ("joulegraph", "mooncake"):
        trace = read_trace(args.file)
        manifest, declared = trace.manifest, trace.declared
        found = stats.collect(manifest, trace.workflows())
    else:
        imported = importers.open_import(args.file, name)
        declared = True
        found = stats.collect(imported.manifest, imported.workflows)
        manifest = imported.settled()
    row = found.row()
    if args.json:
        sys.stdout.write(orjson.dumps({"file": str(args.file), "format": name, **row}).decode() + "\n")
    else:
        sys.stdout.write(f"{args.file} ({name})\n{stats.text(row, manifest, declared)}\n")
    return 0


def _import(args: argparse.Namespace) -> int:
    from traces import importers
    from traces.trace import write_trace

    if not args.out.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise UserError(f"{args.out}: unknown suffix; name it .jsonl, .jsonl.gz or .parquet")
    if args.out.resolve() == args.file.resolve():
        raise UserError(f"{args.out}: is the source itself; give another -o")
    options = importers.ImportOptions(
        class_name=args.class_name,
        source=args.source,
        licence=args.licence,
        limit=args.limit,
        seed=args.seed,
        start_s=args.start,
        duration_s=args.duration,
    )
    name = args.format or importers.detect(args.file)
    imported = importers.open_import(args.file, name, options)
    seen = _Count(imported.workflows)
    nodes = write_trace(args.out, imported.settled, seen)
    manifest = imported.settled()
    for sentence in manifest.transforms:
        sys.stderr.write(f"{name}: {sentence}\n")
    if not nodes:  # an empty trace is an error, not a result
        args.out.unlink(missing_ok=True)
        window = "; its clients may be silent in this window: choose one with --start and --duration"
        raise UserError(
            f"{args.file}: holds no request that could become a node of a trace{window if name == 'servegen' else ''}; "
            "nothing was written"
        )
    figures = {
        "file": str(args.out),
        "format": name,
        "workflows": seen.workflows,
        "nodes": nodes,
        "edges": seen.edges,
        "time_quantum_ms": manifest.time_quantum_ms,
        "transforms": list(manifest.transforms),
    }
    if args.json:
        sys.stdout.write(orjson.dumps(figures).decode() + "\n")
    else:
        counts = f"{seen.workflows:,} workflows, {nodes:,} nodes, {seen.edges:,} edges"
        sys.stdout.write(f"{args.out}: {counts} from {args.file} ({name})\n")
    return 0


def _export(args: argparse.Namespace) -> int:
    from traces import exporters, importers

    if args.out.resolve() == args.file.resolve():
        raise UserError(f"{args.out}: is the source itself; give another -o")
    imported = importers.open_import(args.file, None, importers.ImportOptions(limit=args.limit))
    seen = _Count(imported.workflows)
    lost = exporters.export(args.format, args.out, imported.manifest, seen)
    for sentence in lost:
        sys.stderr.write(f"{args.format}: {sentence}\n")
    figures = {"file": str(args.out), "format": args.format, "workflows": seen.workflows, "lost": list(lost)}
    if args.json:
        sys.stdout.write(orjson.dumps(figures).decode() + "\n")
    else:
        sys.stdout.write(f"{args.out}: {seen.workflows:,} workflows from {args.file} ({args.format})\n")
    return 0


class _Count:
    """Counts what goes by."""

    def __init__(self, flow: Iterator[Workflow]) -> None:
        self._flow = flow
        self.workflows = self.edges = 0

    def __iter__(self) -> Iterator[Workflow]:
        for workflow in self._flow:
            self.workflows += 1
            self.edges += sum(len(node.deps) for node in workflow.nodes)
            yield workflow


def _formats() -> int:
    from traces import exporters, importers

    for heading, titles in (("import", importers.titles()), ("export", exporters.titles())):
        sys.stdout.write(f"{heading}\n")
        for name, title in titles.items():
            sys.stdout.write(f"  {name:<18}{title}\n")
    return 0
