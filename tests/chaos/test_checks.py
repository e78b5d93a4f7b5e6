"""The checks of chaos on made-up calls."""

import json
import signal
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from deploy.local.program import Program
from tests.chaos.faults import fetcher_ends
from tests.chaos.run import (
    HELD_MS,
    KEPT_MS,
    held_until_killed,
    kept_until_killed,
    read_twice,
    refused_without_cause,
    scans_of_calls,
)
from tests.chaos.stack import Stack
from tests.e2e.day_report import newest_served
from tests.waiting import wait_until

SELECTION = '{"page":0,"sortType":1,"priceTypes":[1]}'


def call(seq: int, time_ms: int, *, delivered: bool = True, status: int = 200) -> dict[str, Any]:
    """A call for the same page that takes 100 ms."""
    return {
        "seq": seq,
        "path": "/deal",
        "status": status,
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
    failed = [call(1, 1_000, status=500), call(2, 1_050, status=429)]

    assert read_twice(one_after_the_other, [], {}) == []
    assert read_twice(failed, [], {1: {7, 8}, 2: {7, 8}}) == []
    assert read_twice(abandoned, [], {}) == []
    assert read_twice([call(1, 1_000), call(2, 1_050)], [1_020], {}) == []


def test_calls_without_a_selection_ask_for_no_page() -> None:
    """They look alike in Keepa's journal."""
    failed = {"selection": None, "status": 400}

    assert read_twice([call(1, 1_000) | failed, call(2, 1_050) | failed], [], {}) == []


def test_keepa_may_refuse_only_where_a_fault_has_misled_the_broker() -> None:
    """However many faults the run has had elsewhere."""
    calls = [call(seq, seq * 1_000) | {"status": 429} for seq in range(1, 6)]
    calls[2]["status"] = 200

    assert refused_without_cause(calls, [(1_500, 2_500), (5_000, 9_000)]) == [1, 4]
    assert refused_without_cause(calls, []) == [1, 2, 4, 5]


def test_a_fetcher_that_is_only_stopped_does_not_count_as_killed(tmp_path: Path) -> None:
    """It keeps its replies: a stop excuses less than a kill."""
    stack = Stack(tmp_path, seed=1)
    idle = [sys.executable, "-c", "import time; time.sleep(600)"]
    fetcher = Program(
        "fetcher-0", idle, environment={}, log_path=tmp_path / "log", folder=tmp_path
    )
    stack.fetchers = [fetcher.start()]
    try:
        with fetcher_ends(stack, Random(1), signal.SIGSTOP) as struck:
            wait_until(struck.proof, "the stop")
        stopped = list(stack.kills)
        with fetcher_ends(stack, Random(1), signal.SIGKILL) as struck:
            wait_until(struck.proof, "the kill")
    finally:
        stack.stop()

    assert (stopped, len(stack.kills)) == ([], 1)


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
@pytest.mark.parametrize("end", [{}, {"delivered": False}])
def test_a_call_without_a_page_is_of_a_scan_under_way_that_reads_the_page_later(
    asked: list[tuple[int, int, int]], found: list[tuple[int, int]], end: dict[str, Any]
) -> None:
    """Its reply is nowhere, or came to a fetcher that had lost the page: it may have been for
    the other scan.
    """
    calls = [call(1, 1_000), call(2, 1_050, **end), call(3, 1_400)]
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


@pytest.mark.parametrize(
    ("holder", "kill", "is_certain"),
    [
        ("host-7-abc", (4_000, 7), False),
        # Another fetcher was killed, or a process with a longer number.
        ("host-7-abc", (4_000, 8), True),
        ("host-17-abc", (4_000, 7), True),
        # It had time to write.
        ("host-7-abc", (1_001 + HELD_MS, 7), True),
        ("host-7-abc", (900, 7), True),
    ],
)
def test_a_reply_may_die_with_the_fetcher_that_holds_it(
    holder: str, kill: tuple[int, int], *, is_certain: bool
) -> None:
    """The broker's journal names the fetcher."""
    served = call(1, 1_000) | {"rows": [(1, "B000000001", 7, 7)]}

    assert (
        bool(newest_served([served], held_until_killed([(1_000, holder)], [kill]))) is is_certain
    )
