"""Which deals a scan must have seen, by a catalogue with equal seed and start."""

from typing import Any

import pytest

from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.selection import parse_selection
from tests.e2e.day_report import (
    Key,
    Order,
    Read,
    View,
    WholeScan,
    certainly_seen,
    in_place_throughout,
    view,
)

START_MS = 1_700_000_000_000
OPTIONS: dict[str, Any] = {"seed": 6, "products": 2_000, "deals": 500, "deal_speed": 600.0}
WIDE = parse_selection('{"domainId":1,"priceTypes":[1],"dateRange":3,"sortType":1,"page":0}')
# An hour of the catalogue takes six seconds.
FIRST_MS, SECOND_MS, AGAIN_MS = (START_MS + seconds * 1_000 for seconds in (1, 2, 8))


@pytest.fixture(scope="module")
def moments() -> list[dict[Key, tuple[Order, int]]]:
    """Order and page of every deal at the three times."""
    catalogue = Catalogue(
        seed=OPTIONS["seed"],
        domain=1,
        products=OPTIONS["products"],
        deals=OPTIONS["deals"],
        speed=OPTIONS["deal_speed"],
        start_ms=START_MS,
    )
    found = []
    for at_ms in (FIRST_MS, SECOND_MS, AGAIN_MS):
        catalogue.advance(at_ms)
        found.append(view(catalogue, WIDE, at_ms).places)
    return found


def test_a_scan_must_see_what_keeps_its_place(
    moments: list[dict[Key, tuple[Order, int]]],
) -> None:
    """Also what only others have pushed over a border; not what has gone, or has a new date."""
    scan = WholeScan(True, WIDE, (Read(FIRST_MS, 0, False), Read(SECOND_MS, 1, False)))
    first, second, _ = moments
    certain = in_place_throughout([scan], OPTIONS, start_ms=START_MS)
    both = first.keys() & second.keys()
    dated_anew = {key for key in both if first[key][0] != second[key][0]}
    pushed = {key for key in both - dated_anew if first[key][1] != second[key][1]}

    assert dated_anew
    assert pushed
    assert first.keys() - second.keys()
    assert certain == both - dated_anew


def test_a_scan_may_miss_what_has_left_the_page_that_it_reads_again(
    moments: list[dict[Key, tuple[Order, int]]],
) -> None:
    """Of what keeps its date, only this is left out; other borders count as before."""
    scan = WholeScan(
        True,
        WIDE,
        (Read(FIRST_MS, 0, False), Read(SECOND_MS, 1, False), Read(AGAIN_MS, 0, True)),
    )
    first, second, again = moments
    certain = in_place_throughout([scan], OPTIONS, start_ms=START_MS)
    steady = {
        key
        for key in first.keys() & second.keys() & again.keys()
        if first[key][0] == second[key][0] == again[key][0]
    }
    left = {key for key in steady if 0 in {first[key][1], second[key][1]} and again[key][1]}
    elsewhere = {key for key in steady - left if first[key][1] != again[key][1]}

    assert left
    assert elsewhere
    assert certain == steady - left


def shown(counts: dict[int, int], *pages: str) -> View:
    """Deals by their letters, page by page, ordered by those."""
    return View(
        {(1, deal, 1): ((ord(deal),), page) for page, deals in enumerate(pages) for deal in deals},
        counts,
    )


@pytest.mark.parametrize(
    ("counts", "again", "seen"),
    [
        # A row has gone above the border, and d has moved up: the counts show it.
        ({7: 5}, None, "bcdef"),
        # Another one has come at the end, of another category or of the same.
        ({7: 5, 8: 1}, None, "bcdef"),
        ({7: 6}, None, "bcef"),
        # Read again, the first page still has it, or has it no more.
        ({7: 5}, "bcd", "bcdef"),
        ({7: 5}, "bc", "bcef"),
        # So many have gone that the scan proves nothing.
        ({7: 600}, None, ""),
    ],
)
def test_a_scan_sees_what_crosses_a_border_if_the_counts_show_it(
    counts: dict[int, int], again: str | None, seen: str
) -> None:
    """Deals a to f on two pages, the first read at 1 s and the second at 2 s."""
    views = {
        Read(1_000, 0, is_again=False): shown({7: 6}, "abc", "def"),
        Read(2_000, 1, is_again=False): shown(counts, "bcd", "ef"),
    }
    if again is not None:
        views[Read(3_000, 0, is_again=True)] = shown(counts, again, "def"[len(again) - 2 :])

    assert {deal for _, deal, _ in certainly_seen(views)} == set(seen)
