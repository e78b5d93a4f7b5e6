"""Databases with the journal's schema, and a leader row."""

import time
from collections.abc import Iterator

import psycopg
import pytest

from broker.journal.schema import migrate
from broker.journal.writer import JournalWriter
from deploy.local.postgres import PostgresServer
from tests.fix_postgres import _temporary_database

ACCOUNT = "0123456789ab"
EPOCH = 7
LEADER = """
INSERT INTO tokenbroker.leader VALUES (%s, %s, 'test', '', 0, now(), now())
ON CONFLICT (account) DO UPDATE SET epoch = excluded.epoch
"""


def lead(database_url: str, epoch: int = EPOCH) -> None:
    """Lets *epoch* lead."""
    with psycopg.connect(database_url) as connection:
        connection.execute(LEADER, (ACCOUNT, epoch))


def now_ms() -> int:
    """A clock like the broker's."""
    return time.monotonic_ns() // 1_000_000


@pytest.fixture(scope="session")
def journal_template(postgres_server: PostgresServer) -> str:
    """Name of a database with the journal's schema, to be copied."""
    name = "journal_template"
    migrate(postgres_server.create_database(name), 12)
    return name


@pytest.fixture
def journal_url(postgres_server: PostgresServer, journal_template: str) -> Iterator[str]:
    """URL of a database with the journal's schema, in which epoch 7 leads."""
    for url in _temporary_database(postgres_server, template=journal_template):
        lead(url)
        yield url


@pytest.fixture
def writer(journal_url: str) -> Iterator[JournalWriter]:
    """A journal that writes for epoch 7."""
    journal = JournalWriter(journal_url, ACCOUNT, now_ms, signed=True)
    journal.start()
    yield journal
    journal.stop(5.0)
