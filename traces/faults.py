"""Faults of a trace that is read on in spite of them: counted, the first few kept in full.

Why: one damaged row must not end an hour of replay, nor vanish in silence. May not know: what a fault is about.
"""

from __future__ import annotations

from typing import Any

KEPT = 20


def unheard(sentence: str) -> None:
    """Takes a fault in a pass before the one that tells."""


class Faults:
    """Takes the sentences of `TraceFile.workflows(on_problem)`; what they are about was left out."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def __call__(self, sentence: str) -> None:
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(sentence)

    def as_json(self) -> dict[str, Any] | None:
        """For run.json: how many rows or workflows were left out, and why the first of them; None where none was."""
        return {"count": self.count, "first": self.first} if self.count else None
