"""The profit estimate: its formula, and what happens when inputs are missing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.queries.profit import ProfitCosts, estimate_profit
from tests.fetcher.builders import PRICE_TYPES, deal, product, product_row


def test_the_formula_holds_on_a_worked_example() -> None:
    """Sold at the lower of 40.00 and 45.00, less fees, inbound, other and the price."""
    costs = ProfitCosts(inbound_per_kg_minor=121, other_minor=50)

    found = estimate_profit(deal(), product(), costs)

    # 4000 - ceil(4000 x 15.01 %) - 400 - ceil(500 g x 1.21 per kg) - 50 - 2000
    assert found.profit_minor == 4_000 - 601 - 400 - 61 - 50 - 2_000
    assert found.roi_percent == 44
    assert (found.sale_minor, found.referral_minor, found.inbound_minor) == (4_000, 601, 61)
    assert found.missing == ()


def test_the_average_counts_where_it_is_lower() -> None:
    """A buy box above its 90-day average is not expected to last."""
    row = product_row()
    row["stats"]["avg90"][18] = 3_000

    assert estimate_profit(deal(), product(**row), ProfitCosts()).sale_minor == 3_000


def test_without_a_buy_box_the_lowest_new_price_stands_in() -> None:
    """The same comparison is made on new prices."""
    row = product_row()
    row["stats"]["current"][18] = row["stats"]["avg90"][18] = -1

    assert estimate_profit(deal(), product(**row), ProfitCosts()).sale_minor == 4_200


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"fbaFees": None}, ("FBA fee",)),
        ({"referralFeePercentage": None}, ("referral fee",)),
        ({"packageWeight": -1}, ("weight",)),
        ({"stats": None}, ("sale price",)),
    ],
)
def test_a_missing_input_makes_the_result_unknown(
    fields: dict[str, Any], missing: tuple[str, ...]
) -> None:
    """It is named, and nothing is taken to be zero."""
    found = estimate_profit(deal(), product(**fields), ProfitCosts(inbound_per_kg_minor=100))

    assert (found.profit_minor, found.roi_percent, found.missing) == (None, None, missing)


def test_weight_is_not_asked_for_where_it_costs_nothing() -> None:
    """Free inbound needs no weight."""
    found = estimate_profit(deal(), product(packageWeight=None), ProfitCosts())

    assert (found.inbound_minor, found.missing) == (0, ())


def test_a_free_item_has_no_return_on_investment() -> None:
    """Nothing invested, nothing to divide by."""
    free = deal(current=[0] * PRICE_TYPES)

    found = estimate_profit(free, product(), ProfitCosts())

    assert (found.profit_minor, found.roi_percent) == (2_999, None)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10_000))
def test_each_further_cost_lowers_the_profit_by_itself(
    price: int, other: int, inbound: int
) -> None:
    """Costs add up to the minor unit, whatever they are."""
    found = estimate_profit(
        deal(current=[price] * PRICE_TYPES),
        product(),
        ProfitCosts(inbound_per_kg_minor=inbound, other_minor=other),
    )

    assert found.profit_minor is not None
    assert found.inbound_minor is not None
    assert found.profit_minor + found.inbound_minor + other + price == 4_000 - 601 - 400
