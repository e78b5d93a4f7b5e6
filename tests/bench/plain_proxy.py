"""A plain reverse proxy on aiohttp: the yardstick for the gateway.

It has the gateway's shape, a server and a pool of connections in one event loop, and passes
replies on as they come. Prints its port, and serves until it is stopped.
"""

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

from protos.process.addresses import Listen
from protos.web.serving import serving

PASSED_ON = ("Content-Type", "Content-Encoding", "Content-Length")


def proxy(base_url: str, http: aiohttp.ClientSession) -> web.Application:
    """The proxy of *base_url*."""

    async def handle(request: web.Request) -> web.StreamResponse:
        async with http.request(
            request.method, f"{base_url}{request.raw_path}", data=await request.read() or None
        ) as reply:
            headers = {name: reply.headers[name] for name in PASSED_ON if name in reply.headers}
            response = web.StreamResponse(status=reply.status, headers=headers)
            await response.prepare(request)
            async for chunk in reply.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    routes = web.Application()
    routes.router.add_route("*", "/{path:.*}", handle)
    return routes


async def serve(base_url: str) -> None:
    """Serves on a free port of this machine."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(auto_decompress=False, connector=connector) as http:
        routes = proxy(base_url, http)
        async with serving(routes, Listen("127.0.0.1", 0), setting="PORT", name="proxy") as place:
            print(place.port, flush=True)  # noqa: T201 - its parent reads it
            await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
