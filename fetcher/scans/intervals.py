"""How often to ask each query, so that deals are as young as the tokens allow.

A query that yields lambda new deals per ms and is read every T ms writes them at a mean
age of T / 2. Under a budget of tokens per ms, the sum of lambda x T / 2 over all queries is
least where T is proportional to sqrt(cost / lambda): twice the yield is asked 1.4 times as
often. Keepa's cache sets the shortest interval, and curiosity the longest: a
query that has yielded nothing is still asked now and then.

One query alone gets T = cost / budget, and its deals a mean age of half of that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Final

from fetcher.queries.query import DealQuery
from fetcher.replies.units import CACHE_MS, NEWEST_FIRST, ROWS_PER_PAGE, TOKENS_PER_DEAL_PAGE

LONGEST_INTERVAL_MS: Final = 60 * 60_000

# Yields follow the hour of the day; half a dozen hours of memory follow them in turn.
MEMORY_MS: Final = 6 * 60 * 60_000

# What a query is taken to yield before it has been read: ten deals an hour.
PRIOR_DEALS: Final = 10.0
PRIOR_MS: Final = 60 * 60_000

# Room for full scans and for pages beyond the first; half where details are bought too.
SHARE: Final = 0.9
SHARE_WITH_DETAILS: Final = 0.5

WEIGHTS: Final = {"high": 4.0, "normal": 2.0, "low": 1.0}

_HALVINGS: Final = 60


@dataclass(frozen=True, slots=True)
class Yield:
    """New deals of a query and the time they took to appear, both fading with age."""

    deals: float = PRIOR_DEALS
    over_ms: float = PRIOR_MS

    def observe(self, new_deals: int, elapsed_ms: int) -> "Yield":
        """The estimate after *elapsed_ms* more, in which *new_deals* have appeared."""
        kept = exp(-elapsed_ms / MEMORY_MS)
        return Yield(self.deals * kept + new_deals, self.over_ms * kept + elapsed_ms)

    @property
    def per_ms(self) -> float:
        """New deals per millisecond."""
        return self.deals / self.over_ms


@dataclass(frozen=True, slots=True)
class PolledQuery:
    """One query as the budget sees it.

    ``fixed_ms`` is the interval that its author wants, None if the budget decides;
    ``weight`` says how much the age of its deals matters beside the others'.
    """

    yields_per_ms: float
    fixed_ms: int | None = None
    weight: float = 1.0
    scan_tokens: int = TOKENS_PER_DEAL_PAGE

    @property
    def volume_tokens_per_ms(self) -> float:
        """What the pages beyond the first cost, however often it is asked."""
        return self.yields_per_ms / ROWS_PER_PAGE * TOKENS_PER_DEAL_PAGE


def share_for_scans(queries: Iterable[DealQuery]) -> float:
    """The share of all tokens that intervals may be planned with."""
    details = any(query.enrichment is not None for query in queries)
    return SHARE_WITH_DETAILS if details else SHARE


def polled(query: DealQuery, *, yields_per_ms: float, last_pages: int) -> PolledQuery:
    """*query* as the budget sees it; its last scan took *last_pages* pages."""
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
    """The interval of each query in ms: the least mean age of deals within the budget.

    Fixed intervals are kept and paid for first. Where even the longest intervals cost
    more than there is, the adaptive ones are stretched further.

    Args:
        queries: All queries that share the budget, by name.
        tokens_per_ms: What may be spent on them on average; not negative.
        cache_ms: How long Keepa repeats an answer: the shortest interval.
    """
    fixed = {name: query.fixed_ms for name, query in queries.items() if query.fixed_ms}
    adaptive = {name: query for name, query in queries.items() if name not in fixed}
    spent = sum(queries[name].scan_tokens / interval_ms for name, interval_ms in fixed.items())
    left = tokens_per_ms - spent
    intervals_ms = _spread(list(adaptive.values()), left, cache_ms)
    planned = {name: round(ms) for name, ms in zip(adaptive, intervals_ms, strict=True)}
    return {name: fixed.get(name) or planned[name] for name in queries}


def mean_age_ms(queries: Sequence[PolledQuery], intervals_ms: Sequence[float]) -> float:
    """Mean age of a deal when it is written, over all queries, by yield and weight."""
    weights = [query.yields_per_ms * query.weight for query in queries]
    if not (total := sum(weights)):
        return 0.0
    ages = (w * ms / 2 for w, ms in zip(weights, intervals_ms, strict=True))
    return sum(ages) / total


def _spread(queries: Sequence[PolledQuery], tokens_per_ms: float, cache_ms: int) -> list[float]:
    """The intervals whose cost just meets the budget, by halving over their common scale."""
    roots = [_root(query) for query in queries]
    slowest = [float(LONGEST_INTERVAL_MS)] * len(queries)
    if not queries:
        return []
    if (least_tokens := _cost(queries, slowest)) >= tokens_per_ms:
        stretch = least_tokens / tokens_per_ms if tokens_per_ms > 0 else 1.0
        return [interval_ms * stretch for interval_ms in slowest]
    # At scale 0 all are at their shortest, at the highest all at their longest.
    low, high = 0.0, LONGEST_INTERVAL_MS / min(roots)
    for _ in range(_HALVINGS):
        scale = (low + high) / 2
        if _cost(queries, _scaled(roots, scale, cache_ms)) > tokens_per_ms:
            low = scale
        else:
            high = scale
    return _scaled(roots, high, cache_ms)


def _root(query: PolledQuery) -> float:
    """What a query's interval is proportional to."""
    nothing = 1.0 / MEMORY_MS / ROWS_PER_PAGE
    return sqrt(query.scan_tokens / (max(query.yields_per_ms, nothing) * query.weight))


def _scaled(roots: Sequence[float], scale: float, cache_ms: int) -> list[float]:
    return [min(max(root * scale, cache_ms), LONGEST_INTERVAL_MS) for root in roots]


def _cost(queries: Sequence[PolledQuery], intervals_ms: Sequence[float]) -> float:
    """Tokens per ms of asking at these intervals; volume comes on top where it is more."""
    return sum(
        max(query.scan_tokens / ms, query.volume_tokens_per_ms)
        for query, ms in zip(queries, intervals_ms, strict=True)
    )
