"""The HTTP port: metrics, health and the page of tokens.

Only `broker.server` imports this module, and late: aiohttp and Jinja2 load with it.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from functools import partial

from broker.access.identities import SETTING
from broker.console.page import TokensPage
from broker.runtime import BrokerRuntime
from broker.settings import ServeSettings
from broker.telemetry import http
from broker.telemetry.metrics import BrokerMetrics
from protos.process.addresses import Listen
from protos.process.identities import IdentityFile, Role
from protos.process.watched_files import Followed
from protos.web.door import Door
from protos.web.guard import Guard
from protos.web.serving import serving_on


async def serve(
    sockets: Sequence[socket.socket],
    settings: ServeSettings,
    runtime: BrokerRuntime,
    metrics: BrokerMetrics,
    states: http.States,
    tls: ssl.SSLContext | None,
) -> None:
    """Serves on *sockets*, which listen already, until cancelled.

    Args:
        sockets: Those of BROKER_HTTP_LISTEN; closed at the end.
        settings: The broker's.
        runtime: What the page and health show.
        metrics: What a scrape gets.
        states: The files that the broker follows, for health.
        tls: How to speak TLS; None means plaintext.

    Raises:
        CredentialError: A file of tokens or identities can't be used any more.
    """
    door = _door(settings)
    routes = http.application(
        runtime,
        metrics.registry,
        states,
        reading=Guard(settings, Listen.parse(settings.broker_http_listen), door).reading,
        keepa_url=settings.keepa_base_url,
        key_fingerprint=settings.key_fingerprint,
        secure=tls is not None,
    )
    page = TokensPage(runtime, metrics, door)
    page.add_to(routes)
    async with serving_on(sockets, routes, name=http.SERVER, tls=tls):
        sampling = asyncio.create_task(page.series.follow())
        try:
            await asyncio.Event().wait()
        finally:
            sampling.cancel()


def _door(settings: ServeSettings) -> Door:
    """The door of the page."""
    identities = None
    if (path := settings.broker_identities_file) is not None:
        identities = Followed([path], partial(IdentityFile.read, SETTING, path))
    if Listen.parse(settings.broker_http_listen).is_local:
        open_role: Role | None = Role.OPERATOR
    else:
        open_role = Role.VIEWER if settings.broker_http_open else None
    return Door(
        http.SERVER,
        identities=identities,
        setting=SETTING,
        open_role=open_role,
        # The same at every start and in every standby: sessions survive both.
        secret=settings.keepa_api_key.get_secret_value().encode(),
        secure=settings.broker_http_tls_cert_file is not None,
    )
