"""The real order of rows, always measured, never taken on trust.

A watermark may end a scan only if its rows come newest first. That is measured on each
page, and over the border to the page before it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import Final, Literal

from fetcher.replies.deals import Deal
from fetcher.replies.units import MS_PER_MINUTE, SORT_MEANINGS

# Keepa's times are even minutes, and a few rows run ahead by one such step.
DISORDER_TOLERATED_MS: Final = 4 * MS_PER_MINUTE


class Trend(StrEnum):
    """The trend of one field down the rows; unknown with fewer than two known values."""

    DESCENDING = "descending"
    ASCENDING = "ascending"
    CONSTANT = "constant"
    MIXED = "mixed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class OrderKeys:
    """The values by which a row may be sorted; times in Unix ms."""

    creation_ms: int | None
    last_update_ms: int | None
    drop_minor: int | None
    drop_percent: int | None
    rank: int | None


KEY_NAMES: Final = tuple(field.name for field in fields(OrderKeys))

KEY_WORDS: Final = {
    "creation_ms": "deal age",
    "last_update_ms": "last update",
    "drop_minor": "absolute drop",
    "drop_percent": "percent drop",
    "rank": "sales rank",
}

# The key and direction that a sort type promises.
PROMISED: Final = {
    1: ("creation_ms", Trend.DESCENDING),
    2: ("drop_minor", Trend.DESCENDING),
    3: ("rank", Trend.ASCENDING),
    4: ("drop_percent", Trend.DESCENDING),
    -2: ("drop_minor", Trend.ASCENDING),
    -3: ("rank", Trend.DESCENDING),
    -4: ("drop_percent", Trend.ASCENDING),
}


@dataclass(frozen=True, slots=True)
class Order:
    """The trend of each key over some rows.

    ``disorder_ms`` is the most by which a row is newer (by creation) than the oldest row
    before it; None if there are rows, but none with a creation time.
    """

    creation_ms: Trend
    last_update_ms: Trend
    drop_minor: Trend
    drop_percent: Trend
    rank: Trend
    disorder_ms: int | None

    @property
    def newest_first(self) -> bool:
        """Whether a scan may stop at a row that is old enough."""
        return self.disorder_ms is not None and self.disorder_ms <= DISORDER_TOLERATED_MS

    @property
    def follows(self) -> tuple[tuple[str, Trend], ...]:
        """The keys with one direction, and that direction."""
        one_way = (Trend.DESCENDING, Trend.ASCENDING)
        trends = [(name, Trend(getattr(self, name))) for name in KEY_NAMES]
        return tuple((name, trend) for name, trend in trends if trend in one_way)

    def words(self) -> str:
        """Returns the order of the rows in words: "percent drop descending"."""
        if not self.follows:
            return "no recognisable order"
        return ", ".join(f"{KEY_WORDS[name]} {trend}" for name, trend in self.follows)


@dataclass(frozen=True, slots=True)
class PageEnd:
    """The end of a page, against which the next page's order is measured.

    ``last`` holds each key's last known value, ``asins`` all products of the page.
    """

    last: OrderKeys
    asins: tuple[str, ...]


def order_keys(deal: Deal) -> OrderKeys:
    """Returns the sort keys of one row."""
    return OrderKeys(
        creation_ms=deal.creation_ms,
        last_update_ms=deal.last_update_ms,
        # Keepa orders ranks and counts by their drop too; stored facts have it under this name.
        drop_minor=deal.drop,
        drop_percent=deal.drop_percent,
        rank=deal.rank,
    )


def page_end(deals: Sequence[Deal]) -> PageEnd:
    """Returns the end of the page of *deals*."""
    rows = [order_keys(deal) for deal in reversed(deals)]
    last = {name: next(iter(_known(rows, name)), None) for name in KEY_NAMES}
    return PageEnd(OrderKeys(**last), tuple(deal.asin for deal in deals))


def measure_order(deals: Sequence[Deal], before: PageEnd | None = None) -> Order:
    """Measures the order of *deals*, and over the border to the page *before* them.

    Leaves out rows that have moved over the border since that page was read: they prove
    nothing about the order.
    """
    seen = frozenset(before.asins) if before is not None else frozenset()
    rows = [order_keys(deal) for deal in deals if deal.asin not in seen]
    if before is not None:
        rows.insert(0, before.last)
    trends = {name: _trend(_known(rows, name)) for name in KEY_NAMES}
    creations = _known(rows, "creation_ms")
    disorder_ms = None
    if creations or not deals:
        oldest_before = zip(accumulate(creations, min), creations[1:], strict=False)
        disorder_ms = max(0, 0, *(creation - oldest for oldest, creation in oldest_before))
    return Order(**trends, disorder_ms=disorder_ms)


def _known(rows: Iterable[OrderKeys], name: str) -> list[int]:
    values: Iterable[int | None] = (getattr(row, name) for row in rows)
    return [value for value in values if value is not None]


def _trend(values: Sequence[int]) -> Trend:
    if len(values) < 2:  # noqa: PLR2004 - a trend needs two values
        return Trend.UNKNOWN
    falls = any(after < before for before, after in pairwise(values))
    rises = any(after > before for before, after in pairwise(values))
    match falls, rises:
        case True, True:
            return Trend.MIXED
        case True, False:
            return Trend.DESCENDING
        case False, True:
            return Trend.ASCENDING
    return Trend.CONSTANT


SortVerdict = Literal["as documented", "not as documented", "undocumented", "too few rows"]


@dataclass(frozen=True, slots=True)
class SortFinding:
    """The measured order of the replies to one sort type; times in Unix ms."""

    sort_type: int
    meaning: str
    rows: int
    newest_creation_ms: int | None
    oldest_creation_ms: int | None
    newest_update_ms: int | None
    oldest_update_ms: int | None
    order: Order
    verdict: SortVerdict


def judge_sort(sort_type: int, pages: Sequence[Sequence[Deal]]) -> SortFinding:
    """Compares the deals of consecutive *pages* with the order that *sort_type* promises."""
    deals = [deal for page in pages for deal in page]
    # Each product counts once: rows move over page borders between two calls.
    unique = list({deal.asin: deal for deal in reversed(deals)}.values())[::-1]
    order = measure_order(unique)
    rows = [order_keys(deal) for deal in unique]
    creations, updates = _known(rows, "creation_ms"), _known(rows, "last_update_ms")
    return SortFinding(
        sort_type=sort_type,
        meaning=SORT_MEANINGS.get(sort_type, SORT_MEANINGS[0]),
        rows=len(unique),
        newest_creation_ms=max(creations, default=None),
        oldest_creation_ms=min(creations, default=None),
        newest_update_ms=max(updates, default=None),
        oldest_update_ms=min(updates, default=None),
        order=order,
        verdict=_sort_verdict(sort_type, order),
    )


def _sort_verdict(sort_type: int, order: Order) -> SortVerdict:
    if sort_type not in PROMISED:
        return "undocumented"
    name, direction = PROMISED[sort_type]
    trend = Trend(getattr(order, name))
    if trend is Trend.UNKNOWN:
        return "too few rows"
    kept = trend in (direction, Trend.CONSTANT)
    # A few rows with times that run ahead don't count.
    almost = PROMISED[sort_type] == PROMISED[1] and order.newest_first
    return "as documented" if kept or almost else "not as documented"
