"""The HTTP side: metrics for Prometheus, health for orchestrators and people.

`/livez` answers 200 while the process lives, `/readyz` once the broker has read a balance
from Keepa, or stands by for one that leads. Both are for probes, so they are open and have no
details; `/healthz` has them, without a secret.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from broker.runtime import BrokerRuntime
from protos.process.watched_files import FileState
from protos.web.door import Handler
from protos.web.guard import livez
from protos.web.pages import application as application_with_headers
from protos.web.prometheus import PATH, metrics_handler

# Without versions, which would show an attacker what to try.
SERVER: Final = "tokenbroker"


States = Callable[[], Mapping[str, FileState]]


def health(
    runtime: BrokerRuntime, states: States, *, keepa_url: str, key_fingerprint: str
) -> Mapping[str, Any]:
    """The broker's health as plain values; *states* are those of the files it follows."""
    view, trouble = runtime.bucket(), runtime.probes.trouble
    return {
        "live": True,
        "synced": runtime.synced.is_set(),
        "state": view.state.value,
        "epoch": view.epoch,
        "leader": runtime.leader or None,
        "observation_age_ms": view.observation_age_ms,
        "files": {name: asdict(state) for name, state in states().items()},
        "keepa": {
            "url": keepa_url,
            "key_fingerprint": key_fingerprint,
            "trouble": None
            if trouble is None
            else {"failure": trouble.failure.value, "reason": str(trouble)},
        },
    }


def application(
    runtime: BrokerRuntime,
    registry: CollectorRegistry,
    states: States,
    *,
    reading: Callable[[Handler], Handler],
    keepa_url: str,
    key_fingerprint: str,
    secure: bool = False,
) -> web.Application:
    """The routes over one runtime; *secure* if the port speaks TLS.

    *reading* lets in those that may read metrics and `/healthz`.
    """

    async def healthz(_request: web.Request) -> web.Response:
        body = health(runtime, states, keepa_url=keepa_url, key_fingerprint=key_fingerprint)
        return web.json_response(body, dumps=lambda data: json.dumps(data, indent=2) + "\n")

    async def readyz(_request: web.Request) -> web.Response:
        ready = runtime.ready or (runtime.stands_by and not runtime.stopping)
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return web.json_response({"ready": ready}, status=status)

    routes = application_with_headers(secure=secure)
    routes.router.add_get("/livez", livez)
    routes.router.add_get("/readyz", readyz)
    routes.router.add_get("/healthz", reading(healthz))
    routes.router.add_get(PATH, reading(metrics_handler(registry)))
    return routes
