"""Deals: the newest price of each type of each product, what they share, and their history."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from fetcher.postgres.database import Connection, instant
from fetcher.replies.deals import Deal
from fetcher.replies.record import storable
from fetcher.replies.units import is_price

_compact = partial(json.dumps, separators=(",", ":"), allow_nan=False)

# NUL and surrogates, as JSON escapes them. Pairs of surrogates would be fine, but are rare.
_SUSPECT: Final = re.compile(r"\\u(?:0000|d[89a-f])")

# A late reply must not overwrite a newer one. The newer one was updated last, else served
# last. A lastUpdate from the future (a few run ahead of Keepa's clock) counts at most ten
# minutes: else its row would stay for good.
UPSERT_LISTINGS: Final[LiteralString] = """
INSERT INTO listings (
    domain_id, asin, title, parent_asin, root_category, categories, image, amazon_minor,
    buy_box_minor, rank, rating, reviews, new_offers, used_offers, rank_drops_30,
    rank_drops_90, last_update, reply_time)
SELECT r.*, %s FROM jsonb_to_recordset(%s) AS r (
    domain_id smallint, asin text, title text, parent_asin text, root_category bigint,
    categories bigint[], image text, amazon_minor bigint, buy_box_minor bigint, rank integer,
    rating smallint, reviews integer, new_offers integer, used_offers integer,
    rank_drops_30 integer, rank_drops_90 integer, last_update timestamptz)
 ORDER BY r.domain_id, r.asin
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

UPSERT_DEALS: Final[LiteralString] = """
INSERT INTO deals (
    domain_id, asin, price_type, price_minor, value, last_drop_minor, condition, last_update,
    creation_time, price_since, lightning_start, lightning_end, raw, reply_time)
SELECT r.*, %s FROM jsonb_to_recordset(%s) AS r (
    domain_id smallint, asin text, price_type smallint, price_minor bigint, value bigint,
    last_drop_minor bigint, condition integer, last_update timestamptz,
    creation_time timestamptz, price_since timestamptz, lightning_start timestamptz,
    lightning_end timestamptz, raw jsonb)
 ORDER BY r.domain_id, r.asin, r.price_type
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

LOCK_LISTINGS: Final[LiteralString] = """
SELECT FROM listings WHERE domain_id = %s AND asin = ANY(%s) ORDER BY asin FOR NO KEY UPDATE
"""

KNOWN_ASINS: Final[LiteralString] = """
SELECT asin FROM deals WHERE domain_id = %s AND asin = ANY(%s) AND price_type = %s
"""


def known_asins(
    connection: Connection, domain_id: int, price_type: int, asins: Sequence[str]
) -> set[str]:
    """Returns those of *asins* that have a stored price of this type."""
    values = (domain_id, list(asins), price_type)
    return {asin for (asin,) in connection.execute(KNOWN_ASINS, values)}


def lock_listings(connection: Connection, domain_id: int, asins: Sequence[str]) -> None:
    """Locks what is stored of *asins* until the transaction ends.

    Every writer of a product's deals, details or verdicts begins with this lock, as
    `upsert_deals` does. Triggers write to the grid and to the history after each of them: in
    another order, a page and details of the same product would wait for each other.
    """
    connection.execute(LOCK_LISTINGS, (domain_id, list(asins)))


def upsert_deals(connection: Connection, deals: Sequence[Deal], *, reply_time_ms: int) -> None:
    """Writes *deals*, each once, as served at *reply_time_ms*; safe to repeat, in any order.

    Listings before deals, and both in the order of their keys: two writers never wait for
    each other in a circle. One statement each is as fast as COPY into a temporary table
    and a merge.
    """
    if deals:
        served = instant(reply_time_ms)
        with connection.pipeline():
            connection.execute(
                UPSERT_LISTINGS, (served, as_jsonb([listing_record(deal) for deal in deals]))
            )
            connection.execute(
                UPSERT_DEALS, (served, as_jsonb([deal_record(deal) for deal in deals]))
            )


def listing_record(deal: Deal) -> dict[str, Any]:
    """Returns the product's part of *deal*, by column."""
    return {
        "domain_id": deal.domain_id,
        "asin": deal.asin,
        "title": deal.title,
        "parent_asin": deal.parent_asin,
        "root_category": deal.root_category,
        "categories": list(deal.categories),
        "image": deal.image,
        "amazon_minor": deal.amazon_minor,
        "buy_box_minor": deal.buy_box_minor,
        "rank": deal.rank,
        "rating": deal.rating,
        "reviews": deal.reviews,
        "new_offers": deal.new_offers,
        "used_offers": deal.used_offers,
        "rank_drops_30": deal.rank_drops_30,
        "rank_drops_90": deal.rank_drops_90,
        "last_update": _iso(deal.last_update_ms),
    }


def deal_record(deal: Deal) -> dict[str, Any]:
    """Returns the part of *deal* about its price type, by column."""
    return {
        "domain_id": deal.domain_id,
        "asin": deal.asin,
        "price_type": deal.price_type,
        "price_minor": deal.price_minor,
        "value": None if is_price(deal.price_type) else deal.value,
        "last_drop_minor": deal.last_drop_minor,
        "condition": deal.condition,
        "last_update": _iso(deal.last_update_ms),
        "creation_time": _iso(deal.creation_ms),
        "price_since": _iso(deal.price_since_ms),
        "lightning_start": _iso(deal.lightning_start_ms),
        "lightning_end": _iso(deal.lightning_end_ms),
        "raw": deal.raw,
    }


def _iso(unix_ms: int | None) -> str | None:
    time = instant(unix_ms)
    return None if time is None else time.isoformat()


def as_jsonb(value: Mapping[str, object] | Sequence[object]) -> Jsonb:
    """Returns *value* as a jsonb parameter, without what Postgres can't store."""
    return Jsonb(value, dumps=_storable_json)


def _storable_json(value: object) -> str:
    # Most values are storable: to copy them all would take as long as the rest of the work.
    try:
        text = _compact(value)
    except (ValueError, RecursionError):
        return _compact(storable(value))
    return _compact(storable(value)) if _SUSPECT.search(text) else text
