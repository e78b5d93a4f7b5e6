"""The filters of a selection: one small predicate per field in use.

Range filters act on the requested price type and date range, as measured. A predicate
sees a deal and the figures of the requested price type.
"""

from collections.abc import Callable, Iterator
from typing import Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.history import NO_OFFER
from deploy.keepa_simulator.keepa_time import DAY_MINUTES
from deploy.keepa_simulator.listing import Figures, Listing
from deploy.keepa_simulator.selection import Range, Selection

Predicate = Callable[[Listing, Figures], bool]

# A deal of date range 0 to 3 has changed within this many minutes.
_CHANGED_WITHIN: Final = (DAY_MINUTES, 7 * DAY_MINUTES, 31 * DAY_MINUTES, 90 * DAY_MINUTES)
_NEW_OFFERS: Final = (pt.AMAZON, pt.NEW, pt.NEW_FBM_SHIPPING, pt.NEW_FBA, pt.BUY_BOX_SHIPPING)


def _is_lowest(listing: Listing, figures: Figures, price_type: int, since: int) -> bool:
    """Whether the current value is the least that held at any time after *since*."""
    history = listing.history(price_type)
    held = [value for minute, value in history if minute >= since]
    # What held when the span began has its pair before it.
    held += [value for minute, value in history if minute < since][-1:]
    return figures.current <= min((value for value in held if value >= 0), default=NO_OFFER)


def _lowest_offer(listing: Listing, figures: Figures) -> bool:
    offers = [price for type_ in _NEW_OFFERS if (price := listing.current(type_)) >= 0]
    return bool(offers) and figures.current <= min(offers)


def _is_highest(listing: Listing, figures: Figures, price_type: int) -> bool:
    return figures.current >= max(value for _, value in listing.history(price_type))


def is_back_in_stock(figures: Figures, last_update: int) -> bool:
    """Whether an offer came back within the day before *last_update*."""
    recent = figures.since >= last_update - DAY_MINUTES
    return recent and figures.current >= 0 and figures.previous < 0


def _switches(price_type: int, date_range: int) -> dict[str, Predicate]:
    ever, quarter = -(2**31), 90 * DAY_MINUTES
    return {
        "isLowest": lambda deal, it: _is_lowest(deal, it, price_type, ever),
        "isLowest90": lambda deal, it: _is_lowest(
            deal, it, price_type, deal.last_update - quarter
        ),
        "isLowestOffer": _lowest_offer,
        "isHighest": lambda deal, it: _is_highest(deal, it, price_type),
        "isBackInStock": lambda deal, it: is_back_in_stock(it, deal.last_update),
        "isRisers": lambda _, it: it.sums.delta[date_range] < 0,
        "isPrimeExclusive": lambda deal, _: deal.current(pt.PRIME_EXCL) >= 0,
        "mustHaveAmazonOffer": lambda deal, _: deal.current(pt.AMAZON) >= 0,
        "mustNotHaveAmazonOffer": lambda deal, _: deal.current(pt.AMAZON) < 0,
        "hasReviews": lambda deal, _: deal.current(pt.COUNT_REVIEWS) > 0,
        "filterErotic": lambda deal, _: not deal.facts.is_adult,
    }


def _ranges(wanted: Selection) -> Iterator[Predicate]:
    date_range = wanted.date_range
    # For risers a range limits the size of the rise (inferred).
    sign = -1 if "isRisers" in wanted.switches else 1

    def between(bounds: Range, read: Callable[[Figures], int]) -> Predicate:
        low, high = bounds
        return lambda _, figures: low <= read(figures) <= high

    if wanted.current_range:
        yield between(wanted.current_range, lambda figures: figures.current)
    if wanted.delta_percent_range:
        yield between(
            wanted.delta_percent_range,
            lambda figures: sign * figures.sums.delta_percent[date_range],
        )
    if wanted.delta_range:
        yield between(wanted.delta_range, lambda figures: sign * figures.sums.delta[date_range])
    if wanted.delta_last_range:
        yield between(wanted.delta_last_range, lambda figures: sign * figures.delta_last)


def _properties(wanted: Selection) -> Iterator[Predicate]:
    if wanted.sales_rank_range:
        low, high = wanted.sales_rank_range
        # A product without a rank is dropped even by an open range.
        yield lambda deal, _: max(1, low) <= deal.current(pt.SALES) <= high
    if wanted.min_rating > 0:
        yield lambda deal, _: deal.current(pt.RATING) >= wanted.min_rating
    if wanted.warehouse_conditions:
        yield lambda deal, _: deal.warehouse_condition in wanted.warehouse_conditions
    if wanted.title_words:
        yield lambda deal, _: all(word in deal.facts.title.lower() for word in wanted.title_words)
    for name, values in wanted.attributes:
        yield lambda deal, _, name=name, values=values: has_attribute(  # type: ignore[misc]  # defaults bind the loop's names
            deal.facts.attributes.get(name), values
        )


def has_attribute(value: str | list[str] | None, wanted: frozenset[str]) -> bool:
    """Whether an attribute, which may hold several values, is one of *wanted* (lower case)."""
    values = value if isinstance(value, list) else [value] if value is not None else []
    return any(item.lower() in wanted for item in values)


def _membership(wanted: Selection, now: int) -> Predicate:
    """Predicates of every deal of this price type and date range."""
    changed_after = now - _CHANGED_WITHIN[wanted.date_range]
    if "isOutOfStock" in wanted.switches:
        sold_out_after = now - DAY_MINUTES
        return lambda _, it: it.current < 0 <= it.previous and it.since >= sold_out_after
    return lambda _, it: it.current >= 0 and it.since >= changed_after


def predicates(wanted: Selection, now: int) -> list[Predicate]:
    """Every predicate of a deal, except categories and variations.

    Args:
        wanted: The selection.
        now: The server's clock in Keepa minutes.
    """
    switches = _switches(wanted.price_type, wanted.date_range)
    chosen = [switches[name] for name in sorted(wanted.switches & switches.keys())]
    return [_membership(wanted, now), *_ranges(wanted), *_properties(wanted), *chosen]


def in_categories(listing: Listing, wanted: Selection) -> bool:
    """Whether the category filters let a deal through.

    A root covers everything below it; any other category covers only the products that
    are directly listed in it.
    """
    facts = listing.facts
    listed = (facts.root, *facts.categories)
    if wanted.include_categories and wanted.include_categories.isdisjoint(listed):
        return False
    return wanted.exclude_categories.isdisjoint(listed)
