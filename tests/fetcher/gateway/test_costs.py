"""What calls are expected to cost, and under which names the broker learns it."""

import pytest

from fetcher.gateway.costs import Price, price
from fetcher.queries.enrichment import Enrichment
from fetcher.replies.products import product_operation


@pytest.mark.parametrize(
    ("endpoint", "parameters", "expected"),
    [
        ("deal", {}, Price("deal", 1, 5)),
        ("product", {"asin": "A,B,,C"}, Price("product", 3, 1)),
        ("product", {"code": "1,2"}, Price("product", 2, 1)),
        ("product", {"asin": "A", "rating": "0", "stock": "1"}, Price("product", 1, 1)),
        ("product", {"asin": ",".join("A" * 500)}, Price("product", 100, 1)),
        ("product", {"asin": "A", "offers": "20"}, Price("product?offers=20", 1, 12)),
        ("product", {"asin": "A", "offers": "20", "stock": "1", "rating": "1"},
         Price("product?offers=20&rating=1&stock=1", 1, 15)),
        ("product", {"asin": "A", "offers": "x" * 9}, Price("product", 1, 1)),
        ("product", {"asin": "A", "offers": "9" * 5000}, Price("product", 1, 1)),
        ("product", {"asin": "A", "buybox": "1", "update": "0"},
         Price("product?buybox=1&update=1", 1, 4)),
        ("product", {"asin": "A", "update": "-1"}, Price("product", 1, 1)),
        ("query", {}, Price("query?perPage=50", 1, 10.5)),
        ("query", {"selection": '{"perPage": "1200"}'}, Price("query?perPage=5000", 1, 60)),
        ("query", {"selection": '{"perPage": 1e999}'}, Price("query?perPage=50", 1, 10.5)),
        ("query", {"selection": "[" * 99_999}, Price("query?perPage=50", 1, 10.5)),
        ("search", {}, Price("search", 1, 10)),
        ("category", {}, Price("category", 1, 1)),
        ("bestsellers", {}, Price("bestsellers", 1, 50)),
        ("topseller", {}, Price("topseller", 1, 50)),
        ("seller", {"seller": "A,B"}, Price("seller", 2, 1)),
        ("seller", {"seller": "A", "storefront": "1"}, Price("seller?storefront=1", 1, 10)),
        ("lightningdeal", {}, Price("lightningdeal", 1, 500)),
        ("lightningdeal", {"asin": "A"}, Price("lightningdeal?asin", 1, 1)),
        ("tracking", {"type": "list"}, Price("tracking", 1, 1)),
        ("brandnew", {"x": "1"}, Price("brandnew", 1, 1)),
    ],
)  # fmt: skip
def test_calls_have_a_price(endpoint: str, parameters: dict[str, str], expected: Price) -> None:
    """Also those with hostile parameters, which Keepa refuses at no cost."""
    assert price(endpoint, parameters) == expected


def test_a_selection_counts_in_the_body_too() -> None:
    """A POST of the finder."""
    assert price("query", {}, b'{"perPage": 100}').tokens == 11


@pytest.mark.parametrize(
    "enrichment",
    [
        Enrichment(),
        Enrichment(offers=20),
        Enrichment(offers=40, rating=True),
        Enrichment(buy_box=True, rating=True),
    ],
)
def test_fetchers_and_the_gateway_learn_together(enrichment: Enrichment) -> None:
    """Equal product calls have one name at the broker, and one first guess."""
    parameters = {"asin": "A", "rating": str(int(enrichment.rating))}
    if enrichment.offers:
        parameters["offers"] = str(enrichment.offers)
    elif enrichment.buy_box:
        parameters["buybox"] = "1"
    found = price("product", parameters)

    assert found.operation == product_operation(enrichment)
    assert found.tokens_per_unit == enrichment.tokens_per_product
