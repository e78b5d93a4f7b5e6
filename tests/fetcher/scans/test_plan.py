"""What is read next, when a scan ends, and what is then known."""

from dataclasses import replace
from typing import Any

import pytest

from fetcher.replies.units import CACHE_MS, PAGES_MAX
from fetcher.scans.order import OrderKeys, measure_order
from fetcher.scans.page_facts import PageFacts, RowEstimate
from fetcher.scans.plan import (
    GAP_EXPIRES_MS,
    GAPS_MAX,
    OVERLAP_MS,
    Decision,
    EndReason,
    Gap,
    Progress,
    ScanPlan,
    Schedule,
    decide_after_page,
    due_scans,
    finish_scan,
    give_up_scan,
)
from tests.fetcher.builders import MINUTE_MS, NOW_MS

HOUR_MS = 60 * MINUTE_MS
FULL = ScanPlan("full", 0, PAGES_MAX, None, in_background=False)
WATERMARK_MS = NOW_MS - HOUR_MS
INCREMENTAL = ScanPlan("incremental", 0, PAGES_MAX, WATERMARK_MS - OVERLAP_MS, in_background=False)
SCHEDULE = Schedule(interval_ms=5 * MINUTE_MS, full_scan_every_ms=24 * HOUR_MS, max_pages=3)
IN_ORDER = measure_order([])


def page(number: int = 0, **changes: Any) -> PageFacts:
    """A full page of its own products, newest first, served a second after the one before."""
    read = PageFacts(
        number=number,
        row_count=150,
        asins=(f"B{number:09}",),
        last=OrderKeys(None, None, None, None, None),
        newest_ms=NOW_MS - 2 * number * MINUTE_MS,
        oldest_ms=NOW_MS - (2 * number + 1) * MINUTE_MS,
        order=IN_ORDER,
        server_ms=NOW_MS + 1_000 * number,
        cached=False,
        rows=RowEstimate(0, None),
    )
    return replace(read, **changes)


DISORDERED = replace(IN_ORDER, disorder_ms=HOUR_MS)
OLD_MS = WATERMARK_MS - OVERLAP_MS


@pytest.mark.parametrize(
    ("read", "decision"),
    [
        (page(), Decision((1,), None)),
        (page(row_count=149), Decision((), "short page")),
        (page(row_count=0, newest_ms=None, oldest_ms=None), Decision((), "short page")),
        (page(oldest_ms=OLD_MS), Decision((1,), None)),
        (page(oldest_ms=OLD_MS - 1), Decision((), "watermark reached")),
        (page(oldest_ms=OLD_MS - 1, order=DISORDERED), Decision((1,), None)),
        (page(oldest_ms=None), Decision((1,), None)),
        (page(1, rows=RowEstimate(300, 300)), Decision((), "counted end")),
        (page(1, rows=RowEstimate(301, 301)), Decision((2,), None)),
        (page(1, rows=RowEstimate(299, 299)), Decision((2,), None)),
        (page(0, rows=RowEstimate(450, None), order=DISORDERED), Decision((1, 2), None)),
        (page(66, row_count=100, oldest_ms=NOW_MS), Decision((), "row limit")),
        (page(66, row_count=99, oldest_ms=NOW_MS), Decision((), "short page")),
    ],
)
def test_each_page_decides_what_follows(read: PageFacts, decision: Decision) -> None:
    """A scan goes on page by page until one of its ends is certain."""
    assert decide_after_page(INCREMENTAL, read) == decision


def test_an_earlier_page_out_of_order_rules_out_early_stops() -> None:
    """An order that was broken once is not trusted again in this scan."""
    late = page(3, oldest_ms=OLD_MS - 1)

    assert decide_after_page(INCREMENTAL, late, orderly=False).end is None


def test_a_full_scan_opens_all_pages_that_exist_and_no_other() -> None:
    """Several workers may read at once, but none pays for a page past the end."""
    known = page(rows=RowEstimate(10_500, 10_500))

    assert decide_after_page(FULL, known).next_pages == tuple(range(1, PAGES_MAX))
    assert decide_after_page(FULL, page(rows=RowEstimate(301, 301))).next_pages == (1, 2)
    assert decide_after_page(FULL, page(rows=RowEstimate(0, None))).next_pages == (1,)


def test_the_page_cap_ends_a_scan() -> None:
    """A cap is a cap, also on pages known to exist."""
    capped = replace(FULL, max_pages=2)

    assert decide_after_page(capped, page(rows=RowEstimate(900, 900))).next_pages == (1,)
    assert decide_after_page(capped, page(1)).end == "page cap"


def finish(
    plan: ScanPlan, *pages: PageFacts, end: EndReason, progress: Progress | None = None
) -> Progress:
    """The progress after a scan over *pages*."""
    return finish_scan(plan, pages, end, progress=progress or Progress()).progress


def test_the_watermark_becomes_the_newest_deal_read() -> None:
    """After a finished scan everything up to that time is known."""
    assert finish(FULL, page(), page(1), end="short page").watermark_ms == NOW_MS


