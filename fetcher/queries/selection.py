"""Keepa's deal selection: the values that its documented keys accept, and their meaning.

Unknown keys pass, because Keepa adds some. A documented key with a value that Keepa
would refuse is an error here, before it costs a call. Source: the official clients.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Final

from fetcher.queries.reader import BadKeyError
from fetcher.replies.record import INT64_MAX, integer
from fetcher.replies.units import (
    DATE_RANGES,
    DOMAINS,
    NEWEST_FIRST,
    PRICE_TYPES,
    SORT_MEANINGS,
    is_price,
    kind_words,
    money_words,
)

CATEGORIES_MAX: Final = 500
DELTA_PERCENT_LEAST: Final = 10
MIN_RATING_MAX: Final = 50
UNDOCUMENTED_DATE_RANGE: Final = len(DATE_RANGES)
OPEN_END: Final = 2**31 - 1

RANGES: Final = (
    "currentRange",
    "deltaRange",
    "deltaPercentRange",
    "deltaLastRange",
    "salesRankRange",
)
# Their ends are values of the price type: minor units where it is a price.
RANGES_OF_PRICE_TYPE: Final = ("currentRange", "deltaRange", "deltaLastRange")
# In these a positive number is a drop (keepa-api.md, section 4: average less current).
DROP_RANGES: Final = ("deltaRange", "deltaPercentRange", "deltaLastRange")
# Ratings are tenths of stars; so small a number was probably meant as whole stars.
STARS_MAX: Final = 5
FLAGS: Final = (
    "isFilterEnabled",
    "isRangeEnabled",
    "isLowest",
    "isLowest90",
    "isLowestOffer",
    "isHighest",
    "isOutOfStock",
    "isBackInStock",
    "isRisers",
    "isPrimeExclusive",
    "mustHaveAmazonOffer",
    "mustNotHaveAmazonOffer",
    "hasReviews",
    "filterErotic",
    "singleVariation",
)
ID_LISTS: Final = ("includeCategories", "excludeCategories", "warehouseConditions")

Selection = Mapping[str, object]


def check_selection(selection: Selection) -> None:
    """Rejects the first documented key with a value that Keepa would refuse.

    Raises:
        BadKeyError: naming the key and what to write.
    """
    for key in ("domainId", "priceTypes"):
        if key not in selection:
            raise BadKeyError(key, "missing; Keepa requires it")
    if domain_id(selection) not in DOMAINS:
        raise BadKeyError("domainId", f"write one of {', '.join(map(str, DOMAINS))}")
    if not 0 <= price_type(selection) < len(PRICE_TYPES):
        raise BadKeyError("priceTypes", f"write one price type from 0 to {len(PRICE_TYPES) - 1}")
    if not 0 <= date_range(selection) <= UNDOCUMENTED_DATE_RANGE:
        raise BadKeyError("dateRange", f"write a number from 0 to {len(DATE_RANGES) - 1}")
    if (sort := sort_type(selection)) not in SORT_MEANINGS:
        inverted = "Keepa can't invert deal age: write 1, newest first, or "
        hint = inverted if sort == -NEWEST_FIRST else "write "
        raise BadKeyError("sortType", f"{hint}one of {', '.join(map(str, SORT_MEANINGS))}")
    rating = integer(selection.get("minRating", -1))
    if rating is None or not -1 <= rating <= MIN_RATING_MAX:
        raise BadKeyError("minRating", "write a rating from 0 to 50, or -1 for none")
    for key, check in _CHECKS.items():
        if selection.get(key) is not None:
            check(key, selection[key])


def _check_range(key: str, value: object) -> None:
    ends = [integer(end) for end in value] if isinstance(value, list) else []
    match ends:
        case [int(low), int(high)] if low <= high or high == -1:
            return
        case [int(low), int(high)]:
            raise BadKeyError(
                key, f"the ends are swapped; write [lowest, highest]: [{high}, {low}]"
            )
    raise BadKeyError(key, "write [lowest, highest], two whole numbers in this order")


def _check_flag(key: str, value: object) -> None:
    if value not in (True, False, "true", "false"):
        raise BadKeyError(key, "write true or false")


def _check_ids(key: str, value: object) -> None:
    ids = [integer(item) for item in value] if isinstance(value, list) else [None]
    if any(number is None or not 0 < number <= INT64_MAX for number in ids):
        raise BadKeyError(key, "write a list of ids: [283155]")
    if len(ids) > CATEGORIES_MAX:
        raise BadKeyError(key, f"Keepa takes at most {CATEGORIES_MAX} entries; split the query")


_CHECKS: Final[Mapping[str, Callable[[str, object], None]]] = {
    **dict.fromkeys(RANGES, _check_range),
    **dict.fromkeys(FLAGS, _check_flag),
    **dict.fromkeys(ID_LISTS, _check_ids),
}


def domain_id(selection: Selection) -> int:
    """Returns its Amazon site, a key of DOMAINS."""
    return _required(selection, "domainId", selection.get("domainId"))


def price_type(selection: Selection) -> int:
    """Returns its one price type, an index of PRICE_TYPES."""
    types = selection.get("priceTypes")
    if not isinstance(types, list) or len(types) != 1:
        one = types if integer(types) is not None else 2
        raise BadKeyError("priceTypes", f"write a list of exactly one: [{one}]")
    return _required(selection, "priceTypes", types[0])


def date_range(selection: Selection) -> int:
    """Returns the period of its drops, an index of DATE_RANGES; Keepa's default is 0."""
    return _required(selection, "dateRange", selection.get("dateRange", 0))


