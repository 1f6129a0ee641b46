"""Learns the widths of intervals from the tuning seeds of both engines of truth and prints the line that
energy/uncertainty.py holds as SHIPPED. Takes two to three minutes; the same every time."""

from __future__ import annotations

import sys

from joulegraph.validation.intervals import learn
from joulegraph.validation.validate import tuning_scores


def main() -> None:
    """Fit and print."""
    tuned = tuning_scores(lambda text: print(text, file=sys.stderr))
    scale = learn([s for many in tuned.values() for s in many])
    exponents = ", ".join(f"{x:.3f}" for x in scale.exponents)
    print(f"SHIPPED = Scale(({exponents}), ({scale.height[0]:.3f}, {scale.height[1]:.3f}))")


if __name__ == "__main__":
    main()
