"""The schema can be made, made again, and taken down."""

import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deploy.local.ports import free_port
from deploy.local.postgres import PostgresServer
from fetcher.errors import DatabaseAwayError, DatabaseNotSetUpError, DatabaseRefusedError
from fetcher.postgres import Database, migrate
from fetcher.postgres.database import connect
from fetcher.postgres.schema import MIGRATIONS, known_migrations, known_tables, missing_migrations
from tests.fetcher.first_schema import apply_migrations


def test_processes_that_migrate_at_once_take_turns(empty_database_url: str) -> None:
    """Of several processes at the same time one applies each migration; later ones none."""
    applied: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: applied.append(migrate(empty_database_url)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    afterwards = migrate(empty_database_url)

    assert sorted(name for names in applied for name in names) == sorted(known_migrations())
    assert afterwards == []


def test_a_database_without_tables_lacks_all_migrations(empty_database_url: str) -> None:
    """An untouched database is recognised as such."""
    with Database(empty_database_url) as database, database.connection() as connection:
        missing = missing_migrations(connection)

    assert missing == known_migrations()


def test_a_migrated_database_lacks_nothing(database_url: str) -> None:
    """After migrating, the program finds all it needs."""
    with Database(database_url) as database, database.connection() as connection:
        missing = missing_migrations(connection)

    assert missing == set()


def test_a_migration_killed_before_it_was_recorded_is_applied_again(
    empty_database_url: str,
) -> None:
    """Every statement of a migration can be repeated; each is, before the next is applied."""
    for name in sorted(known_migrations()):
        apply_migrations(empty_database_url, name)
        apply_migrations(empty_database_url, name, again=True)

    assert migrate(empty_database_url) == []


def test_postgres_down_is_one_plain_error() -> None:
    """A server that isn't there is DatabaseAwayError without the password."""
    with pytest.raises(DatabaseAwayError) as caught:
        migrate("postgresql://somebody:secret@127.0.0.1:1/deals")

    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(params=["SQL_ASCII", "LATIN1"])
def foreign_url(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[str]:
    """URL of an empty database that can't hold any text."""
    name = f"in_{request.param.lower()}"
    create = f"CREATE DATABASE {name} ENCODING '{request.param}' LOCALE 'C' TEMPLATE template0"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(create.encode())
        yield postgres_server.url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_a_database_of_another_encoding_is_refused_with_the_remedy(foreign_url: str) -> None:
    """Migration, pool and single connection agree, and nothing is written."""
    with pytest.raises(DatabaseNotSetUpError, match=r"must be UTF8.*CREATE DATABASE"):
        migrate(foreign_url)
    with (
        Database(foreign_url) as database,
        pytest.raises(DatabaseNotSetUpError, match="must be UTF8"),
        database.connection(),
    ):
        pass
    with psycopg.connect(foreign_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")

        assert tables.fetchone() == (0,)


def test_text_survives_any_environment(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PGCLIENTENCODING is for psql."""
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with connect(database_url) as connection:
        row = connection.execute("SELECT 'Hörbuch … 本'").fetchone()

    assert row == ("Hörbuch … 本",)


def test_several_servers_are_tried_until_one_takes_writes(database_url: str) -> None:
    """A migration reads the URL as all else does: hosts that are away are passed over."""
    host = database_url.partition("@")[2]
    url = (
        f"postgresql://postgres@127.0.0.1:{free_port()},{host}"
        "?target_session_attrs=read-write&sslmode=prefer&application_name=mine"
    )
    applied = migrate(url)
    with Database(url) as database, database.connection() as connection:
        missing = missing_migrations(connection)

    assert applied == []
    assert missing == set()


def test_a_password_with_signs_of_all_kinds_is_read_by_all_alike(database_url: str) -> None:
    """It goes through the URL, percent-encoded, to libpq and nowhere else."""
    url = database_url.replace("postgres@", "postgres:%40%2F%25%C3%A9%3F%23@")

    assert migrate(url) == []


def test_a_role_without_rights_is_not_sent_in_a_circle(database_url: str) -> None:
    """Tables it may not see are not missing, so the remedy is a GRANT, for migrations too."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE outsider LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC")
        url = make_conninfo(database_url, user="outsider")
        try:
            with pytest.raises(DatabaseNotSetUpError, match="GRANT USAGE"):
                migrate(url)
            with pytest.raises(DatabaseNotSetUpError, match="GRANT USAGE"), connect(url) as lost:
                missing_migrations(lost)
            connection.execute("GRANT USAGE ON SCHEMA public TO outsider")
            with pytest.raises(DatabaseNotSetUpError, match="grant"), connect(url) as lost:
                missing_migrations(lost)
        finally:
            connection.execute("DROP OWNED BY outsider; DROP ROLE outsider")


def test_a_migration_that_fails_leaves_nothing_behind(empty_database_url: str) -> None:
    """Each is all or nothing; the next try starts anew."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        # In the way of the tables' own types.
        connection.execute("CREATE TYPE verdicts AS (n int)")
        with pytest.raises(DatabaseRefusedError, match="verdicts"):
            migrate(empty_database_url)
        made = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        count = made.fetchone()
        connection.execute("DROP TYPE verdicts")

    assert count == (0,)
    assert set(migrate(empty_database_url)) == known_migrations()


def test_migrations_are_plain_ascii() -> None:
    """The library reads them by the locale's encoding."""
    assert [path.name for path in MIGRATIONS.iterdir() if not path.read_bytes().isascii()] == []


def test_the_tables_are_known_by_name(database_url: str) -> None:
    """Rights are looked at on every table that the migrations make."""
    with connect(database_url) as connection:
        rows = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            " AND tablename NOT LIKE '%yoyo%'"
        )
        tables = {name for (name,) in rows}

    assert tables
    assert tables <= known_tables()
