"""A page's commit is all or nothing, and moves the watermark only with the data."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from fetcher.errors import ClaimLostError
from fetcher.postgres import Database
from fetcher.postgres.claims import PAGE_WORK, release_claims, renew_claims
from fetcher.postgres.database import Connection
from fetcher.postgres.pages import (
    PageClaim,
    claim_page,
    next_page,
    open_pages,
)
from fetcher.postgres.progress import lock_progress, standings
from fetcher.postgres.scans import start_scan
from fetcher.queries.query import DealQuery
from fetcher.scans.plan import Schedule, due_scans
from fetcher.work.page_commit import Committed, PageReply, commit_page
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, query, reply, row

SCHEDULE = Schedule(interval_ms=0, full_scan_every_ms=None, max_pages=10)
ROWS_PER_PAGE = 150
TTL_S = 30.0


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    with Database(database_url) as database:
        yield database


def start(database: Database, asked: DealQuery) -> None:
    """Starts whatever scan is due."""
    with database.connection() as connection:
        progress = lock_progress(connection, asked.name, asked.selection_hash)
        stand = standings(connection, [asked])[asked.name]
        now_ms = stand.now_ms + 24 * 60 * MINUTE_MS
        for plan in due_scans(progress, SCHEDULE, running=stand.running, now_ms=now_ms):
            scan_id = start_scan(connection, asked, plan)
            assert scan_id is not None
            open_pages(connection, scan_id, [plan.first_page])


def claim(
    database: Database, asked: DealQuery, *, holder: str = "me", ttl_s: float = TTL_S
) -> PageClaim | None:
    """Claims the next page."""
    with database.connection() as connection:
        return claim_page(connection, [asked], holder=holder, ttl_s=ttl_s)


def commit(
    database: Database, claimed: PageClaim | None, asked: DealQuery, paid: PageReply
) -> Committed:
    """Commit a page."""
    assert claimed is not None
    with database.connection() as connection:
        return commit_page(connection, claimed, asked, paid)


def state(database: Database) -> dict[str, Any]:
    """Everything that a commit may change."""
    collected = ("deals", "verdicts", "scans", "scan_pages", "watermarks")
    tables = (*collected, "alert_memory", "alert_messages", "alerts")
    with database.connection() as connection:
        return {
            table: connection.execute(
                f"SELECT to_jsonb(t) FROM {table} t ORDER BY 1".encode()
            ).fetchall()
            for table in tables
        }


def full_page(first: int) -> list[dict[str, Any]]:
    """A page of 150 rows, newest first."""
    return [row(first + index) for index in range(ROWS_PER_PAGE)]


def test_a_scan_goes_on_page_by_page_and_ends_with_the_watermark(database: Database) -> None:
    """The second page opens when the first has been committed; the last one ends the scan."""
    asked = query()
    start(database, asked)
    first = commit(database, claim(database, asked), asked, reply(full_page(0)))
    second = commit(database, claim(database, asked), asked, reply([row(150), row(151)]))
    with database.connection() as connection:
        progress = lock_progress(connection, asked.name, asked.selection_hash)

    assert (first.new_deals, first.end) == (ROWS_PER_PAGE, None)
    assert second.end is not None
    assert (second.end.reason, second.end.pages) == ("short page", 2)
    assert second.end.breakdown.accepted == ROWS_PER_PAGE + 2
    assert progress.watermark_ms == NOON_MS


def test_a_second_scan_stops_at_what_is_known(database: Database) -> None:
    """Newest first, one page is enough when its oldest row is older than the watermark."""
    asked = query()
    start(database, asked)
    commit(database, claim(database, asked), asked, reply([row(0), row(1)]))
    start(database, asked)
    later_ms = NOON_MS + 60 * MINUTE_MS
    rows = [row(1000 + n, created_ms=later_ms - n * MINUTE_MS) for n in range(ROWS_PER_PAGE)]
    done = commit(database, claim(database, asked), asked, reply(rows, later_ms))

    assert done.end is not None
    assert done.end.reason == "watermark reached"
    assert done.end.result.progress.watermark_ms == later_ms


def test_a_page_is_claimed_by_one_at_a_time(database: Database) -> None:
    """While a claim lasts no other process gets the page."""
    asked = query()
    start(database, asked)
    mine = claim(database, asked)
    theirs = claim(database, asked, holder="you")

    assert mine is not None
    assert theirs is None


def test_a_commit_under_a_lost_claim_changes_nothing(database: Database) -> None:
    """A page taken over after its claim expired is its new reader's."""
    asked = query()
    start(database, asked)
    mine = claim(database, asked, ttl_s=-1)
    theirs = claim(database, asked, holder="you")
    before = state(database)
    with pytest.raises(ClaimLostError):
        commit(database, mine, asked, reply(full_page(0)))

    assert theirs is not None
    assert theirs.attempts == 1
    assert state(database) == before


