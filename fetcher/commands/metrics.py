"""Serving the collection's metrics."""

import asyncio
import signal
import threading
from datetime import timedelta

import structlog
from prometheus_client import CollectorRegistry

from fetcher.postgres import Database
from fetcher.query_folder import QueryFolder
from fetcher.reports.metrics import CollectionCollector, Measuring
from fetcher.settings import FetcherSecrets, Settings
from protos.channel.credential_files import CredentialError
from protos.process import logs
from protos.process.addresses import Listen, ListenError
from protos.process.environment import SettingsError
from protos.process.scrape_token import scrape_token
from protos.web.guard import Guard
from protos.web.prometheus import metrics_application
from protos.web.serving import serving

log = structlog.get_logger(__name__)


def serve_metrics(settings: Settings) -> None:
    """Serves /metrics until a signal comes.

    Raises:
        SettingsError: The address can't be listened on, or the token can't be read.
    """
    database_url = settings.require_database_url()
    logs.configure(settings.log_level, settings.log_format, secrets=FetcherSecrets.known())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Database(database_url) as database:
        # Fetchers report three times within this time.
        folder = QueryFolder(settings.queries)
        measuring = Measuring(
            database,
            folder,
            silent_s=settings.claim_ttl_s,
            retention=timedelta(days=settings.retention_days),
        )
        registry = CollectorRegistry()
        registry.register(CollectionCollector(measuring))
        try:
            asyncio.run(_serve(settings, registry, measuring, stop))
        except (ListenError, CredentialError) as exc:
            raise SettingsError([str(exc)]) from None


async def _serve(
    settings: Settings, registry: CollectorRegistry, measuring: Measuring, stop: threading.Event
) -> None:
    """Serves *registry*, and measures in a thread, until *stop* is set."""
    listen = Listen.parse(settings.metrics_listen)
    guard = Guard(scrape_token(settings), listen, is_open=settings.metrics_open)
    routes = metrics_application(registry, guard)
    async with serving(routes, listen, setting="METRICS_LISTEN", name="dealfetcher") as at:
        log.info("metrics served", address=str(at))
        await asyncio.to_thread(measuring.run, stop)
