"""What serves the tokens: HTTP/1.1 client, wire knowledge of OpenAI-style APIs and Parrot, the embedded engine.

May import traces. May not know: proxy, loadgen, energy.
"""

from traces.compiled import prefer

JOULEGRAPH_PACKAGE = "engines"

prefer("engines", __path__)
