"""One line per run of a file of `--json` summaries of `joulegraph replay`.

python scripts/show_runs.py SUMMARY.jsonl
"""

from __future__ import annotations

import json
import sys


def joules(value: int | None) -> str:
    """uJ as J; what was not measured says so."""
    return "not measured" if value is None else f"{value / 1e6:9.1f} J"


def main() -> int:
    """Print them."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/show_runs.py SUMMARY.jsonl")
    with open(sys.argv[1]) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for row in rows:
        name = row["run"].rsplit("/", 1)[-1]
        print(
            f"{name:22} {row['state']:9} level {row['level']} requests {row['requests']:4} errors {row['errors']:3} "
            f"rejected {row['rejected']:3} measured {joules(row['measured_uj'])} attributed {joules(row['attributed_uj'])} "
            f"idle {joules(row['idle_uj'])} closure {row['closure_uj']} uJ, wall {row['wall_s']} s {row['why'] or ''}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
