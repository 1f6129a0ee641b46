"""Open-loop replay of workflow graphs: arrivals, graph walk, prompts, client, shards.

May import traces and engines. May not know: proxy, energy.
"""

JOULEGRAPH_PACKAGE = "loadgen"
