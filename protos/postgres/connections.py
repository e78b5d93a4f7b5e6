"""Connections to Postgres, with one error for "not now"."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg_pool import PoolTimeout

from protos.postgres.errors import DatabaseAwayError, DatabaseError, DatabaseNotSetUpError
from protos.postgres.trouble import Advice, Trouble, classify

Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT_S: Final = 3.0
ENCODING: Final = "UTF8"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@contextmanager
def connect(
    database_url: str,
    advice: Advice,
    program: str,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    autocommit: bool = False,
) -> Iterator[Connection]:
    """Opens one connection for one command: committed at the end, rolled back on an error.

    A pool would try again until its time is up; here the first failure is raised.

    Raises:
        DatabaseError: Postgres did not do the work.
    """
    settings = options(program, timeout_s)
    with (
        explaining(advice),
        psycopg.connect(database_url, autocommit=autocommit, **settings) as connection,
    ):
        check_encoding(connection, advice)
        yield connection


def check_encoding(connection: Connection, advice: Advice) -> None:
    """Checks that the database can hold any text, without a query.

    Raises:
        DatabaseNotSetUpError: It can't.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {ENCODING, None}:
        raise DatabaseNotSetUpError(
            f"the database's encoding is {encoding}, but must be {ENCODING}",
            f"CREATE DATABASE ... ENCODING '{ENCODING}' TEMPLATE template0, name the new one in"
            f" {advice.url} and {advice.migrate}",
        )


@contextmanager
def explaining(
    advice: Advice, why_no_connection: Callable[[], DatabaseError] | None = None
) -> Iterator[None]:
    """Turns the driver's errors into the package's own, with the remedies of *advice*.

    *why_no_connection* returns the error for a pool without a free connection.
    """
    try:
        yield
    except PoolTimeout as exc:
        away = DatabaseAwayError(str(exc), advice.look)
        problem = why_no_connection() if why_no_connection else away
    except psycopg.Error as exc:
        # The traceback of a statement that fails again helps to mend it.
        cause = exc if classify(exc) is Trouble.WRONG else None
        raise advice.explained(exc) from cause
    else:
        return
    raise problem


def options(program: str, timeout_s: float) -> dict[str, Any]:
    """Returns the driver's options for a connection of *program*."""
    return {
        "connect_timeout": int(timeout_s),
        "application_name": program,
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
