"""The checks of chaos on made-up calls."""

import json
from typing import Any

import pytest

from tests.chaos.run import KEPT_MS, kept_until_killed, read_twice, scans_of_calls
from tests.e2e.day_report import newest_served

SELECTION = '{"page":0,"sortType":1,"priceTypes":[1]}'


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


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        # The second call broke; its scan was under way, and has read the page later.
        ([(7, 100, 1_000), (8, 200, 1_400)], []),
        # The other scan began later, so the call was for the first one.
        ([(7, 100, 1_000), (8, 1_300, 1_400)], [(1, 2)]),
        # The first scan has read the page later, too.
        ([(7, 100, 1_000), (7, 100, 1_300), (8, 200, 1_400)], [(1, 2)]),
        ([(7, 100, 1_000)], [(1, 2)]),
    ],
)
def test_a_broken_call_is_of_a_scan_under_way_that_reads_the_page_later(
    asked: list[tuple[int, int, int]], found: list[tuple[int, int]]
) -> None:
    """Its reply is nowhere, so it may have been for the other scan."""
    calls = [call(1, 1_000), call(2, 1_050, delivered=False), call(3, 1_400)]
    rows = [(scan, began, json.loads(SELECTION), at) for scan, began, at in asked]

    assert read_twice(calls, [], scans_of_calls(calls, rows)) == found


@pytest.mark.parametrize(
    ("outages_ms", "kill_ms", "is_certain"),
    [
        ([], 10_000, True),
        # Postgres went away as the reply came, and was just back as the fetcher was killed.
        ([(1_050, 9_000)], 10_000, False),
        ([(1_050, 9_000)], 9_001 + KEPT_MS, True),
        ([(5_000, 9_000)], 10_000, True),
    ],
)
def test_a_reply_that_waits_for_postgres_may_die_with_its_fetcher(
    outages_ms: list[tuple[int, int]], kill_ms: int, *, is_certain: bool
) -> None:
    """It counts as certain to be stored unless the outage and the kill both hit it."""
    served = call(1, 1_000) | {"rows": [(1, "B000000001", 7, 7)]}
    kept_ms = kept_until_killed(outages_ms, [kill_ms])

    assert bool(newest_served([served], [kill_ms, *kept_ms])) is is_certain
