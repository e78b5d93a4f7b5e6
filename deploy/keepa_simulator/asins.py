"""ASINs for product numbers, and back, without a table of either.

Both directions are a multiplication modulo a power of ten or of 36, so a catalogue of
any size starts at once.
"""

from typing import Final

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LENGTH: Final = 8
_GENERAL_MODULUS: Final = 36**_LENGTH
_GENERAL_FACTOR: Final = 1_299_721_235_387  # coprime to 36
_GENERAL_INVERSE: Final = pow(_GENERAL_FACTOR, -1, _GENERAL_MODULUS)
# Books have an ISBN-10; those of the English language area begin with 0 or 1.
_BOOK_MODULUS: Final = 200_000_000
_BOOK_FACTOR: Final = 123_456_787  # coprime to 10
_BOOK_INVERSE: Final = pow(_BOOK_FACTOR, -1, _BOOK_MODULUS)
_ISBN_LENGTH: Final = 10


def general_asin(number: int) -> str:
    """The ten-character ASIN of a product other than a book, such as ``B07PW1SVHM``."""
    value = number * _GENERAL_FACTOR % _GENERAL_MODULUS
    characters = []
    for _ in range(_LENGTH):
        value, digit = divmod(value, 36)
        characters.append(_DIGITS[digit])
    return "B0" + "".join(reversed(characters))


def book_asin(number: int) -> str:
    """The ISBN-10 of a book; its last character is a check digit."""
    digits = f"{number * _BOOK_FACTOR % _BOOK_MODULUS:09d}"
    total = sum(
        int(digit) * weight for digit, weight in zip(digits, range(10, 1, -1), strict=True)
    )
    check = -total % 11
    return digits + ("X" if check == _ISBN_LENGTH else str(check))


def number_of(asin: str) -> int | None:
    """The product number that *asin* encodes, or None if it is malformed.

    The caller checks that such a product exists and is of the kind that its ASIN implies.
    """
    if len(asin) != _ISBN_LENGTH or not asin.isascii() or not asin.isalnum():
        return None
    if asin.startswith("B0"):
        return int(asin[2:], 36) * _GENERAL_INVERSE % _GENERAL_MODULUS
    if not asin[:9].isdigit():
        return None
    return int(asin[:9]) * _BOOK_INVERSE % _BOOK_MODULUS
