"""Widths learned without one mix or one card, to judge intervals on what they never saw. Printed by
scripts/fit_intervals.py, never changed by hand. May not know: anything else."""

from __future__ import annotations

from energy.uncertainty import Scale

LEFT_OUT: dict[str, Scale] = {
    "chat": Scale((0.000, 0.339, 0.375, 0.382, -0.057), (5.446, 5.451)),
    "agent": Scale((0.000, 0.310, 0.389, 0.392, -0.032), (5.352, 5.350)),
    "decode": Scale((0.000, 0.310, 0.375, 0.387, -0.088), (5.088, 5.096)),
    "low-load": Scale((0.000, 0.329, 0.380, 0.425, -0.034), (5.988, 6.078)),
    "overload": Scale((0.000, 0.353, 0.379, 0.386, -0.020), (5.805, 5.835)),
    "tenants": Scale((0.000, 0.342, 0.367, 0.382, -0.071), (5.272, 5.299)),
    "saturated": Scale((0.000, 0.353, 0.381, 0.406, -0.021), (6.498, 6.523)),
    "capped": Scale((0.000, 0.343, 0.382, 0.389, -0.028), (5.894, 5.865)),
    "a100": Scale((0.000, 0.329, 0.392, 0.394, -0.039), (6.035, 6.053)),
    "h100": Scale((0.000, 0.316, 0.385, 0.407, -0.039), (5.949, 5.948)),
    "h200": Scale((0.000, 0.310, 0.380, 0.416, -0.031), (5.369, 5.416)),
    "l40s": Scale((0.000, 0.425, 0.351, 0.369, -0.024), (5.850, 5.881)),
    "a10g": Scale((0.000, 0.336, 0.381, 0.398, -0.039), (5.943, 5.956)),
    "mi300x": Scale((0.000, 0.322, 0.383, 0.397, -0.062), (5.610, 5.672)),
}
