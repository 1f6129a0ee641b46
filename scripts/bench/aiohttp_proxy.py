"""A plain aiohttp reverse proxy, tuned (no access log, no decompression, uvloop): a peer for bench_proxy.py."""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "host"}


async def main(port: int, upstream: str) -> None:
    """Relay everything on `port` to `upstream` until killed."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        async def relay(request: web.Request) -> web.StreamResponse:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in {*HOP, "content-length"}}
            body = await request.read()
            async with session.request(request.method, upstream + request.path_qs, headers=headers, data=body) as reply:
                kept = {k: v for k, v in reply.headers.items() if k.lower() not in HOP}
                answer = web.StreamResponse(status=reply.status, headers=kept)
                await answer.prepare(request)
                async for piece in reply.content.iter_any():
                    await answer.write(piece)
                await answer.write_eof()
                return answer

        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", relay)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
