"""Health checks of the fetchers, and of the senders of alerts, on this machine."""

import socket

from fetcher.postgres.database import connect
from fetcher.postgres.outbox import senders_of
from fetcher.postgres.workers import SILENT_CLAIMS, workers_of
from fetcher.settings import Settings

# A health check must answer before its own time limit.
TIMEOUT_S = 3.0


def why_not_alive(settings: Settings) -> str | None:
    """Returns why no fetcher of this host works; None when one does.

    Raises:
        DatabaseError: Postgres gave no answer.
    """
    with connect(settings.require_database_url(), timeout_s=TIMEOUT_S) as connection:
        workers = workers_of(connection, socket.gethostname())
    if not workers:
        return "no fetcher of this host has reported lately"
    latest = workers[0]
    if latest.silent_s < SILENT_CLAIMS * settings.claim_ttl_s:
        return None
    return f"fetcher {latest.holder} has not worked for {latest.silent_s:.0f} s: {latest.doing}"


def why_no_sender(settings: Settings) -> str | None:
    """Returns why no sender of this host delivers alerts; None when one does.

    Raises:
        DatabaseError: Postgres gave no answer.
    """
    with connect(settings.require_database_url(), timeout_s=TIMEOUT_S) as connection:
        senders = senders_of(connection, socket.gethostname())
    if not senders:
        return "no sender of alerts on this host has reported lately"
    latest = senders[0]
    if latest["silent_s"] < SILENT_CLAIMS * settings.claim_ttl_s:
        return None
    return f"sender {latest['holder']} has not worked for {latest['silent_s']:.0f} s"
