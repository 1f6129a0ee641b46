"""The report of a run: report.html (one file, offline, printable), report.json (the same as data) and timeline.json.

Run directory -> Facts (gather) -> figures (summary, checks, document) -> plots and page (plots, render). Everything
between the first and the last is pure.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traces.rundir import RunDir

TIMELINE_REQUESTS = 100_000
"""larger runs get no timeline.json: no viewer opens it"""


def write_report(run: RunDir) -> Path:
    """Write report.html, report.json and, up to TIMELINE_REQUESTS, timeline.json into the run; the page's path.

    UserError when the run recorded nothing.
    """
    import os

    from joulegraph.report.document import document
    from joulegraph.report.gather import gather
    from joulegraph.report.perfetto import trace_events
    from joulegraph.report.render import render_html
    from traces.errors import UserError

    facts = gather(run)
    value = document(facts)
    run.write_json("report.json", value)
    if len(facts.requests) <= TIMELINE_REQUESTS:
        run.write_json("timeline.json", {"displayTimeUnit": "ms", "traceEvents": list(trace_events(facts))})
    page, part = run.file("report.html"), run.file("report.html.part")
    try:
        part.write_text(render_html(facts, value), encoding="utf-8")
        os.replace(part, page)
    except OSError as error:
        raise UserError(
            f"{page}: cannot be written ({error.strerror}); free space or copy the run elsewhere"
        ) from error
    return page
