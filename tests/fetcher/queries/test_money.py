"""Amounts in query files: refused where there is no price, shown with their currency."""

import json
from typing import Any

import pytest

from fetcher.queries.conditions import limit_words
from fetcher.queries.profit import ProfitCosts, estimate_profit
from fetcher.queries.query import DealQuery, QueryError, parse_query
from fetcher.replies.deals import parse_deal
from tests.fetcher.builders import deal_row, product

MONEY_RULES = ("price", "drop", "last_drop", "profit", "roi_percent")
JAPAN = 5


def read(price_type: int, *, domain: int = 1, **head: Any) -> DealQuery:
    """A query on one price type, with ranges as Keepa's site writes them."""
    selection = {
        "domainId": domain,
        "priceTypes": [price_type],
        "isRangeEnabled": True,
        "currentRange": [500, 30100],
        "deltaRange": [200, -1],
        "deltaLastRange": [-1, -1],
        "sortType": 1,
    }
    return parse_query("some", json.dumps({"selection": selection, **head}))


@pytest.mark.parametrize("rule", MONEY_RULES)
@pytest.mark.parametrize("price_type", [3, 11, 12, 13, 14, 15, 16, 17])
def test_rules_on_money_are_refused_where_there_is_no_price(price_type: int, rule: str) -> None:
    """The message names the price type, what it is, and what to write instead."""
    with pytest.raises(QueryError) as caught:
        read(price_type, rules={rule: {"min": 1}}, enrichment=True)

    assert caught.value.key == f"rules.{rule}"
    assert f"price type {price_type} " in caught.value.reason
    assert "no price; use drop_percent, or remove the rule" in caught.value.reason


@pytest.mark.parametrize("price_type", [0, 2, 9, 30, 31, 33])
def test_rules_on_money_are_fine_on_prices(price_type: int) -> None:
    """Warehouse deals, trade-in, rent and prime prices are prices."""
    rules = {rule: {"min": 1} for rule in MONEY_RULES}

    assert read(price_type, rules=rules, enrichment=True).rules.conditions


def test_other_rules_are_fine_on_counts() -> None:
    """A drop in percent needs no currency."""
    rules = {"drop_percent": {"min": 20}, "rank": {"max": 9}, "rating": {"min": 40}}

    assert len(read(11, rules=rules).rules.conditions) == 3


def test_a_query_in_words_names_the_currency() -> None:
    """Rules and ranges, in the site's own units."""
    rules = {"price": {"min": 500, "max": 20000}, "rank": {"max": 500}}
    dollars = read(2, rules=rules).explain()
    yen = read(2, domain=JAPAN, rules=rules).explain()

    assert "price >= 5.00 USD and <= 200.00 USD" in dollars
    assert "rank <= 500 (" in dollars
    assert "currentRange 5.00 USD to 301.00 USD; deltaRange from 2.00 USD" in dollars
    assert "price >= 500 JPY and <= 20000 JPY" in yen
    assert "currentRange 500 JPY to 30100 JPY; deltaRange from 200 JPY" in yen


def test_a_query_on_ranks_in_words_is_not_about_prices() -> None:
    """Its ranges have no currency."""
    words = read(3).explain()

    assert "SALES, which is a sales rank, on amazon.com" in words
    assert "currentRange 500 to 30100" in words
    assert "USD" not in words


def test_a_failure_is_shown_with_its_currency_only_if_it_is_money() -> None:
    """Stored limits stay in minor units; people read amounts."""
    assert limit_words("price", ">= 500 and <= 2000", 1) == ">= 5.00 USD and <= 20.00 USD"
    assert limit_words("profit", "-150", 1) == "-1.50 USD"
    assert limit_words("rank", "<= 2000", 1) == "<= 2000"
    assert limit_words("roi_percent", "25", 1) == "25"


def test_seven_offers_are_no_price_to_make_a_profit_on() -> None:
    """The accepted product of the report: offers fell from 12 to 7, "price 0.07"."""
    row = deal_row()
    row["current"][11], row["avg"][3][11], row["delta"][3][11] = 7, 12, 5
    row["deltaPercent"][3][11] = 41
    found = parse_deal(row, domain_id=1, price_type=11, date_range=3)
    profit = estimate_profit(found, product(), ProfitCosts())

    assert (found.value, found.average, found.drop, found.drop_percent) == (7, 12, 5, 41)
    assert (found.price_minor, found.average_minor, found.drop_minor) == (None, None, None)
    assert (profit.profit_minor, profit.roi_percent) == (None, None)
    assert "price" in profit.missing
