"""The ``stats`` object of a product: totals of its histories."""

from dataclasses import dataclass
from typing import Any, Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.deal_row import rank_drops
from deploy.keepa_simulator.history import NO_DATA, NO_OFFER, History, averages
from deploy.keepa_simulator.keepa_time import DAY_MINUTES
from deploy.keepa_simulator.listing import Listing

_AVERAGE_DAYS: Final = (30, 90, 180, 365)
_UNKNOWN: Final = -2


@dataclass(frozen=True, slots=True)
class StatsWanted:
    """The interval of the statistics, in Keepa minutes."""

    start: int
    end: int


def _extreme(history: History, *, highest: bool) -> list[int] | None:
    """The time and value of the lowest or highest price: [minute, value]."""
    known = [(value, minute) for minute, value in history if value >= 0]
    if not known:
        return None
    value, minute = (max if highest else min)(known)
    return [minute, value]


def _within(history: History, wanted: StatsWanted) -> History:
    """The values during the interval, including the one at its start."""
    before = [pair for pair in history if pair[0] < wanted.start]
    return before[-1:] + [pair for pair in history if wanted.start <= pair[0] <= wanted.end]


def _at(history: History, minute: int) -> int:
    return next((value for since, value in reversed(history) if since <= minute), NO_OFFER)


def _out_of_stock_percent(history: History, start: int, end: int) -> int:
    """Share of the span without an offer, in percent; -1 without data."""
    if not history:
        return NO_OFFER
    gone = 0
    ends = [minute for minute, _ in history[1:]] + [end]
    for (since, value), until in zip(history, ends, strict=True):
        if value < 0:
            gone += max(0, min(until, end) - max(since, start))
    return 100 * gone // max(1, end - start)


