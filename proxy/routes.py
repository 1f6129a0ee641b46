"""Which paths pass, and which API each speaks: an allow-list, exact names first, a few guarded prefixes.

Engine control routes (/pause, /sleep, /reset_prefix_cache, /update_weights ...) are absent on purpose; a path that is
not here passes only when the operator names it. May not know: sockets, headers.
"""

from __future__ import annotations

import re
from typing import Final

APIS: Final[dict[str, str]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}

PASSED: Final = frozenset(
    {
        *APIS,
        "/v1/messages/count_tokens",
        "/v1/chat/completions/batch",
        "/v1/embeddings",
        "/v1/models",
        "/v1/rerank",
        "/v1/score",
        "/v1/realtime",
        "/v2/embed",
        "/v2/rerank",
        "/classify",
        "/detokenize",
        "/health",
        "/load",
        "/metrics",
        "/ping",
        "/pooling",
        "/rerank",
        "/score",
        "/tokenize",
        "/version",
    }
)

_SEGMENT: Final = r"[A-Za-z0-9_~@:+-][A-Za-z0-9._~@:+-]*"
_PREFIXED: Final = re.compile(
    rf"/v1/(?:audio/(?:transcriptions|translations|speech)|models/{_SEGMENT}(?:/{_SEGMENT})?"
    rf"|responses/{_SEGMENT}(?:/cancel|/input_items)?|(?:chat/)?completions/render)\Z"
)

PARROT: Final = re.compile(
    r"/v1/(?:(?:session|semantic_var)(?:/[A-Za-z0-9_-]*)?|(?:semantic|py_native)_call)/?\Z|/docs\Z|/openapi\.json\Z"
)


def allowed(path: str, extra: frozenset[str] = frozenset(), engine: str = "openai") -> bool:
    """True when `path` (no query, as it came on the wire, never decoded) may reach the engine."""
    if path in PASSED or path in extra or _PREFIXED.match(path):
        return True
    return engine == "parrot" and PARROT.match(path) is not None


def api_of(path: str) -> str | None:
    """The API whose usage and token events are understood, or None."""
    return APIS.get(path)
