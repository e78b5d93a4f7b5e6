"""Deletion of what Keepa has not served for long, unless collection itself stands still."""

from datetime import datetime, timedelta
from typing import Final, LiteralString

from fetcher.postgres.database import Connection

NEWEST: Final[LiteralString] = """
SELECT max(done_at), max(done_at) < now() - interval '24 hours' FROM scan_pages
"""

# In parts, so that writers never wait for long. A row that is served again meanwhile stays:
# Postgres checks the outer condition, and only that, again once it has locked the row.
DEALS: Final[LiteralString] = """
DELETE FROM deals WHERE reply_time < now() - %(age)s::interval AND ctid = ANY(ARRAY(
    SELECT ctid FROM deals WHERE reply_time < now() - %(age)s::interval
     ORDER BY domain_id, asin, price_type LIMIT 5000))
"""

# No deal was served later than its listing: its remaining deals, verdicts and details are
# deleted with it.
LISTINGS: Final[LiteralString] = """
DELETE FROM listings WHERE reply_time < now() - %(age)s::interval AND ctid = ANY(ARRAY(
    SELECT ctid FROM listings WHERE reply_time < now() - %(age)s::interval
     ORDER BY domain_id, asin LIMIT 5000))
"""

CHANGES: Final[LiteralString] = """
DELETE FROM deal_changes WHERE id IN (
    SELECT id FROM deal_changes WHERE reply_time < now() - %(age)s::interval
     ORDER BY id LIMIT 5000)
"""

SCANS: Final[LiteralString] = """
DELETE FROM scans WHERE id IN (
    SELECT id FROM scans WHERE state <> 'running' AND ended_at < now() - %(age)s::interval
     ORDER BY id LIMIT 100)
"""

STATEMENTS: Final = {"deals": DEALS, "listings": LISTINGS, "changes": CHANGES, "scans": SCANS}


def last_page(connection: Connection) -> tuple[datetime | None, bool]:
    """Returns when a page was last committed, and whether that is too old for deletions."""
    row = connection.execute(NEWEST).fetchone()
    assert row is not None
    return row[0], row[0] is None or bool(row[1])


def prune_some(connection: Connection, what: str, older_than: timedelta) -> int:
    """Deletes some rows last served longer ago than *older_than*; returns 0 if none is left."""
    return connection.execute(STATEMENTS[what], {"age": older_than}).rowcount
