"""Widths learned without one mix or one card, to judge intervals on what they never saw. Printed by
scripts/fit_intervals.py, never changed by hand. May not know: anything else."""

from __future__ import annotations

from energy.uncertainty import Scale

LEFT_OUT: dict[str, Scale] = {
    "chat": Scale((0.000, 0.346, 0.342, 0.388, -0.038), (4.852, 4.830)),
    "agent": Scale((0.000, 0.288, 0.383, 0.394, -0.041), (5.004, 5.008)),
    "decode": Scale((0.000, 0.367, 0.337, 0.407, -0.097), (5.442, 5.398)),
    "low-load": Scale((0.000, 0.305, 0.354, 0.406, -0.061), (4.750, 4.759)),
    "overload": Scale((0.000, 0.371, 0.351, 0.378, 0.001), (5.223, 5.198)),
    "tenants": Scale((0.000, 0.348, 0.337, 0.375, -0.084), (4.650, 4.616)),
    "saturated": Scale((0.000, 0.365, 0.348, 0.404, -0.015), (5.763, 5.738)),
    "capped": Scale((0.000, 0.353, 0.352, 0.388, -0.027), (5.339, 5.317)),
    "a100": Scale((0.000, 0.328, 0.360, 0.388, -0.059), (5.146, 5.122)),
    "h100": Scale((0.000, 0.314, 0.357, 0.404, -0.037), (5.129, 5.159)),
    "h200": Scale((0.000, 0.337, 0.346, 0.401, -0.039), (4.830, 4.807)),
    "l40s": Scale((0.000, 0.436, 0.332, 0.355, -0.025), (5.352, 5.369)),
    "a10g": Scale((0.000, 0.343, 0.351, 0.406, -0.037), (5.477, 5.422)),
    "mi300x": Scale((0.000, 0.335, 0.353, 0.398, -0.071), (5.180, 5.146)),
}
