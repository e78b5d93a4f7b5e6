"""Running the fetcher, and updating the tables."""

import signal
from functools import partial

import structlog

from fetcher.broker_client import BrokerClient
from fetcher.keepa import Keepa
from fetcher.postgres import Database, migrate
from fetcher.postgres.roles import RoleUrls, grant_roles
from fetcher.query_folder import QueryFolder
from fetcher.settings import FetcherSecrets, Settings
from fetcher.tracing import SERVICE
from fetcher.work.shared import Limits, Workplace
from fetcher.work.worker import Worker, connections_of
from protos.process import logs
from protos.process.settings import TracingSettings, key_fingerprint
from protos.process.tracing import exporting
from protos.process.version import package_version

log = structlog.get_logger(__name__)


def run_fetcher(settings: Settings, *, seconds: float | None) -> None:
    """Collects deals until a signal comes or *seconds* have passed."""
    api_key, database_url = settings.require_api_key(), settings.require_database_url()
    access = settings.require_access()
    logs.configure(settings.log_level, settings.log_format, secrets=FetcherSecrets.known())
    with (
        exporting(SERVICE, TracingSettings.load().protocol),
        Database(
            database_url, connections_max=connections_of(settings.calls_in_flight)
        ) as database,
        BrokerClient(
            settings.broker_address, key_fingerprint=key_fingerprint(api_key), access=access
        ) as broker,
    ):
        workplace = Workplace(
            holder=broker.holder,
            database=database,
            broker=broker,
            folder=QueryFolder(settings.queries),
            limits=Limits(
                claim_ttl_s=settings.claim_ttl_s,
                attempts_max=settings.page_attempts_max,
                retry_delay_s=settings.retry_delay_s,
                poll_speed=settings.poll_speed,
                finish_s=settings.finish_seconds,
            ),
        )
        new_keepa = partial(
            Keepa,
            api_key,
            base_url=settings.keepa_base_url,
            connect_timeout_s=settings.keepa_connect_timeout_s,
            read_timeout_s=settings.keepa_read_timeout_s,
            reply_bytes_max=settings.keepa_reply_max_bytes,
        )
        worker = Worker(
            workplace, new_keepa, package_version(), calls_in_flight=settings.calls_in_flight
        )
        # The signal's number goes to the descriptor; Python's own handler has nothing to do.
        signal.set_wakeup_fd(worker.wakeup_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        log.info("fetcher started", holder=broker.holder, broker=settings.broker_address)
        worker.run(seconds=seconds)
        log.info("fetcher stopped", holder=broker.holder)


def migrate_database(settings: Settings, *, roles: bool) -> tuple[list[str], list[str]]:
    """Applies the missing migrations, then grants rights if *roles* is set.

    Returns the names of the migrations, and what was done about each role.

    Raises:
        SettingsError: Roles are wanted, but no URL names one.
    """
    owner_url = settings.require_database_url()
    urls = settings.require_role_urls() if roles else {}
    applied = migrate(owner_url)
    return applied, grant_roles(owner_url, RoleUrls(**urls)) if roles else []