def test_the_watermark_never_passes_the_server_time_of_the_first_page() -> None:
    """Deals dated in the future do not hide those that come until then."""
    ahead = page(newest_ms=NOW_MS + HOUR_MS)

    assert finish(FULL, ahead, end="short page").watermark_ms == NOW_MS


def test_the_watermark_never_goes_back() -> None:
    """The newest deal may have vanished; what was known stays known."""
    before = Progress(watermark_ms=NOW_MS + MINUTE_MS)

    assert finish(INCREMENTAL, page(), end="short page", progress=before).watermark_ms == (
        NOW_MS + MINUTE_MS
    )


def test_an_empty_result_leaves_the_watermark_alone() -> None:
    """No rows, no time."""
    empty = page(row_count=0, newest_ms=None, oldest_ms=None)

    assert finish(FULL, empty, end="short page").watermark_ms is None


def test_a_page_from_an_older_cache_holds_the_watermark() -> None:
    """Rows may hide between a fresh page and an older one, so nothing is claimed."""
    pages = (page(), page(1, cached=True))

    result = finish_scan(FULL, pages, "short page", progress=Progress(watermark_ms=WATERMARK_MS))

    assert result.watermark_held
    assert result.progress.watermark_ms == WATERMARK_MS
    assert result.progress.last_full_ms == NOW_MS


def test_a_full_scan_reads_again_what_may_have_moved_and_only_once() -> None:
    """Rows vanished between two pages: the upper one is read again before the end."""
    pages = (page(rows=RowEstimate(300, 300)), page(1, rows=RowEstimate(299, 299)))

    first = finish_scan(FULL, pages, "short page", progress=Progress())
    second = finish_scan(FULL, pages, "short page", progress=Progress(), read_twice=frozenset({0}))
    incremental = finish_scan(INCREMENTAL, pages, "watermark reached", progress=Progress())

    assert (first.read_again, second.read_again, incremental.read_again) == ((0,), (), ())
    assert second.progress.last_full_ms == NOW_MS


def test_a_cap_leaves_a_gap_that_a_later_scan_closes() -> None:
    """What was cut off is remembered with its bounds, and read from where it began."""
    capped = replace(INCREMENTAL, max_pages=2)
    before = Progress(WATERMARK_MS, last_full_ms=NOW_MS)

    cut = finish(capped, page(), page(1), end="page cap", progress=before)
    plans = due_scans(cut, SCHEDULE, now_ms=NOW_MS + 6 * MINUTE_MS)

    gap = Gap(
        from_ms=OLD_MS, until_ms=NOW_MS - 3 * MINUTE_MS, page=2, since_ms=NOW_MS, tried_ms=NOW_MS
    )
    assert (cut.watermark_ms, cut.gaps) == (NOW_MS, (gap,))
    assert [(plan.kind, plan.first_page, plan.gap) for plan in plans] == [
        ("incremental", 0, None),
        ("gap", 2, gap),
    ]


def gap_plan(gap: Gap) -> ScanPlan:
    """The scan that fills *gap* once the daily full scan is done."""
    progress = Progress(NOW_MS, NOW_MS, NOW_MS, NOW_MS, (gap,))
    (plan,) = due_scans(
        progress,
        replace(SCHEDULE, interval_ms=HOUR_MS),
        now_ms=gap.tried_ms + HOUR_MS,
        running=frozenset({"incremental"}),
    )
    return plan


GAP = Gap(
    from_ms=OLD_MS, until_ms=NOW_MS - 5 * MINUTE_MS, page=2, since_ms=NOW_MS, tried_ms=NOW_MS
)


def test_a_gap_scan_starts_where_the_cut_was_and_steps_back_if_need_be() -> None:
    """Rows that moved up since the cut are on the page above; touching known rows proves it."""
    plan = gap_plan(GAP)
    below = page(2, newest_ms=GAP.until_ms)
    touching = page(2, newest_ms=NOW_MS - 4 * MINUTE_MS)

    assert (plan.kind, plan.first_page, plan.in_background) == ("gap", 2, True)
    assert decide_after_page(plan, below) == Decision((1, 3), None)
    assert decide_after_page(plan, touching) == Decision((3,), None)
    assert decide_after_page(plan, page(3)) == Decision((4,), None)


def test_a_filled_gap_is_closed_and_a_cut_one_shrinks() -> None:
    """Only the gap that was read changes; the watermark is not its business."""
    other = replace(GAP, since_ms=NOW_MS - MINUTE_MS)
    progress = Progress(watermark_ms=WATERMARK_MS, gaps=(other, GAP))
    plan = replace(gap_plan(GAP), max_pages=1)

    closed = finish(plan, page(2), end="watermark reached", progress=progress)
    shrunk = finish(plan, page(2, server_ms=NOW_MS + HOUR_MS), end="page cap", progress=progress)

    assert closed.gaps == (other,)
    assert shrunk.gaps == (
        other,
        replace(GAP, page=3, until_ms=page(2).oldest_ms, tried_ms=NOW_MS + HOUR_MS),
    )
    assert closed.watermark_ms == shrunk.watermark_ms == WATERMARK_MS


