"""Stored deals, to be judged again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, unix_ms
from fetcher.queries.query import DealQuery

JUDGED: Final[LiteralString] = """
SELECT d.asin, d.raw, d.reply_time
  FROM deals d
 WHERE d.domain_id = %(domain_id)s AND d.asin = ANY(%(asins)s)
   AND d.price_type = %(price_type)s
   AND EXISTS (SELECT FROM verdicts v
                WHERE v.query = %(query)s AND v.domain_id = d.domain_id AND v.asin = d.asin
                  AND v.price_type = d.price_type)
 ORDER BY d.asin
"""

# A verdict holds the drop and average of its date range: a new range makes it outdated too.
OUTDATED: Final[LiteralString] = """
SELECT d.asin, d.raw, d.reply_time
  FROM deals d
  JOIN verdicts v USING (domain_id, asin, price_type)
 WHERE v.query = %(query)s AND v.domain_id = %(domain_id)s AND v.price_type = %(price_type)s
   AND (v.rule_version <> %(rule_version)s OR v.date_range IS DISTINCT FROM %(date_range)s)
 ORDER BY d.asin
 LIMIT %(limit)s
"""

# One process at a time judges a query's deals again; the lock ends with the transaction.
TAKE_TURN: Final[LiteralString] = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"


@dataclass(frozen=True, slots=True)
class StoredDeal:
    """A deal's raw row, and Keepa's clock when Keepa served it."""

    asin: str
    raw: Mapping[str, object]
    reply_time_ms: int


def deals_judged_by(
    connection: Connection, query: DealQuery, asins: Sequence[str]
) -> list[StoredDeal]:
    """Returns those of *asins* for which *query* has a verdict on the price."""
    values = {
        "query": query.name,
        "domain_id": query.domain_id,
        "price_type": query.price_type,
        "asins": list(asins),
    }
    return [_stored(row) for row in connection.execute(JUDGED, values)]


def outdated_deals(connection: Connection, query: DealQuery, *, limit: int) -> list[StoredDeal]:
    """Returns deals judged by other rules or for another date range than today's of *query*.

    Returns none while another process judges them again.
    """
    turn = connection.execute(TAKE_TURN, (query.name,)).fetchone()
    if turn is None or not turn[0]:
        return []
    values = {
        "query": query.name,
        "domain_id": query.domain_id,
        "price_type": query.price_type,
        "rule_version": query.rules.version,
        "date_range": query.date_range,
        "limit": limit,
    }
    rows = connection.execute(OUTDATED, values).fetchall()
    return list({row[0]: _stored(row) for row in rows}.values())


def _stored(row: Sequence[object]) -> StoredDeal:
    asin, raw, reply_time = row
    assert isinstance(asin, str)
    assert isinstance(raw, dict)
    return StoredDeal(asin, raw, unix_ms(reply_time) or 0)
