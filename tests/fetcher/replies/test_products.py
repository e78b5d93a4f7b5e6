"""From a /product reply to products."""

from typing import Any

import pytest

from fetcher.queries.enrichment import Enrichment
from fetcher.replies.products import parse_products, product_operation, product_parameters
from fetcher.replies.record import MalformedReplyError
from tests.fetcher.builders import product, product_row, recording


def test_reads_a_recorded_product() -> None:
    """The recorded product yields fees, buy box, averages and counts."""
    body = recording("product-B0D8W1YVBX-2026-05-10.trimmed.json")

    page = parse_products(body, domain_id=1, asins=("B0D8W1YVBX", "B000000000"))

    found = page.products[0]
    assert (found.brand, found.referral_bp, found.fba_fee_minor) == ("EQQUALBERRY", 1501, 409)
    assert (found.buy_box_minor, found.buy_box_average_90_minor) == (1499, 1805)
    assert (found.weight_g, found.monthly_sold, found.fba_offers) == (141, 100_000, None)
    assert (found.amazon_offers, found.sellers, found.no_data) == (False, 5, None)
    assert page.missing == ("B000000000",)
    assert not page.oddities


def test_a_body_without_products_is_a_failure() -> None:
    """Nothing follows from a reply without a list of products."""
    with pytest.raises(MalformedReplyError):
        parse_products({"products": None}, domain_id=1)


def test_a_bad_product_costs_no_other() -> None:
    """Nulls and nameless products are counted, the others read."""
    page = parse_products({"products": [None, {}, product_row()]}, domain_id=1)

    assert [found.asin for found in page.products] == ["B000000001"]
    assert page.oddities == {"product: names no asin": 2}


def test_no_data_differs_from_no_answer() -> None:
    """A product on which Keepa has no data shows why."""
    assert product(productType=4).no_data == "invalid"


@pytest.mark.parametrize(
    ("fields", "points"),
    [
        ({"referralFeePercentage": 8}, 800),
        ({"referralFeePercentage": None, "referralFeePercent": 15}, 1500),
        ({"referralFeePercentage": -1}, None),
        ({"referralFeePercentage": 1e300}, None),
        ({"referralFeePercentage": float("nan")}, None),
        ({"referralFeePercentage": "15"}, None),
    ],
)
def test_the_referral_fee_is_exact_or_unknown(fields: dict[str, Any], points: int | None) -> None:
    """Percent become basis points; what is no percentage is unknown."""
    assert product(**fields).referral_bp == points


def test_the_buy_box_price_includes_shipping_where_only_its_parts_are_known() -> None:
    """Without the combined price, price and shipping are added."""
    stats = {"current": [-1] * 36, "buyBoxPrice": 1_000, "buyBoxShipping": 250}

    assert product(stats=stats).buy_box_minor == 1_250


def test_call_parameters_and_operation_follow_from_what_is_wanted() -> None:
    """The broker learns costs per operation, so the paid extras are in its name."""
    plain, offers = Enrichment(), Enrichment(offers=20, buy_box=True, rating=True)

    assert product_parameters(plain) == {"stats": 90, "history": 0}
    assert product_operation(plain) == "product"
    assert product_operation(offers) == "product?offers=20&rating=1"
    assert (plain.tokens_per_product, offers.tokens_per_product) == (1, 13)
