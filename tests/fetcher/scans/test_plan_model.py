"""Scans over a list that keeps changing: nothing that Keepa shows may be lost."""

from bisect import bisect_left
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from fetcher.replies.deals import Deal, DealPage
from fetcher.replies.units import CACHE_MS, ROWS_PER_PAGE, minutes_to_ms, ms_to_minutes
from fetcher.scans.page_facts import PageFacts, page_facts
from fetcher.scans.plan import (
    EndReason,
    Progress,
    ScanPlan,
    Schedule,
    decide_after_page,
    due_scans,
    finish_scan,
)
from tests.fetcher.builders import MINUTE_MS, NOW_MS, deal, deal_page

SELECTION = {"includeCategories": [283155]}
TEMPLATE = deal()
BLOCK = 40


@dataclass
class ListedDeals:
    """Keepa's side: deals newest first, pages served from a cache for two minutes."""

    now_ms: int = NOW_MS
    rows: list[Deal] = field(default_factory=list)
    cache: dict[int, tuple[int, DealPage]] = field(default_factory=dict)
    made: int = 0

    def appear(self, count: int) -> None:
        """New deals, one every 20 s, dated to an even minute and listed up to 6 minutes late."""
        for _ in range(count):
            self.made += 1
            self.now_ms += MINUTE_MS // 3
            minute = ms_to_minutes(self.now_ms) // 2 * 2
            creation_ms = minutes_to_ms(minute - 2 * (self.made % 4))
            new = replace(TEMPLATE, asin=f"B{self.made:09}", creation_ms=creation_ms)
            place = bisect_left(self.rows, -creation_ms, key=lambda row: -(row.creation_ms or 0))
            self.rows.insert(place, new)

    def serve(self, number: int) -> DealPage:
        """A page, fresh or as it was served less than two minutes ago."""
        served_ms, page = self.cache.get(number, (-CACHE_MS, None))
        if page is not None and self.now_ms - served_ms < CACHE_MS:
            return replace(page, cached=True)
        start = number * ROWS_PER_PAGE
        page = deal_page(self.rows[start : start + ROWS_PER_PAGE], counts={283155: len(self.rows)})
        self.cache[number] = (self.now_ms, page)
        return page


@dataclass
class Running:
    """One scan in progress, its pages read in any permitted order."""

    plan: ScanPlan
    ready: set[int]
    read: dict[int, PageFacts] = field(default_factory=dict)
    end: tuple[int, EndReason] | None = None
    again: frozenset[int] = frozenset()

    def is_done(self) -> bool:
        """Whether every page up to the end has been read."""
        if self.end is None:
            return False
        return self.ready.isdisjoint(range(self.end[0] + 1))


class Reading(RuleBasedStateMachine):
    """However deals appear and pages are cached between reads, a quiet list is read in full."""

    def __init__(self) -> None:
        super().__init__()
        self.keepa = ListedDeals()
        self.keepa.appear(BLOCK)
        self.progress = Progress()
        self.schedule = Schedule(CACHE_MS, 240 * MINUTE_MS, max_pages=3)
        self.scans: list[Running] = []
        self.seen: set[str] = set()

    @rule(count=st.integers(1, 5 * BLOCK))
    def deals_appear(self, count: int) -> None:
        """The list grows at its top."""
        self.keepa.appear(count)

    @rule(minutes=st.integers(1, 90))
    def time_passes(self, minutes: int) -> None:
        """Caches expire and intervals pass."""
        self.keepa.now_ms += minutes * MINUTE_MS

    @rule()
    def scans_start(self) -> None:
        """Whatever is due is started, beside what is running."""
        running = frozenset(scan.plan.kind for scan in self.scans)
        due = due_scans(self.progress, self.schedule, running=running, now_ms=self.keepa.now_ms)
        self.scans += [Running(plan, {plan.first_page}) for plan in due]

    @precondition(lambda self: bool(self.scans))
    @rule(data=st.data())
    def a_page_is_read(self, data: st.DataObject) -> None:
        """A fetcher reads one of the pages that may be claimed."""
        scan = data.draw(st.sampled_from(self.scans))
        self._read(scan, data.draw(st.sampled_from(sorted(scan.ready))))

    def _read(self, scan: Running, number: int) -> None:
        self.keepa.now_ms += 500
        page = self.keepa.serve(number)
        self.seen.update(row.asin for row in page.deals)
        scan.ready.discard(number)
        if number not in scan.read:
            before = scan.read.get(number - 1)
            scan.read[number] = page_facts(
                number, page, SELECTION, server_ms=self.keepa.now_ms, before=before
            )
            self._follow(scan, scan.read[number])
        if scan.is_done():
            self._finish(scan)

    def _follow(self, scan: Running, facts: PageFacts) -> None:
        orderly = all(read.order.newest_first for read in scan.read.values())
        decision = decide_after_page(scan.plan, facts, orderly=orderly)
        scan.ready.update(set(decision.next_pages) - scan.read.keys())
        if decision.end is not None and (scan.end is None or facts.number < scan.end[0]):
            scan.end = (facts.number, decision.end)

    def _finish(self, scan: Running) -> None:
        assert scan.end is not None
        pages = [scan.read[number] for number in sorted(scan.read) if number <= scan.end[0]]
        result = finish_scan(
            scan.plan, pages, scan.end[1], progress=self.progress, read_twice=scan.again
        )
        if result.read_again:
            scan.again = frozenset(result.read_again)
            scan.ready = set(result.read_again)
            for number in result.read_again:
                self._read(scan, number)
            return
        assert (result.progress.watermark_ms or 0) >= (self.progress.watermark_ms or 0)
        self.progress = result.progress
        self.scans.remove(scan)

    def teardown(self) -> None:
        """When all becomes quiet, the scans that are due leave nothing unread."""
        self.schedule = replace(self.schedule, full_scan_every_ms=None)
        for turn in range(100):
            self.keepa.now_ms += CACHE_MS + MINUTE_MS
            self.scans_start()
            while self.scans:
                self._read(self.scans[0], min(self.scans[0].ready))
            # The first turn may have done no more than end what was running.
            if turn > 0 and not self.progress.gaps:
                break

        unread = [row.asin for row in self.keepa.rows if row.asin not in self.seen]
        assert not unread


TestReading = Reading.TestCase
TestReading.settings = settings(
    deadline=None,
    max_examples=40,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
