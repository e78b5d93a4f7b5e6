"""Deletion of what Keepa has not served for long, unless collection itself stands still.

Price history is rolled up first, to one row a day, and deleted much later.
"""

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

# A day of old prices becomes one row: its last value, with the lowest and highest.
ROLL_UP: Final[LiteralString] = """
WITH days AS (
    SELECT domain_id, asin, price_type, date_trunc('day', time, 'UTC') AS day,
           min(time) AS first, (array_agg(value ORDER BY time DESC))[1] AS last,
           min(coalesce(low, value)) AS low, max(coalesce(high, value)) AS high
      FROM price_history
     WHERE time < date_trunc('day', now() - %(age)s::interval, 'UTC')
     GROUP BY 1, 2, 3, 4 HAVING count(*) > 1
     LIMIT 50000),
rolled AS (
    UPDATE price_history h SET value = d.last, low = d.low, high = d.high
      FROM days d
     WHERE h.domain_id = d.domain_id AND h.asin = d.asin AND h.price_type = d.price_type
       AND h.time = d.first)
DELETE FROM price_history h USING days d
 WHERE h.domain_id = d.domain_id AND h.asin = d.asin AND h.price_type = d.price_type
   AND h.time > d.first AND h.time < d.day + interval '1 day'
"""

OLD_PRICES: Final[LiteralString] = """
DELETE FROM price_history WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM price_history WHERE time < now() - %(age)s::interval LIMIT 50000))
"""

# Reports go with their message. What an alert remembers of a deal stays: no crossing is
# reported twice.
ALERTS: Final[LiteralString] = """
DELETE FROM alert_messages WHERE id = ANY(ARRAY(
    SELECT id FROM alert_messages
     WHERE state = 'delivered' AND delivered_at < now() - %(age)s::interval
        OR state = 'dead' AND created_at < now() - %(age)s::interval
     LIMIT 1000))
   AND state IN ('delivered', 'dead')
"""

STATEMENTS: Final = {
    "deals": DEALS,
    "listings": LISTINGS,
    "changes": CHANGES,
    "scans": SCANS,
    "prices": ROLL_UP,
}
HISTORY_STATEMENTS: Final = {"old_prices": OLD_PRICES}
ALERT_STATEMENTS: Final = {"alerts": ALERTS}


def last_page(connection: Connection) -> tuple[datetime | None, bool]:
    """Returns when a page was last committed, and whether that is too old for deletions."""
    row = connection.execute(NEWEST).fetchone()
    assert row is not None
    return row[0], row[0] is None or bool(row[1])


def prune_some(connection: Connection, what: str, older_than: timedelta) -> int:
    """Deletes some rows last served longer ago than *older_than*; returns 0 if none is left."""
    return connection.execute(
        (STATEMENTS | HISTORY_STATEMENTS | ALERT_STATEMENTS)[what], {"age": older_than}
    ).rowcount
