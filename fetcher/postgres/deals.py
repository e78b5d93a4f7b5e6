"""Deals: the newest row of each product, and their history."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from fetcher.postgres.database import Connection, instant
from fetcher.replies.deals import Deal

_compact = partial(json.dumps, separators=(",", ":"))

# A late reply must not overwrite a newer one. The newer one is the one updated
# last, then the one served last; a lastUpdate from the future (a few run ahead of
# Keepa's clock) counts at most ten minutes, or it would stay for good.
UPSERT_DEAL: Final[LiteralString] = """
INSERT INTO deals (
    domain_id, asin, price_type, date_range, title, parent_asin, root_category, categories,
    image, condition, price_minor, average_minor, drop_minor, drop_percent, last_drop_minor,
    amazon_minor, buy_box_minor, rank, rating, reviews, new_offers, used_offers,
    rank_drops_30, rank_drops_90, last_update, creation_time, price_since,
    lightning_start, lightning_end, raw, reply_time)
VALUES (
    %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,
    %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (domain_id, asin) DO UPDATE SET
    price_type = EXCLUDED.price_type, date_range = EXCLUDED.date_range,
    title = EXCLUDED.title, parent_asin = EXCLUDED.parent_asin,
    root_category = EXCLUDED.root_category, categories = EXCLUDED.categories,
    image = EXCLUDED.image, condition = EXCLUDED.condition,
    price_minor = EXCLUDED.price_minor, average_minor = EXCLUDED.average_minor,
    drop_minor = EXCLUDED.drop_minor, drop_percent = EXCLUDED.drop_percent,
    last_drop_minor = EXCLUDED.last_drop_minor, amazon_minor = EXCLUDED.amazon_minor,
    buy_box_minor = EXCLUDED.buy_box_minor, rank = EXCLUDED.rank, rating = EXCLUDED.rating,
    reviews = EXCLUDED.reviews, new_offers = EXCLUDED.new_offers,
    used_offers = EXCLUDED.used_offers, rank_drops_30 = EXCLUDED.rank_drops_30,
    rank_drops_90 = EXCLUDED.rank_drops_90, last_update = EXCLUDED.last_update,
    creation_time = EXCLUDED.creation_time, price_since = EXCLUDED.price_since,
    lightning_start = EXCLUDED.lightning_start, lightning_end = EXCLUDED.lightning_end,
    raw = EXCLUDED.raw, reply_time = EXCLUDED.reply_time
WHERE (least(coalesce(deals.last_update, '-infinity'), deals.reply_time + interval '10 min'),
       deals.reply_time)
   <= (least(coalesce(EXCLUDED.last_update, '-infinity'),
             EXCLUDED.reply_time + interval '10 min'),
       EXCLUDED.reply_time)
"""

KNOWN_ASINS: Final[LiteralString] = """
SELECT asin FROM deals WHERE domain_id = %s AND asin = ANY(%s)
"""


def known_asins(connection: Connection, domain_id: int, asins: Sequence[str]) -> set[str]:
    """Those of *asins* that have been seen before."""
    return {asin for (asin,) in connection.execute(KNOWN_ASINS, (domain_id, list(asins)))}


def upsert_deals(connection: Connection, deals: Iterable[Deal], *, reply_time_ms: int) -> None:
    """Write *deals* as served at *reply_time_ms*; safe to repeat, in any order.

    Sorted by key, so that two writers never wait for each other in a circle. Sent
    as one pipeline: as fast as COPY into a temporary table and a merge.
    """
    rows = sorted((deal_row(deal, reply_time_ms) for deal in deals), key=lambda row: row[:2])
    if rows:
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.executemany(UPSERT_DEAL, rows)


def deal_row(deal: Deal, reply_time_ms: int) -> tuple[Any, ...]:
    """The values of one row, in the order of the statement."""
    return (
        deal.domain_id,
        deal.asin,
        deal.price_type,
        deal.date_range,
        deal.title,
        deal.parent_asin,
        deal.root_category,
        list(deal.categories),
        deal.image,
        deal.condition,
        deal.price_minor,
        deal.average_minor,
        deal.drop_minor,
        deal.drop_percent,
        deal.last_drop_minor,
        deal.amazon_minor,
        deal.buy_box_minor,
        deal.rank,
        deal.rating,
        deal.reviews,
        deal.new_offers,
        deal.used_offers,
        deal.rank_drops_30,
        deal.rank_drops_90,
        instant(deal.last_update_ms),
        instant(deal.creation_ms),
        instant(deal.price_since_ms),
        instant(deal.lightning_start_ms),
        instant(deal.lightning_end_ms),
        as_jsonb(deal.raw),
        instant(reply_time_ms),
    )


def as_jsonb(value: Mapping[str, object] | Sequence[object]) -> Jsonb:
    """*value* as a jsonb parameter."""
    return Jsonb(value, dumps=_compact)
