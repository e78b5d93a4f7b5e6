"""The HTTP side: metrics for Prometheus, health for whoever runs the process.

`/healthz` answers 200 while the process lives, `/readyz` only once Keepa has told
a balance; both say the same in JSON, without a secret.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from broker.runtime import BrokerRuntime
from protos.process.addresses import Listen, listen_error

SHUTDOWN_TIMEOUT_S: Final = 1.0


def health(runtime: BrokerRuntime, *, keepa_url: str, key_fingerprint: str) -> Mapping[str, Any]:
    """How the broker is, for people and probes."""
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

    def tell(status: HTTPStatus) -> web.Response:
        body = health(runtime, keepa_url=keepa_url, key_fingerprint=key_fingerprint)
        return web.json_response(
            body, status=status, dumps=lambda data: json.dumps(data, indent=2) + "\n"
        )

    async def healthz(_request: web.Request) -> web.Response:
        return tell(HTTPStatus.OK)

    async def readyz(_request: web.Request) -> web.Response:
        ready = runtime.synced.is_set() and not runtime.stopping
        return tell(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    routes = web.Application()
    routes.router.add_get("/healthz", healthz)
    routes.router.add_get("/readyz", readyz)
    routes.router.add_get("/metrics", metrics)
    return routes


@asynccontextmanager
async def serving(routes: web.Application, listen: Listen) -> AsyncIterator[Listen]:
    """Serve *routes* while the context lasts; yields where, with the real port.

    Raises:
        ListenError: the address can't be listened on.
    """
    runner = web.AppRunner(routes, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, listen.host, listen.port, reuse_port=False)
        try:
            await site.start()
        except OSError as exc:
            raise listen_error("BROKER_HTTP_LISTEN", listen, exc) from None
        yield Listen(listen.host, runner.addresses[0][1])
    finally:
        await runner.cleanup()