def _buy_box(listing: Listing, *, known: bool) -> dict[str, Any]:
    price = listing.current(pt.BUY_BOX_SHIPPING) if known else _UNKNOWN
    has_one = price > 0
    amazon = has_one and listing.current(pt.AMAZON) == listing.current(pt.NEW)
    usual = listing.facts.list_price
    saving = max(0, 100 * (usual - price) // usual) if has_one else None
    return {
        "buyBoxAvailabilityMessage": "IN_STOCK" if has_one else None,
        "buyBoxCondition": 1 if has_one else None,
        "buyBoxIsAmazon": amazon if known else None,
        "buyBoxIsBackorder": False if known else None,
        "buyBoxIsFBA": listing.facts.octets[14] < 180 if has_one else None,  # noqa: PLR2004 - 70 %
        "buyBoxIsFreeShippingEligible": has_one,
        "buyBoxIsMAP": False if known else None,
        "buyBoxIsPreorder": False if known else None,
        "buyBoxIsPrimeEligible": has_one,
        "buyBoxIsPrimeExclusive": None,
        "buyBoxIsShippable": has_one if known else None,
        "buyBoxIsUnqualified": not has_one if known else None,
        "buyBoxIsUsed": False if known else None,
        "buyBoxIsWarehouseDeal": False if known else None,
        "buyBoxPrice": price,
        "buyBoxSavingBasis": usual if has_one else None,
        "buyBoxSavingBasisType": "LIST_PRICE" if has_one else None,
        "buyBoxSavingPercentage": saving,
        "buyBoxSellerId": seller_id(listing.facts.words[6]) if has_one else None,
        "buyBoxShipping": 0 if has_one else _UNKNOWN,
        "buyBoxShippingCountry": None,
        "buyBoxShippingTime": [0, 0] if has_one else None,
        "buyBoxStats": {},
        "lastBuyBoxUpdate": listing.last_update if known else _UNKNOWN,
    }


def seller_id(draw: int) -> str:
    """A made-up seller; equal draws give equal sellers."""
    return f"A{draw * 2_654_435_761 % 2**52:013X}"


def _offer_counts(listing: Listing) -> dict[str, Any]:
    total = max(0, listing.current(pt.COUNT_NEW)) + max(0, listing.current(pt.COUNT_USED))
    return {
        "offerCountFBA": _UNKNOWN,
        "offerCountFBM": _UNKNOWN,
        "retrievedOfferCount": _UNKNOWN,
        "sellerIdsLowestFBA": None,
        "sellerIdsLowestFBM": None,
        "totalOfferCount": total,
        "lastOffersUpdate": listing.last_update,
        "tradeInPrice": listing.current(pt.TRADE_IN)
        if listing.facts.has_offers(pt.TRADE_IN)
        else _UNKNOWN,
    }


def _over_days(histories: list[History], end: int) -> dict[str, Any]:
    windows = tuple(days * DAY_MINUTES for days in _AVERAGE_DAYS)
    means = [averages(history, end, windows) for history in histories]
    columns = zip(*means, strict=True)
    fields: dict[str, Any] = {}
    for days, column in zip(_AVERAGE_DAYS, columns, strict=True):
        # Here, unlike in a deal, "no data" is written like "no offer".
        fields[f"avg{days}"] = [max(NO_OFFER, mean) for mean in column]
        fields[f"outOfStockPercentage{days}"] = [
            _out_of_stock_percent(history, end - days * DAY_MINUTES, end) for history in histories
        ]
        fields[f"salesRankDrops{days}"] = rank_drops(histories[pt.SALES], end, days)
    return fields


def _interval(histories: list[History], wanted: StatsWanted) -> dict[str, Any]:
    inside = [_within(history, wanted) for history in histories]
    span = (max(1, wanted.end - wanted.start),)
    means = [averages(history, wanted.end, span)[0] for history in histories]
    return {
        "atIntervalStart": [_at(history, wanted.start) for history in histories],
        "avg": [max(NO_OFFER, mean) for mean in means],
        "minInInterval": [_extreme(history, highest=False) for history in inside],
        "maxInInterval": [_extreme(history, highest=True) for history in inside],
        "outOfStockPercentageInInterval": [
            _out_of_stock_percent(history, wanted.start, wanted.end) for history in histories
        ],
    }


def product_stats(
    listing: Listing, wanted: StatsWanted, now: int, *, buybox: bool
) -> dict[str, Any]:
    """The statistics of a product.

    Args:
        listing: The product.
        wanted: The interval of the statistics by interval.
        now: The server's clock in Keepa minutes; the averages end here.
        buybox: Whether the call included the buy box.
    """
    histories = [listing.history(type_) for type_ in range(pt.PRODUCT_TYPES)]
    current = [history[-1][1] if history else NO_OFFER for history in histories]
    lows = [_extreme(history, highest=False) for history in histories]
    recent = StatsWanted(now - 90 * DAY_MINUTES, now)
    lows90 = [_extreme(_within(history, recent), highest=False) for history in histories]
    return {
        **_over_days(histories, now),
        **_interval(histories, wanted),
        **_buy_box(listing, known=buybox),
        **_offer_counts(listing),
        "current": current,
        "min": lows,
        "max": [_extreme(history, highest=True) for history in histories],
        "isLowest": [_is_low(value, low) for value, low in zip(current, lows, strict=True)],
        "isLowest90": [_is_low(value, low) for value, low in zip(current, lows90, strict=True)],
        "deltaPercent90_monthlySold": NO_DATA,
        "lightningDealInfo": list(listing.lightning) if listing.lightning[0] else None,
        "outOfStockCountAmazon30": _sold_out(histories[pt.AMAZON], now - 30 * DAY_MINUTES),
        "outOfStockCountAmazon90": _sold_out(histories[pt.AMAZON], now - 90 * DAY_MINUTES),
    }


def _is_low(value: int, low: list[int] | None) -> bool:
    return low is not None and 0 <= value <= low[1]


def _sold_out(history: History, since: int) -> int:
    return sum(value < 0 for minute, value in history if minute >= since)