def test_an_expired_claim_is_good_until_another_is_made(database: Database) -> None:
    """What was paid for is kept, late or not."""
    asked = query()
    start(database, asked)
    done = commit(database, claim(database, asked, ttl_s=-1), asked, reply([row(0)]))

    assert done.end is not None


def test_a_heartbeat_keeps_claims_alive(database: Database) -> None:
    """Renewing extends all claims of the holder."""
    asked = query()
    start(database, asked)
    claim(database, asked, ttl_s=-1)
    with database.connection() as connection:
        renew_claims(connection, PAGE_WORK, holder="me", ttl_s=TTL_S)

    assert claim(database, asked, holder="you") is None


def test_a_page_put_back_can_be_claimed_at_once(database: Database) -> None:
    """Giving back is no failed try."""
    asked = query()
    start(database, asked)
    mine = claim(database, asked)
    assert mine is not None
    with database.connection() as connection:
        release_claims(connection, PAGE_WORK, [mine])
    again = claim(database, asked, holder="you")

    assert again is not None
    assert (again.attempts, again.fence) == (0, 2)


def test_looking_for_work_claims_nothing(database: Database) -> None:
    """A process that waits for tokens holds no page."""
    asked = query()
    start(database, asked)
    with database.connection() as connection:
        found = next_page(connection, [asked])
    mine = claim(database, asked)

    assert found is not None
    assert mine is not None


def statements_of_commit(database: Database, asked: DealQuery, first: int) -> tuple[int, int]:
    """Statements that the next page's commit sends, and the rows of pages that they read."""
    claimed = claim(database, asked)
    assert claimed is not None
    with database.connection() as connection:
        sent = CountingConnection(connection)
        commit_page(cast("Connection", sent), claimed, asked, reply(full_page(first)))
    return sent.statements, sent.page_rows


class CountingConnection:
    """A connection that counts what goes through it."""

    def __init__(self, connection: Connection) -> None:
        self.statements = 0
        self.page_rows = 0
        self._connection = connection

    def execute(self, statement: str, *arguments: Any) -> Any:
        """Runs one statement."""
        self.statements += 1
        cursor = self._connection.execute(statement.encode(), *arguments)
        if "facts FROM scan_pages" in statement:
            self.page_rows += cursor.rowcount
        return cursor

    def cursor(self) -> Any:
        """For one statement."""
        self.statements += 1
        return self._connection.cursor()

    def pipeline(self) -> Any:
        """As it is."""
        return self._connection.pipeline()


def test_the_commit_of_a_late_page_costs_what_that_of_an_early_one_does(
    database: Database,
) -> None:
    """It looks at the page before it, not at all pages of its scan."""
    asked = query()
    start(database, asked)
    costs = [statements_of_commit(database, asked, first=150 * page) for page in range(8)]

    # Page 0 has no page before it, and is looked at for its freshness.
    assert len(set(costs[1:])) == 1
    assert [rows for _, rows in costs] == [1] + [2] * 7
