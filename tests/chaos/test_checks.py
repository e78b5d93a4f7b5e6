"""The checks of chaos on made-up calls."""

from typing import Any

import pytest

from tests.chaos.run import read_twice

SELECTION = '{"page":0,"sortType":1}'


def call(seq: int, time_ms: int, *, delivered: bool = True) -> dict[str, Any]:
    """A call for the same page that takes 100 ms."""
    return {
        "seq": seq,
        "path": "/deal",
        "selection": SELECTION,
        "time_ms": time_ms,
        "duration_ms": 100,
        "delivered": delivered,
    }


@pytest.mark.parametrize(
    ("scans", "found"),
    [
        ({1: {7}, 2: {7}}, [(1, 2)]),
        ({1: {7}, 2: {8}}, []),
        ({1: {7}}, [(1, 2)]),
        ({2: {7}}, [(1, 2)]),
        ({}, [(1, 2)]),
        ({1: {7, 8}, 2: {8}}, [(1, 2)]),
    ],
)
def test_only_pages_that_two_scans_have_stored_are_no_doubles(
    scans: dict[int, set[int]], found: list[tuple[int, int]]
) -> None:
    """A call without a page in the database may be the double of another one."""
    assert read_twice([call(1, 1_000), call(2, 1_050)], [], scans) == found


def test_calls_one_after_the_other_and_abandoned_ones_are_no_doubles() -> None:
    """A reply that reached no client leaves nothing to read twice."""
    one_after_the_other = [call(1, 1_000), call(2, 1_100)]
    abandoned = [call(1, 1_000, delivered=False), call(2, 1_050)]

    assert read_twice(one_after_the_other, [], {}) == []
    assert read_twice(abandoned, [], {}) == []
    assert read_twice([call(1, 1_000), call(2, 1_050)], [1_020], {}) == []
