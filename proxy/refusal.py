"""The proxy's own error replies: why a request is answered here, in the shape that the client's SDK reads.

Header values never become part of an error text. May not know: sockets, clocks, how requests are judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

REASONS: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    408: "Request Timeout",
    413: "Content Too Large",
    417: "Expectation Failed",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

PARROT_PATHS: Final = ("/v1/session", "/v1/semantic_", "/v1/py_native_call")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is answered by the proxy itself: status, a code for programs, a sentence for people."""

    status: int
    code: str
    message: str


def refusal_reply(refusal: Refusal, path: str, request_id: str | None, method: str = "POST") -> bytes:
    """Our own error, in the shape the client's SDK reads; the connection closes after it."""
    error = {"message": refusal.message, "type": "proxy_error", "param": None, "code": refusal.code}
    shape: dict[str, object] = (
        {"type": "error", "error": error} if path.startswith("/v1/messages") else {"error": error}
    )
    if path.startswith(PARROT_PATHS):
        shape["traceback"] = ""  # without it the client of Parrot shows an assertion of its own instead
    body = orjson.dumps(shape)
    reason = REASONS.get(refusal.status, "Error")
    named = f"X-Request-Id: {request_id}\r\n" if request_id and request_id.isascii() else ""
    retry = "Retry-After: 1\r\n" if refusal.status == 503 else ""
    head = (
        f"HTTP/1.1 {refusal.status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{named}{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
