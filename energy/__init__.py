"""Watts to workflows: sensors, sampler, energy curve, alignment, attribution, power knobs.

May import traces. May not know: proxy, loadgen, engines.
"""

JOULEGRAPH_PACKAGE = "energy"
