"""Reading a query's pages: what to read next, when to stop, and the progress that follows.

Rule 1: the watermark is the newest deal time fully ingested. It moves with a finished
        scan only, never backwards, and never past the server time of the first page.
Rule 2: a scan stops early only at rows strictly older than watermark less overlap, and only
        while the rows read so far come newest first.
Rule 3: rows that a cap cuts off are a gap, until they are read or have expired.
Rule 4: no page past a known end is fetched; an empty page costs as much as a full one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Final, Literal

from fetcher.replies.units import CACHE_MS, MOST_ROWS, MS_PER_MINUTE, PAGES_MAX, ROWS_PER_PAGE
from fetcher.scans.page_facts import PageFacts, read_earlier, seam_problem

# Deal times are even minutes, ties are normal, and a few run ahead of the server's clock.
OVERLAP_MS: Final = 10 * MS_PER_MINUTE

# Keepa lists products updated within about half a day: older rows have gone from its list.
GAP_EXPIRES_MS: Final = 24 * 60 * MS_PER_MINUTE

# Beyond it, the two oldest become one; at most one scan per gap and interval is due.
GAPS_MAX: Final = 8

ScanKind = Literal["incremental", "full", "gap"]

EndReason = Literal[
    "short page",
    "counted end",
    "watermark reached",
    "page cap",
    "row limit",
]


@dataclass(frozen=True, slots=True)
class Gap:
    """Rows that a page cap cut off; times in Unix ms.

    They are older than ``until_ms`` and no older than ``from_ms`` (None: without a limit).
    They began at page ``page`` when the scan of ``since_ms`` was cut.
    """

    from_ms: int | None
    until_ms: int | None
    page: int
    since_ms: int
    tried_ms: int

    def has_expired(self, now_ms: int) -> bool:
        """Returns whether its rows have left Keepa's list by now."""
        return now_ms - self.since_ms >= GAP_EXPIRES_MS


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """The pages of one scan: from ``first_page`` on, at most ``max_pages``.

    It may stop at rows older than ``stop_before_ms`` (None: it reads to the end). A scan
    that fills ``gap`` must touch the rows above the gap. A scan ``in_background`` looks for
    deals that others have missed; fresh deals go before it.
    """

    kind: ScanKind
    first_page: int
    max_pages: int
    stop_before_ms: int | None
    in_background: bool
    gap: Gap | None = None

    @property
    def page_limit(self) -> int:
        """The first page number that it may not read."""
        return min(self.first_page + self.max_pages, PAGES_MAX)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one query has been read; times in Unix ms, None is never.

    ``last_scan_ms`` and ``last_full_ms`` are starts of scans that have ended; a full scan
    counts for both. ``last_read_ms`` is when the latest page was read, except in the
    background.
    """

    watermark_ms: int | None = None
    last_scan_ms: int | None = None
    last_read_ms: int | None = None
    last_full_ms: int | None = None
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to read, in milliseconds, and the most pages per scan.

    ``cache_ms`` is how long Keepa repeats an answer; no scan starts sooner.
    """

    interval_ms: int
    full_scan_every_ms: int | None
    max_pages: int
    cache_ms: int = CACHE_MS


def due_scans(
    progress: Progress,
    schedule: Schedule,
    *,
    running: frozenset[ScanKind] = frozenset(),
    now_ms: int,
) -> tuple[ScanPlan, ...]:
    """Returns the scans to start now, most urgent first; none of a kind that is *running*.

    The first scan of a selection is a full one: until it has ended, there is no watermark
    at which another could stop.
    """
    # Before its cache has expired, Keepa would repeat the pages that were read last.
    is_due = _has_passed(progress.last_scan_ms, schedule.interval_ms, now_ms) and _has_passed(
        progress.last_read_ms, schedule.cache_ms, now_ms
    )
    if progress.watermark_ms is None:
        plan = ScanPlan("full", 0, schedule.max_pages, None, in_background=False)
        return (plan,) if is_due and not running else ()
    plans: list[ScanPlan] = []
    if is_due:
        stop_before_ms = progress.watermark_ms - OVERLAP_MS
        plans.append(
            ScanPlan("incremental", 0, schedule.max_pages, stop_before_ms, in_background=False)
        )
    every_ms = schedule.full_scan_every_ms
    if every_ms is not None and _has_passed(progress.last_full_ms, every_ms, now_ms):
        plans.append(ScanPlan("full", 0, schedule.max_pages, None, in_background=True))
    elif "full" not in running:
        ready = (
            ScanPlan("gap", gap.page, schedule.max_pages, gap.from_ms, in_background=True, gap=gap)
            for gap in open_gaps(progress, now_ms)
            if _has_passed(gap.tried_ms, schedule.interval_ms, now_ms)
        )
        plans += islice(ready, 1)
    return tuple(plan for plan in plans if plan.kind not in running)


