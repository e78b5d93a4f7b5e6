"""Intervals that make deals as young as the budget allows."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.replies.units import CACHE_MS
from fetcher.scans.intervals import (
    LONGEST_INTERVAL_MS,
    PolledQuery,
    Yield,
    plan_intervals,
)

PER_MINUTE = 1 / 60_000
PER_HOUR = PER_MINUTE / 60

queries = st.builds(
    PolledQuery,
    yields_per_ms=st.floats(0, 400).map(PER_HOUR.__mul__),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
)


def mean_age_ms(polled: Sequence[PolledQuery], intervals_ms: Sequence[float]) -> float:
    """Mean age of a deal when it is written, over all queries, by yield and weight."""
    weights = [query.yields_per_ms * query.weight for query in polled]
    if not (total := sum(weights)):
        return 0.0
    return sum(w * ms / 2 for w, ms in zip(weights, intervals_ms, strict=True)) / total


@pytest.mark.parametrize(("rate", "age_minutes"), [(0.5, 5.0), (1, 2.5), (2, 1.25), (20, 1.0)])
def test_one_query_alone_reaches_the_bound(rate: float, age_minutes: float) -> None:
    """A page costs 5 and is cached for 2 minutes: no reader is faster on average."""
    query = PolledQuery(yields_per_ms=10 * PER_HOUR)

    interval_ms = plan_intervals({"only": query}, tokens_per_ms=rate * PER_MINUTE)["only"]

    assert mean_age_ms([query], [interval_ms]) == pytest.approx(age_minutes * 60_000, rel=1e-3)


def test_four_times_the_yield_is_asked_twice_as_often() -> None:
    """The square root rule."""
    books, music = PolledQuery(40 * PER_HOUR), PolledQuery(10 * PER_HOUR)

    planned = plan_intervals({"books": books, "music": music}, tokens_per_ms=2 * PER_MINUTE)

    assert planned["music"] == pytest.approx(2 * planned["books"], rel=1e-3)
    assert 5 / planned["books"] + 5 / planned["music"] == pytest.approx(2 * PER_MINUTE, rel=1e-3)


def test_a_fixed_interval_is_kept_and_paid_for_first() -> None:
    """What its author wants leaves the others the rest."""
    fixed, free = PolledQuery(PER_HOUR, fixed_ms=300_000), PolledQuery(PER_HOUR)

    planned = plan_intervals({"fixed": fixed, "free": free}, tokens_per_ms=2 * PER_MINUTE)

    assert planned == {"fixed": 300_000, "free": 300_000}


def test_too_little_stretches_the_longest_intervals() -> None:
    """Where even the longest cost too much, the budget rules; without one nothing divides."""
    query = PolledQuery(0.0)
    half = 5 / LONGEST_INTERVAL_MS / 2

    assert plan_intervals({"q": query}, tokens_per_ms=half) == {"q": 2 * LONGEST_INTERVAL_MS}
    assert plan_intervals({"q": query}, tokens_per_ms=0.0) == {"q": LONGEST_INTERVAL_MS}
    assert plan_intervals({}, tokens_per_ms=1.0) == {}


@given(st.lists(queries, min_size=1, max_size=8), st.floats(0.2, 60).map(PER_MINUTE.__mul__))
def test_the_plan_stays_within_the_budget_and_uses_it(
    polled: list[PolledQuery], tokens_per_ms: float
) -> None:
    """Unless the shortest or longest intervals forbid it, all tokens are used and no more."""
    named = {str(index): query for index, query in enumerate(polled)}

    planned = plan_intervals(named, tokens_per_ms=tokens_per_ms)

    cost = sum(max(5 / planned[name], query.volume_tokens_per_ms) for name, query in named.items())
    shortest = all(interval_ms == CACHE_MS for interval_ms in planned.values())
    longest = all(interval_ms >= LONGEST_INTERVAL_MS for interval_ms in planned.values())
    assert all(interval_ms >= CACHE_MS for interval_ms in planned.values())
    assert cost <= tokens_per_ms * 1.001 or longest
    volume_bound = any(5 / planned[n] < q.volume_tokens_per_ms for n, q in named.items())
    assert cost >= tokens_per_ms * 0.99 or shortest or longest or volume_bound


@given(
    st.lists(st.floats(1, 400).map(PER_HOUR.__mul__), min_size=2, max_size=6),
    st.floats(1, 10).map(PER_MINUTE.__mul__),
    st.integers(0, 5),
    st.floats(1.01, 3),
)
def test_no_neighbouring_plan_of_the_same_cost_is_better(
    yields: list[float], tokens_per_ms: float, slowed: int, factor: float
) -> None:
    """Slowing one query and spending what that saves on the others makes deals no younger."""
    polled = [PolledQuery(each) for each in yields]
    named = {str(index): query for index, query in enumerate(polled)}
    planned = list(plan_intervals(named, tokens_per_ms=tokens_per_ms).values())
    index = slowed % len(polled)
    longer_ms = max(planned[index], min(planned[index] * factor, LONGEST_INTERVAL_MS))
    spent = sum(5 / interval_ms for interval_ms in planned)
    rest = spent - 5 / planned[index]
    quicken = rest / (spent - 5 / longer_ms)
    other = [
        longer_ms if place == index else max(CACHE_MS, interval_ms * quicken)
        for place, interval_ms in enumerate(planned)
    ]

    assert mean_age_ms(polled, planned) <= mean_age_ms(polled, other) * 1.001


def test_the_yield_follows_what_is_seen_and_forgets() -> None:
    """An estimate starts at its prior, approaches what is observed and fades to silence."""
    hour_ms = 3_600_000
    busy = Yield()
    for _ in range(48):
        busy = busy.observe(100, hour_ms)
    silent = busy
    for _ in range(48):
        silent = silent.observe(0, hour_ms)

    assert Yield().per_ms == pytest.approx(10 * PER_HOUR)
    assert busy.per_ms == pytest.approx(100 * PER_HOUR, rel=0.01)
    assert silent.per_ms < PER_HOUR
