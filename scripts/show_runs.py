"""One line per run of a file of `--json` summaries of `joulegraph replay`.

python scripts/show_runs.py SUMMARY.jsonl
"""

from __future__ import annotations

import json
import sys
from typing import Any


def joules(value: int | None) -> str:
    """uJ as J; what was not measured says so."""
    return "not measured" if value is None else f"{value / 1e6:.1f} J"


def name_of(row: dict[str, Any]) -> str:
    """The run directory's own name."""
    return str(row["run"]).rsplit("/", 1)[-1]


def main() -> int:
    """Print them."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/show_runs.py SUMMARY.jsonl")
    with open(sys.argv[1]) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for row in rows:
        parts = ", ".join(f"{name} {joules(row[f'{name}_uj'])}" for name in ("measured", "attributed", "idle"))
        counts = ", ".join(f"{row[name]} {name}" for name in ("requests", "errors", "rejected"))
        print(
            f"{name_of(row):22} {row['state']} level {row['level']}: {counts}; {parts}; closure {row['closure_uj']} uJ"
        )
        print(f"{'':22} {row['wall_s']} s {row['why'] or ''}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
