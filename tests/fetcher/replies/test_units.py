"""What a value is: money with its currency, a rank, a rating or a count."""

import pytest

from fetcher.replies.units import (
    CURRENCIES,
    DOMAINS,
    PRICE_TYPES,
    currency_code,
    is_price,
    kind_words,
    money_words,
    value_words,
)

JAPAN = 5
NO_PRICES = {
    "SALES": "a sales rank",
    "COUNT_NEW": "a count",
    "COUNT_USED": "a count",
    "COUNT_REFURBISHED": "a count",
    "COUNT_COLLECTIBLE": "a count",
    "EXTRA_INFO_UPDATES": "a count",
    "RATING": "a rating",
    "COUNT_REVIEWS": "a count",
}


@pytest.mark.parametrize(
    ("minor", "domain", "words"),
    [
        (1299, 1, "12.99 USD"),
        (620, JAPAN, "620 JPY"),
        (2530, JAPAN, "2530 JPY"),
        (-5, 2, "-0.05 GBP"),
        (-620, JAPAN, "-620 JPY"),
        (0, 3, "0.00 EUR"),
        (123456789, 10, "1234567.89 INR"),
        (7, 99, "7 minor units"),
    ],
)
def test_an_amount_has_its_currency_and_its_decimals(minor: int, domain: int, words: str) -> None:
    """Yen has no smaller unit; an unknown site's amount is not guessed at."""
    assert money_words(minor, domain) == words


def test_every_site_has_a_currency() -> None:
    """No amount is ever shown without one."""
    assert CURRENCIES.keys() == DOMAINS.keys()
    assert all(len(currency_code(domain)) == 3 for domain in DOMAINS)


def test_what_is_no_price_is_known_as_what_it_is() -> None:
    """All others are amounts, shipping, rent and trade-in among them."""
    kinds = {name: kind_words(index) for index, name in enumerate(PRICE_TYPES)}

    assert {name: kind for name, kind in kinds.items() if kind != "a price"} == NO_PRICES
    assert all(is_price(index) is (kinds[name] == "a price") for index, name in enumerate(kinds))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("USED", 1299, "12.99 USD"),
        ("SALES", 1299, "rank 1299"),
        ("COUNT_NEW", 7, "7"),
        ("EXTRA_INFO_UPDATES", 7, "7"),
        ("COUNT_REVIEWS", 1299, "1299"),
        ("RATING", 45, "4.5 of 5 stars"),
    ],
)
def test_a_value_is_shown_as_what_it_is(name: str, value: int, words: str) -> None:
    """Seven offers are not seven cents."""
    price_type = PRICE_TYPES.index(name)

    assert value_words(value, price_type=price_type, domain_id=1) == words
