"""How far each query has been read, per selection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, instant, unix_ms
from fetcher.postgres.records import GAPS, YIELD, to_jsonb
from fetcher.queries.query import DealQuery
from fetcher.scans.intervals import Yield
from fetcher.scans.page_facts import PageFacts
from fetcher.scans.plan import Progress, ScanKind

ENSURE: Final[LiteralString] = """
INSERT INTO watermarks (query, selection_hash) VALUES (%s, %s) ON CONFLICT DO NOTHING
"""

LOCK: Final[LiteralString] = """
SELECT watermark, last_scan, last_read, last_full, gaps
  FROM watermarks WHERE query = %s AND selection_hash = %s FOR UPDATE
"""

STORE: Final[LiteralString] = """
UPDATE watermarks
   SET moved_at = CASE WHEN watermark IS DISTINCT FROM %(watermark)s THEN now()
                       ELSE moved_at END,
       watermark = %(watermark)s, last_scan = %(last_scan)s, last_read = %(last_read)s,
       last_full = %(last_full)s, gaps = %(gaps)s
 WHERE query = %(query)s AND selection_hash = %(selection_hash)s
"""

OBSERVE_YIELD: Final[LiteralString] = """
UPDATE watermarks SET polling = %s WHERE query = %s AND selection_hash = %s
"""

YIELDED: Final[LiteralString] = """
SELECT polling FROM watermarks WHERE query = %s AND selection_hash = %s
"""

KEEPA_NOW: Final[LiteralString] = """
SELECT (extract(epoch FROM now()) * 1000)::bigint + keepa_ahead_ms
  FROM watermarks WHERE query = %s AND selection_hash = %s
"""

NOTE_FRESHNESS: Final[LiteralString] = """
UPDATE watermarks
   SET newest_deal = %s, newest_seen = %s,
       keepa_ahead_ms = (extract(epoch FROM %s - now()) * 1000)::bigint
 WHERE query = %s AND selection_hash = %s
"""

# Times are shifted to Keepa's clock: all times of a scan are by it.
STANDINGS: Final[LiteralString] = """
SELECT q.query, w.watermark, w.last_scan, w.last_read, w.last_full, coalesce(w.gaps, '[]'),
       w.polling, (extract(epoch FROM now()) * 1000)::bigint + coalesce(w.keepa_ahead_ms, 0),
       coalesce((SELECT array_agg(kind) FROM scans s
                  WHERE s.query = q.query AND s.selection_hash = q.selection_hash
                    AND s.state = 'running'), '{}'),
       greatest(1, (SELECT count(*) FROM scan_pages p
                     WHERE p.state = 'done'
                       AND p.scan_id = (SELECT max(id) FROM scans s
                                         WHERE s.query = q.query AND s.state = 'completed'
                                           AND s.selection_hash = q.selection_hash
                                           AND NOT s.background)))
  FROM unnest(%s::text[], %s::text[]) AS q (query, selection_hash)
  LEFT JOIN watermarks w USING (query, selection_hash)
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a query; *now_ms* estimates Keepa's clock.

    *last_pages* is the number of pages of its last scan in the foreground, at least one.
    """

    progress: Progress
    yields: Yield
    running: frozenset[ScanKind]
    now_ms: int
    last_pages: int


def standings(connection: Connection, queries: Sequence[DealQuery]) -> dict[str, Standing]:
    """Returns the standing of each of *queries*, by name, without a lock."""
    names = [query.name for query in queries]
    hashes = [query.selection_hash for query in queries]
    return {
        row[0]: Standing(
            progress=_progress(row[1:6]),
            yields=Yield() if row[6] is None else YIELD.validate_python(row[6]),
            now_ms=int(row[7]),
            running=frozenset(row[8]),
            last_pages=int(row[9]),
        )
        for row in connection.execute(STANDINGS, (names, hashes))
    }


def lock_progress(connection: Connection, query: str, selection_hash: str) -> Progress:
    """Returns the progress of a query, locked until the transaction ends."""
    connection.execute(ENSURE, (query, selection_hash))
    row = connection.execute(LOCK, (query, selection_hash)).fetchone()
    assert row is not None
    return _progress(row)


def store_progress(
    connection: Connection, query: str, selection_hash: str, progress: Progress
) -> None:
    """Writes *progress*; the same transaction must have locked it."""
    connection.execute(
        STORE,
        {
            "query": query,
            "selection_hash": selection_hash,
            "watermark": instant(progress.watermark_ms),
            "last_scan": instant(progress.last_scan_ms),
            "last_read": instant(progress.last_read_ms),
            "last_full": instant(progress.last_full_ms),
            "gaps": to_jsonb(GAPS, progress.gaps),
        },
    )


def note_freshness(
    connection: Connection, query: str, selection_hash: str, first_page: PageFacts
) -> None:
    """Stores the age of the newest deal, and Keepa's clock."""
    seen = instant(first_page.server_ms)
    values = (instant(first_page.newest_ms), seen, seen, query, selection_hash)
    connection.execute(ENSURE, (query, selection_hash))
    connection.execute(NOTE_FRESHNESS, values)


def observe_yield(
    connection: Connection, query: str, selection_hash: str, *, deals: int, elapsed_ms: int
) -> None:
    """Stores that *deals* have appeared within *elapsed_ms*."""
    row = connection.execute(YIELDED, (query, selection_hash)).fetchone()
    before = Yield() if row is None or row[0] is None else YIELD.validate_python(row[0])
    after = to_jsonb(YIELD, before.observe(deals, elapsed_ms))
    connection.execute(OBSERVE_YIELD, (after, query, selection_hash))


def keepa_now_ms(connection: Connection, query: str, selection_hash: str) -> int:
    """Estimates Keepa's clock, in Unix ms; the progress must have been locked."""
    row = connection.execute(KEEPA_NOW, (query, selection_hash)).fetchone()
    assert row is not None
    return int(row[0])


def _progress(row: Sequence[object]) -> Progress:
    watermark, last_scan, last_read, last_full, gaps = row
    return Progress(
        watermark_ms=unix_ms(watermark),
        last_scan_ms=unix_ms(last_scan),
        last_read_ms=unix_ms(last_read),
        last_full_ms=unix_ms(last_full),
        gaps=GAPS.validate_python(gaps),
    )
