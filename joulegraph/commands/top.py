"""Live view of a running replay, proxy or demo: attaches to the status pages in its run directory and only reads them.
q or Ctrl-C leaves the view; the run goes on."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joulegraph.live import Watch


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", nargs="?", metavar="RUN_DIR", help="run directory (default: the newest under ./runs)")
    parser.add_argument("--once", action="store_true", help="show one reading (of about a second) and leave")
    parser.add_argument("--json", action="store_true", help="one reading as one line of JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Attach, and show until the run is over or Ctrl-C."""
    from dataclasses import asdict

    import orjson

    from joulegraph.continuous import class_joules
    from joulegraph.live import LiveView, Watch
    from joulegraph.live.keys import pressed
    from traces.rundir import RunDir

    path = Path(args.run) if args.run else newest(Path("runs"))
    watch, run_dir = Watch.of_run(path), RunDir(path)
    note = None if watch.alive() else gone(path)
    watch.read(time.monotonic_ns())
    if (args.json or args.once) and note is None:
        time.sleep(1.0)  # two readings make a rate
    if args.json:
        sys.stdout.write(
            orjson.dumps(asdict(watch.read(time.monotonic_ns(), class_joules(run_dir), note))).decode() + "\n"
        )
        return 0
    try:
        with LiveView(watch, file=sys.stdout) as view:
            while not args.once and not over(path, watch):
                view.update(time.monotonic_ns(), class_joules(run_dir))
                if "q" in pressed(view.keys, 0.25):
                    return 0
            view.note = None if watch.alive() else gone(path)
            view.update(time.monotonic_ns(), class_joules(run_dir), last=True)
    except KeyboardInterrupt:
        pass
    return 0


def over(path: Path, watch: Watch) -> bool:
    """True once every load generator says finished, no part lives any more, or run.json no longer says running."""
    pages = watch.pages.get("loadgen") or []
    if pages and all("finished" in p.index and p.get("finished") != 0 for p in pages):
        return True
    return not watch.alive() or state_of(path) != "running"


def gone(path: Path) -> str:
    """What to say of a run of which no part runs any more."""
    state = state_of(path)
    if state == "running":
        return f"its parts have died; joulegraph finish {path} completes it from what they recorded"
    return f"this run is over: {state}"


def state_of(path: Path) -> str:
    """The state in run.json; running where there is none yet."""
    from traces.errors import UserError
    from traces.rundir import RunDir

    try:
        return str(RunDir.open(path).info.get("state", "running"))
    except UserError:
        return "running"


def newest(runs: Path) -> Path:
    """The directory of the run started last."""
    from traces.errors import UserError

    found = [p for p in runs.iterdir() if (p / "run.json").is_file()] if runs.is_dir() else []
    if not found:
        raise UserError(f"{runs}: holds no run; give the run directory that replay, proxy or demo printed")
    return max(found, key=lambda p: (p / "run.json").stat().st_mtime)
