"""Learns the widths of intervals from the tuning runs (joulegraph/validation/tuning.py) and prints what
energy/uncertainty.py holds as SHIPPED and joulegraph/validation/left_out.py as LEFT_OUT; with --write puts both there.
Takes six minutes on two cores; the same every time, on any number of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from energy.uncertainty import Scale
from joulegraph.validation.tuning import judged, scales

ROOT = Path(__file__).resolve().parent.parent
SHIPPED, LEFT_OUT = ROOT / "energy" / "uncertainty.py", ROOT / "joulegraph" / "validation" / "left_out.py"


def text(scale: Scale) -> str:
    """As it stands in the code."""
    exponents = ", ".join(f"{x:.3f}" for x in scale.exponents)
    return f"Scale(({exponents}), ({scale.height[0]:.3f}, {scale.height[1]:.3f}))"


def learned(found: dict[str | None, Scale]) -> dict[Path, list[str]]:
    """Lines of each file, the first of which tells where they belong."""
    rows = [f'    "{name}": {text(scale)},' for name, scale in found.items() if name is not None]
    return {
        SHIPPED: [f"SHIPPED = {text(found[None])}"],
        LEFT_OUT: ["LEFT_OUT: dict[str, Scale] = {", *rows, "}"],
    }


def put(path: Path, lines: list[str]) -> None:
    """Replace the statement that begins as the first line does."""
    head = lines[0].split(" = ")[0]
    before, rest = path.read_text().split(f"\n{head} = ", 1)
    first, after = rest.split("\n", 1)
    if first == "{":
        after = after.split("\n}\n", 1)[1]
    path.write_text(before + "\n" + "\n".join(lines) + "\n" + after)


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the widths where they belong")
    write = parser.parse_args().write
    for path, lines in learned(scales(judged(lambda said: print(said, file=sys.stderr)))).items():
        print("\n".join(lines))
        if write:
            put(path, lines)


if __name__ == "__main__":
    main()
