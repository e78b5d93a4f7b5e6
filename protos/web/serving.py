"""An HTTP server over aiohttp that reveals neither versions nor tracebacks."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import web

from protos.process.addresses import BACKLOG, Listen

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT_S: Final = 1.0


class Requests(web.RequestHandler):
    """One connection; neither log nor answer repeats a request that is no HTTP."""

    def __init__(self, *arguments: Any, name: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._name = name

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the request
    ) -> web.StreamResponse:
        """Answers a request that failed, and closes the connection."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("an HTTP request failed", exc_info=exc)
        else:
            log.debug("not an HTTP request", peer=request.remote, status=status)
        text = f"{status} {HTTPStatus(status).phrase}\n"
        response = web.Response(status=status, text=text, headers={"Server": self._name})
        response.force_close()
        return response


@asynccontextmanager
async def serving(
    routes: web.Application,
    listen: Listen,
    *,
    setting: str,
    name: str,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Listen]:
    """Serves *routes* while the context lasts; yields the address with its port.

    Args:
        routes: The application.
        listen: The address.
        setting: The setting that holds the address, for errors.
        name: The server's name in every reply; libraries and versions are not named.
        tls: How to speak TLS; None means plaintext.

    Raises:
        ListenError: The address can't be listened on.
    """
    sockets = listen.bind(setting)
    async with serving_on(sockets, routes, name=name, tls=tls):
        yield Listen(listen.host, sockets[0].getsockname()[1])


@asynccontextmanager
async def serving_on(
    sockets: Sequence[socket.socket],
    routes: web.Application,
    *,
    name: str,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """As `serving`, on *sockets* that listen already, and are closed at the end."""

    async def name_no_version(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = name

    routes.on_response_prepare.append(name_no_version)
    runner = web.AppRunner(routes, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    servers: list[asyncio.Server] = []
    try:
        await runner.setup()
        manager, loop = runner.server, asyncio.get_running_loop()
        assert manager is not None
        make = partial(Requests, manager, loop=loop, access_log=None, name=name)
        servers = [
            await loop.create_server(make, sock=bound, backlog=BACKLOG, ssl=tls)
            for bound in sockets
        ]
        yield
    finally:
        for server in servers:
            server.close()
        for bound in sockets:
            bound.close()
        await runner.cleanup()
