"""The facts that a scan keeps of a page, and whether two pages join without a seam."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from fetcher.queries import selection as keepa_selection
from fetcher.replies.deals import DealPage
from fetcher.replies.units import CACHE_MS, MS_PER_MINUTE, ROWS_PER_PAGE
from fetcher.scans.order import Order, OrderKeys, PageEnd, measure_order, page_end

STALE_AFTER_MS: Final = 24 * 60 * MS_PER_MINUTE

# At most so many rows are taken to have moved over a border between two calls.
SHIFT_MAX_ROWS: Final = ROWS_PER_PAGE // 2


@dataclass(frozen=True, slots=True)
class RowEstimate:
    """Bounds on the number of rows of a selection, from the category counts.

    ``at_most`` is None if they give no upper bound.
    """

    at_least: int
    at_most: int | None


def estimate_rows(selection: Mapping[str, object], counts: Mapping[int, int]) -> RowEstimate:
    """Bounds the rows of *selection* by the *counts* of a reply, by root category.

    The counts ignore the selection's category filters, but not its other filters. An
    included or excluded id without a count may be a sub-category of an unknown share.
    """
    included = keepa_selection.included_categories(selection)
    excluded = keepa_selection.excluded_categories(selection)
    asked = (included or counts.keys()) - excluded
    listed = sum(count for category, count in counts.items() if category in asked)
    at_least = listed if excluded <= counts.keys() else 0
    # Without included categories, an unlisted one might hold more.
    bounded = bool(included) and included <= counts.keys()
    return RowEstimate(at_least, listed if bounded else None)


def counts_concerned(
    selection: Mapping[str, object], counts: Mapping[int, int]
) -> Mapping[int, int]:
    """Returns those of *counts* that change as rows of *selection* come and go.

    An included id without a count may be a sub-category of any root.
    """
    included = keepa_selection.included_categories(selection)
    asked = included if included and included <= counts.keys() else counts.keys()
    concerned = asked - keepa_selection.excluded_categories(selection)
    return {category: counts[category] for category in concerned}


@dataclass(frozen=True, slots=True)
class PageFacts:
    """The facts that a scan keeps of a page it has read; times in Unix ms.

    ``server_ms`` is the reply's own time. ``newest_ms`` and ``oldest_ms`` are its extreme
    creation times. ``order`` includes the border to the page before. ``counts`` are the rows
    by root category, where the selection's rows may be among them.
    """

    number: int
    row_count: int
    asins: tuple[str, ...]
    last: OrderKeys
    newest_ms: int | None
    oldest_ms: int | None
    order: Order
    server_ms: int
    cached: bool
    rows: RowEstimate
    # Pages stored by earlier versions have none.
    counts: Mapping[int, int] = field(default_factory=dict)

    @property
    def end(self) -> PageEnd:
        """The end of the page, against which the next page's order is measured."""
        return PageEnd(self.last, self.asins)

    @property
    def as_of_ms(self) -> int:
        """The earliest time that the page may show."""
        return self.server_ms - CACHE_MS if self.cached else self.server_ms

    @property
    def newest_age_ms(self) -> int | None:
        """Age of the newest deal when Keepa served it; None without dated deals."""
        return None if self.newest_ms is None else self.server_ms - self.newest_ms

    @property
    def is_stale(self) -> bool:
        """Whether even the newest deal is so old that a person should look at it."""
        return self.newest_age_ms is not None and self.newest_age_ms > STALE_AFTER_MS


def page_facts(
    number: int,
    page: DealPage,
    selection: Mapping[str, object],
    *,
    server_ms: int,
    before: PageFacts | None,
) -> PageFacts:
    """Returns the facts of *page*; *before* are those of its predecessor, if it was read."""
    creations = [deal.creation_ms for deal in page.deals if deal.creation_ms is not None]
    end = page_end(page.deals)
    return PageFacts(
        number=number,
        row_count=page.row_count,
        asins=end.asins,
        last=end.last,
        newest_ms=max(creations, default=None),
        oldest_ms=min(creations, default=None),
        order=measure_order(page.deals, before.end if before is not None else None),
        server_ms=server_ms,
        cached=page.cached,
        rows=estimate_rows(selection, page.category_counts),
        counts=counts_concerned(selection, page.category_counts),
    )


SeamProblem = Literal["staler", "moved"]


def seam_problem(before: PageFacts, page: PageFacts) -> SeamProblem | None:
    """Returns why rows may be missing between two consecutive pages; None if nothing shows it.

    ``staler``: *page* may show an earlier time than *before*, when rows now at its head
    were still above it. ``moved``: rows have come or gone between the two calls, and
    may have moved others over the border to the side already read; one of the two pages,
    read again, shows them.

    Two pages that share the row at their border hide nothing: no row has moved up over it.
    A shared row elsewhere may have moved alone, where rows don't come newest first. Equal
    counts are no proof: where one row of a category leaves above the border and another
    appears below it, they show nothing.
    """
    shared = frozenset(before.asins).intersection(page.asins)
    if shared.intersection((*before.asins[-1:], *page.asins[:1])):
        return None
    if page.cached and page.as_of_ms < before.server_ms:
        return "staler"
    grown = page.rows.at_least - before.rows.at_least
    # New deals enter at the top and push rows down, onto the page if it is read later.
    pushed_down = grown > 0 and before.server_ms <= page.server_ms
    if abs(grown) > SHIFT_MAX_ROWS and not pushed_down:
        return "staler"
    # A product that becomes a deal again may keep its old date, and enters below the border.
    return "moved" if grown or page.counts != before.counts else None


def read_earlier(before: PageFacts, page: PageFacts) -> int:
    """Returns the number of the page to read again for the rows at a moved seam."""
    return before.number if before.server_ms <= page.server_ms else page.number
