"""Price histories: values with their start times, and averages over a window.

A history is a list of (Keepa minute, value) pairs, the oldest first; a value holds until
the next pair. -1 is "no offer"; a history without pairs is "no data".
"""

from collections.abc import Callable
from typing import Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.facts import Facts
from deploy.keepa_simulator.keepa_time import DAY_MINUTES, HOUR_MINUTES

History = list[tuple[int, int]]
NO_OFFER: Final = -1
NO_DATA: Final = -2

# Age in hours of a product's last changes before the simulator's start: (youngest, oldest).
# None is younger than the oldest deal shown at the start.
_CHANGE_AGES_H: Final = ((2_500, 9_000), (1_700, 2_400), (840, 1_500), (240, 600), (30, 190))
_SEGMENTS: Final = len(_CHANGE_AGES_H) + 1
# The prices of a product change within a day of each other.
_LAGS: Final = tuple(type_ * 37 % 34 * 40 for type_ in range(pt.PRODUCT_TYPES))
# The product's octets that determine each segment of each type.
_PRICE_DRAWS: Final = {
    type_: [((type_ * 7 + s * 5) % 32, (group * 11 + s * 3) % 32) for s in range(_SEGMENTS)]
    for type_, group in pt.GROUP_OF.items()
}
_NUMBER_DRAWS: Final = tuple(
    [(type_ * 3 + segment * 7) % 32 for segment in range(_SEGMENTS)]
    for type_ in range(pt.PRODUCT_TYPES)
)
# In 256ths: the share of missing offers, and of products without a list price.
_SCARCE_STEADY: Final = 25
_SCARCE: Final = 130
_WITHOUT_LIST_PRICE: Final = 40
_ALWAYS_THERE: Final = frozenset((pt.NEW, pt.USED, pt.AMAZON, pt.PRIME_EXCL))
_COUNTS: Final = {
    pt.COUNT_NEW: pt.NEW,
    pt.COUNT_NEW_FBA: pt.NEW,
    pt.COUNT_NEW_FBM: pt.NEW,
    pt.COUNT_USED: pt.USED,
    pt.COUNT_REFURBISHED: pt.REFURBISHED,
    pt.COUNT_COLLECTIBLE: pt.COLLECTIBLE,
}


def typical_price(facts: Facts, price_type: int) -> int:
    """The usual price of *price_type* of the product."""
    return max(1, round(facts.list_price * pt.PRICE_RATIO[price_type]))


def _prices(facts: Facts, price_type: int) -> list[int]:
    """One price per segment of the past; -1 where it was sold out."""
    octets = facts.octets
    steady = pt.GROUP_OF[price_type] in _ALWAYS_THERE
    scarce = _SCARCE_STEADY if steady else _SCARCE
    typical = typical_price(facts, price_type)
    prices = [
        # Members of a group share its level and differ by their ratio.
        typical * (75 + octets[level] * 50 // 256) // 100 or 1
        if octets[availability] >= scarce
        else NO_OFFER
        for availability, level in _PRICE_DRAWS[price_type]
    ]
    if price_type == pt.LIGHTNING_DEAL:
        prices[-1] = NO_OFFER
    elif prices[-1] == NO_OFFER and steady:
        prices[-1] = typical
    return prices


def _ranks(facts: Facts, draws: list[int]) -> list[int] | None:
    if facts.base_rank < 0:
        return None
    return [max(1, facts.base_rank * (60 + draw * 80 // 256) // 100) for draw in draws]


def _list_prices(facts: Facts, _: list[int]) -> list[int] | None:
    return None if facts.octets[6] < _WITHOUT_LIST_PRICE else [facts.list_price] * _SEGMENTS


def _ratings(facts: Facts, _: list[int]) -> list[int] | None:
    return None if facts.rating < 0 else [facts.rating] * _SEGMENTS


def _review_counts(facts: Facts, _: list[int]) -> list[int] | None:
    """Review counts; they never fall."""
    if facts.rating < 0:
        return None
    return [facts.review_count * (5 + segment) // 10 for segment in range(_SEGMENTS)]


_NUMBERS: Final[dict[int, Callable[[Facts, list[int]], list[int] | None]]] = {
    pt.SALES: _ranks,
    pt.LISTPRICE: _list_prices,
    pt.EXTRA_INFO_UPDATES: lambda _, draws: [draw // 16 for draw in draws],
    pt.RATING: _ratings,
    pt.COUNT_REVIEWS: _review_counts,
}


def _numbers(facts: Facts, price_type: int) -> list[int] | None:
    """Like `_prices` for other values than prices; None if there are no data."""
    draws = [facts.octets[place] for place in _NUMBER_DRAWS[price_type]]
    if price_type in _NUMBERS:
        return _NUMBERS[price_type](facts, draws)
    offers_of = _COUNTS.get(price_type)
    if offers_of is None or not facts.has_offers(offers_of):
        return None
    return [1 + draw // 20 for draw in draws]


def _values(facts: Facts, price_type: int) -> list[int] | None:
    group = pt.GROUP_OF.get(price_type)
    if group is None:
        return _numbers(facts, price_type)
    return _prices(facts, price_type) if facts.has_offers(group) else None


def base_value(facts: Facts, price_type: int) -> int:
    """The last value of `base_history`, or -1."""
    values = _values(facts, price_type)
    return values[-1] if values else NO_OFFER


def change_times(facts: Facts, anchor: int) -> tuple[int, ...]:
    """The Keepa minutes at which the product's prices last changed before *anchor*.

    The first is that of the first record; the last is at least 30 hours before *anchor*.
    Each price type changes a few hours earlier, by a delay of its own.
    """
    first = 400 * DAY_MINUTES + facts.words[7] % (2_000 * DAY_MINUTES)
    ages = [
        (youngest + facts.octets[20 + segment] * (oldest - youngest) // 256) * HOUR_MINUTES
        for segment, (youngest, oldest) in enumerate(_CHANGE_AGES_H)
    ]
    return tuple((anchor - age) & ~1 for age in (first, *ages))


def base_history(facts: Facts, price_type: int, times: tuple[int, ...]) -> History:
    """The history of a price before the simulator started.

    Args:
        facts: The product.
        price_type: Keepa's number of the price type.
        times: The product's `change_times`.
    """
    values = _values(facts, price_type)
    if values is None:
        return []
    lag = _LAGS[price_type]
    history: History = []
    held = None
    for time, value in zip(times, values, strict=True):
        if value != held:
            history.append((time - lag, value))
            held = value
    return history


def averages(history: History, end: int, windows: tuple[int, ...]) -> tuple[int, ...]:
    """The weighted mean over each of *windows* (minutes, ascending) that ends at *end*.

    Spans without an offer don't count. -1: no offer at all; -2: no data.
    """
    if not history:
        return (NO_DATA,) * len(windows)
    means = []
    total = weight = 0
    until = end
    position = len(history) - 1
    for window in windows:
        start = end - window
        while position >= 0 and until > start:
            since, value = history[position]
            begin = max(since, start)
            if value >= 0:
                total += value * (until - begin)
                weight += until - begin
            until = begin
            if since < start:
                break
            position -= 1
        means.append(round(total / weight) if weight else NO_OFFER)
    return tuple(means)
