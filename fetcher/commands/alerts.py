"""Delivering alerts, and looking after those that were not delivered."""

import signal
import uuid
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog

from fetcher.alerts.channels import Channels, read_channels, secret_files
from fetcher.alerts.delivery import DeliveryError, deliver
from fetcher.alerts.messages import Message
from fetcher.alerts.sender import Sender, SendLimits
from fetcher.broker_client import BrokerClient
from fetcher.commands.output import Format, print_json, print_line, print_rows
from fetcher.errors import FetcherError
from fetcher.postgres import Database
from fetcher.postgres.database import connect
from fetcher.postgres.outbox import list_messages, retry_messages
from fetcher.query_folder import QueryFolder
from fetcher.settings import FetcherSecrets, Settings
from protos.channel.credential_files import CredentialError
from protos.process import logs
from protos.process.environment import SettingsError
from protos.process.version import package_version
from protos.process.watched_files import Followed

log = structlog.get_logger(__name__)


class UndeliveredError(FetcherError):
    """A channel did not take a test message; the text has the reason."""


def deliver_alerts(settings: Settings) -> None:
    """Delivers until a signal comes.

    Raises:
        SettingsError: The channels file can't be used.
    """
    database_url, path = settings.require_database_url(), settings.require_alerts_file()
    channels = _following(path)
    logs.configure(settings.log_level, settings.log_format, secrets=FetcherSecrets.known())
    access = settings.require_access()
    with (
        Database(database_url, connections_max=len(channels.now().by_name) + 3) as database,
        BrokerClient(settings.broker_address, access=access) as broker,
    ):
        sender = Sender(
            holder=broker.holder,
            version=package_version(),
            database=database,
            channels=channels,
            folder=QueryFolder(settings.queries),
            broker=broker,
            limits=SendLimits(
                claim_ttl_s=settings.claim_ttl_s,
                attempts_max=settings.alert_attempts_max,
                retry_delay_s=settings.alert_retry_delay_s,
            ),
            # Fetchers report three times within this time.
            fetcher_silent_s=settings.claim_ttl_s,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sender.stop.set())
        log.info("sender started", holder=broker.holder, channels=len(channels.now().by_name))
        sender.run()
        log.info("sender stopped", holder=broker.holder)


def show_messages(
    database_url: str, *, channel: str | None, state: str | None, limit: int, output: Format
) -> None:
    """Prints the newest messages; texts and addresses are not among the columns."""
    with connect(database_url) as connection:
        rows = list_messages(connection, channel=channel, state=state, limit=limit)
    print_rows("Alerts", rows, output)


def retry_failed(
    database_url: str, *, channel: str | None, message: int | None, output: Format
) -> None:
    """Makes failed messages due now."""
    with connect(database_url) as connection:
        count = retry_messages(connection, channel=channel, message=message)
    if output is Format.JSON:
        print_json({"retried": count})
    else:
        print_line(f"{count} messages will be delivered again")


def test_channel(path: Path, name: str) -> None:
    """Sends a test message to the channel *name*, without the outbox.

    Raises:
        SettingsError: The file can't be used, or has no such channel.
        UndeliveredError: The channel did not take it.
    """
    channels = _following(path).now().by_name
    if name not in channels:
        raise SettingsError([f"no channel {name!r}: {path} has {', '.join(channels)}"])
    now = datetime.now(UTC)
    message = Message(f"msg_{uuid.uuid4()}", "test", None, {}, now, (), 0)
    try:
        deliver(channels[name], message)
    except DeliveryError as exc:
        problem = f"channel {name}: {exc}"
    else:
        print_line(f"channel {name} has taken {message.id}")
        return
    raise UndeliveredError(problem)


def _following(path: Path) -> Followed[Channels]:
    try:
        return Followed(secret_files(path), partial(read_channels, path))
    except CredentialError as exc:
        problem = str(exc)
    raise SettingsError([problem])
