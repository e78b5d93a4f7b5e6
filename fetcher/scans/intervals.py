"""How often to read each query, so that deals are as young as the tokens allow.

A query that yields lambda new deals per ms and is read every T ms writes them at a mean
age of T / 2. Under a budget of tokens per ms, the sum of lambda x T / 2 over all queries is
least if T is proportional to sqrt(cost / lambda): a query with twice the yield is read 1.4
times as often. Keepa's cache sets the shortest interval. The longest is an hour: even a
query that has yielded nothing is read now and then.

One query alone gets T = cost / budget, and its deals a mean age of half of that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Final

from fetcher.queries.query import DealQuery
from fetcher.replies.units import CACHE_MS, NEWEST_FIRST, ROWS_PER_PAGE, TOKENS_PER_DEAL_PAGE

LONGEST_INTERVAL_MS: Final = 60 * 60_000

# Yields change with the hour of the day; a memory of six hours follows them.
MEMORY_MS: Final = 6 * 60 * 60_000

# Assumed yield of a query that has not been read yet: ten deals an hour.
PRIOR_DEALS: Final = 10.0
PRIOR_MS: Final = 60 * 60_000

# The rest is for full scans and for pages beyond the first; half if details are bought too.
SHARE: Final = 0.9
SHARE_WITH_DETAILS: Final = 0.5

WEIGHTS: Final = {"high": 4.0, "normal": 2.0, "low": 1.0}

_HALVINGS: Final = 60


@dataclass(frozen=True, slots=True)
class Yield:
    """New deals of a query and the time in which they appeared, both fading with age."""

    deals: float = PRIOR_DEALS
    over_ms: float = PRIOR_MS

    def observe(self, new_deals: int, elapsed_ms: int) -> "Yield":
        """Returns the estimate after *elapsed_ms* more with *new_deals* new deals."""
        kept = exp(-elapsed_ms / MEMORY_MS)
        return Yield(self.deals * kept + new_deals, self.over_ms * kept + elapsed_ms)

    @property
    def per_ms(self) -> float:
        """New deals per millisecond."""
        return self.deals / self.over_ms


@dataclass(frozen=True, slots=True)
class PolledQuery:
    """The part of a query that the planning of intervals needs.

    ``fixed_ms`` is the interval that its author wants, None if the budget decides;
    ``weight`` is how much the age of its deals matters compared with other queries.
    """

    yields_per_ms: float
    fixed_ms: int | None = None
    weight: float = 1.0
    scan_tokens: int = TOKENS_PER_DEAL_PAGE

    @property
    def volume_tokens_per_ms(self) -> float:
        """Cost of the pages beyond the first, at any interval."""
        return self.yields_per_ms / ROWS_PER_PAGE * TOKENS_PER_DEAL_PAGE


def share_for_scans(queries: Iterable[DealQuery]) -> float:
    """Returns the share of all tokens for which intervals may be planned."""
    details = any(query.enrichment is not None for query in queries)
    return SHARE_WITH_DETAILS if details else SHARE


def polled(query: DealQuery, *, yields_per_ms: float, last_pages: int) -> PolledQuery:
    """Returns *query* for the planning; its last scan took *last_pages* pages."""
    every_page = query.sort_type != NEWEST_FIRST
    return PolledQuery(
        yields_per_ms=yields_per_ms,
        fixed_ms=query.interval_ms,
        weight=WEIGHTS[query.priority],
        scan_tokens=TOKENS_PER_DEAL_PAGE * (last_pages if every_page else 1),
    )


def plan_intervals(
    queries: Mapping[str, PolledQuery], *, tokens_per_ms: float, cache_ms: int = CACHE_MS
) -> dict[str, int]:
    """Returns the interval of each query in ms, for the least mean age within the budget.

    Fixed intervals are kept and paid for first. If even the longest intervals cost more
    than the budget, the adaptive ones are stretched further.

    Args:
        queries: All queries that share the budget, by name.
        tokens_per_ms: Budget for all of them on average; not negative.
        cache_ms: How long Keepa repeats an answer: the shortest interval.
    """
    fixed = {name: query.fixed_ms for name, query in queries.items() if query.fixed_ms}
    adaptive = {name: query for name, query in queries.items() if name not in fixed}
    spent = sum(queries[name].scan_tokens / interval_ms for name, interval_ms in fixed.items())
    left = tokens_per_ms - spent
    intervals_ms = _spread(list(adaptive.values()), left, cache_ms)
    planned = {name: round(ms) for name, ms in zip(adaptive, intervals_ms, strict=True)}
    return {name: fixed.get(name) or planned[name] for name in queries}


def _spread(queries: Sequence[PolledQuery], tokens_per_ms: float, cache_ms: int) -> list[float]:
    """Finds the intervals that just meet the budget, by bisection over their common scale."""
    # Each interval is proportional to the root of its query.
    nothing = 1.0 / MEMORY_MS / ROWS_PER_PAGE
    roots = [
        sqrt(query.scan_tokens / (max(query.yields_per_ms, nothing) * query.weight))
        for query in queries
    ]
    slowest = [float(LONGEST_INTERVAL_MS)] * len(queries)
    if not queries:
        return []
    if (least_tokens := _cost(queries, slowest)) >= tokens_per_ms:
        stretch = least_tokens / tokens_per_ms if tokens_per_ms > 0 else 1.0
        return [interval_ms * stretch for interval_ms in slowest]
    # At scale 0 all intervals are at their shortest, at the highest all at their longest.
    low, high = 0.0, LONGEST_INTERVAL_MS / min(roots)
    for _ in range(_HALVINGS):
        scale = (low + high) / 2
        if _cost(queries, _scaled(roots, scale, cache_ms)) > tokens_per_ms:
            low = scale
        else:
            high = scale
    return _scaled(roots, high, cache_ms)


def _scaled(roots: Sequence[float], scale: float, cache_ms: int) -> list[float]:
    return [min(max(root * scale, cache_ms), LONGEST_INTERVAL_MS) for root in roots]


def _cost(queries: Sequence[PolledQuery], intervals_ms: Sequence[float]) -> float:
    """Returns the tokens per ms at these intervals; a query's volume counts if it is more."""
    return sum(
        max(query.scan_tokens / ms, query.volume_tokens_per_ms)
        for query, ms in zip(queries, intervals_ms, strict=True)
    )
