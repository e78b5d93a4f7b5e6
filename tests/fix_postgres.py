"""A real Postgres for the tests: one server a session, a fresh database a test."""

import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from deploy.local.postgres import PostgresServer

TEMPLATE = "migrated_template"
# The data never outlives the tests, so nothing needs to reach the disk.
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server that lasts as long as the session, and its data no longer."""
    folder = Path(tempfile.mkdtemp(prefix="keepa-postgres-"))
    folder.chmod(0o755)
    try:
        with PostgresServer(folder / "data", log_path=folder / "log", options=FAST) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """Name of a database with all migrations applied, to be copied, never used."""
    # Imported here so that tests without a database don't depend on it.
    from fetcher.postgres import migrate  # noqa: PLC0415 - see above

    migrate(postgres_server.create_database(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """URL of a migrated database that only this test uses."""
    yield from _temporary_database(postgres_server, template=migrated_template)


@pytest.fixture
def empty_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a database without any table that only this test uses."""
    yield from _temporary_database(postgres_server, template="template1")


def _temporary_database(server: PostgresServer, *, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    yield server.create_database(name, template=template)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        # FORCE ends the connections of processes that a failed test left.
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
