"""Full scans of a living catalogue, in virtual time: what moves between two calls is seen.

Nothing but the scan's decisions and the simulator's rows plays a part, and slow calls are only
numbers: so the worst timing of a busy machine is one of many.
"""

import json
from random import Random
from typing import Final, Self

import pytest

from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.selection import parse_selection
from fetcher.scans.order import OrderKeys, measure_order
from fetcher.scans.page_facts import PageFacts, RowEstimate
from fetcher.scans.plan import Progress, ScanPlan, decide_after_page, finish_scan
from tests.e2e.collection import WIDE
from tests.e2e.day_report import Key, Read, View, certainly_seen, view

# Of sixty each; with these, a scan that compared only the totals of two pages missed a deal.
SEEDS: Final = {1: (21, 39, 45, 51), 4: (1, 23, 51)}
START_MS: Final = 1_700_000_000_000
# As in the short day: fifteen minutes of deals pass in five seconds.
DEALS: Final = 300
SPEED: Final = 180.0
# From a quick call to one that a busy machine has held up.
CALL_MS: Final = (20, 900)
FULL: Final = ScanPlan("full", 0, 67, None, in_background=False)


class Walk:
    """One full scan; the order of its calls and their durations are drawn by *dice*."""

    def __init__(self, sort: int, dice: Random) -> None:
        self._wanted = parse_selection(json.dumps({**WIDE, "sortType": sort}))
        self._dice = dice
        self._now_ms = START_MS
        self._catalogue = Catalogue(
            seed=dice.randrange(2**32),
            domain=1,
            products=4 * DEALS,
            deals=DEALS,
            speed=SPEED,
            start_ms=START_MS,
        )
        self.served: set[Key] = set()
        self.views: dict[Read, View] = {}
        self.read_again: tuple[int, ...] = ()

    def to_its_end(self) -> Self:
        """Reads what the scan's decisions ask for, down to the last row."""
        facts: dict[int, PageFacts] = {}
        known, end = {0}, None
        while unread := sorted(known - facts.keys()):
            number = self._dice.choice(unread)
            facts[number] = self._read(number)
            decision = decide_after_page(FULL, facts[number])
            if decision.end is not None and (end is None or number < end[0]):
                end = number, decision.end
            known |= set(decision.next_pages)
            known = {page for page in known if end is None or page <= end[0]}
        assert end is not None
        pages = [facts[number] for number in sorted(known)]
        self.read_again = finish_scan(FULL, pages, end[1], progress=Progress()).read_again
        for number in self.read_again:
            self._read(number, is_again=True)
        return self

    def _read(self, number: int, *, is_again: bool = False) -> PageFacts:
        self._now_ms += self._dice.randint(*CALL_MS)
        self._catalogue.advance(self._now_ms)
        seen = view(self._catalogue, self._wanted, self._now_ms)
        self.views[Read(self._now_ms, number, is_again)] = seen
        self.served |= seen.on(number)
        return PageFacts(
            number=number,
            row_count=len(seen.on(number)),
            asins=tuple(asin for (_, asin, _), (_, page) in seen.places.items() if page == number),
            last=OrderKeys(None, None, None, None, None),
            newest_ms=None,
            oldest_ms=None,
            order=measure_order([]),
            server_ms=self._now_ms,
            cached=False,
            rows=RowEstimate(seen.rows, None),
            counts=seen.category_counts,
        )


@pytest.mark.parametrize("sort", SEEDS)
def test_a_full_scan_sees_what_moves_over_a_border_meanwhile(sort: int) -> None:
    """All that stays in its place, and all that others push or pull to another page."""
    walks = [Walk(sort, Random(seed)).to_its_end() for seed in (*SEEDS[sort], 2, 3, 4)]
    missed = [certainly_seen(walk.views) - walk.served for walk in walks]

    assert not set().union(*missed)
    assert any(walk.read_again for walk in walks)
    assert not all(walk.read_again for walk in walks)
