"""Widths learned without one mix or one card, to judge intervals on what they never saw. Printed by
scripts/fit_intervals.py, never changed by hand. May not know: anything else."""

from __future__ import annotations

from energy.uncertainty import Scale

LEFT_OUT: dict[str, Scale] = {
    "chat": Scale((0.000, 0.335, 0.381, 0.436, -0.039), (7.061, 6.994)),
    "agent": Scale((0.000, 0.323, 0.392, 0.436, -0.015), (6.795, 6.844)),
    "decode": Scale((0.000, 0.341, 0.372, 0.443, -0.087), (7.189, 7.128)),
    "low-load": Scale((0.000, 0.340, 0.369, 0.450, -0.038), (6.733, 6.757)),
    "overload": Scale((0.000, 0.352, 0.379, 0.432, -0.012), (7.036, 7.057)),
    "tenants": Scale((0.000, 0.344, 0.367, 0.434, -0.056), (6.629, 6.632)),
    "saturated": Scale((0.000, 0.360, 0.381, 0.454, -0.012), (8.173, 8.134)),
    "capped": Scale((0.000, 0.346, 0.389, 0.438, -0.021), (7.817, 7.736)),
    "a100": Scale((0.000, 0.333, 0.387, 0.440, -0.027), (7.378, 7.305)),
    "h100": Scale((0.000, 0.291, 0.401, 0.434, -0.028), (6.716, 6.669)),
    "h200": Scale((0.000, 0.326, 0.379, 0.452, -0.027), (6.770, 6.787)),
    "l40s": Scale((0.000, 0.498, 0.337, 0.429, -0.036), (8.893, 8.868)),
    "a10g": Scale((0.000, 0.331, 0.386, 0.442, -0.019), (7.346, 7.317)),
    "mi300x": Scale((0.000, 0.323, 0.375, 0.453, -0.046), (6.845, 6.858)),
}
