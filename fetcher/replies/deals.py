"""Reading deals from a /deal reply.

Rule 1: a bad row never costs its page another row.
Rule 2: each kind of malformation is counted under its own name.

Field meanings: the official clients. Arrays are indexed by price type, and ``delta``,
``deltaPercent`` and ``avg`` by date range first.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fetcher.replies.record import INT64_MAX, MalformedReplyError, Record
from fetcher.replies.units import (
    AMAZON,
    BUY_BOX,
    COUNT_NEW,
    COUNT_REVIEWS,
    COUNT_USED,
    RATING,
    SALES_RANK,
    is_price,
)

ASIN: Final = re.compile(r"[A-Z0-9]{10}\Z")

# Keepa's id for "root category unknown".
UNKNOWN_ROOT: Final = INT64_MAX

RATING_MAX: Final = 50
NO_OFFER: Final = -1
NO_DATA: Final = (-1, -2)


@dataclass(frozen=True, slots=True)
class Deal:
    """One deal as served, in the project's units.

    Prices are integers in the currency's minor unit, times Unix milliseconds, the
    rating is 0 to 50, and None is "unknown". A drop is average less current value.

    ``value``, ``average``, ``drop`` and ``last_drop`` are in the unit of the price type.
    That may be a rank, a rating or a count: their namesakes in ``_minor`` are unknown
    then. ``raw`` is the row as served, without any guarantee (see `record.storable`).
    """

    domain_id: int
    asin: str
    price_type: int
    date_range: int
    title: str | None
    parent_asin: str | None
    root_category: int | None
    categories: tuple[int, ...]
    image: str | None
    condition: int | None
    value: int | None
    average: int | None
    drop: int | None
    drop_percent: int | None
    last_drop: int | None
    amazon_minor: int | None
    amazon_offers: bool | None
    buy_box_minor: int | None
    rank: int | None
    rating: int | None
    reviews: int | None
    new_offers: int | None
    used_offers: int | None
    rank_drops_30: int | None
    rank_drops_90: int | None
    last_update_ms: int | None
    creation_ms: int | None
    price_since_ms: int | None
    lightning_start_ms: int | None
    lightning_end_ms: int | None
    raw: Mapping[str, object]

    @property
    def price_minor(self) -> int | None:
        """The price, if the price type is one."""
        return self.value if is_price(self.price_type) else None

    @property
    def average_minor(self) -> int | None:
        """The average price over the date range, if the price type is a price."""
        return self.average if is_price(self.price_type) else None

    @property
    def drop_minor(self) -> int | None:
        """Average less current price, if the price type is a price."""
        return self.drop if is_price(self.price_type) else None

    @property
    def last_drop_minor(self) -> int | None:
        """Price before the last change less current price, if the price type is a price."""
        return self.last_drop if is_price(self.price_type) else None


@dataclass(frozen=True, slots=True)
class DealPage:
    """One page of a query.

    ``row_count`` counts the rows served; ``deals`` has each product once. The category
    counts ignore the selection's category filters, but not its other filters.
    ``oddities`` counts malformations by name, dropped rows included.
    """

    deals: tuple[Deal, ...]
    row_count: int
    oddities: Mapping[str, int]
    category_counts: Mapping[int, int]
    cached: bool


def parse_deal_page(
    body: Mapping[str, object], *, domain_id: int, price_type: int, date_range: int
) -> DealPage:
    """Reads the body of a /deal reply.

    Raises:
        MalformedReplyError: it has no list of deals. That is a failed reply, never an
            empty page.
    """
    deals = body.get("deals")
    if not isinstance(deals, Mapping):
        raise MalformedReplyError("the reply has no 'deals' object")
    rows = deals.get("dr")
    if not isinstance(rows, list):
        raise MalformedReplyError("the reply has no 'deals.dr' list")
    oddities: Counter[str] = Counter()
    parsed: list[Deal] = []
    for row in rows:
        if (reason := _why_no_deal(row)) is not None:
            oddities[f"row: {reason}"] += 1
            continue
        parsed.append(_read_deal(row, domain_id, price_type, date_range, oddities))
    return DealPage(
        deals=_once_each(parsed, oddities),
        row_count=len(rows),
        oddities=dict(oddities),
        category_counts=_category_counts(Record(deals, oddities)),
        cached=body.get("dealsCached") is True,
    )


def parse_deal(
    row: Mapping[str, object], *, domain_id: int, price_type: int, date_range: int
) -> Deal:
    """Reads one row, for instance a stored raw deal that is judged again.

    Raises:
        MalformedReplyError: the row names no product.
    """
    if (reason := _why_no_deal(row)) is not None:
        raise MalformedReplyError(reason)
    return _read_deal(row, domain_id, price_type, date_range, Counter())


def _why_no_deal(row: object) -> str | None:
    if not isinstance(row, Mapping):
        return "not an object"
    asin = row.get("asin")
    if asin is None:
        return "no asin"
    if not isinstance(asin, str) or not ASIN.match(asin):
        return "asin is not an ASIN"
    return None


def _read_deal(
    row: Mapping[str, object],
    domain_id: int,
    price_type: int,
    date_range: int,
    oddities: Counter[str],
) -> Deal:
    record = Record(row, oddities)
    value = record.count("current", price_type)
    average = record.count("avg", date_range, price_type)
    drop = _drop(record.signed("delta", date_range, price_type), value, average)
    percent = record.signed("deltaPercent", date_range, price_type)
    if drop is None or (percent in NO_DATA and drop >= 0):
        percent = None
    root = record.positive("rootCat", limit=INT64_MAX)
    # Amazon's price is the one in which "none" is an answer.
    amazon = record.signed("current", AMAZON)
    rating = record.count("current", RATING)
    if rating is not None and rating > RATING_MAX:
        record.note("rating", "absurd number")
        rating = None
    return Deal(
        domain_id=domain_id,
        asin=str(row["asin"]),
        price_type=price_type,
        date_range=date_range,
        title=record.text("title"),
        parent_asin=record.text("parentAsin"),
        root_category=None if root == UNKNOWN_ROOT else root,
        categories=record.ids("categories"),
        image=_image(record),
        condition=record.positive("warehouseCondition"),
        value=value,
        average=average,
        drop=drop,
        drop_percent=percent,
        last_drop=_drop(record.signed("deltaLast", price_type), value, None),
        amazon_minor=record.count("current", AMAZON),
        amazon_offers=None if amazon is None or amazon < NO_OFFER else amazon != NO_OFFER,
        buy_box_minor=record.count("current", BUY_BOX),
        rank=record.positive("current", SALES_RANK),
        rating=rating,
        reviews=record.count("current", COUNT_REVIEWS),
        new_offers=record.count("current", COUNT_NEW),
        used_offers=record.count("current", COUNT_USED),
        rank_drops_30=record.count("salesRankDrops30"),
        rank_drops_90=record.count("salesRankDrops90"),
        last_update_ms=_required_time(record, "lastUpdate"),
        creation_ms=_required_time(record, "creationDate"),
        price_since_ms=record.time_ms("currentSince", price_type),
        lightning_start_ms=record.time_ms("lightningStart"),
        lightning_end_ms=record.time_ms("lightningEnd"),
        raw=row,
    )


def _drop(drop: int | None, value: int | None, average: int | None) -> int | None:
    """Returns the drop, unless it is a sentinel: -1 is a cent only if the values agree."""
    if drop is None or value is None:
        return None
    if drop in NO_DATA and (average is None or average - value != drop):
        return None
    return drop


def _required_time(record: Record, name: str) -> int | None:
    time_ms = record.time_ms(name)
    if time_ms is None:
        record.note(name, "missing or unreadable")
    return time_ms


def _image(record: Record) -> str | None:
    """Returns the file name, which Keepa sends as a list of character codes."""
    codes = record.value("image")
    if codes is None or codes == []:
        return None
    if not isinstance(codes, list) or not all(
        isinstance(code, int) and ord(" ") < code <= ord("~") for code in codes
    ):
        record.note("image", "not a file name")
        return None
    return "".join(map(chr, codes))


def _category_counts(record: Record) -> dict[int, int]:
    ids = record.value("categoryIds")
    counts: dict[int, int] = {}
    for index in range(len(ids) if isinstance(ids, list) else 0):
        category = record.positive("categoryIds", index, limit=INT64_MAX)
        count = record.count("categoryCount", index)
        if category is not None and count is not None:
            counts[category] = count
    return counts


def _once_each(deals: Sequence[Deal], oddities: Counter[str]) -> tuple[Deal, ...]:
    """Keeps each product once, in the order served; of two rows, the one updated later."""
    newest: dict[str, Deal] = {}
    for deal in deals:
        held = newest.get(deal.asin)
        if held is None or (held.last_update_ms or 0) < (deal.last_update_ms or 0):
            newest[deal.asin] = deal
    if len(newest) < len(deals):
        oddities["row: same asin twice"] += len(deals) - len(newest)
    return tuple(newest.values())
