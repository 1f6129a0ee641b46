"""Tags of other tools on the wire, in a fixed order of precedence: one scheme wins, never mixed, its name recorded.

Values are hints, never authorisation (traces.tags.clean bounds them). Sources: docs/proxy.md lists each scheme.
May not know: sockets, our own records, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from traces import tags
from traces.tags import Tag

TAG_HEADERS = frozenset({"baggage", "traceparent"})
"""headers that may carry a tag and go on to the engine untouched"""


def read_tag(headers: Mapping[str, str], body: Any) -> Tag | None:
    """The winning tag of one request: our headers, our metadata, our baggage, then the foreign schemes."""
    tag = tags.from_headers(headers)
    if tag is None and isinstance(body, dict) and isinstance(body.get("metadata"), dict):
        tag = tags.from_metadata(body["metadata"])
    if tag is None and "baggage" in headers:
        tag = tags.from_baggage(headers["baggage"])
    return tag
