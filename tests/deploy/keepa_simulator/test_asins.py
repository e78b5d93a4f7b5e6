"""ASINs and product numbers convert to each other."""

import re

from hypothesis import given
from hypothesis import strategies as st

from deploy.keepa_simulator.asins import book_asin, general_asin, number_of


@given(st.integers(0, 10**8))
def test_number_survives_both_ways(number: int) -> None:
    """A number converts to an ASIN and back."""
    book, general = book_asin(number), general_asin(number)

    assert number_of(book) == number_of(general) == number
    assert re.fullmatch(r"[01]\d{8}[\dX]", book)
    assert re.fullmatch(r"B0[0-9A-Z]{8}", general)


@given(st.integers(0, 10**8))
def test_book_has_a_valid_isbn(number: int) -> None:
    """The check digit of a book's ASIN is that of an ISBN-10."""
    digits = [10 if character == "X" else int(character) for character in book_asin(number)]
    weighted = sum(digit * weight for digit, weight in zip(digits, range(10, 0, -1), strict=True))

    assert weighted % 11 == 0


@given(st.text(max_size=12))
def test_any_text_is_harmless(text: str) -> None:
    """A text that is no ASIN has no number, and raises nothing."""
    number = number_of(text)

    assert number is None or len(text) == 10
