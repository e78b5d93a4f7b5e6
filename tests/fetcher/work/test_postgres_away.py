"""Threads of one process that wait for Postgres: what one finds out serves all."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.local.ports import free_port
from fetcher.broker_client import BrokerClient
from fetcher.errors import DatabaseAwayError
from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.query_folder import QueryFolder
from fetcher.work import shared
from fetcher.work.shared import Limits, Troubles, Workplace
from tests.waiting import DEADLINE_S

LIMITS = Limits(claim_ttl_s=30, attempts_max=3, retry_delay_s=1)
AWAY = DatabaseAwayError("as told", "wait")


@pytest.fixture
def workplace(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workplace]:
    """What the threads share; a pause lasts longer than any test."""
    monkeypatch.setattr(shared, "FIRST_PAUSE_S", 10 * DEADLINE_S)
    with (
        Database(database_url) as database,
        BrokerClient(f"127.0.0.1:{free_port()}") as broker,
    ):
        yield Workplace("me", database, broker, QueryFolder(tmp_path), LIMITS)


class AwayOnce:
    """A change that fails when first tried."""

    def __init__(self) -> None:
        self.has_failed = threading.Event()

    def __call__(self, connection: Connection) -> int:
        """Fails, or returns 7."""
        if self.has_failed.is_set():
            return 7
        self.has_failed.set()
        raise AWAY


def test_a_change_goes_on_as_soon_as_another_thread_has_made_one(workplace: Workplace) -> None:
    """A reply that was paid for does not lie in memory until the pause is over."""
    change = AwayOnce()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(workplace.persist, change)
        assert change.has_failed.wait(DEADLINE_S)
        workplace.troubles.begin(AWAY)
        workplace.attempt(lambda _: None)
        result = waiting.result(DEADLINE_S)

    assert result == 7


def test_a_stop_ends_the_pause_of_a_change(workplace: Workplace) -> None:
    """It is tried at once, with what is left of its time."""
    change = AwayOnce()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(workplace.persist, change)
        assert change.has_failed.wait(DEADLINE_S)
        workplace.stop.set()
        result = waiting.result(DEADLINE_S)

    assert result == 7


def test_only_a_change_after_a_trouble_is_a_recovery() -> None:
    """A read-only Postgres must not be hammered, and what always worked proves nothing."""
    troubles = Troubles()
    troubles.end()
    troubles.begin(AWAY)
    troubles.end(by_change=False)
    before = troubles.recoveries
    troubles.begin(AWAY)
    troubles.end()

    assert (before, troubles.recoveries) == (0, 1)
