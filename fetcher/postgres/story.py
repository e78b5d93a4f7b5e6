"""Everything that is known of one product."""

from typing import Any, Final, LiteralString

from psycopg.rows import dict_row

from fetcher.postgres.database import Connection

Row = dict[str, Any]

DEAL: Final[LiteralString] = """
SELECT domain_id, asin, title, price_type, price_minor, average_minor, drop_minor, drop_percent,
       rank, rating, reviews, new_offers, used_offers, amazon_minor, buy_box_minor, condition,
       creation_time, last_update, reply_time, first_seen
  FROM deals WHERE asin = %s ORDER BY domain_id
"""

CHANGES: Final[LiteralString] = """
SELECT domain_id, reply_time, price_type, changes FROM deal_changes
 WHERE asin = %s ORDER BY id DESC LIMIT %s
"""

VERDICTS: Final[LiteralString] = """
SELECT query, domain_id, stage, state, failures, profit_minor, roi_percent, profit,
       rule_version, reply_time, judged_at, scan_id
  FROM verdicts WHERE asin = %s ORDER BY query, domain_id, stage
"""

PRODUCT: Final[LiteralString] = """
SELECT domain_id, state, operation, attempts, error, wanted_at, reply_time, last_update
  FROM products WHERE asin = %s ORDER BY domain_id
"""


def tell_story(connection: Connection, asin: str, *, changes: int) -> dict[str, list[Row]]:
    """The product as stored, its newest *changes*, every verdict, its details' state."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return {
            "deals": cursor.execute(DEAL, (asin,)).fetchall(),
            "verdicts": cursor.execute(VERDICTS, (asin,)).fetchall(),
            "details": cursor.execute(PRODUCT, (asin,)).fetchall(),
            "changes": cursor.execute(CHANGES, (asin, changes)).fetchall(),
        }
