"""Whether a power knob that was turned for a run showed in the card's own state while the load ran.

The first seconds are left out (a card settles), and so is what came before and after the load.
May not know: drivers, how a knob is turned.
"""

from __future__ import annotations

from typing import Any

from energy.knob_bench import Turn
from energy.knobs import SETTLE_NS, prove, states
from traces.rundir import RunDir


def proofs(run: RunDir, turns: list[Turn]) -> list[dict[str, Any]]:
    """One verdict a turn (bit | no effect | not applied | unknown) with its reason, from the run's own journals."""
    t0_ns = run.info.get("t0_ns")
    ends = [row["t_end_ns"] for row in run.rows("dispatch") if row.get("t_sent_ns") is not None]
    window = (t0_ns + SETTLE_NS, max(ends)) if t0_ns is not None and ends else (0, 0)
    rows = list(run.rows("power")) if turns else []
    found = []
    for turn in turns:
        proof = prove(turn, states(rows, turn.device, *window))
        why = proof.why
        if proof.verdict == "unknown" and window[1] <= window[0]:
            why = f"the load lasted less than the {SETTLE_NS // 10**9} s that a card takes to settle"
        found.append(
            {
                "knob": turn.knob,
                "device": turn.device,
                "wanted": turn.wanted,
                "enforced": turn.enforced,
                "verdict": proof.verdict,
                "why": why,
                "sm_mhz": proof.sm_mhz,
                "capped_share": proof.capped_share,
            }
        )
    return found


def sentence(proof: dict[str, Any]) -> str:
    """One line for people."""
    wanted = f"{proof['wanted'] // 1000} W" if proof["knob"] == "power_limit" else f"{proof['wanted']} MHz"
    return f"{proof['device']} {proof['knob']} {wanted}: {proof['verdict']} ({proof['why']})"
