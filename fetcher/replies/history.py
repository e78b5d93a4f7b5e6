"""Reading the price histories of a product from a /product reply.

A product has a list per price type: Keepa minute and value by turns, or minute, price and
shipping for types that include it. Keepa's "none" is a value here: from then on there was
no offer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fetcher.replies.record import INT32_MAX, integer
from fetcher.replies.units import COUNT_TYPES, LATEST_KEEPA_MINUTES, PRICE_TYPES, minutes_to_ms

# Source: the official clients' CsvType, "isWithShipping".
WITH_SHIPPING: Final = frozenset({7, 18, *range(19, 28), 32})
# A count of Keepa's own updates, of no use to a buyer.
LEFT_OUT: Final = frozenset({15})
# Far more than Keepa keeps of one price of one product.
POINTS_MAX: Final = 200_000


@dataclass(frozen=True, slots=True)
class PricePoint:
    """A value in the unit of its price type, from *time_ms* (Unix) on; None is no offer."""

    domain_id: int
    asin: str
    price_type: int
    time_ms: int
    value: int | None


def parse_history(row: Mapping[str, object], *, domain_id: int) -> list[PricePoint]:
    """Returns the points of a product's row as served; unreadable ones are left out."""
    asin, lists = row.get("asin"), row.get("csv")
    if not isinstance(asin, str) or not isinstance(lists, list):
        return []
    return [
        PricePoint(domain_id, asin, price_type, minutes_to_ms(minute), value)
        for price_type, flat in enumerate(lists[: len(PRICE_TYPES)])
        if isinstance(flat, list) and price_type not in LEFT_OUT
        for minute, value in _points(flat, price_type)
    ]


def without_history(row: Mapping[str, object]) -> Mapping[str, object]:
    """Returns *row* without its histories, which are stored apart."""
    return {name: value for name, value in row.items() if name != "csv"} if "csv" in row else row


def _points(flat: list[object], price_type: int) -> Iterator[tuple[int, int | None]]:
    width = 3 if price_type in WITH_SHIPPING else 2
    for start in range(0, min(len(flat), POINTS_MAX * width) - width + 1, width):
        minute, value = integer(flat[start]), integer(flat[start + 1])
        if minute is None or value is None or not 0 < minute <= LATEST_KEEPA_MINUTES:
            continue
        if value < 0:
            yield minute, None
            continue
        shipping = integer(flat[start + 2]) if width > 2 else 0  # noqa: PLR2004 - see above
        total = value + max(shipping or 0, 0)
        # Zero is a count, but no price.
        if total <= INT32_MAX and (total > 0 or price_type in COUNT_TYPES):
            yield minute, total
