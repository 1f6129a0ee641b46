"""The live view: status pages -> LiveState -> a rich panel, or plain lines where the output is no terminal.

    watch = Watch.of_run(run_dir)
    with LiveView(watch) as view:
        view.update(now_ns, joules={"agentic": 12.5})

Reading (watch), what is shown (state), how it looks (render) and the terminal (view) are apart.
"""

from __future__ import annotations

from joulegraph.live.state import LiveState
from joulegraph.live.view import LiveView
from joulegraph.live.watch import Watch

__all__ = ["LiveState", "LiveView", "Watch"]