def sort_type(selection: Selection) -> int:
    """Returns its order, a key of SORT_MEANINGS; newest first if it names none."""
    return _required(selection, "sortType", selection.get("sortType", NEWEST_FIRST))


def _required(selection: Selection, key: str, value: object) -> int:
    if (number := integer(value)) is None:
        raise BadKeyError(key, f"write a whole number, not {selection.get(key)!r}")
    return number


def selection_hash(selection: Selection) -> str:
    """Returns a short stable name of the selection, for all its pages: 16 hex digits.

    The order of keys makes no difference, nor do numbers written as strings.
    """
    asked = {key: _canonical(value) for key, value in selection.items() if key != "page"}
    asked["sortType"] = sort_type(selection)
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(value: object) -> object:
    match value:
        case list():
            return [_canonical(item) for item in value]
        case dict():
            return {key: _canonical(item) for key, item in value.items()}
        case str() if (number := integer(value)) is not None and str(number) == value:
            return number
    return value


def included_categories(selection: Selection) -> frozenset[int]:
    """Returns the ids of the categories it is limited to; empty means all."""
    return _ids(selection, "includeCategories")


def excluded_categories(selection: Selection) -> frozenset[int]:
    """Returns the ids of the categories it leaves out."""
    return _ids(selection, "excludeCategories")


def _ids(selection: Selection, key: str) -> frozenset[int]:
    ids = selection.get(key)
    numbers = map(integer, ids) if isinstance(ids, list) else ()
    return frozenset(number for number in numbers if number is not None)


def selection_warnings(selection: Selection) -> tuple[str, ...]:
    """Returns warnings about values that Keepa accepts, but that are probably mistakes."""
    found = []
    sort = sort_type(selection)
    if sort != NEWEST_FIRST:
        found.append(
            f"sortType {sort} orders by {SORT_MEANINGS[sort]}: a scan can't stop at what is "
            'known and reads every page; write "sort": 1 beside the selection'
        )
    if date_range(selection) == UNDOCUMENTED_DATE_RANGE:
        found.append("dateRange 4 is undocumented: drops may be missing from its replies")
    if any(_limits(selection, key) for key in RANGES) and not _on(selection, "isRangeEnabled"):
        found.append("isRangeEnabled is off: Keepa ignores the ranges")
    percent = selection.get("deltaPercentRange")
    if isinstance(percent, list) and -1 < (integer(percent[0]) or 0) < DELTA_PERCENT_LEAST:
        found.append(f"deltaPercentRange below {DELTA_PERCENT_LEAST}: Keepa starts there")
    found += [
        f"{key} {selection[key]} asks for rises: a drop is positive at Keepa, so write"
        f" {[-high, -low]} for drops"
        for key in DROP_RANGES
        if _limits(selection, key)
        for low, high in [_range_ends(selection, key)]
        if max(low, high) <= 0 and min(low, high) < -1
    ]
    rating = integer(selection.get("minRating", -1)) or -1
    if 0 < rating <= STARS_MAX:
        found.append(
            f"minRating {rating} means {rating / 10} stars: Keepa counts in tenths,"
            f" so {rating * 10} means {rating} stars"
        )
    return tuple(found)


def _range_ends(selection: Selection, key: str) -> tuple[int, int]:
    value = selection[key]
    assert isinstance(value, list)
    low, high = (integer(end) or 0 for end in value)
    return low, high


def _on(selection: Selection, key: str) -> bool:
    return selection.get(key) in (True, "true")


def selection_words(selection: Selection) -> tuple[str, ...]:
    """Returns the selection for people, one sentence part per condition."""
    asked, index = price_type(selection), date_range(selection)
    # "USED prices", or "SALES, which is a sales rank,".
    values = " prices" if is_price(asked) else f", which is {kind_words(asked)},"
    period = DATE_RANGES[index] if index < len(DATE_RANGES) else "an undocumented period"
    found = [
        f"{PRICE_TYPES[asked]}{values} on {DOMAINS[domain_id(selection)]}",
        f"drops over {period}",
    ]
    if included := included_categories(selection):
        found.append(f"in categories {', '.join(map(str, sorted(included)))}")
    if excluded := excluded_categories(selection):
        found.append(f"not in categories {', '.join(map(str, sorted(excluded)))}")
    if _on(selection, "isRangeEnabled"):
        found += [f"{key} {_ends(selection, key)}" for key in RANGES if _limits(selection, key)]
    if (rating := integer(selection.get("minRating", -1))) is not None and rating > 0:
        found.append(f"rated {rating / 10:.1f} or better")
    found += [key for key in FLAGS[2:] if _on(selection, key)]
    if title := selection.get("titleSearch"):
        found.append(f"title holds {title!r}")
    return tuple(found)


def _limits(selection: Selection, key: str) -> bool:
    """Returns whether the range limits anything; the site writes [-1, -1] for no limit."""
    ends = selection.get(key)
    return isinstance(ends, list) and [integer(end) for end in ends] != [-1, -1]


def _ends(selection: Selection, key: str) -> str:
    """Returns a range for people; amounts of money with their currency."""
    ends = _range_ends(selection, key)
    shown = list(map(str, ends))
    if key in RANGES_OF_PRICE_TYPE and is_price(price_type(selection)):
        shown = [money_words(end, domain_id(selection)) for end in ends]
    return f"from {shown[0]}" if ends[1] in (-1, OPEN_END) else f"{shown[0]} to {shown[1]}"
