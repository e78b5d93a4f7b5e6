"""All that a page's reply changes, in one transaction: deals, verdicts, alerts, page, scan.

A process that dies anywhere in here leaves nothing behind: the page is read again.
"""

from dataclasses import dataclass

from fetcher.postgres.database import Connection
from fetcher.postgres.deals import known_asins, upsert_deals
from fetcher.postgres.pages import (
    PageClaim,
    PageResult,
    StoredPage,
    bury_page,
    drop_pages_after,
    finish_page,
    has_unread_pages,
    hold_page,
    open_pages,
    reopen_pages,
    stored_pages,
)
from fetcher.postgres.progress import (
    keepa_now_ms,
    lock_progress,
    note_freshness,
    observe_yield,
    store_progress,
)
from fetcher.postgres.scans import (
    Scan,
    abandon_scan,
    complete_scan,
    lock_scan,
    note_unordered,
    set_end,
)
from fetcher.postgres.verdicts import scan_breakdown
from fetcher.queries.query import DealQuery
from fetcher.queries.rules import Breakdown
from fetcher.replies.deals import DealPage
from fetcher.scans.page_facts import PageFacts, page_facts
from fetcher.scans.plan import (
    OVERLAP_MS,
    EndReason,
    ScanResult,
    decide_after_page,
    finish_scan,
    give_up_scan,
)
from fetcher.work.alerts import sum_up_first_run
from fetcher.work.verdicts import judge_and_store


@dataclass(frozen=True, slots=True)
class PageReply:
    """A parsed page as Keepa served it; *server_ms* is Keepa's clock then."""

    page: DealPage
    server_ms: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ScanEnd:
    """A scan that has just been completed."""

    result: ScanResult
    reason: str
    pages: int
    breakdown: Breakdown


@dataclass(frozen=True, slots=True)
class Committed:
    """What a page brought, and whether it completed its scan.

    *order_lost* is true once per scan, except in the background: the scan's rows don't come
    newest first, so that no watermark can end it.
    """

    facts: PageFacts
    new_deals: int
    order_lost: bool
    end: ScanEnd | None


def commit_page(
    connection: Connection, claim: PageClaim, query: DealQuery, reply: PageReply
) -> Committed:
    """Writes everything that follows from *reply*; the caller's transaction commits it.

    Raises:
        ClaimLostError: The page has another holder by now: roll back.
    """
    scan = lock_scan(connection, claim.scan_id)
    hold_page(connection, claim)
    fills_gap = scan.plan.kind == "gap"
    new_deals = write_deals(connection, query, reply, scan_id=scan.id, fills_gap=fills_gap)
    pages = stored_pages(connection, scan.id, claim.page - 1, claim.page)
    before = pages.get(claim.page - 1)
    first_read = not pages[claim.page].reads
    facts = page_facts(
        claim.page,
        reply.page,
        query.selection,
        server_ms=reply.server_ms,
        before=None if before is None else before.facts,
    )
    # Deals that are younger than the watermark was when the scan began.
    fresh_deals = 0
    if scan.plan.stop_before_ms is not None:
        watermark_ms = scan.plan.stop_before_ms + OVERLAP_MS
        fresh_deals = sum((deal.creation_ms or 0) > watermark_ms for deal in reply.page.deals)
    result = PageResult(facts, reply.tokens, new_deals, fresh_deals, reply.page.oddities)
    finish_page(connection, claim, result)
    if facts.number == 0 and not scan.plan.in_background:
        note_freshness(connection, scan.query, scan.selection_hash, facts)
    disorder = first_read and not facts.order.newest_first
    if disorder:
        note_unordered(connection, scan.id, facts.number)
    end = _advance(connection, scan, facts, first_read=first_read) if scan.is_running else None
    if end is not None:
        sum_up_first_run(connection, query)
    order_lost = disorder and not scan.plan.in_background and scan.is_orderly_before(facts.number)
    return Committed(facts, new_deals, order_lost, end)


def bury_and_give_up(connection: Connection, claim: PageClaim, error: str) -> None:
    """Sets the page aside and ends its scan: the watermark stays where it is.

    Raises:
        ClaimLostError: The page has another holder by now: roll back.
    """
    scan = lock_scan(connection, claim.scan_id)
    bury_page(connection, claim, error)
    if not scan.is_running:
        return
    progress = lock_progress(connection, scan.query, scan.selection_hash)
    now_ms = keepa_now_ms(connection, scan.query, scan.selection_hash)
    given_up = give_up_scan(scan.plan, progress, now_ms=now_ms)
    store_progress(connection, scan.query, scan.selection_hash, given_up)
    drop_pages_after(connection, scan.id, -1)
    abandon_scan(connection, scan.id, f"page {claim.page} failed: {error}")


def write_deals(
    connection: Connection,
    query: DealQuery,
    reply: PageReply,
    *,
    scan_id: int | None,
    fills_gap: bool = False,
) -> int:
    """Writes deals, verdicts, wanted products and alerts; returns how many deals are new.

    They replace older ones only: this is right even for a reply to a page that another
    process has read meanwhile.
    """
    deals = reply.page.deals
    asins = [deal.asin for deal in deals]
    known = known_asins(connection, query.domain_id, query.price_type, asins)
    upsert_deals(connection, deals, reply_time_ms=reply.server_ms)
    judge_and_store(
        connection,
        query,
        deals,
        reply_time_ms=reply.server_ms,
        scan_id=scan_id,
        fills_gap=fills_gap,
    )
    return len(set(asins) - known)


def _advance(
    connection: Connection, scan: Scan, facts: PageFacts, *, first_read: bool
) -> ScanEnd | None:
    """Opens the pages that follow, or ends the scan if this was the last one missing."""
    end_page, reason = scan.end_page, scan.end_reason
    if first_read:
        orderly = scan.is_orderly_before(facts.number)
        decision = decide_after_page(scan.plan, facts, orderly=orderly)
        if decision.end is not None and (end_page is None or facts.number < end_page):
            end_page, reason = facts.number, decision.end
            set_end(connection, scan.id, end_page, reason)
        wanted = (page for page in decision.next_pages if end_page is None or page < end_page)
        open_pages(connection, scan.id, wanted)
    if end_page is None or reason is None:
        return None
    drop_pages_after(connection, scan.id, end_page)
    if has_unread_pages(connection, scan.id, end_page):
        return None
    stored = list(stored_pages(connection, scan.id, 0, end_page).values())
    return _finish(connection, scan, stored, reason)


def _finish(
    connection: Connection, scan: Scan, stored: list[StoredPage], reason: EndReason
) -> ScanEnd | None:
    """Completes the scan, unless some of its pages must be read once more."""
    read = [page.facts for page in stored if page.facts is not None]
    progress = lock_progress(connection, scan.query, scan.selection_hash)
    read_twice = frozenset(page.page for page in stored if page.reads > 1)
    result = finish_scan(scan.plan, read, reason, progress=progress, read_twice=read_twice)
    if result.read_again:
        reopen_pages(connection, scan.id, result.read_again)
        return None
    store_progress(connection, scan.query, scan.selection_hash, result.progress)
    if scan.plan.kind == "incremental" and progress.last_scan_ms is not None:
        observe_yield(
            connection,
            scan.query,
            scan.selection_hash,
            deals=sum(page.fresh_deals or 0 for page in stored),
            elapsed_ms=max(0, read[0].server_ms - progress.last_scan_ms),
        )
    complete_scan(connection, scan.id, result.progress.watermark_ms)
    breakdown = scan_breakdown(connection, scan.query, scan.id)
    return ScanEnd(result, reason, len(read), breakdown)
