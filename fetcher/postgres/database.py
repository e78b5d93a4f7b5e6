"""Connections to Postgres: a small pool, and one error for "not now"."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from fetcher.errors import DatabaseAwayError, DatabaseError, DatabaseNotSetUpError
from fetcher.postgres.errors import LOOK, Trouble, classify, explained

# The pool repeats its warnings for every connection and attempt; the fetcher logs each once.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

Connection = psycopg.Connection[tuple[Any, ...]]
Row = dict[str, Any]

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
            # Replaces connections from before a restart of Postgres.
            check=ConnectionPool.check_connection,
            kwargs=_options(timeout_s),
            open=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnects."""
        self._pool.close(timeout=0.5)

    @contextmanager
    def connection(self, *, timeout_s: float | None = None) -> Iterator[Connection]:
        """Lends a connection in one transaction: committed at the end, rolled back on an error.

        Waits for it up to *timeout_s* seconds; None means the pool's time-out.

        Closes a connection after an error that means "away": the next try gets a fresh
        one, perhaps to another server, or to the same one in a better state.

        Raises:
            DatabaseAwayError: Postgres can't be reached, or can't do the work; try again.
            DatabaseNotSetUpError: Tables or rights are missing.
            DatabaseRefusedError: The statement fails whenever it is tried.
        """
        with explaining(self._why_away):
            connection = self._pool.getconn(timeout_s)
            try:
                check_encoding(connection)
                # Commits or rolls back; a connection of a pool stays open.
                with connection:
                    yield connection
            except psycopg.Error as exc:
                if classify(exc) is Trouble.AWAY:
                    connection.close()
                raise
            finally:
                self._pool.putconn(connection)

    def _why_away(self) -> DatabaseError:
        """Returns the reason from a connection outside the pool; the pool's error has none."""
        try:
            with connect(self._database_url, timeout_s=1.0):
                return DatabaseAwayError("no connection in time", LOOK)
        except DatabaseError as exc:
            return exc


@contextmanager
def connect(
    database_url: str, *, timeout_s: float = CONNECT_TIMEOUT_S, autocommit: bool = False
) -> Iterator[Connection]:
    """Opens one connection for one command: committed at the end, rolled back on an error.

    A pool would try again until its time is up; here the first failure is raised.

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
    """Checks that the database can hold any text, without a query.

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
    """Turns the driver's errors into the fetcher's own.

    *why_no_connection* returns the error for a pool without a free connection.
    """
    try:
        yield
    except PoolTimeout as exc:
        problem = why_no_connection() if why_no_connection else DatabaseAwayError(str(exc), LOOK)
    except psycopg.Error as exc:
        # The traceback of a statement that fails again helps to mend it.
        raise explained(exc) from (exc if classify(exc) is Trouble.WRONG else None)
    else:
        return
    raise problem


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "connect_timeout": int(timeout_s),
        "application_name": "dealfetcher",
        # Overrides PGCLIENTENCODING and the server's default.
        "client_encoding": ENCODING,
        # A prepared statement belongs to one server connection; behind PgBouncer in
        # transaction mode the next transaction may run on another.
        # Source: psycopg documentation, "Prepared statements", on PgBouncer.
        "prepare_threshold": None,
    }


def instant(unix_ms: int | None) -> datetime | None:
    """Returns a time in Unix milliseconds as timestamptz."""
    return None if unix_ms is None else EPOCH + timedelta(milliseconds=unix_ms)


def unix_ms(time: object) -> int | None:
    """Returns a timestamptz as read from a row, in Unix milliseconds."""
    assert time is None or isinstance(time, datetime)
    return None if time is None else (time - EPOCH) // timedelta(milliseconds=1)


def execute_each(
    connection: Connection, statement: LiteralString, rows: Sequence[Sequence[Any]]
) -> None:
    """Runs *statement* once per row, in one round trip."""
    if rows:
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.executemany(statement, rows)


def fetch_dicts(
    connection: Connection, statement: LiteralString, values: Mapping[str, Any] | None = None
) -> list[Row]:
    """Runs *statement*; returns its rows by column."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values).fetchall()
