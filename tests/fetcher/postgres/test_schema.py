"""The schema can be made, made again, and taken down."""

import threading

import psycopg
import pytest

from fetcher.errors import DatabaseAwayError
from fetcher.postgres import Database, migrate
from fetcher.postgres.schema import known_migrations, missing_migrations


def test_a_second_migration_finds_nothing_to_do(empty_database_url: str) -> None:
    """Migrating twice applies each migration once."""
    first = migrate(empty_database_url)
    second = migrate(empty_database_url)

    assert set(first) == known_migrations()
    assert second == []


def test_processes_that_migrate_at_once_take_turns(empty_database_url: str) -> None:
    """Of several migrations at the same time one does the work, none fails."""
    applied: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: applied.append(migrate(empty_database_url)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(map(len, applied)) == [0, 0, len(known_migrations())]


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


def test_a_migration_killed_before_it_was_recorded_is_applied_again(database_url: str) -> None:
    """Every statement of a migration can be repeated."""
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM _yoyo_migration")

    applied = migrate(database_url)

    assert set(applied) == known_migrations()


def test_postgres_down_is_one_plain_error() -> None:
    """A server that isn't there is DatabaseAwayError without the password."""
    with pytest.raises(DatabaseAwayError) as caught:
        migrate("postgresql://somebody:secret@127.0.0.1:1/deals")

    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
