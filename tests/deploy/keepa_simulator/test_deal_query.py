"""Filters and sort types, checked on the rows that a client gets."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.deal_query import PAGE_ROWS, ROWS_MAX, answer
from deploy.keepa_simulator.deal_row import deal_fields, deal_json
from deploy.keepa_simulator.keepa_time import even_keepa_minutes
from deploy.keepa_simulator.selection import parse_selection

START_MS = 1_757_873_538_842
NOW = even_keepa_minutes(START_MS)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """3,000 deals that do not change."""
    return Catalogue(seed=5, domain=1, products=12_000, deals=3_000, speed=1, start_ms=START_MS)


def rows_of(catalogue: Catalogue, **fields: Any) -> list[Row]:
    """The first page for a selection of NEW prices over 90 days, changed by *fields*."""
    selection = {"domainId": 1, "priceTypes": [1], "dateRange": 3, "sortType": 1} | fields
    wanted = parse_selection(json.dumps(selection))
    page = answer(catalogue.deals, wanted, NOW)
    return [deal_fields(deal, wanted.price_type) for deal in page.deals]


@pytest.fixture(scope="module")
def everything(catalogue: Catalogue) -> list[Row]:
    """All rows of a selection without filters."""
    return [row for page in range(30) for row in rows_of(catalogue, page=page)]


ORDERS: list[tuple[int, Callable[[Row], int]]] = [
    (1, lambda row: -row["creationDate"]),
    (2, lambda row: -row["delta"][3][1]),
    (3, lambda row: row["current"][3] if row["current"][3] > 0 else 2**31),
    (4, lambda row: -row["deltaPercent"][3][1]),
    (-2, lambda row: row["delta"][3][1]),
    (-3, lambda row: -(row["current"][3] if row["current"][3] > 0 else 2**31)),
    (-4, lambda row: row["deltaPercent"][3][1]),
]


@pytest.mark.parametrize(("sort_type", "key"), ORDERS)
def test_sort_type_orders_by_its_own_field(
    catalogue: Catalogue, sort_type: int, key: Callable[[Row], int]
) -> None:
    """Every documented value sorts by the field that it names."""
    keys = [key(row) for row in rows_of(catalogue, sortType=sort_type)]

    assert len(keys) == PAGE_ROWS
    assert keys == sorted(keys)


@pytest.mark.parametrize("sort_type", [0, 1, 2, 3, 4, -2, -3, -4])
def test_nothing_sorts_by_last_update(catalogue: Catalogue, sort_type: int) -> None:
    """No value orders a page by lastUpdate, contrary to some clients."""
    updates = [row["lastUpdate"] for row in rows_of(catalogue, sortType=sort_type)]

    assert updates != sorted(updates, reverse=True)
    assert updates != sorted(updates)


def test_creation_date_is_the_last_change_of_the_price_type(catalogue: Catalogue) -> None:
    """The creationDate depends on the price type, as in the recordings of September 2025."""
    for price_type in (0, 1, 2):
        rows = rows_of(catalogue, priceTypes=[price_type])

        assert rows
        assert all(row["creationDate"] == row["currentSince"][price_type] for row in rows)


FILTERS: list[tuple[dict[str, Any], Callable[[Row], bool]]] = [
    ({"currentRange": [2000, 5000]}, lambda row: 2000 <= row["current"][1] <= 5000),
    ({"deltaRange": [500, 9000]}, lambda row: 500 <= row["delta"][3][1] <= 9000),
    ({"deltaPercentRange": [50, 80]}, lambda row: 50 <= row["deltaPercent"][3][1] <= 80),
    ({"deltaPercentRange": [0, 80]}, lambda row: 10 <= row["deltaPercent"][3][1] <= 80),
    ({"deltaPercentRange": [20, -1], "dateRange": 0}, lambda row: row["deltaPercent"][0][1] >= 20),
    ({"deltaLastRange": [100, 900]}, lambda row: 100 <= row["deltaLast"][1] <= 900),
    ({"salesRankRange": [1, 9000]}, lambda row: 1 <= row["current"][3] <= 9000),
    ({"salesRankRange": [5000, -1]}, lambda row: row["current"][3] >= 5000),
    ({"minRating": 40}, lambda row: row["current"][16] >= 40),
    ({"hasReviews": True}, lambda row: row["current"][17] > 0),
    ({"mustHaveAmazonOffer": True}, lambda row: row["current"][0] >= 0),
    ({"mustNotHaveAmazonOffer": True}, lambda row: row["current"][0] == -1),
    ({"isRisers": True}, lambda row: row["delta"][3][1] < 0),
    ({"isBackInStock": True}, lambda row: row["backInStock"][1]),
    ({"isPrimeExclusive": True}, lambda row: row["current"][33] >= 0),
    ({"warehouseConditions": [4, 5]}, lambda row: row["warehouseCondition"] in (4, 5)),
    ({"includeCategories": [283155]}, lambda row: row["rootCat"] == 283155),
    ({"excludeCategories": [283155]}, lambda row: row["rootCat"] != 283155),
    ({"titleSearch": "LAMP large"}, lambda row: "Lamp Large" in row["title"]),
    ({"isOutOfStock": True}, lambda row: row["current"][1] == -1),
    ({"isLowestOffer": True}, lambda row: row["current"][1] <= row["current"][18] % 2**31),
]


@pytest.mark.parametrize(
    ("fields", "holds"), FILTERS, ids=["-".join(map(str, fields)) for fields, _ in FILTERS]
)
def test_filter_holds_for_every_row_and_drops_no_other(
    catalogue: Catalogue,
    everything: list[Row],
    fields: dict[str, Any],
    holds: Callable[[Row], bool],
) -> None:
    """A filter passes exactly the rows that fulfil it."""
    rows = rows_of(catalogue, isRangeEnabled=True, isFilterEnabled=True, **fields)
    expected = sum(holds(row) for row in everything)

    assert all(holds(row) for row in rows)
    # Sold-out products and those of other date ranges are not among everything.
    if not fields.keys() & {"isOutOfStock", "isLowestOffer", "dateRange"}:
        assert len(rows) == min(PAGE_ROWS, expected)
    assert rows


def test_lowest_ever_is_below_the_whole_history(catalogue: Catalogue) -> None:
    """IsLowest compares with the whole history, isLowest90 with 90 days."""
    lowest = rows_of(catalogue, isFilterEnabled=True, isLowest=True)
    lowest90 = {row["asin"] for row in rows_of(catalogue, isFilterEnabled=True, isLowest90=True)}

    assert lowest
    for row in lowest:
        listing = catalogue.find(row["asin"])
        assert listing is not None
        known = [value for _, value in listing.history(1) if value >= 0]
        assert row["current"][1] == min(known)
    assert lowest90


def test_ranges_need_their_switch(catalogue: Catalogue) -> None:
    """Without isRangeEnabled, a range has no effect."""
    rows = rows_of(catalogue, currentRange=[1, 2])

    assert len(rows) == PAGE_ROWS


def test_author_is_an_attribute_filter(catalogue: Catalogue) -> None:
    """Attribute filters compare without regard to case."""
    author = next(
        deal.facts.attributes["author"] for deal in catalogue.deals if deal.facts.is_book
    )
    rows = rows_of(catalogue, author=[str(author).upper()])
    facts = [found.facts for row in rows if (found := catalogue.find(row["asin"]))]

    assert rows
    assert {it.attributes["author"] for it in facts} == {author}


def test_one_variation_of_each_family(catalogue: Catalogue) -> None:
    """SingleVariation leaves one row per parent."""
    rows = rows_of(catalogue, isFilterEnabled=True, singleVariation=True, page=0)
    parents = Counter(row["parentAsin"] for row in rows if "parentAsin" in row)

    assert all(count == 1 for count in parents.values())


def test_counts_ignore_the_category_filter_alone(catalogue: Catalogue) -> None:
    """The count of an included root is the number of its rows; all other filters count."""
    selection = {
        "domainId": "1",
        "priceTypes": [2],
        "dateRange": "3",
        "isRangeEnabled": True,
        "currentRange": [500, 30100],
        "sortType": 1,
    }
    everything = answer(catalogue.deals, parse_selection(json.dumps(selection)), NOW)
    books = parse_selection(json.dumps(selection | {"includeCategories": [283155]}))
    pages = [
        answer(
            catalogue.deals,
            parse_selection(json.dumps(selection | {"includeCategories": [283155], "page": page})),
            NOW,
        )
        for page in range(20)
    ]
    counted = answer(catalogue.deals, books, NOW).category_counts

    assert counted == everything.category_counts
    assert sum(len(page.deals) for page in pages) == counted[283155] > PAGE_ROWS


def test_no_more_than_ten_thousand_rows() -> None:
    """Rows past the cap are never served."""
    large = Catalogue(seed=1, domain=1, products=40_000, deals=11_500, speed=1, start_ms=START_MS)
    selection = '{"domainId": 1, "priceTypes": [3], "dateRange": 3, "sortType": 1, "page": %d}'
    sizes = [
        len(answer(large.deals, parse_selection(selection % page), NOW).deals)
        for page in (0, 66, 67)
    ]

    assert sizes == [PAGE_ROWS, ROWS_MAX % PAGE_ROWS, 0]


def test_row_is_consistent(catalogue: Catalogue) -> None:
    """Within a row, delta is average less current, and all arrays have their length."""
    for deal in catalogue.deals[:200]:
        row = json.loads(deal_json(deal, 1))

        assert [len(row["avg"]), len(row["avg"][0]), len(row["current"])] == [4, 34, 34]
        for price_type, current in enumerate(row["current"]):
            for span in range(4):
                average = row["avg"][span][price_type]
                expected = average - current if min(average, current) >= 0 else 0
                assert row["delta"][span][price_type] == expected


def test_serialised_row_fits_every_price_type(catalogue: Catalogue) -> None:
    """A row served again for another price type has the creationDate of that type."""
    deal = catalogue.deals[0]
    texts = [deal_json(deal, price_type) for price_type in (1, 2, 0, 1)]

    assert [json.loads(text) for text in texts] == [
        deal_fields(deal, price_type) for price_type in (1, 2, 0, 1)
    ]
