"""What is remembered of a page, and where rows may hide between two."""

from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from fetcher.replies.deals import Deal
from fetcher.replies.units import ms_to_minutes
from fetcher.scans.page_facts import (
    PageFacts,
    RowEstimate,
    counts_concerned,
    estimate_rows,
    page_facts,
    read_earlier,
    seam_problem,
)
from tests.fetcher.builders import MINUTE_MS, NOW_MS, deal, deal_page

DAY_MINUTES = 1_440
COUNTS = {283155: 300, 5174: 40}


def dated(first: int, *minutes_ago: int) -> list[Deal]:
    """Deals numbered from *first*, created so many minutes before NOW_MS."""
    now = ms_to_minutes(NOW_MS)
    return [
        deal(f"B{first + index:09}", creationDate=now - ago)
        for index, ago in enumerate(minutes_ago)
    ]


def facts(
    number: int, deals: list[Deal], *, after_ms: int = 0, total: int = 300, others: int = 0
) -> PageFacts:
    """The facts of a page served *after_ms* after NOW_MS: *total* books, and *others*."""
    page = deal_page(deals, counts={283155: total, 5174: others})
    selection = {"includeCategories": [283155, 5174]}
    return page_facts(number, page, selection, server_ms=NOW_MS + after_ms, before=None)


@pytest.mark.parametrize(
    ("filters", "estimate"),
    [
        ({}, RowEstimate(340, None)),
        ({"includeCategories": []}, RowEstimate(340, None)),
        ({"includeCategories": [283155]}, RowEstimate(300, 300)),
        ({"includeCategories": ["283155", 5174]}, RowEstimate(340, 340)),
        ({"includeCategories": [4367]}, RowEstimate(0, None)),
        ({"includeCategories": [283155, 4367]}, RowEstimate(300, None)),
        ({"includeCategories": [283155], "excludeCategories": [4367]}, RowEstimate(0, 300)),
        ({"excludeCategories": [5174]}, RowEstimate(300, None)),
        ({"excludeCategories": [4367]}, RowEstimate(0, None)),
    ],
)
def test_rows_are_bounded_by_the_counts(filters: dict[str, object], estimate: RowEstimate) -> None:
    """Counts are by root: they are no bound for a sub-category."""
    assert estimate_rows(filters, COUNTS) == estimate


def test_facts_survive_storage_as_json() -> None:
    """They are kept as JSON between two workers."""
    stored = TypeAdapter(PageFacts)
    measured = facts(0, dated(0, 0, 10))

    assert stored.validate_json(stored.dump_json(measured)) == measured


def test_the_newest_deal_decides_whether_a_page_is_stale() -> None:
    """A first page with a newest deal of over a day deserves a warning."""
    fresh = facts(0, dated(0, DAY_MINUTES, DAY_MINUTES + 60))
    stale = facts(0, dated(0, DAY_MINUTES + 2))

    assert (fresh.is_stale, stale.is_stale, facts(0, []).is_stale) == (False, True, False)
    assert stale.newest_age_ms == (DAY_MINUTES + 2) * MINUTE_MS


def test_pages_read_one_after_the_other_join() -> None:
    """Rows are only pushed down meanwhile, so nothing hides between."""
    before, page = facts(0, dated(0, 0, 10)), facts(1, dated(5, 20, 30), after_ms=900)

    assert seam_problem(before, page) is None


def test_a_page_from_an_older_cache_may_hide_rows() -> None:
    """Page 0 fresh, page 1 cached: what was pushed down since is on neither."""
    before, page = facts(0, dated(0, 0, 10)), facts(1, dated(5, 20, 30), after_ms=900)
    cached = replace(page, cached=True)

    assert seam_problem(before, cached) == "staler"
    assert seam_problem(before, replace(cached, server_ms=NOW_MS + 120_000)) is None


def test_a_shared_row_at_the_border_proves_that_nothing_is_hidden() -> None:
    """Whatever the ages of two pages, that row joins them; one in the middle has moved alone."""
    rows = dated(0, 0, 10, 20, 30)
    before = facts(0, rows[:2])
    joined, alone = facts(1, rows[1:], total=1), facts(1, [*rows[2:], rows[0]], total=299)

    assert seam_problem(before, replace(joined, cached=True)) is None
    assert seam_problem(before, alone) == "moved"


def test_vanished_rows_may_have_moved_others_up() -> None:
    """The total fell between the pages, so page 0 is the one to read again."""
    before, page = facts(0, dated(0, 0, 10)), facts(1, dated(5, 20), after_ms=900, total=299)

    assert seam_problem(before, page) == "moved"
    assert read_earlier(before, page) == 0


@pytest.mark.parametrize(
    ("total", "others", "problem"),
    [
        (300, 10, None),
        # New rows came in below the border: at the top they would have pushed others over it.
        (301, 10, "moved"),
        (300, 400, "moved"),
        # One row has gone, another came: no count shows where.
        (299, 11, "moved"),
    ],
)
def test_any_other_count_may_have_moved_rows_up(
    total: int, others: int, problem: str | None
) -> None:
    """Pages without a shared row: only equal counts of every category speak for a seam."""
    before = facts(0, dated(0, 0, 10), others=10)
    page = facts(1, dated(5, 20), after_ms=900, total=total, others=others)

    assert seam_problem(before, page) == problem


@pytest.mark.parametrize(
    ("filters", "concerned"),
    [
        ({}, COUNTS),
        ({"includeCategories": [283155]}, {283155: 300}),
        # A sub-category: its rows are among those of any root.
        ({"includeCategories": [4367]}, COUNTS),
        ({"includeCategories": [283155, 4367]}, COUNTS),
        ({"excludeCategories": [5174]}, {283155: 300}),
        ({"includeCategories": [283155], "excludeCategories": [4367]}, {283155: 300}),
    ],
)
def test_counts_concern_a_selection_where_its_rows_may_be(
    filters: dict[str, object], concerned: dict[int, int]
) -> None:
    """Other roots change without it."""
    assert counts_concerned(filters, COUNTS) == concerned


def test_pages_read_in_the_wrong_order_join_only_if_nothing_changed() -> None:
    """With page 1 read before page 0, new rows may have pushed others onto it unseen."""
    before = facts(0, dated(0, 0, 10), after_ms=900)
    page = facts(1, dated(5, 20))
    grown = replace(before, rows=RowEstimate(301, 301))

    burst = replace(before, rows=RowEstimate(400, 400))

    assert seam_problem(before, page) is None
    assert seam_problem(grown, page) == "moved"
    assert seam_problem(burst, page) == "staler"
    assert read_earlier(grown, page) == 1
