"""Everything that is known of one product."""

from typing import Any, Final, LiteralString

from psycopg.rows import dict_row

from fetcher.postgres.database import Connection

Row = dict[str, Any]

LISTING: Final[LiteralString] = """
SELECT domain_id, asin, title, rank, rating, reviews, new_offers, used_offers, amazon_minor,
       buy_box_minor, root_category, image, last_update, reply_time, first_seen
  FROM listings WHERE asin = %s ORDER BY domain_id
"""

DEAL: Final[LiteralString] = """
SELECT domain_id, asin, price_type, price_minor, value, condition,
       creation_time, last_update, reply_time, first_seen
  FROM deals WHERE asin = %s ORDER BY domain_id, price_type
"""

CHANGES: Final[LiteralString] = """
SELECT domain_id, reply_time, price_type, changes FROM deal_changes
 WHERE asin = %s ORDER BY id DESC LIMIT %s
"""

VERDICTS: Final[LiteralString] = """
SELECT query, domain_id, price_type, stage, state, failures, date_range, average_minor,
       drop_minor, drop_percent, profit_minor, roi_percent, profit, rule_version, reply_time,
       judged_at, scan_id
  FROM verdicts WHERE asin = %s ORDER BY query, domain_id, price_type, stage
"""

PRODUCT: Final[LiteralString] = """
SELECT domain_id, state, operation, attempts, error, wanted_at, reply_time, last_update
  FROM products WHERE asin = %s ORDER BY domain_id
"""


def tell_story(connection: Connection, asin: str, *, changes: int) -> dict[str, list[Row]]:
    """What is stored: listings and deals, every verdict, details' state, newest *changes*."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return {
            "listings": cursor.execute(LISTING, (asin,)).fetchall(),
            "deals": cursor.execute(DEAL, (asin,)).fetchall(),
            "verdicts": cursor.execute(VERDICTS, (asin,)).fetchall(),
            "details": cursor.execute(PRODUCT, (asin,)).fetchall(),
            "changes": cursor.execute(CHANGES, (asin, changes)).fetchall(),
        }
