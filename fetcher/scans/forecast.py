"""What queries will cost per hour, and whether a plan covers it.

A forecast made without a call to Keepa rests on assumptions; `PlanForecast.assumptions`
lists them in words.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fetcher.queries.judging import request_of
from fetcher.queries.query import DealQuery
from fetcher.replies.units import (
    CACHE_MS,
    NEWEST_FIRST,
    ROWS_PER_PAGE,
    TOKENS_PER_DEAL_PAGE,
    span_words,
)
from fetcher.scans.intervals import PRIOR_DEALS, plan_intervals, polled, share_for_scans

HOUR_MS: Final = 60 * 60_000
HOURS_PER_DAY: Final = 24
DEAL_OPERATION: Final = "deal"
# Where neither a plan nor a file sets an interval.
UNPLANNED_INTERVAL_MS: Final = 5 * 60_000


@dataclass(frozen=True, slots=True)
class QueryForecast:
    """The cost of one query; pages, products and tokens per hour.

    ``interval_ms`` is the time between two scans, ``fixed`` whether its file sets it.
    ``full_tokens`` are for full scans beside the ordinary ones, ``detail_tokens`` for the
    details of accepted deals.
    """

    name: str
    interval_ms: int
    fixed: bool
    pages: float
    page_tokens: float
    full_tokens: float
    details: float
    detail_tokens: float

    @property
    def tokens_per_hour(self) -> float:
        """All of its tokens."""
        return self.page_tokens + self.full_tokens + self.detail_tokens


@dataclass(frozen=True, slots=True)
class PlanForecast:
    """The cost of all queries; ``refill_per_hour`` is None if the plan is not known."""

    queries: tuple[QueryForecast, ...]
    refill_per_hour: float | None
    assumptions: tuple[str, ...]

    @property
    def tokens_per_hour(self) -> float:
        """Tokens of all queries."""
        return sum(query.tokens_per_hour for query in self.queries)

    @property
    def carried(self) -> bool | None:
        """Whether the plan refills as much as the queries cost; None if it is not known."""
        if self.refill_per_hour is None:
            return None
        return self.tokens_per_hour <= self.refill_per_hour


def forecast(
    queries: Iterable[DealQuery],
    *,
    costs: Mapping[str, float],
    refill_per_hour: float | None,
    deals_per_hour: float = PRIOR_DEALS,
) -> PlanForecast:
    """Returns the cost of *queries*.

    Args:
        queries: All queries that share the plan.
        costs: Learned costs in tokens per unit, by operation; the others are assumed.
        refill_per_hour: Tokens that the plan refills; None if it is not known.
        deals_per_hour: New deals an hour that each query is assumed to yield.
    """
    wanted = tuple(queries)
    intervals_ms = _intervals_ms(wanted, refill_per_hour, deals_per_hour)
    page_tokens = costs.get(DEAL_OPERATION, TOKENS_PER_DEAL_PAGE)
    found = tuple(
        _forecast_of(query, intervals_ms[query.name], page_tokens, costs, deals_per_hour)
        for query in wanted
    )
    return PlanForecast(
        found, refill_per_hour, tuple(_assumptions(wanted, costs, refill_per_hour, deals_per_hour))
    )


def _intervals_ms(
    queries: tuple[DealQuery, ...], refill_per_hour: float | None, deals_per_hour: float
) -> dict[str, int]:
    """Returns the intervals as a fetcher plans them."""
    if refill_per_hour is None:
        planned = {query.name: query.interval_ms or UNPLANNED_INTERVAL_MS for query in queries}
    else:
        planned = plan_intervals(
            {
                query.name: polled(
                    query,
                    yields_per_ms=deals_per_hour / HOUR_MS,
                    last_pages=query.pages_per_scan,
                )
                for query in queries
            },
            tokens_per_ms=refill_per_hour / HOUR_MS * share_for_scans(queries),
        )
    # Keepa repeats an answer for so long.
    return {name: max(CACHE_MS, interval_ms) for name, interval_ms in planned.items()}


def _forecast_of(
    query: DealQuery,
    interval_ms: int,
    page_tokens: float,
    costs: Mapping[str, float],
    deals_per_hour: float,
) -> QueryForecast:
    scans = HOUR_MS / interval_ms
    full_pages = 0.0
    if query.sort_type == NEWEST_FIRST:
        # A scan reads one page, and further ones only for more new deals than that holds.
        pages = max(scans, deals_per_hour / ROWS_PER_PAGE)
        if query.full_scan_every_ms is not None:
            full_pages = query.pages_per_scan * HOUR_MS / query.full_scan_every_ms
    else:
        pages = scans * query.pages_per_scan
    details = detail_tokens = 0.0
    request = request_of(query)
    if request is not None:
        details = deals_per_hour
        detail_tokens = details * costs.get(request.operation, request.unit_tokens)
    return QueryForecast(
        query.name,
        interval_ms,
        query.interval_ms is not None,
        pages,
        pages * page_tokens,
        full_pages * page_tokens,
        details,
        detail_tokens,
    )


def _assumptions(
    queries: tuple[DealQuery, ...],
    costs: Mapping[str, float],
    refill_per_hour: float | None,
    deals_per_hour: float,
) -> Iterable[str]:
    yield f"each query yields {deals_per_hour:g} new deals an hour (--deals-per-hour)"
    if any(query.sort_type != NEWEST_FIRST for query in queries):
        yield "a query not sorted by newest first reads as many pages as it may, each time"
    if any(query.full_scan_every_ms and query.sort_type == NEWEST_FIRST for query in queries):
        yield "a full scan reads as many pages as its query may"
    requests = [request for query in queries if (request := request_of(query)) is not None]
    if requests:
        yield "no rule rejects a new deal before its details are bought, once for each deal"
    assumed = {DEAL_OPERATION, *(request.operation for request in requests)} - costs.keys()
    if assumed:
        names = ", ".join(sorted(assumed))
        yield f"costs that no broker has learned are Keepa's list prices: {names}"
    if refill_per_hour is None and any(query.interval_ms is None for query in queries):
        words = span_words(UNPLANNED_INTERVAL_MS / 1000)
        yield f"adaptive queries are read every {words}, because no refill rate is known"
