"""A deal as Keepa writes it in the ``dr`` array of a /deal reply."""

import json
from itertools import pairwise
from typing import Any, Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.filters import is_back_in_stock
from deploy.keepa_simulator.history import History
from deploy.keepa_simulator.keepa_time import DAY_MINUTES
from deploy.keepa_simulator.listing import Figures, Listing, RowText, Sums

_CONDITION_COMMENTS: Final = {
    2: "Item will come in original packaging.",
    3: "Packaging shows light wear.",
    4: "Scratches on one side.",
    5: "Cosmetic damage, works as it should.",
}
# The only part of a serialised row that depends on the requested price type.
_CREATION: Final = '"creationDate": '


def image_name(number: int) -> str:
    """The file name of the product's picture."""
    return f"51{number * 48_271 % 2**31:08X}L.jpg"


def rank_drops(history: History, end: int, days: int) -> int:
    """Number of sales rank drops, a hint at sales, in the *days* before *end*."""
    recent = [value for minute, value in history if minute >= end - days * DAY_MINUTES]
    return sum(after < before for before, after in pairwise(recent))


def _by_range(name: str, figures: list[Sums]) -> list[list[int]]:
    """[dateRange][priceType], transposed from one tuple per price type."""
    return [list(column) for column in zip(*(getattr(it, name) for it in figures), strict=True)]


def deal_fields(listing: Listing, price_type: int) -> dict[str, Any]:
    """The fields of a deal; stamps are Keepa minutes, prices minor currency units.

    ``creationDate`` is the last change of *price_type*.
    """
    facts = listing.facts
    # The listing keeps the serialised row instead, which is much smaller.
    histories = [listing.history(type_) for type_ in range(pt.DEAL_TYPES)]
    figures = [Figures(history, listing.last_update) for history in histories]
    sums = [it.sums for it in figures]
    ranks = histories[pt.SALES]
    row: dict[str, Any] = {
        "asin": facts.asin,
        "avg": _by_range("average", sums),
        "backInStock": [is_back_in_stock(it, listing.last_update) for it in figures],
        "categories": list(facts.categories),
        "creationDate": figures[price_type].since,
        "current": [it.current for it in figures],
        "currentSince": [it.since for it in figures],
        "dateIntervalIndex": 0,
        "delta": _by_range("delta", sums),
        "deltaLast": [it.delta_last for it in figures],
        "deltaPercent": _by_range("delta_percent", sums),
        "image": list(image_name(facts.number).encode("ascii")),
        "lastUpdate": listing.last_update,
        "lightningEnd": listing.lightning[1],
        "lightningStart": listing.lightning[0],
        "rootCat": facts.root,
        "salesRankDrops180": rank_drops(ranks, listing.last_update, 180),
        "salesRankDrops30": rank_drops(ranks, listing.last_update, 30),
        "salesRankDrops365": rank_drops(ranks, listing.last_update, 365),
        "salesRankDrops90": rank_drops(ranks, listing.last_update, 90),
        "title": facts.title,
        "warehouseCondition": listing.warehouse_condition,
    }
    # Keepa omits a field rather than send null.
    if facts.parent_asin is not None:
        row["parentAsin"] = facts.parent_asin
    if listing.warehouse_condition in _CONDITION_COMMENTS:
        row["warehouseConditionComment"] = _CONDITION_COMMENTS[listing.warehouse_condition]
    return row


def row_text(listing: Listing) -> RowText:
    """The deal as JSON text; serialised once for each update of the product."""
    if listing.row is None:
        # The requested price type affects the creation date only.
        fields = deal_fields(listing, pt.NEW)
        text = json.dumps(fields, sort_keys=True)
        head, tail = text.split(f"{_CREATION}{fields['creationDate']}", maxsplit=1)
        listing.row = (f"{head}{_CREATION}", tail)
    return listing.row


def deal_json(listing: Listing, price_type: int) -> str:
    """The deal as JSON text, for a selection of *price_type*."""
    head, tail = row_text(listing)
    return f"{head}{listing.figures(price_type).since}{tail}"
