"""Errors of a real Postgres, sorted by what the caller does next."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from fetcher.errors import DatabaseAwayError, DatabaseNotSetUpError, DatabaseRefusedError
from fetcher.postgres import Database
from protos.postgres.trouble import Trouble, classify

AWAY = ("08006", "28P01", "40P01", "53100", "53300", "55P03", "57P01", "57P05", "25006", "25P03")
NOT_SET_UP = ("42P01", "42703", "42P10", "3F000", "42501")
BEAT = "INSERT INTO workers (holder, version, doing) VALUES ('h', '1', 'x')"
WRONG = ("42601", "23502", "22021", "54000", "XX000")


@pytest.fixture
def stranger_url(database_url: str) -> Iterator[str]:
    """URL of the migrated database for a role without any rights in it."""
    name = "stranger"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        yield make_conninfo(database_url, user=name)
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        *((code, Trouble.AWAY) for code in AWAY),
        *((code, Trouble.NOT_SET_UP) for code in NOT_SET_UP),
        *((code, Trouble.WRONG) for code in WRONG),
    ],
)
def test_the_code_decides(code: str, trouble: Trouble) -> None:
    """The driver's exception class does not: 25006 is an InternalError there."""
    assert classify(psycopg.errors.lookup(code)("no matter")) is trouble


def test_an_error_without_a_code_is_a_lost_connection_or_misuse() -> None:
    """No answer of the server means that the same work may succeed later."""
    assert classify(psycopg.OperationalError("connection refused")) is Trouble.AWAY
    assert classify(psycopg.InterfaceError("the connection is closed")) is Trouble.AWAY
    assert classify(psycopg.ProgrammingError("too few placeholders")) is Trouble.WRONG


def test_a_read_only_server_is_away_and_its_connection_is_thrown_away(database_url: str) -> None:
    """The next try gets a fresh connection, which may lead to a server that can write."""
    with Database(database_url) as database:
        with database.connection() as connection:
            before = connection.info.backend_pid
            connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(DatabaseAwayError, match="read-only"), database.connection() as first:
            first.execute(BEAT)
        with database.connection() as connection:
            after = connection.info.backend_pid
            connection.execute(BEAT)

    assert before != after


def test_missing_tables_are_answered_with_the_command_that_makes_them(
    empty_database_url: str,
) -> None:
    """It is "away" to loops, and names its remedy to an operator."""
    with (
        Database(empty_database_url) as database,
        pytest.raises(DatabaseNotSetUpError, match="dealfetcher migrate") as caught,
        database.connection() as connection,
    ):
        connection.execute("SELECT * FROM deals")

    assert isinstance(caught.value, DatabaseAwayError)
    assert "\n" not in str(caught.value)


def test_missing_rights_are_answered_with_the_rights_to_grant(stranger_url: str) -> None:
    """The remedy is a GRANT, not a migration."""
    with (
        Database(stranger_url) as database,
        pytest.raises(DatabaseNotSetUpError, match="grant the role"),
        database.connection() as connection,
    ):
        connection.execute("SELECT * FROM deals")


def test_a_statement_that_fails_again_is_refused_with_its_code(database_url: str) -> None:
    """Retrying would not help; the connection stays in the pool."""
    with Database(database_url) as database:
        with database.connection() as connection:
            before = connection.info.backend_pid
        with (
            pytest.raises(DatabaseRefusedError, match="23502") as caught,
            database.connection() as connection,
        ):
            connection.execute("INSERT INTO workers (holder) VALUES (NULL)")
        with database.connection() as connection:
            after = connection.info.backend_pid

    assert before == after
    assert isinstance(caught.value.__cause__, psycopg.Error)


def test_a_commit_that_fails_is_explained_too(database_url: str) -> None:
    """Deferred constraints and full disks speak at the end of a transaction."""
    with Database(database_url) as database:
        with database.connection() as connection:
            connection.execute("CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with (
            pytest.raises(DatabaseRefusedError, match="23505"),
            database.connection() as connection,
        ):
            connection.execute("INSERT INTO late VALUES (1), (1)")
        with database.connection() as connection:
            rows = connection.execute("SELECT count(*) FROM late").fetchone()

    assert rows == (0,)
