"""A /deal selection: reads JSON as users paste it, and validates it.

Keepa's own deals page shows numbers as strings, and clients omit most fields; both are
accepted. `filters` defines what each field does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deploy.keepa_simulator.price_types import DEAL_TYPES, SALES

DOMAINS: Final = frozenset((1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12))
OPEN_END: Final = 2**31 - 1
# 4 is undocumented, but some clients send it.
_DATE_RANGE_MAX: Final = 4
_DATE_RANGE_LONGEST: Final = 3
_EXCLUDED_MAX: Final = 500
# Documented least percentages of deltaPercentRange.
_PERCENT_MIN: Final = 10
_PERCENT_MIN_SALES: Final = 80

Range = tuple[int, int]
_SWITCHES: Final = [
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
]
ATTRIBUTES: Final = [
    "author",
    "binding",
    "brand",
    "brandStoreName",
    "brandStoreUrlName",
    "color",
    "edition",
    "format",
    "itemForm",
    "itemTypeKeyword",
    "languages",
    "manufacturer",
    "material",
    "model",
    "pattern",
    "productGroup",
    "salesRankDisplayGroup",
    "scent",
    "size",
    "style",
    "targetAudienceKeyword",
    "type",
    "unitType",
    "websiteDisplayGroup",
    "websiteDisplayGroupName",
]


class SelectionError(Exception):
    """A selection that Keepa would refuse.

    Args:
        details: The mistake, for the error object.
        status: 400 for malformed values, 405 for values out of range.
    """

    def __init__(self, details: str, status: int = 400) -> None:
        super().__init__(details)
        self.details = details
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A valid selection; an unused range or list is None or empty."""

    domain: int
    price_type: int
    page: int
    date_range: int
    sort_type: int
    include_categories: frozenset[int]
    exclude_categories: frozenset[int]
    current_range: Range | None
    delta_range: Range | None
    delta_percent_range: Range | None
    delta_last_range: Range | None
    sales_rank_range: Range | None
    min_rating: int
    switches: frozenset[str]
    warehouse_conditions: frozenset[int]
    title_words: tuple[str, ...]
    attributes: tuple[tuple[str, frozenset[str]], ...]


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SelectionError(f"{name} must be a number")
    try:
        return int(value)
    except ValueError:
        raise SelectionError(f"{name} must be a number") from None


def _integers(name: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    # The public Python client sends a bare number instead of a list of one.
    items = value if isinstance(value, list) else [value]
    return tuple(_integer(name, item) for item in items)


def _range(fields: Mapping[str, Any], name: str, *, least: int = -(2**31)) -> Range | None:
    if not fields.get(name):
        return None
    bounds = _integers(name, fields[name])
    if len(bounds) != 2:  # noqa: PLR2004 - a range has two ends
        raise SelectionError(f"{name} must hold two numbers")
    low, high = bounds
    return max(low, least), OPEN_END if high == -1 else high


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    return str(fields.get(name, False)).lower() in ("true", "1")


def _one_price_type(fields: Mapping[str, Any]) -> int:
    price_types = _integers("priceTypes", fields.get("priceTypes"))
    if len(price_types) != 1:
        raise SelectionError("priceTypes must hold exactly one entry")
    if not 0 <= price_types[0] < DEAL_TYPES:
        raise SelectionError("priceTypes is out of range", status=405)
    return price_types[0]


def _domain(fields: Mapping[str, Any]) -> int:
    if fields.get("domainId") is None:
        raise SelectionError("domainId is missing")
    domain = _integer("domainId", fields["domainId"])
    if domain not in DOMAINS:
        raise SelectionError("domainId is out of range", status=405)
    return domain


def _bounded(fields: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    number = _integer(name, fields.get(name, default))
    if not low <= number <= high:
        raise SelectionError(f"{name} is out of range", status=405)
    return number


def _attributes(fields: Mapping[str, Any]) -> tuple[tuple[str, frozenset[str]], ...]:
    wanted = []
    for name in ATTRIBUTES:
        if values := fields.get(name):
            listed = values if isinstance(values, list) else [values]
            wanted.append((name, frozenset(str(value).lower() for value in listed)))
    return tuple(wanted)


def _ranges(fields: Mapping[str, Any], price_type: int) -> dict[str, Range | None]:
    if not _flag(fields, "isRangeEnabled"):
        fields = {}
    percent_min = _PERCENT_MIN_SALES if price_type == SALES else _PERCENT_MIN
    return {
        "current_range": _range(fields, "currentRange"),
        "delta_range": _range(fields, "deltaRange"),
        "delta_percent_range": _range(fields, "deltaPercentRange", least=percent_min),
        "delta_last_range": _range(fields, "deltaLastRange"),
        "sales_rank_range": _range(fields, "salesRankRange"),
    }


def _excluded(fields: Mapping[str, Any]) -> frozenset[int]:
    excluded = _integers("excludeCategories", fields.get("excludeCategories"))
    if len(excluded) > _EXCLUDED_MAX:
        raise SelectionError(f"more than {_EXCLUDED_MAX} excludeCategories", status=405)
    return frozenset(excluded)


def parse_selection(text: str) -> Selection:
    """Reads a selection.

    Ranges act only with ``isRangeEnabled``; switches, ``minRating`` and
    ``warehouseConditions`` only with ``isFilterEnabled``; categories, title and
    attributes always (inferred: no source states which of them a switch governs).

    Raises:
        SelectionError: Keepa would refuse it.
    """
    try:
        fields = json.loads(text)
    except ValueError:
        raise SelectionError("selection is not JSON") from None
    if not isinstance(fields, dict):
        raise SelectionError("selection is not a JSON object")
    price_type = _one_price_type(fields)
    filters = fields if _flag(fields, "isFilterEnabled") else {}
    return Selection(
        domain=_domain(fields),
        price_type=price_type,
        page=_bounded(fields, "page", 0, 0, 2**31),
        date_range=min(_bounded(fields, "dateRange", 0, 0, _DATE_RANGE_MAX), _DATE_RANGE_LONGEST),
        sort_type=_bounded(fields, "sortType", 0, -4, 4),
        include_categories=frozenset(
            _integers("includeCategories", fields.get("includeCategories"))
        ),
        exclude_categories=_excluded(fields),
        **_ranges(fields, price_type),
        min_rating=_bounded(filters, "minRating", -1, -1, 50),
        switches=frozenset(name for name in _SWITCHES if _flag(filters, name)),
        warehouse_conditions=frozenset(
            _integers("warehouseConditions", filters.get("warehouseConditions"))
        ),
        title_words=tuple(str(fields.get("titleSearch") or "").lower().split()),
        attributes=_attributes(fields),
    )
