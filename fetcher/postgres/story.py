"""Everything that is stored about one product."""

from collections.abc import Sequence
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, Row, fetch_dicts
from fetcher.replies.units import DOMAINS

LISTING: Final[LiteralString] = """
SELECT domain_id, asin, title, rank, rating, reviews, new_offers, used_offers, amazon_minor,
       buy_box_minor, root_category, image, last_update, reply_time, first_seen
  FROM listings WHERE domain_id = ANY(%(domains)s) AND asin = %(asin)s
 ORDER BY domain_id
"""

DEAL: Final[LiteralString] = """
SELECT domain_id, asin, price_type, price_minor, value, condition,
       creation_time, last_update, reply_time, first_seen
  FROM deals WHERE domain_id = ANY(%(domains)s) AND asin = %(asin)s
 ORDER BY domain_id, price_type
"""

CHANGES: Final[LiteralString] = """
SELECT domain_id, reply_time, price_type, changes FROM deal_changes
 WHERE domain_id = ANY(%(domains)s) AND asin = %(asin)s
 ORDER BY id DESC LIMIT %(changes)s
"""

VERDICTS: Final[LiteralString] = """
SELECT query, domain_id, price_type, stage, state, failures, date_range, average_minor,
       drop_minor, drop_percent, profit_minor, roi_percent, profit, rule_version, reply_time,
       judged_at, scan_id
  FROM verdicts WHERE domain_id = ANY(%(domains)s) AND asin = %(asin)s
 ORDER BY query, domain_id, price_type, stage
"""

PRODUCT: Final[LiteralString] = """
SELECT domain_id, state, operation, attempts, error, wanted_at, reply_time, last_update
  FROM products WHERE domain_id = ANY(%(domains)s) AND asin = %(asin)s
 ORDER BY domain_id
"""


def product_story(
    connection: Connection, asin: str, *, changes: int, domains: Sequence[int] = tuple(DOMAINS)
) -> dict[str, list[Row]]:
    """Returns listings, deals, every verdict, the details' state and the newest *changes*.

    Keys begin with the site: to name all of them is what makes the search fast.
    """
    values = {"asin": asin, "changes": changes, "domains": list(domains)}
    return {
        "listings": fetch_dicts(connection, LISTING, values),
        "deals": fetch_dicts(connection, DEAL, values),
        "verdicts": fetch_dicts(connection, VERDICTS, values),
        "details": fetch_dicts(connection, PRODUCT, values),
        "changes": fetch_dicts(connection, CHANGES, values),
    }
