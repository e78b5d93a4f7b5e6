"""Connections to Postgres: a small pool, and one error for "not now"."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from fetcher.errors import DatabaseAwayError

# Its warnings repeat, for every connection and attempt, what we say once.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

Connection = psycopg.Connection[tuple[Any, ...]]

# One for each thread of a worker: pages, details, heartbeat.
CONNECTIONS_MAX: Final = 3
CONNECT_TIMEOUT_S: Final = 3.0

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Database:
    """A pool of connections to one database; connects when first used."""

    def __init__(self, database_url: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._database_url = database_url
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            database_url,
            min_size=0,
            max_size=CONNECTIONS_MAX,
            timeout=timeout_s,
            reconnect_timeout=timeout_s,
            num_workers=1,
            # A connection from before a restart of Postgres is replaced unseen.
            check=ConnectionPool.check_connection,
            kwargs={"connect_timeout": int(timeout_s), "application_name": "dealfetcher"},
            open=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._pool.close(timeout=0.5)

    @contextmanager
    def connection(self, *, timeout_s: float | None = None) -> Iterator[Connection]:
        """A connection in one transaction: committed at the end, rolled back on an error.

        Waits up to *timeout_s* seconds for it; None means as long as the pool does.

        Raises:
            DatabaseAwayError: Postgres can't be reached, or gave the work up; try again.
        """
        with away_on_failure(self._why_away), self._pool.connection(timeout_s) as connection:
            yield connection

    def _why_away(self) -> str:
        """The pool only says that it has waited; a connection of our own says why."""
        try:
            with away_on_failure(), psycopg.connect(self._database_url, connect_timeout=1):
                return "no connection in time"
        except DatabaseAwayError as exc:
            return str(exc)


@contextmanager
def away_on_failure(why_no_connection: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn what is worth another try into DatabaseAwayError.

    That is every operational error: lost connections, shutdowns, deadlocks, time-outs.
    *why_no_connection* explains a pool that had none to give.
    """
    try:
        yield
    except PoolTimeout as exc:
        problem = why_no_connection() if why_no_connection else str(exc)
    except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
        # The driver's message may span lines and name the host, but never the password.
        lines = str(exc).strip().splitlines()
        problem = lines[0] if lines else type(exc).__name__
    else:
        return
    raise DatabaseAwayError(problem)


def instant(unix_ms: int | None) -> datetime | None:
    """A time in Unix milliseconds as timestamptz."""
    return None if unix_ms is None else EPOCH + timedelta(milliseconds=unix_ms)


def unix_ms(time: object) -> int | None:
    """A timestamptz as read from a row, in Unix milliseconds."""
    assert time is None or isinstance(time, datetime)
    return None if time is None else (time - EPOCH) // timedelta(milliseconds=1)
