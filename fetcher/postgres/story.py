"""Everything that is stored about one product."""

from typing import Final, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts

LISTING: Final[LiteralString] = """
SELECT domain_id, asin, title, rank, rating, reviews, new_offers, used_offers, amazon_minor,
       buy_box_minor, root_category, image, last_update, reply_time, first_seen
  FROM listings WHERE asin = %(asin)s ORDER BY domain_id
"""

DEAL: Final[LiteralString] = """
SELECT domain_id, asin, price_type, price_minor, value, condition,
       creation_time, last_update, reply_time, first_seen
  FROM deals WHERE asin = %(asin)s ORDER BY domain_id, price_type
"""

CHANGES: Final[LiteralString] = """
SELECT domain_id, reply_time, price_type, changes FROM deal_changes
 WHERE asin = %(asin)s ORDER BY id DESC LIMIT %(changes)s
"""

VERDICTS: Final[LiteralString] = """
SELECT query, domain_id, price_type, stage, state, failures, date_range, average_minor,
       drop_minor, drop_percent, profit_minor, roi_percent, profit, rule_version, reply_time,
       judged_at, scan_id
  FROM verdicts WHERE asin = %(asin)s ORDER BY query, domain_id, price_type, stage
"""

PRODUCT: Final[LiteralString] = """
SELECT domain_id, state, operation, attempts, error, wanted_at, reply_time, last_update
  FROM products WHERE asin = %(asin)s ORDER BY domain_id
"""


def product_story(connection: Connection, asin: str, *, changes: int) -> dict[str, list[Row]]:
    """Returns listings, deals, every verdict, the details' state and the newest *changes*."""
    values = {"asin": asin, "changes": changes}
    return {
        "listings": fetch_dicts(connection, LISTING, values),
        "deals": fetch_dicts(connection, DEAL, values),
        "verdicts": fetch_dicts(connection, VERDICTS, values),
        "details": fetch_dicts(connection, PRODUCT, values),
        "changes": fetch_dicts(connection, CHANGES, values),
    }
