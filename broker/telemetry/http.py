"""The HTTP side: metrics for Prometheus, health for orchestrators and people.

`/healthz` answers 200 while the process lives, `/readyz` once the broker has read a
balance from Keepa. Both return the same JSON, without a secret.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from broker.runtime import BrokerRuntime
from protos.process.addresses import BACKLOG, Listen

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT_S: Final = 1.0
# Without versions, which would show an attacker what to try.
SERVER: Final = "tokenbroker"


def health(runtime: BrokerRuntime, *, keepa_url: str, key_fingerprint: str) -> Mapping[str, Any]:
    """The broker's health as plain values."""
    view, trouble = runtime.bucket(), runtime.probes.trouble
    return {
        "live": True,
        "synced": runtime.synced.is_set(),
        "state": view.state.value,
        "epoch": view.epoch,
        "observation_age_ms": view.observation_age_ms,
        "keepa": {
            "url": keepa_url,
            "key_fingerprint": key_fingerprint,
            "trouble": None
            if trouble is None
            else {"failure": trouble.failure.value, "reason": str(trouble)},
        },
    }


def application(
    runtime: BrokerRuntime, registry: CollectorRegistry, *, keepa_url: str, key_fingerprint: str
) -> web.Application:
    """The routes over one runtime."""

    def health_response(status: HTTPStatus) -> web.Response:
        body = health(runtime, keepa_url=keepa_url, key_fingerprint=key_fingerprint)
        return web.json_response(
            body, status=status, dumps=lambda data: json.dumps(data, indent=2) + "\n"
        )

    async def healthz(_request: web.Request) -> web.Response:
        return health_response(HTTPStatus.OK)

    async def readyz(_request: web.Request) -> web.Response:
        ready = runtime.synced.is_set() and not runtime.stopping
        return health_response(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    routes = web.Application()
    routes.on_response_prepare.append(name_no_version)
    routes.router.add_get("/healthz", healthz)
    routes.router.add_get("/readyz", readyz)
    routes.router.add_get("/metrics", metrics)
    return routes


async def name_no_version(_request: web.Request, response: web.StreamResponse) -> None:
    """Replaces the libraries' names and versions with the broker's name."""
    response.headers["Server"] = SERVER


class Requests(web.RequestHandler):
    """One connection; neither log nor answer repeats a request that is no HTTP."""

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
        response = web.Response(status=status, text=text, headers={"Server": SERVER})
        response.force_close()
        return response


@asynccontextmanager
async def serving(routes: web.Application, listen: Listen) -> AsyncIterator[Listen]:
    """Serves *routes* while the context lasts; yields the address with its port.

    Raises:
        ListenError: the address can't be listened on.
    """
    runner = web.AppRunner(routes, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    manager, loop = runner.server, asyncio.get_running_loop()
    assert manager is not None
    servers: list[asyncio.Server] = []
    try:
        sockets = listen.bind("BROKER_HTTP_LISTEN")
        port = sockets[0].getsockname()[1]
        for bound in sockets:
            make = partial(
                Requests,
                manager,
                loop=loop,
                access_log=None,  # type: ignore[arg-type]  # None writes no such log
            )
            servers.append(await loop.create_server(make, sock=bound, backlog=BACKLOG))
        yield Listen(listen.host, port)
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()
