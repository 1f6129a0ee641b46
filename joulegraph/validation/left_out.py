"""Widths learned without one mix or one card, to judge intervals on what they never saw. Printed by
scripts/fit_intervals.py, never changed by hand. May not know: anything else."""

from __future__ import annotations

from energy.uncertainty import Scale

LEFT_OUT: dict[str, Scale] = {
    "chat": Scale((0.000, 0.276, 0.359, 0.429, 0.044), (4.518, 4.549)),
    "agent": Scale((0.000, 0.241, 0.385, 0.427, 0.045), (4.478, 4.501)),
    "decode": Scale((0.000, 0.303, 0.348, 0.447, -0.017), (4.983, 4.940)),
    "low-load": Scale((0.000, 0.274, 0.362, 0.436, 0.046), (4.504, 4.548)),
    "overload": Scale((0.000, 0.305, 0.362, 0.422, 0.084), (4.764, 4.819)),
    "tenants": Scale((0.000, 0.283, 0.348, 0.422, 0.013), (4.271, 4.314)),
    "saturated": Scale((0.000, 0.297, 0.361, 0.442, 0.077), (5.096, 5.121)),
    "capped": Scale((0.000, 0.289, 0.363, 0.431, 0.071), (4.840, 4.875)),
    "a100": Scale((0.000, 0.273, 0.373, 0.428, 0.038), (4.859, 4.877)),
    "h100": Scale((0.000, 0.259, 0.371, 0.444, 0.068), (4.799, 4.833)),
    "h200": Scale((0.000, 0.285, 0.356, 0.438, 0.052), (4.442, 4.498)),
    "l40s": Scale((0.000, 0.359, 0.348, 0.400, 0.054), (4.892, 4.934)),
    "a10g": Scale((0.000, 0.284, 0.362, 0.446, 0.054), (5.054, 5.077)),
    "mi300x": Scale((0.000, 0.270, 0.363, 0.441, 0.018), (4.668, 4.705)),
}
