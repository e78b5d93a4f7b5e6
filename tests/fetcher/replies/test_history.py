"""Price histories are read from whatever a reply holds."""

import pytest

from fetcher.replies.history import parse_history, without_history
from fetcher.replies.units import minutes_to_ms

MINUTE = 7_500_000


def points(price_type: int, flat: object) -> list[tuple[int, int | None]]:
    """The points of one price: minutes after MINUTE, and values."""
    csv: list[object] = [None] * 36
    csv[price_type] = flat
    found = parse_history({"asin": "B000000001", "csv": csv}, domain_id=1)
    assert {point.price_type for point in found} <= {price_type}
    return [((point.time_ms - minutes_to_ms(MINUTE)) // 60_000, point.value) for point in found]


def test_values_by_turns_with_their_times() -> None:
    """-1 is the end of the offers."""
    assert points(1, [MINUTE, 1999, MINUTE + 4, -1]) == [(0, 1999), (4, None)]


def test_shipping_is_part_of_the_price() -> None:
    """Types with shipping have three numbers; unknown shipping adds nothing."""
    flat = [MINUTE, 1500, 399, MINUTE + 2, 2000, -1, MINUTE + 4, -1, -1]

    assert points(18, flat) == [(0, 1899), (2, 2000), (4, None)]


@pytest.mark.parametrize(
    ("flat", "expected"),
    [
        (None, []),
        ("text", []),
        ([MINUTE], []),
        ([MINUTE, 5, MINUTE + 1], [(0, 5)]),
        ([MINUTE, "x", MINUTE + 1, 7], [(1, 7)]),
        ([MINUTE, {}, MINUTE + 1, True, MINUTE + 2, 9], [(2, 9)]),
        ([-5, 5, 10**12, 5, float("nan"), 5, MINUTE, 5], [(0, 5)]),
        ([MINUTE, 2**40], []),
        ([MINUTE, 0], []),
    ],
)
def test_garbage_costs_only_itself(flat: object, expected: list[tuple[int, int]]) -> None:
    """An unreadable pair is left out, the others stay."""
    assert points(1, flat) == expected


def test_zero_is_a_count() -> None:
    """No offers of a kind is a number, and a free product is none."""
    assert points(11, [MINUTE, 0]) == [(0, 0)]


def test_no_history_at_all() -> None:
    """Rows without a list, or without a product, have no points."""
    assert parse_history({"asin": "B000000001"}, domain_id=1) == []
    assert parse_history({"csv": [[MINUTE, 5]]}, domain_id=1) == []
    assert without_history({"asin": "x", "csv": [1]}) == {"asin": "x"}
