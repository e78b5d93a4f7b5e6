"""Price history: one row per product, price type and moment at which the value changed.

Triggers of the tables write it for deals; see migrations/0007.console.sql.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts
from fetcher.postgres.deals import as_jsonb
from fetcher.replies.history import PricePoint

Source = Literal["product", "import"]

# Keepa's own times of changes; what is stored of a moment stays.
INSERT: Final[LiteralString] = """
INSERT INTO price_history (domain_id, asin, price_type, time, value, source)
SELECT DISTINCT ON (r.domain_id, r.asin, r.price_type, r.time_ms)
       r.domain_id, r.asin, r.price_type, to_timestamp(r.time_ms / 1000.0), r.value, %(source)s
  FROM jsonb_to_recordset(%(points)s) AS r (
       domain_id smallint, asin text, price_type smallint, time_ms bigint, value bigint)
 ORDER BY r.domain_id, r.asin, r.price_type, r.time_ms
ON CONFLICT DO NOTHING
"""

HISTORY: Final[LiteralString] = """
SELECT price_type, time, value, low, high, source FROM price_history
 WHERE domain_id = %(domain_id)s AND asin = %(asin)s
   AND price_type = ANY(%(price_types)s)
 ORDER BY price_type, time
"""

WITH_HISTORY: Final[LiteralString] = """
SELECT domain_id, raw FROM products WHERE jsonb_typeof(raw -> 'csv') = 'array'
 ORDER BY domain_id, asin
"""


def write_points(connection: Connection, points: Sequence[PricePoint], *, source: Source) -> int:
    """Writes *points*, each once; returns how many were new. Safe to repeat."""
    if not points:
        return 0
    rows = [
        {
            "domain_id": point.domain_id,
            "asin": point.asin,
            "price_type": point.price_type,
            "time_ms": point.time_ms,
            "value": point.value,
        }
        for point in points
    ]
    return connection.execute(INSERT, {"points": as_jsonb(rows), "source": source}).rowcount


def price_history(
    connection: Connection, domain_id: int, asin: str, price_types: Sequence[int]
) -> list[Row]:
    """Returns the history of some prices of a product, the oldest first."""
    values = {"domain_id": domain_id, "asin": asin, "price_types": list(price_types)}
    return fetch_dicts(connection, HISTORY, values)


def stored_products(
    connection: Connection, *, batch: int = 50
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the stored products that have histories, with their sites."""
    with connection.cursor(name="products_with_history") as cursor:
        cursor.itersize = batch
        cursor.execute(WITH_HISTORY)
        yield from cursor
