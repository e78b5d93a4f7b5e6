"""The HTTP port: metrics, health and the page of tokens.

Only `broker.server` imports this module, and late: aiohttp and Jinja2 load with it.
"""

import asyncio
import socket
from collections.abc import Sequence

from broker.access.followed_files import FollowedFiles
from broker.access.identities import SETTING, IdentityBook
from broker.console.page import TokensPage
from broker.runtime import BrokerRuntime
from broker.settings import ServeSettings
from broker.telemetry import http
from broker.telemetry.metrics import BrokerMetrics
from protos.process.addresses import Listen
from protos.process.identities import Role
from protos.process.watched_files import Followed
from protos.web.door import Door
from protos.web.guard import Guard
from protos.web.serving import serving_on


async def serve(
    sockets: Sequence[socket.socket],
    settings: ServeSettings,
    runtime: BrokerRuntime,
    metrics: BrokerMetrics,
    files: FollowedFiles,
) -> None:
    """Serves on *sockets*, which listen already, until cancelled.

    Args:
        sockets: Those of BROKER_HTTP_LISTEN; closed at the end.
        settings: The broker's.
        runtime: What the page and health show.
        metrics: What a scrape gets.
        files: What the broker has read at its start.
    """
    listen, tls = Listen.parse(settings.broker_http_listen), files.http_tls
    door = _door(settings, listen, files.book)
    guard = Guard(files.scrape_token, listen, door, is_open=settings.metrics_open)
    routes = http.application(
        runtime,
        metrics.registry,
        files.states,
        reading=guard.reading,
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


def _door(settings: ServeSettings, listen: Listen, book: Followed[IdentityBook] | None) -> Door:
    """The door of the page."""
    if listen.is_local:
        open_role: Role | None = Role.OPERATOR
    else:
        open_role = Role.VIEWER if settings.broker_http_open else None
    return Door(
        http.SERVER,
        identities=None if book is None else lambda: book.now().file,
        setting=SETTING,
        open_role=open_role,
        # The same at every start and in every standby: sessions survive both.
        secret=settings.keepa_api_key.get_secret_value().encode(),
        secure=settings.broker_http_tls_cert_file is not None,
    )