def test_a_gap_stays_open_if_its_pages_came_from_different_times() -> None:
    """A page older than the one above proves nothing about the rows between."""
    progress = Progress(watermark_ms=WATERMARK_MS, gaps=(GAP,))
    pages = (page(2), page(3, cached=True))

    held = finish(gap_plan(GAP), *pages, end="watermark reached", progress=progress)

    assert held.gaps == (replace(GAP, tried_ms=pages[0].server_ms),)


def test_a_full_scan_closes_earlier_gaps_and_no_later_ones() -> None:
    """What was cut off while it ran may have been above the pages it had still to read."""
    later = replace(GAP, since_ms=NOW_MS + HOUR_MS)
    progress = Progress(gaps=(GAP, later))

    assert finish(FULL, page(), end="short page", progress=progress).gaps == (later,)


def test_expired_gaps_are_forgotten() -> None:
    """Keepa no longer lists what they held."""
    old = replace(GAP, since_ms=NOW_MS - GAP_EXPIRES_MS)

    assert finish(
        INCREMENTAL, page(), end="watermark reached", progress=Progress(gaps=(old,))
    ) == (finish(INCREMENTAL, page(), end="watermark reached"))


def test_too_many_gaps_are_joined_without_losing_a_row() -> None:
    """The oldest two become one that holds both."""
    gaps = tuple(
        replace(GAP, since_ms=NOW_MS - age * MINUTE_MS, from_ms=OLD_MS - age)
        for age in range(GAPS_MAX, 0, -1)
    )
    capped = replace(INCREMENTAL, max_pages=1)

    found = finish(capped, page(), end="page cap", progress=Progress(gaps=gaps)).gaps

    assert len(found) == GAPS_MAX
    assert found[0] == replace(gaps[1], from_ms=gaps[0].from_ms)


def test_the_first_scan_reads_everything_and_alone() -> None:
    """Until it has ended there is nothing at which another could stop."""
    first = due_scans(Progress(), SCHEDULE, now_ms=NOW_MS)
    meanwhile = due_scans(Progress(), SCHEDULE, running=frozenset({"full"}), now_ms=NOW_MS)

    assert first == (ScanPlan("full", 0, 3, None, in_background=False),)
    assert meanwhile == ()


def test_scans_are_due_by_their_interval_and_the_full_one_in_the_background() -> None:
    """Fresh deals go first; a full scan runs beside them."""
    read = Progress(NOW_MS, NOW_MS, NOW_MS, NOW_MS)
    minute, later = NOW_MS + 4 * MINUTE_MS, NOW_MS + 5 * MINUTE_MS
    next_day = NOW_MS + 24 * HOUR_MS

    assert due_scans(read, SCHEDULE, now_ms=minute) == ()
    assert [plan.kind for plan in due_scans(read, SCHEDULE, now_ms=later)] == ["incremental"]
    assert due_scans(read, SCHEDULE, running=frozenset({"incremental"}), now_ms=later) == ()
    assert [plan.kind for plan in due_scans(read, SCHEDULE, now_ms=next_day)] == [
        "incremental",
        "full",
    ]
    never = replace(SCHEDULE, full_scan_every_ms=None)
    assert [plan.kind for plan in due_scans(read, never, now_ms=next_day)] == ["incremental"]


def test_no_scan_starts_while_keepa_would_repeat_itself() -> None:
    """However short the interval, the cache must have expired since the last page read."""
    eager = replace(SCHEDULE, interval_ms=1_000, full_scan_every_ms=None)
    read = Progress(NOW_MS, NOW_MS, NOW_MS + MINUTE_MS, NOW_MS)

    assert due_scans(read, eager, now_ms=NOW_MS + CACHE_MS) == ()
    assert due_scans(read, eager, now_ms=NOW_MS + MINUTE_MS + CACHE_MS) != ()


def test_a_scan_given_up_waits_for_its_next_turn_and_proves_nothing() -> None:
    """The watermark stays, and the same failure does not repeat without a pause."""
    progress = Progress(WATERMARK_MS, None, None, None, (GAP,))
    now_ms = NOW_MS + HOUR_MS

    scan = give_up_scan(INCREMENTAL, progress, now_ms=now_ms)
    filler = give_up_scan(gap_plan(GAP), progress, now_ms=now_ms)
    full = give_up_scan(FULL, progress, now_ms=now_ms)

    assert scan == replace(progress, last_scan_ms=now_ms)
    assert filler == replace(progress, gaps=(replace(GAP, tried_ms=now_ms),))
    assert full == replace(progress, last_scan_ms=now_ms, last_full_ms=now_ms)


def test_a_scan_that_keepa_cut_off_has_not_read_everything() -> None:
    """Rows beyond 10,000 can't be read: the scan closes no older gap."""
    gap = Gap(None, OLD_MS, 3, since_ms=NOW_MS - HOUR_MS, tried_ms=NOW_MS - HOUR_MS)
    pages = [*(page(number) for number in range(66)), page(66, row_count=100)]
    after = finish(FULL, *pages, end="row limit", progress=Progress(gaps=(gap,)))

    assert after.gaps == (gap,)
    assert after.last_full_ms == NOW_MS
