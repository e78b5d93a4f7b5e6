"""Connections to Postgres: a small pool, and one error for "not now"."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from fetcher.errors import DatabaseAwayError, DatabaseError
from fetcher.postgres.errors import ADVICE
from protos.postgres import connections
from protos.postgres.connections import (
    CONNECT_TIMEOUT_S,
    Connection,
    check_encoding,
    explaining,
    instant,
    options,
    unix_ms,
)
from protos.postgres.trouble import Trouble, classify

__all__ = [
    "Connection",
    "Database",
    "Row",
    "connect",
    "execute_each",
    "fetch_dicts",
    "instant",
    "planned_rows",
    "timeout_of",
    "unix_ms",
]

# The pool repeats its warnings for every connection and attempt; the fetcher logs each once.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

Row = dict[str, Any]

CONNECTIONS_MAX: Final = 3
PROGRAM: Final = "dealfetcher"

# Opens one connection for one command; see there.
connect = partial(connections.connect, advice=ADVICE, program=PROGRAM)


class Database:
    """A pool of at most *connections* to one database; connects when first used."""

    def __init__(
        self,
        database_url: str,
        *,
        timeout_s: float = CONNECT_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self._database_url = database_url
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            database_url,
            min_size=0,
            max_size=connections_max,
            timeout=timeout_s,
            reconnect_timeout=timeout_s,
            num_workers=1,
            # Replaces connections from before a restart of Postgres.
            check=ConnectionPool.check_connection,
            kwargs=options(PROGRAM, timeout_s),
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
        with explaining(ADVICE, self._why_away):
            connection = self._pool.getconn(timeout_s)
            try:
                check_encoding(connection, ADVICE)
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
                return DatabaseAwayError("no connection in time", ADVICE.look)
        except DatabaseError as exc:
            return exc


def bound_reading(connection: Connection, *, timeout_ms: int) -> None:
    """Lets the present transaction only read, and no statement take longer."""
    # Compiling a statement takes longer than running one that is meant to be short.
    connection.execute(
        f"SET TRANSACTION READ ONLY; SET LOCAL jit = off;"
        f" SET LOCAL statement_timeout = {timeout_ms:d}".encode()
    )


def planned_rows(
    connection: Connection, select: LiteralString, values: Mapping[str, object]
) -> int:
    """Returns how many rows the planner expects of *select*; to count would read them all."""
    found = connection.execute(f"EXPLAIN (FORMAT JSON) {select}", values).fetchone()
    assert found is not None
    plan = found[0] if isinstance(found[0], list) else json.loads(found[0])
    return int(plan[0]["Plan"]["Plan Rows"])


@contextmanager
def timeout_of(connection: Connection, timeout_ms: int) -> Iterator[None]:
    """Lets statements take *timeout_ms* at most; the bound from before holds again behind it."""
    row = connection.execute("SELECT current_setting('statement_timeout')").fetchone()
    assert row is not None
    connection.execute(f"SET LOCAL statement_timeout = {timeout_ms:d}".encode())
    yield
    # A statement that was cancelled is rolled back, and this setting with it.
    connection.execute("SELECT set_config('statement_timeout', %s, true)", row)


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
