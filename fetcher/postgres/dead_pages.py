"""Pages that were put aside: listing and requeueing them."""

from typing import Final, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts

DEAD: Final[LiteralString] = """
SELECT p.scan_id, p.page, s.query, s.kind, p.attempts, p.error, s.started_at,
       s.state AS scan_state
  FROM scan_pages p JOIN scans s ON s.id = p.scan_id
 WHERE p.state = 'dead'
 ORDER BY p.scan_id DESC, p.page
 LIMIT %(limit)s
"""

# A scan goes on only if no newer one of its kind reads the same rows anyway.
REOPEN_SCANS: Final[LiteralString] = """
UPDATE scans s
   SET state = 'running', end_reason = CASE WHEN end_page IS NULL THEN NULL ELSE end_reason END,
       ended_at = NULL
 WHERE s.state = 'abandoned'
   AND s.id IN (SELECT max(d.id) FROM scans d JOIN scan_pages p ON p.scan_id = d.id
                 WHERE p.state = 'dead' AND (%(scan_id)s::bigint IS NULL
                                             OR d.id = %(scan_id)s)
                 GROUP BY d.query, d.selection_hash, d.kind)
   AND NOT EXISTS (SELECT FROM scans r
                    WHERE r.query = s.query AND r.selection_hash = s.selection_hash
                      AND r.kind = s.kind AND r.id > s.id
                      AND r.state IN ('running', 'completed'))
RETURNING s.id
"""

REQUEUE: Final[LiteralString] = """
UPDATE scan_pages SET state = 'ready', attempts = 0, not_before = now()
 WHERE scan_id = ANY(%s) AND state IN ('dead', 'dropped')
RETURNING scan_id, page
"""

# A newer scan has read or reads the rows of these pages.
DROP: Final[LiteralString] = """
UPDATE scan_pages SET state = 'dropped'
 WHERE state = 'dead' AND (%(scan_id)s::bigint IS NULL OR scan_id = %(scan_id)s)
RETURNING scan_id, page
"""

PRODUCTS: Final[LiteralString] = """
UPDATE products SET state = 'wanted', attempts = 0, not_before = now() WHERE state = 'dead'
RETURNING asin
"""


def list_dead(connection: Connection, *, limit: int) -> list[Row]:
    """Returns the pages that failed too often, the newest first."""
    return fetch_dicts(connection, DEAD, {"limit": limit})


def requeue(connection: Connection, scan_id: int | None) -> tuple[int, int, int]:
    """Requeues the dead pages of one scan, or of all scans and the dead products too.

    Returns the numbers of pages requeued, of pages dropped because a newer scan has
    read their rows, and of products requeued.
    """
    values = {"scan_id": scan_id}
    scans = [row[0] for row in connection.execute(REOPEN_SCANS, values)]
    requeued = len(connection.execute(REQUEUE, (scans,)).fetchall())
    dropped = len(connection.execute(DROP, values).fetchall())
    products = 0 if scan_id is not None else len(connection.execute(PRODUCTS).fetchall())
    return requeued, dropped, products
