"""Marks: products that a person has ignored or bought; they leave the grid and the alerts."""

from collections.abc import Sequence
from typing import Final, Literal, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts

Mark = Literal["ignored", "bought"]
MARKS: Final[tuple[Mark, ...]] = ("ignored", "bought")

SET: Final[LiteralString] = """
INSERT INTO marks (domain_id, asin, mark, marked_by) VALUES (%s, %s, %s, %s)
ON CONFLICT (domain_id, asin) DO UPDATE SET
    mark = EXCLUDED.mark, marked_by = EXCLUDED.marked_by, marked_at = now()
"""

REMOVE: Final[LiteralString] = "DELETE FROM marks WHERE domain_id = %s AND asin = %s"

# The place is the time and key of the last row shown.
LIST: Final[LiteralString] = """
SELECT m.domain_id, m.asin, m.mark, m.marked_by, m.marked_at, l.title
  FROM marks m LEFT JOIN listings l USING (domain_id, asin)
 WHERE (%(mark)s::text IS NULL OR m.mark = %(mark)s)
   AND (%(before)s::timestamptz IS NULL OR m.marked_at < %(before)s)
 ORDER BY m.marked_at DESC, m.domain_id, m.asin LIMIT %(limit)s
"""

MARKED: Final[LiteralString] = "SELECT asin FROM marks WHERE domain_id = %s AND asin = ANY(%s)"

OF_PRODUCT: Final[LiteralString] = """
SELECT domain_id, mark, marked_by, marked_at FROM marks WHERE asin = %(asin)s
"""


def set_mark(connection: Connection, domain_id: int, asin: str, mark: Mark, *, by: str) -> None:
    """Marks a product, or changes its mark."""
    connection.execute(SET, (domain_id, asin, mark, by))


def remove_mark(connection: Connection, domain_id: int, asin: str) -> None:
    """Takes the mark off a product."""
    connection.execute(REMOVE, (domain_id, asin))


def list_marks(
    connection: Connection, *, mark: Mark | None, before: str | None, limit: int
) -> list[Row]:
    """Returns marks, the newest first, older than *before* (ISO 8601) if given."""
    return fetch_dicts(connection, LIST, {"mark": mark, "before": before, "limit": limit})


def marks_of(connection: Connection, asin: str) -> dict[int, Row]:
    """Returns the marks of a product by site."""
    rows = fetch_dicts(connection, OF_PRODUCT, {"asin": asin})
    return {row["domain_id"]: row for row in rows}


def marked_asins(connection: Connection, domain_id: int, asins: Sequence[str]) -> set[str]:
    """Returns those of *asins* that are marked."""
    return {str(asin) for (asin,) in connection.execute(MARKED, (domain_id, list(asins)))}