def _has_passed(since_ms: int | None, duration_ms: int, now_ms: int) -> bool:
    return since_ms is None or now_ms - since_ms >= duration_ms


def open_gaps(progress: Progress, now_ms: int) -> tuple[Gap, ...]:
    """Returns the gaps with rows that can still be read."""
    return tuple(gap for gap in progress.gaps if not gap.has_expired(now_ms))


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows a page: the pages that may be claimed now, or why the scan ends."""

    next_pages: tuple[int, ...]
    end: EndReason | None


def decide_after_page(plan: ScanPlan, page: PageFacts, *, orderly: bool = True) -> Decision:
    """Decides what to read once *page* has been committed.

    Args:
        plan: The scan's plan.
        page: The page just read.
        orderly: Whether all earlier pages of the scan came newest first.
    """
    orderly = orderly and page.order.newest_first
    missed = _page_before(plan, page, orderly=orderly)
    if (end := _end_reason(plan, page, orderly=orderly)) is not None:
        return Decision(missed, end)
    following = page.number + 1
    if plan.stop_before_ms is not None and orderly:
        return Decision((*missed, following), None)
    # Only the end of the rows ends the scan: all pages that certainly exist may be read.
    known = min(-(-page.rows.at_least // ROWS_PER_PAGE), plan.page_limit)
    return Decision((*missed, *range(following, max(known, following + 1))), None)


def _end_reason(plan: ScanPlan, page: PageFacts, *, orderly: bool) -> EndReason | None:
    following = page.number + 1
    # The last page that Keepa serves is short, even if more rows match.
    if page.number * ROWS_PER_PAGE + page.row_count >= MOST_ROWS:
        return "row limit"
    if page.row_count < ROWS_PER_PAGE:
        return "short page"
    if (
        orderly
        and plan.stop_before_ms is not None
        and page.oldest_ms is not None
        and page.oldest_ms < plan.stop_before_ms
    ):
        return "watermark reached"
    if page.rows.at_most == following * ROWS_PER_PAGE:
        return "counted end"
    return "page cap" if following >= plan.page_limit else None


def _page_before(plan: ScanPlan, page: PageFacts, *, orderly: bool) -> tuple[int, ...]:
    """Returns the page above, if a gap's rows may have moved up to it since the cut."""
    if plan.gap is None or plan.gap.until_ms is None or not orderly:
        return ()
    if not 0 < page.number <= plan.first_page:
        return ()
    touches = page.newest_ms is not None and page.newest_ms > plan.gap.until_ms
    return () if touches else (page.number - 1,)


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The result of a finished scan.

    ``progress`` is to be committed with it. ``watermark_held``: a page came from a cache
    older than the page before, so that the watermark stays where it was. ``read_again``:
    pages of a full scan with rows that may have moved over a border; the scan has finished
    when they have been read once more.
    """

    progress: Progress
    watermark_held: bool
    gap: Gap | None
    read_again: tuple[int, ...]


def finish_scan(
    plan: ScanPlan,
    pages: Sequence[PageFacts],
    end: EndReason,
    *,
    progress: Progress,
    read_twice: frozenset[int] = frozenset(),
) -> ScanResult:
    """Returns the result once all *pages*, consecutive and in order, have been committed.

    Args:
        plan: The scan's plan.
        pages: Every page of the scan, from the lowest number to the one that ended it.
        end: Why it ended.
        progress: The query's progress now, with that of other scans.
        read_twice: Pages that have been read again already.
    """
    assert pages
    seams = list(pairwise(pages))
    assert all(page.number == before.number + 1 for before, page in seams)
    problems = [(seam_problem(*seam), read_earlier(*seam)) for seam in seams]
    held = any(problem == "staler" for problem, _ in problems)
    moved = {number for problem, number in problems if problem == "moved"}
    may_read_again = plan.kind == "full" and not held and not read_twice
    # With all rows read, every earlier gap is closed.
    is_full = pages[0].number == 0 and end in ("short page", "counted end") and not held
    gap = _gap(plan, pages, end, held=held)
    return ScanResult(
        progress=_advance(progress, plan, pages, gap, held=held, is_full=is_full),
        watermark_held=held,
        gap=gap,
        # Once only: the next full scan finds rows that move while pages are read again.
        read_again=tuple(sorted(moved)) if may_read_again else (),
    )


def _advance(
    progress: Progress,
    plan: ScanPlan,
    pages: Sequence[PageFacts],
    gap: Gap | None,
    *,
    held: bool,
    is_full: bool,
) -> Progress:
    """Returns the progress after a finished scan."""
    start_ms = pages[0].server_ms
    last_ms = max(page.server_ms for page in pages)
    # A full scan has had its turn, complete or not. Repeated at once it would read the same
    # cached pages, and prove as little for as many tokens.
    full_turn = is_full or plan.kind == "full"
    # The newest deal read, but no later than the first page was served.
    dated = [page.newest_ms for page in pages if page.newest_ms is not None]
    counts = dated and not held and plan.kind != "gap"
    reached_ms = min(max(dated), start_ms) if counts else None
    return Progress(
        watermark_ms=_later(progress.watermark_ms, reached_ms),
        last_scan_ms=_later(progress.last_scan_ms, None if plan.kind == "gap" else start_ms),
        last_read_ms=_later(progress.last_read_ms, None if plan.in_background else last_ms),
        last_full_ms=_later(progress.last_full_ms, start_ms if full_turn else None),
        gaps=_gaps(
            progress, plan, gap, closed_ms=pages[0].as_of_ms if is_full else None, now_ms=last_ms
        ),
    )


def give_up_scan(plan: ScanPlan, progress: Progress, *, now_ms: int) -> Progress:
    """Returns the progress after a scan that can't be finished: only its turn is over."""
    gaps = tuple(
        replace(gap, tried_ms=now_ms) if gap == plan.gap else gap for gap in progress.gaps
    )
    return replace(
        progress,
        last_scan_ms=_later(progress.last_scan_ms, None if plan.kind == "gap" else now_ms),
        last_full_ms=_later(progress.last_full_ms, now_ms if plan.kind == "full" else None),
        gaps=gaps,
    )


