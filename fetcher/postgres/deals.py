"""Deals: the newest price of each type of each product, what they share, and their history."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from fetcher.postgres.database import Connection, instant
from fetcher.replies.deals import Deal
from fetcher.replies.record import storable
from fetcher.replies.units import is_price

_compact = partial(json.dumps, separators=(",", ":"))

# A late reply must not overwrite a newer one. The newer one is the one updated
# last, then the one served last; a lastUpdate from the future (a few run ahead of
# Keepa's clock) counts at most ten minutes, or it would stay for good.
UPSERT_LISTING: Final[LiteralString] = """
INSERT INTO listings (
    domain_id, asin, title, parent_asin, root_category, categories, image, amazon_minor,
    buy_box_minor, rank, rating, reviews, new_offers, used_offers, rank_drops_30,
    rank_drops_90, last_update, reply_time)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (domain_id, asin) DO UPDATE SET
    title = EXCLUDED.title, parent_asin = EXCLUDED.parent_asin,
    root_category = EXCLUDED.root_category, categories = EXCLUDED.categories,
    image = EXCLUDED.image, amazon_minor = EXCLUDED.amazon_minor,
    buy_box_minor = EXCLUDED.buy_box_minor, rank = EXCLUDED.rank, rating = EXCLUDED.rating,
    reviews = EXCLUDED.reviews, new_offers = EXCLUDED.new_offers,
    used_offers = EXCLUDED.used_offers, rank_drops_30 = EXCLUDED.rank_drops_30,
    rank_drops_90 = EXCLUDED.rank_drops_90, last_update = EXCLUDED.last_update,
    reply_time = EXCLUDED.reply_time
WHERE (least(coalesce(listings.last_update, '-infinity'),
             listings.reply_time + interval '10 min'),
       listings.reply_time)
   <= (least(coalesce(EXCLUDED.last_update, '-infinity'),
             EXCLUDED.reply_time + interval '10 min'),
       EXCLUDED.reply_time)
"""

UPSERT_DEAL: Final[LiteralString] = """
INSERT INTO deals (
    domain_id, asin, price_type, price_minor, value, last_drop_minor, condition, last_update,
    creation_time, price_since, lightning_start, lightning_end, raw, reply_time)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (domain_id, asin, price_type) DO UPDATE SET
    price_minor = EXCLUDED.price_minor, value = EXCLUDED.value,
    last_drop_minor = EXCLUDED.last_drop_minor, condition = EXCLUDED.condition,
    last_update = EXCLUDED.last_update, creation_time = EXCLUDED.creation_time,
    price_since = EXCLUDED.price_since, lightning_start = EXCLUDED.lightning_start,
    lightning_end = EXCLUDED.lightning_end, raw = EXCLUDED.raw, reply_time = EXCLUDED.reply_time
WHERE (least(coalesce(deals.last_update, '-infinity'), deals.reply_time + interval '10 min'),
       deals.reply_time)
   <= (least(coalesce(EXCLUDED.last_update, '-infinity'),
             EXCLUDED.reply_time + interval '10 min'),
       EXCLUDED.reply_time)
"""

KNOWN_ASINS: Final[LiteralString] = """
SELECT asin FROM deals WHERE domain_id = %s AND asin = ANY(%s) AND price_type = %s
"""


def known_asins(
    connection: Connection, domain_id: int, price_type: int, asins: Sequence[str]
) -> set[str]:
    """Those of *asins* whose price of this type has been seen before."""
    values = (domain_id, list(asins), price_type)
    return {asin for (asin,) in connection.execute(KNOWN_ASINS, values)}


def upsert_deals(connection: Connection, deals: Sequence[Deal], *, reply_time_ms: int) -> None:
    """Write *deals* as served at *reply_time_ms*; safe to repeat, in any order.

    Listings before deals and both sorted by key, so that two writers never wait for each
    other in a circle. Sent as one pipeline: as fast as COPY into a temporary table and a
    merge.
    """
    if deals:
        ordered = sorted(deals, key=lambda deal: (deal.domain_id, deal.asin, deal.price_type))
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.executemany(
                UPSERT_LISTING, [listing_row(deal, reply_time_ms) for deal in ordered]
            )
            cursor.executemany(UPSERT_DEAL, [deal_row(deal, reply_time_ms) for deal in ordered])


def listing_row(deal: Deal, reply_time_ms: int) -> tuple[Any, ...]:
    """What *deal* says of its product, in the order of the statement."""
    return (
        deal.domain_id,
        deal.asin,
        deal.title,
        deal.parent_asin,
        deal.root_category,
        list(deal.categories),
        deal.image,
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
        instant(reply_time_ms),
    )


def deal_row(deal: Deal, reply_time_ms: int) -> tuple[Any, ...]:
    """The values of one deal, in the order of the statement."""
    return (
        deal.domain_id,
        deal.asin,
        deal.price_type,
        deal.price_minor,
        None if is_price(deal.price_type) else deal.value,
        deal.last_drop_minor,
        deal.condition,
        instant(deal.last_update_ms),
        instant(deal.creation_ms),
        instant(deal.price_since_ms),
        instant(deal.lightning_start_ms),
        instant(deal.lightning_end_ms),
        as_jsonb(deal.raw),
        instant(reply_time_ms),
    )


def as_jsonb(value: Mapping[str, object] | Sequence[object]) -> Jsonb:
    """*value* as a jsonb parameter, without what Postgres can't store."""
    return Jsonb(storable(value), dumps=_compact)
