"""Deals as stored, to be judged again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, unix_ms

JUDGED: Final[LiteralString] = """
SELECT d.asin, d.raw, d.reply_time
  FROM deals d
 WHERE d.domain_id = %(domain_id)s AND d.asin = ANY(%(asins)s)
   AND EXISTS (SELECT FROM verdicts v
                WHERE v.query = %(query)s AND v.domain_id = d.domain_id AND v.asin = d.asin)
 ORDER BY d.asin
"""

OUTDATED: Final[LiteralString] = """
SELECT d.asin, d.raw, d.reply_time
  FROM deals d
  JOIN verdicts v ON v.domain_id = d.domain_id AND v.asin = d.asin
 WHERE v.query = %s AND v.domain_id = %s AND v.rule_version <> %s
 ORDER BY d.asin
 LIMIT %s
"""

# One process at a time judges a query's deals again; it goes with the transaction.
TAKE_TURN: Final[LiteralString] = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"


@dataclass(frozen=True, slots=True)
class StoredDeal:
    """A deal's raw row, and Keepa's clock when it was served."""

    asin: str
    raw: Mapping[str, object]
    reply_time_ms: int


def deals_judged_by(
    connection: Connection, query: str, domain_id: int, asins: Sequence[str]
) -> list[StoredDeal]:
    """Those of *asins* on which *query* has a verdict."""
    values = {"query": query, "domain_id": domain_id, "asins": list(asins)}
    return [_stored(row) for row in connection.execute(JUDGED, values)]


def outdated_deals(
    connection: Connection, query: str, domain_id: int, rule_version: str, *, limit: int
) -> list[StoredDeal]:
    """Deals that *query* judged by other rules; none while another process is at it."""
    turn = connection.execute(TAKE_TURN, (query,)).fetchone()
    if turn is None or not turn[0]:
        return []
    rows = connection.execute(OUTDATED, (query, domain_id, rule_version, limit)).fetchall()
    return list({row[0]: _stored(row) for row in rows}.values())


def _stored(row: Sequence[object]) -> StoredDeal:
    asin, raw, reply_time = row
    assert isinstance(asin, str)
    assert isinstance(raw, dict)
    return StoredDeal(asin, raw, unix_ms(reply_time) or 0)
