"""How long traces take: Mooncake's rows imported, a synthetic trace of a million nodes checked and scheduled.

    python scripts/bench_traces.py [--quick] [--json] [--mooncake FILE]

Rows: `import` (the command `joulegraph trace import FILE`, start-up included), `dry_run`
(`joulegraph replay TRACE --dry-run`: every row read, every graph checked, every node scheduled), `check`
(`joulegraph trace check TRACE`). Wall and CPU seconds, peak resident MB of the command. --quick takes 100,000 nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from traces.trace import write_trace
from traces.workflow import Dep, Manifest, Node, Workflow

S = 1_000_000_000
WIDE = 4
"""branches between the first and the last node of a synthetic workflow"""


def synthetic(nodes: int) -> Iterator[Workflow]:
    """Workflows of six nodes: one, four beside one another, a join; arriving 50 a second."""
    for number in range(nodes // (WIDE + 2)):
        name, at = f"w{number}", number * S // 50
        first = Node(name, "plan", at, 512, 64, hash_ids=tuple(range(number % 97, number % 97 + 8)), agent_id="planner")
        branches = [
            Node(name, f"work-{i}", at + 1, 700, 128, deps=(Dep("plan"),), delay_ns=5_000_000) for i in range(WIDE)
        ]
        joined = tuple(Dep(b.request_id, kind="join") for b in branches)
        yield Workflow(name, (first, *branches, Node(name, "merge", at + 2, 1200, 200, deps=joined)), "fan-out")


def measured(arguments: list[str]) -> dict[str, Any]:
    """Run one joulegraph command: wall and CPU seconds, peak MB, its JSON line. RuntimeError when it fails."""
    command = [sys.executable, "-m", "joulegraph", *arguments]
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        said, complaint = out.read().decode(), err.read().decode()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {process.returncode}: {complaint[-500:]}")
    row = {
        "wall_s": round(wall_s, 3),
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "peak_mb": round(used.ru_maxrss / 1024, 1),
    }
    return row | ({"said": json.loads(said.splitlines()[-1])} if said.strip().startswith("{") else {})


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 nodes instead of 1,000,000")
    parser.add_argument("--json", action="store_true", help="one JSON line on stdout")
    parser.add_argument("--mooncake", type=Path, metavar="FILE", help="Mooncake trace to import")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.mooncake:
            command = ["trace", "import", str(args.mooncake), "-o", str(folder / "m.jsonl"), "--json"]
            rows.append({"what": "import", "file": args.mooncake.name, **measured(command)})
        else:
            rows.append({"what": "import", "skipped": "give --mooncake FILE"})
        nodes = 100_000 if args.quick else 1_000_000
        trace = folder / "synthetic.jsonl"
        write_trace(trace, Manifest(block_size=64), synthetic(nodes))
        rows.append({"what": "dry_run", "nodes": nodes, **measured(["replay", str(trace), "--dry-run", "--json"])})
        rows.append({"what": "check", "nodes": nodes, **measured(["trace", "check", str(trace)])})
    if args.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(", ".join(f"{k} {v}" for k, v in row.items() if k != "said"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
