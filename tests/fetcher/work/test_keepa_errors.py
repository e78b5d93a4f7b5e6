"""Failed calls to Keepa are counted by kind, over all fetchers."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fetcher.errors import (
    KeepaError,
    KeepaResponseError,
    KeepaThrottledError,
    KeepaUnavailableError,
)
from fetcher.postgres import Database
from fetcher.postgres.keepa_errors import add_errors, count_errors
from fetcher.replies.record import MalformedReplyError
from fetcher.work.keepa_errors import ErrorKind, KeepaErrors, kind_of
from tests.fix_fetcher import StartWorld
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (KeepaThrottledError("429"), ErrorKind.THROTTLED),
        (KeepaUnavailableError("no route", sent=False), ErrorKind.UNREACHABLE),
        (KeepaUnavailableError("HTTP 502"), ErrorKind.NO_REPLY),
        (KeepaResponseError("HTTP 400", status=400), ErrorKind.REFUSED),
        (MalformedReplyError("deals"), ErrorKind.MALFORMED),
    ],
)
def test_every_error_has_its_kind(exc: Exception, kind: ErrorKind) -> None:
    """Kinds differ by what is to be done about them."""
    assert kind_of(exc) is kind


def test_no_count_is_lost_between_threads() -> None:
    """Two threads make calls while a third takes the counts."""
    errors = KeepaErrors()

    def fail(_: int) -> None:
        errors.note(KeepaError("x"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fail, range(1_000)))
    taken = errors.take()
    errors.put_back(taken)

    assert taken == errors.take() == {"malformed": 1_000}
    assert errors.take() == {}


def test_fetchers_add_up_in_the_database(database_url: str) -> None:
    """Counts grow; they are those of all fetchers since the beginning."""
    with Database(database_url) as database:
        for counts in ({"no_reply": 2, "refused": 1}, {"no_reply": 3}, {}):
            with database.connection() as connection:
                add_errors(connection, counts)
        with database.connection() as connection:
            assert count_errors(connection) == {"no_reply": 5, "refused": 1}


def test_a_fetchers_heartbeat_writes_its_errors(start_world: StartWorld) -> None:
    """A server error is counted soon, and the page is read all the same."""
    world = start_world(seed=4)
    world.simulator.set_fault("error:status=503,path=/deal,count=1")
    world.write_query("used")
    world.start_fetcher(claim_ttl_s=3)
    wait_until(
        lambda: world.rows("SELECT calls FROM keepa_errors WHERE kind = 'no_reply'"), "a count"
    )
    wait_until(lambda: world.scans_completed() > 0, "a scan")

    assert world.rows("SELECT kind, calls FROM keepa_errors") == [("no_reply", 1)]