def _later(before_ms: int | None, reached_ms: int | None) -> int | None:
    """Returns the later of two times; either may be missing."""
    return max((ms for ms in (before_ms, reached_ms) if ms is not None), default=None)


def _gap(plan: ScanPlan, pages: Sequence[PageFacts], end: EndReason, *, held: bool) -> Gap | None:
    """Returns the gap that this scan leaves unread, if any."""
    read_ms = pages[0].server_ms
    if held and plan.gap is not None:
        return replace(plan.gap, tried_ms=read_ms)
    if end != "page cap":
        return None
    return Gap(
        from_ms=plan.stop_before_ms,
        until_ms=pages[-1].oldest_ms,
        page=pages[-1].number + 1,
        since_ms=read_ms if plan.gap is None else plan.gap.since_ms,
        tried_ms=read_ms,
    )


def _gaps(
    progress: Progress, plan: ScanPlan, gap: Gap | None, *, closed_ms: int | None, now_ms: int
) -> tuple[Gap, ...]:
    """Returns the open gaps, oldest first; those from before *closed_ms* have been read."""
    # A gap that reaches down to the last row includes every older gap.
    held_ms = gap.since_ms if gap is not None and gap.from_ms is None else None
    closed_ms = _later(closed_ms, held_ms) or 0
    unread = (old for old in open_gaps(progress, now_ms) if old != plan.gap)
    others = [old for old in unread if old.since_ms > closed_ms]
    ordered = sorted((*others, *((gap,) if gap else ())), key=lambda some: some.since_ms)
    if len(ordered) > GAPS_MAX:
        starts_ms = [gap.from_ms for gap in ordered[:2] if gap.from_ms is not None]
        both_dated = len(starts_ms) == 2  # noqa: PLR2004 - both gaps
        ordered[:2] = [replace(ordered[1], from_ms=min(starts_ms) if both_dated else None)]
    return tuple(ordered)
