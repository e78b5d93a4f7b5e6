"""Serves a registry of metrics to Prometheus."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from protos.web.guard import Guard, livez

PATH: Final = "/metrics"


def metrics_handler(
    registry: CollectorRegistry,
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Returns the handler of `PATH`, in the format that the scraper accepts."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    return metrics


def metrics_application(registry: CollectorRegistry, guard: Guard) -> web.Application:
    """Returns an application that serves nothing but *registry*, and `/livez`."""
    routes = web.Application()
    routes.router.add_get("/livez", livez)
    routes.router.add_get(PATH, guard.reading(metrics_handler(registry)))
    return routes
