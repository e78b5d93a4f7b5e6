"""The reply to a selection: filter, count categories, sort, cut a page."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.filters import in_categories, predicates
from deploy.keepa_simulator.listing import Figures, Listing
from deploy.keepa_simulator.selection import Selection

PAGE_ROWS: Final = 150
ROWS_MAX: Final = 10_000

_Match = tuple[Listing, Figures]
_Order = Callable[[_Match], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of deals, or all of them.

    Args:
        deals: Rows in the order asked for.
        category_counts: Rows of each root category, before the category filters.
    """

    deals: list[Listing]
    category_counts: dict[int, int]


def _matches(deals: Iterable[Listing], wanted: Selection, now: int) -> list[_Match]:
    tests = predicates(wanted, now)
    price_type = wanted.price_type
    matches = []
    for listing in deals:
        figures = listing.figures(price_type)
        for test in tests:
            if not test(listing, figures):
                break
        else:
            matches.append((listing, figures))
    return matches


def _shuffled(number: int) -> int:
    """A fixed order without meaning, for a sortType that has none."""
    return number * 2_654_435_761 % 2**32


def _rank(listing: Listing) -> int:
    rank = listing.current(pt.SALES)
    return rank if rank > 0 else 2**31


def order_of(sort_type: int, date_range: int) -> _Order:
    """The sort key of a sortType; nothing sorts by last update. Ties go by product."""
    orders: dict[int, _Order] = {
        1: lambda match: (-match[1].since, match[0].facts.number),
        2: lambda match: (-match[1].sums.delta[date_range], match[0].facts.number),
        3: lambda match: (_rank(match[0]), match[0].facts.number),
        4: lambda match: (-match[1].sums.delta_percent[date_range], match[0].facts.number),
        -2: lambda match: (match[1].sums.delta[date_range], match[0].facts.number),
        -3: lambda match: (-_rank(match[0]), match[0].facts.number),
        -4: lambda match: (match[1].sums.delta_percent[date_range], match[0].facts.number),
    }
    # Newest first can't be inverted; 0 and a missing sortType give no recognisable order.
    orders[-1] = orders[1]
    return orders.get(sort_type, lambda match: (_shuffled(match[0].facts.number),))


def _one_of_each_family(matches: list[_Match]) -> list[_Match]:
    families: dict[str, _Match] = {}
    for match in matches:
        facts = match[0].facts
        families.setdefault(facts.parent_asin or facts.asin, match)
    return list(families.values())


def answer(
    deals: Iterable[Listing], wanted: Selection, now: int, *, sort_type: int | None = None
) -> Page:
    """The page of *deals* that *wanted* selects, at most 150 rows; arguments as in `select`."""
    rows = select(deals, wanted, now, sort_type=sort_type)
    first = wanted.page * PAGE_ROWS
    return Page(rows.deals[:ROWS_MAX][first : first + PAGE_ROWS], rows.category_counts)


def select(
    deals: Iterable[Listing], wanted: Selection, now: int, *, sort_type: int | None = None
) -> Page:
    """All of *deals* that *wanted* selects, whatever page it names.

    Args:
        deals: All products that are deals.
        wanted: The selection.
        now: The server's clock in Keepa minutes.
        sort_type: Overrides the order in *wanted*.
    """
    matches = _matches(deals, wanted, now)
    if "singleVariation" in wanted.switches:
        matches = _one_of_each_family(matches)
    counts = Counter(listing.facts.root for listing, _ in matches)
    if wanted.include_categories or wanted.exclude_categories:
        matches = [match for match in matches if in_categories(match[0], wanted)]
    order = wanted.sort_type if sort_type is None else sort_type
    matches.sort(key=order_of(order, wanted.date_range))
    return Page([listing for listing, _ in matches], dict(counts))
