"""Connections to Postgres: a small pool, and one error for "not now"."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from fetcher.errors import DatabaseAwayError, DatabaseError, DatabaseNotSetUpError
from fetcher.postgres.errors import LOOK, Trouble, classify, explained

# Its warnings repeat, for every connection and attempt, what we say once.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

Connection = psycopg.Connection[tuple[Any, ...]]

# One for each thread of a worker: pages, details, heartbeat.
CONNECTIONS_MAX: Final = 3
CONNECT_TIMEOUT_S: Final = 3.0

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


ENCODING: Final = "UTF8"


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
            kwargs=_options(timeout_s),
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

        A connection whose error means "away" is closed, so that the next try gets a
        fresh one: it may lead to another server, or to the same one in a better state.

        Raises:
            DatabaseAwayError: Postgres can't be reached, or can't do the work; try again.
            DatabaseNotSetUpError: Tables or rights are missing.
            DatabaseRefusedError: The statement fails whenever it is tried.
        """
        with explaining(self._why_away):
            connection = self._pool.getconn(timeout_s)
            try:
                check_encoding(connection)
                # Commits, or rolls back; a pool's connection stays open.
                with connection:
                    yield connection
            except psycopg.Error as exc:
                if classify(exc) is Trouble.AWAY:
                    connection.close()
                raise
            finally:
                self._pool.putconn(connection)

    def _why_away(self) -> DatabaseError:
        """The pool only says that it has waited; a connection of our own says why."""
        try:
            with connect(self._database_url, timeout_s=1.0):
                return DatabaseAwayError("no connection in time", LOOK)
        except DatabaseError as exc:
            return exc


@contextmanager
def connect(
    database_url: str, *, timeout_s: float = CONNECT_TIMEOUT_S, autocommit: bool = False
) -> Iterator[Connection]:
    """One connection for one command: committed at the end, rolled back on an error.

    A pool would try again until its time is up; here the first failure says why.

    Raises:
        DatabaseError: As `Database.connection` does.
    """
    with (
        explaining(),
        psycopg.connect(database_url, autocommit=autocommit, **_options(timeout_s)) as connection,
    ):
        check_encoding(connection)
        yield connection


def check_encoding(connection: Connection) -> None:
    """Make sure that the database can hold any text; asks the server nothing.

    Raises:
        DatabaseNotSetUpError: It can't.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {ENCODING, None}:
        raise DatabaseNotSetUpError(
            f"the database's encoding is {encoding}, but must be {ENCODING}",
            f"CREATE DATABASE ... ENCODING '{ENCODING}' TEMPLATE template0, name the new one in"
            " DATABASE_URL and run dealfetcher migrate",
        )


@contextmanager
def explaining(why_no_connection: Callable[[], DatabaseError] | None = None) -> Iterator[None]:
    """Turn the driver's errors into the fetcher's own.

    *why_no_connection* explains a pool that had no connection to give.
    """
    try:
        yield
    except PoolTimeout as exc:
        problem = why_no_connection() if why_no_connection else DatabaseAwayError(str(exc), LOOK)
    except psycopg.Error as exc:
        # A statement that fails again is looked into by its traceback.
        raise explained(exc) from (exc if classify(exc) is Trouble.WRONG else None)
    else:
        return
    raise problem


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "connect_timeout": int(timeout_s),
        "application_name": "dealfetcher",
        # Whatever PGCLIENTENCODING or the server's default is.
        "client_encoding": ENCODING,
        # A prepared statement belongs to one server connection; behind PgBouncer in
        # transaction mode the next transaction may run on another.
        # Source: psycopg documentation, "Prepared statements", on PgBouncer.
        "prepare_threshold": None,
    }


def instant(unix_ms: int | None) -> datetime | None:
    """A time in Unix milliseconds as timestamptz."""
    return None if unix_ms is None else EPOCH + timedelta(milliseconds=unix_ms)


def unix_ms(time: object) -> int | None:
    """A timestamptz as read from a row, in Unix milliseconds."""
    assert time is None or isinstance(time, datetime)
    return None if time is None else (time - EPOCH) // timedelta(milliseconds=1)
