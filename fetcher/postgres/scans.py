"""Scans: runs through the pages of one query."""

from dataclasses import dataclass
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, instant
from fetcher.postgres.deals import as_jsonb
from fetcher.postgres.records import PLAN, to_jsonb
from fetcher.queries.query import DealQuery
from fetcher.scans.plan import EndReason, ScanPlan

START: Final[LiteralString] = """
INSERT INTO scans (query, selection_hash, selection, sort_type, kind, background, plan)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (query, selection_hash, kind) WHERE state = 'running' DO NOTHING
RETURNING id
"""

LOCK: Final[LiteralString] = """
SELECT query, selection_hash, plan, state, end_page, end_reason, unordered_page
  FROM scans WHERE id = %s FOR UPDATE
"""

SET_END: Final[LiteralString] = """
UPDATE scans SET end_page = %s, end_reason = %s WHERE id = %s
"""

NOTE_UNORDERED: Final[LiteralString] = """
UPDATE scans SET unordered_page = least(unordered_page, %s) WHERE id = %s
"""

CLOSE: Final[LiteralString] = """
UPDATE scans
   SET state = %s, end_reason = coalesce(%s, end_reason), watermark = %s, ended_at = now()
 WHERE id = %s
"""

# Left behind when a query was changed or removed while it was read.
FORGOTTEN: Final[LiteralString] = """
UPDATE scans SET state = 'abandoned', end_reason = 'not continued', ended_at = now()
 WHERE state = 'running' AND started_at < now() - interval '1 day'
   AND NOT EXISTS (SELECT FROM scan_pages p
                    WHERE p.scan_id = scans.id
                      AND greatest(p.done_at, p.claim_expires) > now() - interval '1 day')
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan, locked by a page's commit.

    ``unordered_page`` is the first page read with rows that don't come newest first.
    """

    id: int
    query: str
    selection_hash: str
    plan: ScanPlan
    is_running: bool
    end_page: int | None
    end_reason: EndReason | None
    unordered_page: int | None

    def is_orderly_before(self, page: int) -> bool:
        """Returns whether the rows of all pages read before *page* come newest first."""
        return self.unordered_page is None or self.unordered_page >= page


def start_scan(connection: Connection, query: DealQuery, plan: ScanPlan) -> int | None:
    """Starts a scan of *query*; None if one of its kind is already running."""
    row = connection.execute(
        START,
        (
            query.name,
            query.selection_hash,
            as_jsonb(query.page_selection(plan.first_page)),
            query.sort_type,
            plan.kind,
            plan.in_background,
            to_jsonb(PLAN, plan),
        ),
    ).fetchone()
    return None if row is None else int(row[0])


def lock_scan(connection: Connection, scan_id: int) -> Scan:
    """Returns the scan, locked until the transaction ends: its pages' commits take turns."""
    row = connection.execute(LOCK, (scan_id,)).fetchone()
    assert row is not None
    return Scan(
        id=scan_id,
        query=row[0],
        selection_hash=row[1],
        plan=PLAN.validate_python(row[2]),
        is_running=row[3] == "running",
        end_page=row[4],
        end_reason=row[5],
        unordered_page=row[6],
    )


def set_end(connection: Connection, scan_id: int, page: int, reason: EndReason) -> None:
    """Stores that *page* ends the scan; pages before it may still be missing."""
    connection.execute(SET_END, (page, reason, scan_id))


def note_unordered(connection: Connection, scan_id: int, page: int) -> None:
    """Stores that the rows of *page* don't come newest first."""
    connection.execute(NOTE_UNORDERED, (page, scan_id))


def complete_scan(connection: Connection, scan_id: int, watermark_ms: int | None) -> None:
    """Closes the scan as completed: all its pages have been committed."""
    connection.execute(CLOSE, ("completed", None, instant(watermark_ms), scan_id))


def abandon_scan(connection: Connection, scan_id: int, reason: str) -> None:
    """Closes the scan as abandoned: it can't be finished."""
    connection.execute(CLOSE, ("abandoned", reason, None, scan_id))


def abandon_forgotten(connection: Connection) -> int:
    """Closes scans that no process has continued for a day; returns how many."""
    return len(connection.execute(FORGOTTEN).fetchall())
