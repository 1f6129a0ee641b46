"""What is planned and what was seen: the words every other part shares.

Lives here: the workflow model, the trace file, record types, journals, tags, the run directory, the status
page. May not know: engines, proxies, generators, sensors, or any clock other than the one it is handed.
"""

from traces.compiled import prefer

JOULEGRAPH_PACKAGE = "traces"
"""Checked at start: a foreign package of the same name must not shadow ours (see joulegraph.__main__)."""

prefer("traces", __path__)
