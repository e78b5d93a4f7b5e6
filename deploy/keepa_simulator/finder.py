"""GET or POST /query: products by their properties, ranks and prices.

A search reads every product, which takes seconds for millions; the server runs it in a
thread. A filter that is not simulated is refused by name instead of being ignored.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.exchange import Answer, Query, RequestError
from deploy.keepa_simulator.filters import has_attribute
from deploy.keepa_simulator.history import averages
from deploy.keepa_simulator.keepa_time import DAY_MINUTES, even_keepa_minutes
from deploy.keepa_simulator.listing import Listing
from deploy.keepa_simulator.selection import ATTRIBUTES, DOMAINS

_BASE_COST: Final = 10
_ASINS_PER_TOKEN: Final = 100
_PER_PAGE: Final = 50
_PER_PAGE_MAX: Final = 10_000
_BEST_SELLERS_COST: Final = 50
_BEST_SELLERS_MAX: Final = 10_000
_STANDARD_PRODUCT: Final = 0

Test = Callable[[Listing], bool]
Read = Callable[[Listing], int]

_NUMBER_FIELD: Final = re.compile(r"(?:(current)|avg(30|90|180|365)?)_([A-Z_]+)")
_BOUND: Final = re.compile(r"(\w+)_(gte|lte)")
_DAYS_OF_PLAIN_AVERAGE: Final = 90


def _reader(name: str, now: int) -> Read | None:
    """A reader of the number that a filter or sort order names; None if it is unknown."""
    plain: dict[str, Read] = {
        "lastUpdate": lambda it: it.last_update,
        "trackingSince": lambda it: it.tracking_since,
    }
    if name in plain:
        return plain[name]
    parts = _NUMBER_FIELD.fullmatch(name)
    if parts is None or parts[3] not in pt.NAMES:
        return None
    price_type = pt.NAMES.index(parts[3])
    if parts[1]:
        return lambda it: it.current(price_type)
    window = (int(parts[2] or _DAYS_OF_PLAIN_AVERAGE) * DAY_MINUTES,)
    return lambda it: averages(it.history(price_type), now, window)[0]


def _bound(name: str, value: Any, now: int) -> Test | None:
    parts = _BOUND.fullmatch(name)
    read = _reader(parts[1], now) if parts else None
    if parts is None or read is None:
        return None
    limit = int(value)
    # A missing price is within no bound.
    if parts[2] == "gte":
        return lambda it: read(it) >= max(0, limit)
    return lambda it: 0 <= read(it) <= limit


def _words(value: Any) -> frozenset[str]:
    return frozenset(str(item).lower() for item in (value if isinstance(value, list) else [value]))


def _property(name: str, value: Any) -> Test | None:
    if name in ATTRIBUTES or name == "partNumber":
        wanted = _words(value)
        return lambda it: has_attribute(it.facts.attributes.get(name), wanted)
    numbers = {int(word) for word in _words(value) if word.lstrip("-").isdigit()}
    flag = str(value).lower() == "true"
    words = str(value).lower().split()
    tests: dict[str, Test] = {
        "title": lambda it: all(word in it.facts.title.lower() for word in words),
        "rootCategory": lambda it: it.facts.root in numbers,
        "categories_include": lambda it: not numbers.isdisjoint(_listed(it)),
        "categories_exclude": lambda it: numbers.isdisjoint(_listed(it)),
        "hasReviews": lambda it: (it.current(pt.COUNT_REVIEWS) > 0) is flag,
        "hasParentASIN": lambda it: (it.facts.parent_asin is not None) is flag,
        "isAdultProduct": lambda it: it.facts.is_adult is flag,
        "productType": lambda _: _STANDARD_PRODUCT in numbers,
        "availabilityAmazon": lambda it: _amazon_availability(it) in numbers,
    }
    return tests.get(name)


def _listed(listing: Listing) -> tuple[int, ...]:
    return (listing.facts.root, *listing.facts.categories)


def _amazon_availability(listing: Listing) -> int:
    return 0 if listing.current(pt.AMAZON) >= 0 else -1


@dataclass(frozen=True, slots=True)
class _Search:
    tests: list[Test]
    sort: list[tuple[Read, bool]]
    page: int
    per_page: int
    single_variation: bool


def _sort_orders(value: Any, now: int) -> Iterator[tuple[Read, bool]]:
    for name, direction in value or [["current_SALES", "asc"]]:
        read = _reader(str(name), now)
        if read is None:
            raise RequestError(400, f"can't sort by {name}")
        yield read, str(direction) == "desc"


def _tests(fields: dict[str, Any], now: int) -> Iterator[Test]:
    for name, value in fields.items():
        test = _bound(name, value, now) or _property(name, value)
        if test is None:
            raise RequestError(400, f"{name} is not simulated")
        yield test


def _parse(text: str, now: int) -> _Search:
    try:
        fields = json.loads(text)
        page, per_page = int(fields.pop("page", 0)), int(fields.pop("perPage", _PER_PAGE))
        sort = list(_sort_orders(fields.pop("sort", None), now))
        single = bool(fields.pop("singleVariation", False))
        tests = list(_tests(fields, now))
    except (ValueError, TypeError, AttributeError) as exc:
        raise RequestError(400, f"malformed selection: {exc}") from exc
    if page < 0 or not 1 <= per_page <= _PER_PAGE_MAX:
        raise RequestError(405, "page or perPage is out of range")
    return _Search(tests, sort, page, per_page, single)


def _sort_key(sort: list[tuple[Read, bool]]) -> Callable[[Listing], list[tuple[bool, int]]]:
    """Sorts products without the value last, in either direction."""

    def key(listing: Listing) -> list[tuple[bool, int]]:
        values = [(read(listing), descending) for read, descending in sort]
        return [(value < 0, -value if descending else value) for value, descending in values]

    return key


def _one_per_family(listings: Iterable[Listing]) -> list[Listing]:
    families: dict[str, Listing] = {}
    for listing in listings:
        families.setdefault(listing.facts.parent_asin or listing.facts.asin, listing)
    return list(families.values())


class Finder:
    """Answers /query and /bestsellers.

    Args:
        catalogue: Returns the catalogue of a domain.
    """

    def __init__(self, catalogue: Callable[[int], Catalogue]) -> None:
        self._catalogue = catalogue

    def answer(self, query: Query) -> Answer:
        """The ASINs that the ``selection`` asks for: 10 tokens and 1 per 100 of them.

        Raises:
            RequestError: The selection is malformed, or holds a filter that is not simulated.
        """
        text = query.body or query.parameters.get("selection")
        if not text:
            raise RequestError(400, "selection is missing")
        now = even_keepa_minutes(query.now_ms)
        search = _parse(text, now)
        matches = self._matches(query, search)
        first = search.page * search.per_page
        asins = [it.facts.asin for it in matches[:_PER_PAGE_MAX][first : first + search.per_page]]
        cost = _BASE_COST + -(-len(asins) // _ASINS_PER_TOKEN)
        fields = {"asinList": asins, "totalResults": len(matches)}
        return Answer(fields, cost, asins=asins)

    def best_sellers(self, query: Query) -> Answer:
        """The products of a category, the best rank first.

        Raises:
            RequestError: A parameter is missing or malformed.
        """
        category = query.integer("category")
        now = even_keepa_minutes(query.now_ms)
        selection = {"categories_include": [category], "current_SALES_gte": 1}
        matches = self._matches(query, _parse(json.dumps(selection), now))
        asins = [it.facts.asin for it in matches[:_BEST_SELLERS_MAX]]
        found = {
            "domainId": query.integer("domain"),
            "lastUpdate": now,
            "categoryId": category,
            "asinList": asins,
        }
        return Answer({"bestSellersList": found}, _BEST_SELLERS_COST, asins=asins)

    def _matches(self, query: Query, search: _Search) -> list[Listing]:
        domain = query.integer("domain")
        if domain not in DOMAINS:
            raise RequestError(405, "domain is out of range")
        listings = self._catalogue(domain).everything()
        found = [it for it in listings if all(test(it) for test in search.tests)]
        found.sort(key=_sort_key(search.sort))
        return _one_per_family(found) if search.single_variation else found
