"""The order of rows is measured on the page and over its border."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.replies.deals import Deal, parse_deal_page
from fetcher.replies.units import ms_to_minutes
from fetcher.scans.order import Trend, judge_sort, measure_order, page_end
from tests.fetcher.builders import MINUTE_MS, NOW_MS, PRICE_TYPES, deal, recording

NOW = ms_to_minutes(NOW_MS)


def dated(*minutes_ago: int, first: int = 0) -> list[Deal]:
    """Deals created so many minutes ago, in this order, numbered from *first*."""
    return [
        deal(f"B{first + index:09}", creationDate=NOW - ago, title=None)
        for index, ago in enumerate(minutes_ago)
    ]


def by_percent(*percents: int) -> list[Deal]:
    """Deals with these drops, none dated alike."""
    rows = []
    for index, percent in enumerate(percents):
        drops = [[percent] * PRICE_TYPES for _ in range(4)]
        age = (index * 7919) % 1_000
        rows.append(deal(f"B{index:09}", deltaPercent=drops, creationDate=NOW - age))
    return rows


def test_newest_first_is_recognised_with_ties() -> None:
    """Keepa's even minutes make ties normal."""
    order = measure_order(dated(0, 2, 2, 4, 60))

    assert (order.creation_ms, order.disorder_ms, order.newest_first) == ("descending", 0, True)


def test_a_page_by_percent_does_not_pass_for_newest_first() -> None:
    """The order that collectors mistake for the last update is found out on one page."""
    order = measure_order(by_percent(90, 80, 80, 70))

    assert order.drop_percent is Trend.DESCENDING
    assert order.last_update_ms is Trend.CONSTANT
    assert not order.newest_first
    assert order.words() == "percent drop descending"


def test_a_few_minutes_of_disorder_are_tolerated() -> None:
    """Rows that run slightly ahead do not spoil the order; an hour does."""
    assert measure_order(dated(10, 6, 20)).newest_first
    assert not measure_order(dated(70, 10, 80)).newest_first


def test_the_border_to_the_page_before_counts() -> None:
    """A page that starts much newer than its predecessor ended is not in order."""
    before = page_end(dated(100, 200))

    assert measure_order(dated(200, 300, first=10), before).newest_first
    assert not measure_order(dated(10, 20, first=10), before).newest_first


def test_rows_that_moved_over_the_border_are_left_out() -> None:
    """New deals push rows of the page before onto this one; that is no disorder."""
    before_rows = dated(0, 60, 120)
    page = [*before_rows[1:], *dated(180, 240, first=10)]

    assert measure_order(page, page_end(before_rows)).newest_first


def test_an_empty_page_is_in_order_and_undated_rows_are_not() -> None:
    """Without rows nothing is out of order; rows without a date prove nothing."""
    undated = [deal("B000000001", creationDate=None), deal("B000000002", creationDate=0)]

    assert measure_order([]).newest_first
    assert not measure_order(undated).newest_first


def test_the_recorded_page_is_by_percent() -> None:
    """The two recorded rows of a type 4 page are dated the wrong way round."""
    body = recording("deal-page0-2025-09-14.trimmed-to-2-deals.json")
    page = parse_deal_page(body, domain_id=1, price_type=2, date_range=3)

    finding = judge_sort(4, [page.deals])

    assert finding.verdict == "as documented"
    assert finding.order.creation_ms is Trend.ASCENDING
    assert not finding.order.newest_first


@pytest.mark.parametrize(
    ("sort_type", "pages", "verdict"),
    [
        (1, [dated(0, 10), dated(20, 30, first=5)], "as documented"),
        (1, [dated(30, 27, 80)], "as documented"),
        (1, [dated(80, 0)], "not as documented"),
        (4, [by_percent(90, 80)], "as documented"),
        (4, [by_percent(80, 90)], "not as documented"),
        (-4, [by_percent(80, 90)], "as documented"),
        (0, [dated(0, 10)], "undocumented"),
        (4, [by_percent(90)], "too few rows"),
        (4, [], "too few rows"),
    ],
)
def test_sort_types_are_compared_with_what_they_promise(
    sort_type: int, pages: list[list[Deal]], verdict: str
) -> None:
    """The finding shows whether replies follow the documentation."""
    assert judge_sort(sort_type, pages).verdict == verdict


def test_a_finding_names_the_extremes() -> None:
    """Newest and oldest are what a person wants to see first."""
    finding = judge_sort(1, [dated(0, 10), dated(10, 60, first=1)])

    assert finding.rows == 3
    assert finding.newest_creation_ms == NOW_MS
    assert finding.oldest_creation_ms == NOW_MS - 60 * MINUTE_MS
    assert finding.meaning == "deal age, newest first"
    assert finding.newest_update_ms == finding.oldest_update_ms == NOW_MS


@given(st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_disorder_is_zero_exactly_when_nothing_rises(minutes_ago: list[int]) -> None:
    """The measure agrees with sorting."""
    order = measure_order(dated(*minutes_ago))

    assert (order.disorder_ms == 0) is (minutes_ago == sorted(minutes_ago))
