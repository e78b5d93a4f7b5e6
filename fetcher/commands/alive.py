"""Telling whether the fetchers of this machine, or of this container, are alive."""

import socket

from fetcher.postgres import Database
from fetcher.postgres.workers import heard_of
from fetcher.settings import Settings

# A health check must answer before its own time limit.
TIMEOUT_S = 3.0


def is_alive(settings: Settings) -> bool:
    """Whether a fetcher of this host was heard of lately; raises DatabaseAwayError."""
    with (
        Database(settings.require_database_url(), timeout_s=TIMEOUT_S) as database,
        database.connection() as connection,
    ):
        return heard_of(connection, host=socket.gethostname(), within_s=2 * settings.claim_ttl_s)
