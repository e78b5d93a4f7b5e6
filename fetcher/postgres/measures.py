"""Measures of the collection as a whole, over all fetchers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, LiteralString

from psycopg.rows import class_row, scalar_row

from fetcher.postgres.database import Connection, planned_rows
from fetcher.queries.query import DealQuery

# All times of a scan are Keepa's, so ages are measured by Keepa's clock too.
PROGRESS: Final[LiteralString] = """
SELECT q.query,
       extract(epoch FROM w.keepa_now - w.newest_deal)::float8 AS newest_deal_age_s,
       extract(epoch FROM now() - w.moved_at)::float8 AS watermark_age_s,
       extract(epoch FROM w.keepa_now - w.last_scan)::float8 AS scan_age_s,
       coalesce(jsonb_array_length(w.gaps), 0) AS gaps,
       (SELECT ((facts ->> 'newest_ms')::float8 - (facts ->> 'oldest_ms')::float8)
               / 1000 / (row_count - 1)
          FROM scans s JOIN scan_pages p ON p.scan_id = s.id AND p.page = 0
         WHERE s.query = q.query AND s.selection_hash = q.selection_hash
           AND p.facts IS NOT NULL AND p.row_count > 1
         ORDER BY s.id DESC LIMIT 1) AS usual_pause_s
  FROM unnest(%s::text[], %s::text[]) AS q (query, selection_hash)
  LEFT JOIN (SELECT *, now() + keepa_ahead_ms * interval '1 ms' AS keepa_now FROM watermarks) w
       USING (query, selection_hash)
"""

OPEN_PAGES: Final[LiteralString] = """
SELECT count(*) FILTER (WHERE p.state = 'ready') AS ready,
       count(*) FILTER (WHERE p.state = 'claimed') AS claimed,
       (SELECT count(*) FROM scan_pages WHERE state = 'dead') AS dead
  FROM scan_pages p JOIN scans s ON s.id = p.scan_id
 WHERE s.state = 'running' AND p.state IN ('ready', 'claimed')
"""

# A sum over a moving hour: pruned scans don't make it fall. Its pages are found by an index.
READ: Final[LiteralString] = """
SELECT q.query, coalesce(sum(p.row_count), 0)::bigint AS rows,
       coalesce(sum(p.new_deals), 0)::bigint AS new_deals,
       coalesce(sum(p.tokens), 0)::bigint AS tokens
  FROM unnest(%s::text[]) AS q (query)
  LEFT JOIN (SELECT s.query, p.row_count, p.new_deals, p.tokens
               FROM scan_pages p JOIN scans s ON s.id = p.scan_id
              WHERE p.done_at > now() - interval '1 hour') p USING (query)
 GROUP BY q.query
"""

ALL_DEALS: Final[LiteralString] = "SELECT FROM deals"
# The oldest is the next that `dealfetcher prune` deletes.
STORED: Final[LiteralString] = """
SELECT count(*) AS deals, extract(epoch FROM now() - min(reply_time))::float8 AS oldest_age_s,
       pg_database_size(current_database()) AS size_bytes
  FROM deals
"""
# The blocks of a sample are the same each time: the oldest deal grows older from one measurement
# to the next.
SAMPLED: Final[LiteralString] = "FROM deals TABLESAMPLE SYSTEM (%(percent)s) REPEATABLE (1)"
# So many rows are counted within some hundred milliseconds.
COUNTED_MAX: Final = 300_000
# Of more deals, so many are looked at for the oldest: they are wide, and stand on some thousand
# pages of the disk.
SAMPLE: Final = 30_000

# After three missed beats in a row a process counts as gone.
FETCHERS: Final[LiteralString] = """
SELECT count(*) FROM workers WHERE seen_at > now() - %s * interval '1 second'
"""

NOTHING: Final[LiteralString] = "SELECT 1"


@dataclass(frozen=True, slots=True)
class QueryProgress:
    """How far a query has been read; ages in seconds, None for an event that never happened.

    ``usual_pause_s`` is the mean time between the deals of the first page last read; None
    with fewer than two deals.
    """

    query: str
    newest_deal_age_s: float | None
    watermark_age_s: float | None
    scan_age_s: float | None
    gaps: int
    usual_pause_s: float | None


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Pages of running scans that are still to be read, and pages given up."""

    ready: int
    claimed: int
    dead: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The deals stored, the age of the one last served longest ago, and the database's size.

    In a large database the number is Postgres' estimate, and the age that of a sample.
    """

    deals: int
    oldest_age_s: float | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HourRead:
    """The pages read of a query within the last hour, in sums."""

    query: str
    rows: int
    new_deals: int
    tokens: int


def measure_progress(connection: Connection, queries: Sequence[DealQuery]) -> list[QueryProgress]:
    """Returns how far each of *queries* has been read with its present selection."""
    names = [query.name for query in queries]
    hashes = [query.selection_hash for query in queries]
    with connection.cursor(row_factory=class_row(QueryProgress)) as cursor:
        return cursor.execute(PROGRESS, (names, hashes)).fetchall()


def measure_pages(connection: Connection) -> PageCounts:
    """Counts the pages by what is still to be done about them."""
    with connection.cursor(row_factory=class_row(PageCounts)) as cursor:
        counts = cursor.execute(OPEN_PAGES).fetchone()
    assert counts is not None
    return counts


def measure_reading(connection: Connection, queries: Sequence[DealQuery]) -> list[HourRead]:
    """Returns what was read of each of *queries* within the last hour."""
    with connection.cursor(row_factory=class_row(HourRead)) as cursor:
        return cursor.execute(READ, ([query.name for query in queries],)).fetchall()


def measure_stored(connection: Connection, *, counted_max: int = COUNTED_MAX) -> Stored:
    """Measures what the database holds; beyond *counted_max* deals it estimates."""
    deals = planned_rows(connection, ALL_DEALS, {})
    sampled = deals > counted_max
    statement = STORED.replace("FROM deals", SAMPLED) if sampled else STORED
    values = {"percent": 100 * min(SAMPLE, counted_max) / deals} if sampled else {}
    with connection.cursor(row_factory=class_row(Stored)) as cursor:
        stored = cursor.execute(statement, values).fetchone()
    assert stored is not None
    return replace(stored, deals=deals) if sampled else stored


def count_fetchers(connection: Connection, *, silent_s: float) -> int:
    """Counts the processes that have reported within *silent_s* seconds."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return int(cursor.execute(FETCHERS, (silent_s,)).fetchone() or 0)


def ask_nothing(connection: Connection) -> None:
    """Makes one round trip to Postgres; its time is the latency of every statement."""
    connection.execute(NOTHING)
