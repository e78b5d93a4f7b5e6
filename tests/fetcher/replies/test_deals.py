"""From a /deal reply to deals."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.replies.deals import parse_deal, parse_deal_page
from fetcher.replies.record import MalformedReplyError, storable
from fetcher.replies.units import ms_to_minutes
from tests.fetcher.builders import NOW_MS, PRICE_TYPES, deal, deal_body, deal_row, recording

QUESTION = {"domain_id": 1, "price_type": 2, "date_range": 3}


def test_reads_a_recorded_page_without_an_oddity() -> None:
    """The recorded page yields its two deals with our units and nothing to complain of."""
    page = parse_deal_page(recording("deal-page0-2025-09-14.trimmed-to-2-deals.json"), **QUESTION)

    first = page.deals[0]
    assert not page.oddities
    assert (first.asin, first.price_minor, first.average_minor) == ("1598162152", 2050, 10857)
    assert (first.drop_minor, first.drop_percent, first.image) == (8807, 81, "51950K3CZ5L.jpg")
    assert first.creation_ms == 1_757_861_040_000
    assert page.category_counts[283155] == 779


def test_reads_a_recorded_empty_page_as_empty() -> None:
    """The page past the end holds no deals, and still counts by category."""
    page = parse_deal_page(recording("deal-empty-last-page-2025-09-14.json"), **QUESTION)

    assert (page.row_count, page.deals, page.cached) == (0, (), False)
    assert page.category_counts[283155] == 778


@pytest.mark.parametrize(
    "body", [{}, {"deals": None}, {"deals": []}, {"deals": {}}, {"deals": {"dr": None}}]
)
def test_a_body_without_a_list_of_deals_is_a_failure_not_an_empty_page(
    body: dict[str, object],
) -> None:
    """An empty answer and a failed one must never look the same."""
    with pytest.raises(MalformedReplyError):
        parse_deal_page(body, **QUESTION)


def test_a_bad_row_costs_no_other_row() -> None:
    """Rows that name no product are counted by kind; the rest of the page is kept."""
    rows = ["text", None, {"title": "no asin"}, deal_row("b0"), deal_row(), {"asin": 5}]

    page = parse_deal_page(deal_body(rows), **QUESTION)

    assert [kept.asin for kept in page.deals] == ["B000000001"]
    assert page.row_count == 6
    assert page.oddities == {
        "row: not an object": 2,
        "row: no asin": 1,
        "row: asin is not an ASIN": 2,
    }


@pytest.mark.parametrize("value", [-1, -2, None, "x", True, 2**40, 1.5, [], {}])
def test_an_unknown_price_is_none_never_zero(value: object) -> None:
    """Sentinels, nulls, wrong types and absurd numbers are all unknown."""
    current: list[object] = [-1] * PRICE_TYPES
    current[2] = value

    found = deal(current=current)

    assert (found.price_minor, found.drop_minor, found.drop_percent) == (None, None, None)


def test_arrays_cut_short_leave_values_unknown_and_are_counted() -> None:
    """A truncated array is noticed under its own name."""
    page = parse_deal_page(deal_body([deal_row(current=[1], avg=[[]])]), **QUESTION)

    assert page.deals[0].price_minor is None
    assert page.oddities["current: cut short"] >= 1
    assert page.oddities["avg: cut short"] == 1


def test_a_drop_of_minus_one_counts_only_if_the_prices_confirm_it() -> None:
    """Arithmetic separates the sentinel -1 from a real rise by one cent."""
    averages = [[-1] * PRICE_TYPES for _ in range(4)]
    averages[3][2] = 1_999
    drops = [[-1] * PRICE_TYPES for _ in range(4)]

    confirmed = deal(avg=averages, delta=drops, deltaPercent=[[-1] * PRICE_TYPES] * 4)
    unconfirmed = deal(delta=drops, deltaPercent=drops)

    assert (confirmed.drop_minor, confirmed.drop_percent) == (-1, -1)
    assert (unconfirmed.drop_minor, unconfirmed.drop_percent) == (None, None)


def test_titles_lose_html_and_what_postgres_cannot_store() -> None:
    """Tags, entities, NUL and lone surrogates do not reach the database."""
    row = deal_row(title="<b>Salt &amp; Pepper</b>\x00 <i\n>\ud800set", manufacturer="a\x00b")

    found = parse_deal(row, **QUESTION)

    assert found.title == "Salt & Pepper set"
    stored = storable(found.raw)
    assert isinstance(stored, dict)
    assert stored["manufacturer"] == "a\N{REPLACEMENT CHARACTER}b"


def test_amazon_is_absent_by_its_price_and_unknown_otherwise() -> None:
    """Minus one is an answer here: Amazon has no offer."""
    offered, absent, unknown = ([price] * PRICE_TYPES for price in (999, -1, -2))

    answers = [deal(current=current).amazon_offers for current in (offered, absent, unknown)]

    assert answers == [True, False, None]


def test_an_unknown_root_category_is_none() -> None:
    """Keepa's placeholder id for an unknown root is no category."""
    assert deal(rootCat=2**63 - 1).root_category is None


def test_a_product_served_twice_is_kept_once_with_the_later_update() -> None:
    """Of two rows for a product, the one updated later stays."""
    late = ms_to_minutes(NOW_MS) + 2
    rows = [deal_row(), deal_row("B000000002"), deal_row(lastUpdate=late, title="Newer")]

    page = parse_deal_page(deal_body(rows), **QUESTION)

    assert [(kept.asin, kept.title) for kept in page.deals] == [
        ("B000000001", "Newer"),
        ("B000000002", "A title"),
    ]
    assert page.row_count == 3
    assert page.oddities == {"row: same asin twice": 1}


def test_missing_times_are_counted() -> None:
    """Without its times a deal is kept, and the lack shows."""
    page = parse_deal_page(deal_body([deal_row(lastUpdate=None, creationDate=0)]), **QUESTION)

    assert (page.deals[0].last_update_ms, page.deals[0].creation_ms) == (None, None)
    assert page.oddities["lastUpdate: missing or unreadable"] == 1
    assert page.oddities["creationDate: missing or unreadable"] == 1


def test_category_counts_that_do_not_fit_are_left_out() -> None:
    """Ids without a count, or with a nonsensical one, bound nothing."""
    body = deal_body([])
    body["deals"] |= {"categoryIds": [1, "x", 3], "categoryCount": [5, 6], "categoryNames": None}

    page = parse_deal_page(body, **QUESTION)

    assert page.category_counts == {1: 5}


def test_numbers_as_strings_are_read() -> None:
    """A number in quotes is the same number."""
    found = deal(warehouseCondition="3", lastUpdate=str(ms_to_minutes(NOW_MS)))

    assert (found.condition, found.last_update_ms) == (3, NOW_MS)


@given(st.integers(-2, 10**6), st.integers(-2, 10**6))
def test_a_known_drop_is_average_less_price(price: int, average: int) -> None:
    """Whatever the two prices, the drop is their difference or unknown."""
    row: dict[str, Any] = deal_row()
    row["current"][2], row["avg"][3][2] = price, average
    row["delta"][3][2] = average - price if min(price, average) >= 0 else -1

    found = parse_deal(row, **QUESTION)

    assert found.drop_minor == (average - price if min(price, average) >= 0 else None)


def test_a_stored_raw_row_reads_the_same_again() -> None:
    """Judging a stored deal again needs nothing but what was stored."""
    first = parse_deal(deal_row(), **QUESTION)

    again = parse_deal(json.loads(json.dumps(storable(first.raw))), **QUESTION)

    assert again == first
