"""Observe and tag: an asyncio reverse proxy that never changes a byte of a stream.

May import traces and engines. May not know: loadgen, energy.
"""

from traces.compiled import prefer

JOULEGRAPH_PACKAGE = "proxy"

prefer("proxy", __path__)
