"""Bodies in, replies out, over aiohttp: what every route of the embedded engine needs.

May not know: routes, engines.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

from engines.embedded import errors

BODY_LIMIT = 64 << 20


async def read_object(request: web.BaseRequest) -> dict[str, Any]:
    """The request's JSON object. Raises ApiError, or what handle() turns into a reply."""
    media = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise errors.wrong_media_type()
    raw = await request.read()
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        _check_utf8(raw)
        raise errors.bad_json(raw) from None
    if not isinstance(body, dict):
        raise errors.not_an_object(body)
    return body


def large_request(message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]) -> web.BaseRequest:
    """As aiohttp's own, with room for a long prompt."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_LIMIT)


def _check_utf8(raw: bytes) -> None:
    try:
        raw.decode()
    except UnicodeDecodeError:
        raise web.HTTPBadRequest(text='{"detail":"There was an error parsing the body"}') from None


def answer(status: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    """A reply with a JSON body, or none."""
    kind = {"content-type": "application/json"} if body else {}
    return web.Response(status=status, body=body, headers=kind | (headers or {}))
