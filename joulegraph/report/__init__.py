"""The report of a run: report.html (one file, offline, printable) and report.json (the same as data).

Run directory -> Facts (gather) -> figures (summary, checks, document) -> plots and page (plots, render). Everything
between the first and the last is pure.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traces.rundir import RunDir


def write_report(run: RunDir) -> Path:
    """Write report.json and report.html into the run directory; the page's path. UserError when it recorded nothing."""
    import os

    from joulegraph.report.document import document
    from joulegraph.report.gather import gather
    from joulegraph.report.render import render_html
    from traces.errors import UserError

    facts = gather(run)
    value = document(facts)
    run.write_json("report.json", value)
    page, part = run.file("report.html"), run.file("report.html.part")
    try:
        part.write_text(render_html(facts, value), encoding="utf-8")
        os.replace(part, page)
    except OSError as error:
        raise UserError(
            f"{page}: cannot be written ({error.strerror}); free space or copy the run elsewhere"
        ) from error
    return page
