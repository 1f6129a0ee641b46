"""The node's meter beside the parts that were measured: what of the node's energy nobody accounts for.

For the books alone: none of it is ever put on a request. A management controller's reading is averaged and seconds old,
so the difference means something over minutes. Pure. May not know: requests, files.
"""

from __future__ import annotations

from typing import Any

from energy.curve import Curve

PARTS = ("gpu", "cpu", "dram")
"""components that add up: hbm lies inside gpu"""
LEAST_S = 60.0
"""span below which the meter's age and averaging are no small part of the difference"""


def node_total(curves: list[Curve]) -> tuple[dict[str, Any] | None, list[str]]:
    """({source, seconds, node_uj, parts_uj: {component: uJ}, measured_uj, unaccounted_uj}, notes) over the time that
    the node's meter and every measured part have in common; node_uj = measured_uj + unaccounted_uj exactly. None
    without a node's meter, or where nothing can be set beside it, which a note then says.

    Estimates are no parts, nor is a simulated sensor one of a real node's (or the reverse).
    """
    node = next((c for c in curves if c.domain == "node"), None)
    if node is None:
        return None, []
    every = [c for c in curves if c.domain in PARTS]
    parts = [c for c in every if not c.estimated and c.simulated == node.simulated]
    begin, end = max(int(c.t_ns[0]) for c in [node, *parts]), min(int(c.t_ns[-1]) for c in [node, *parts])
    if end <= begin:
        return None, [f"{node.source}: the node's meter and the parts were never read at the same time: no node total"]
    notes = []
    if unlike := [c.source for c in every if c not in parts]:
        notes.append(f"{node.source}: {', '.join(unlike)} not set against it (estimated, or simulated unlike it)")
    windows = {c.source: c.between(begin, end) for c in [node, *parts]}
    if unknown := [name for name, w in windows.items() if w.covered < 1 - 1e-9]:
        return None, [*notes, f"{node.source}: no node total: part of the energy of {', '.join(unknown)} is unknown"]
    parts_uj = {
        name: sum(round(windows[c.source].uj) for c in parts if c.domain == name)
        for name in PARTS
        if any(c.domain == name for c in parts)
    }
    node_uj, measured_uj = round(windows[node.source].uj), sum(parts_uj.values())
    seconds = (end - begin) / 1e9
    if measured_uj > node_uj:
        notes.append(f"{node.source}: the parts drew more than the node's meter says: the meters disagree")
    if seconds < LEAST_S:
        notes.append(f"{node.source}: a node's meter is seconds old; over {seconds:.0f} s its total is a rough figure")
    out = {
        "source": node.source,
        "seconds": seconds,
        "node_uj": node_uj,
        "parts_uj": parts_uj,
        "measured_uj": measured_uj,
        "unaccounted_uj": node_uj - measured_uj,
    }
    return out, notes
