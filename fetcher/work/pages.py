"""Reading pages of deals: starts the scans that are due, and makes a paid call for each page."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import structlog

from fetcher.broker_client import Priority
from fetcher.errors import ClaimLostError
from fetcher.keepa import Keepa, Reply
from fetcher.postgres.claims import PAGE_WORK, Claim
from fetcher.postgres.database import Connection, instant
from fetcher.postgres.pages import PageClaim, claim_page, next_page, open_pages
from fetcher.postgres.progress import lock_progress, standings
from fetcher.postgres.scans import abandon_forgotten, start_scan
from fetcher.queries.query import DealQuery
from fetcher.replies.deals import parse_deal_page
from fetcher.replies.units import MOST_ROWS, TOKENS_PER_DEAL_PAGE
from fetcher.scans.plan import due_scans
from fetcher.tracing import tracer
from fetcher.work.pace import Pace
from fetcher.work.page_commit import (
    Committed,
    PageReply,
    ScanEnd,
    bury_and_give_up,
    commit_page,
    write_deals,
)
from fetcher.work.paid_call import Job, PaidCalls, Stored, Want, odd
from fetcher.work.shared import Every, Workplace

log = structlog.get_logger(__name__)

OPERATION: Final = "deal"
PRIORITIES: Final = {
    "high": Priority.HIGH,
    "normal": Priority.NORMAL,
    "low": Priority.LOW,
}
LOOK_FOR_DUE_EVERY_S: Final = 1.0
# A forgotten scan is a day old: to find it minutes later is early enough.
LOOK_FOR_FORGOTTEN_EVERY_S: Final = 600.0


class PageJob(Job):
    """One claimed page of deals."""

    noun = "page"
    table = PAGE_WORK

    def __init__(self, claim: PageClaim, query: DealQuery, keepa: Keepa) -> None:
        self._claim = claim
        self._query = query
        self._keepa = keepa

    @property
    def claims(self) -> Sequence[PageClaim]:
        """The page's claim."""
        return (self._claim,)

    @property
    def about(self) -> Mapping[str, str | int]:
        """Query, scan and page number."""
        claim = self._claim
        return {"query": claim.query, "scan": claim.scan_id, "page": claim.page}

    @property
    def doing(self) -> str:
        """The page and its query, in words."""
        return f"reading page {self._claim.page} of {self._claim.query}"

    def without(self, claims: Sequence[Claim]) -> "PageJob | None":
        """Returns the job or None: a page can't be asked for in part."""
        return self if not claims else None

    def call(self) -> Reply:
        """Fetches the page."""
        return self._keepa.deals(self._query.page_selection(self._claim.page))

    def store(self, reply: Reply, workplace: Workplace) -> Stored:
        """Writes deals, verdicts, page, scan and watermark; without the claim, deals only."""
        query = self._query
        page = parse_deal_page(
            reply.body,
            domain_id=query.domain_id,
            price_type=query.price_type,
            date_range=query.date_range,
        )
        envelope = reply.envelope
        paid = PageReply(
            page=page,
            server_ms=int(time.time() * 1000) if envelope is None else envelope.server_time_ms,
            tokens=0 if envelope is None else envelope.tokens_consumed,
        )
        with tracer.start_as_current_span("write"):
            done = workplace.persist(
                partial(self._commit, paid=paid), grace_s=workplace.limits.write_s
            )
        if done is None:
            return Stored(lost=self.claims)
        self._report(paid, done)
        return Stored()

    def bury(self, connection: Connection, claims: Sequence[Claim], error: str) -> Sequence[Claim]:
        """Sets the page aside and gives up its scan."""
        try:
            bury_and_give_up(connection, self._claim, error)
        except ClaimLostError:
            return claims
        return ()

    def _commit(self, connection: Connection, *, paid: PageReply) -> Committed | None:
        """Commits the page; returns None if the claim was lost: only the deals are written."""
        try:
            with connection.transaction():
                return commit_page(connection, self._claim, self._query, paid)
        except ClaimLostError:
            # Another process reads the page again, but this reply was paid for too.
            write_deals(connection, self._query, paid, scan_id=self._claim.scan_id)
            return None

    def _report(self, paid: PageReply, done: Committed) -> None:
        facts = done.facts
        log.info(
            "page read",
            **self.about,
            rows=facts.row_count,
            new=done.new_deals,
            tokens=paid.tokens,
            **odd(paid.page.oddities),
        )
        if facts.number == 0 and facts.is_stale:
            log.warning(
                "the newest deal is older than 24 hours",
                query=self._query.name,
                hours=round((facts.newest_age_ms or 0) / 3_600_000, 1),
                sent=self._query.page_selection(0),
            )
        if done.order_lost:
            log.warning(
                "rows don't come newest first: this scan can't stop at what is known"
                " and reads every page",
                **self.about,
                sort=self._query.sort_words,
                order=facts.order.words(),
            )
        if done.end is not None:
            _log_end(self._claim, done.end)


class ScanWork:
    """The page reader of one process; the threads that run it take turns."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._pace = Pace(workplace.broker, speed=workplace.limits.poll_speed)
        self._look_for_due = Every(LOOK_FOR_DUE_EVERY_S)
        self._look_for_forgotten = Every(LOOK_FOR_FORGOTTEN_EVERY_S)

    def step(self, calls: PaidCalls) -> bool:
        """Reads one page by *calls*; returns False if there was none to read."""
        queries = self._workplace.folder.book.queries
        if self._look_for_forgotten.is_due(time.monotonic()):
            self._workplace.persist(abandon_forgotten)
        if self._look_for_due.is_due(time.monotonic()):
            standing = self._workplace.persist(partial(standings, queries=queries))
            self._pace.replan(queries, standing)
            for query in queries:
                stand, schedule = standing[query.name], self._pace.schedule(query)
                if due_scans(stand.progress, schedule, running=stand.running, now_ms=stand.now_ms):
                    self._workplace.persist(partial(self._start, query))
        take_over = self._workplace.may_take_over
        wanted = self._workplace.persist(partial(next_page, queries=queries, take_over=take_over))
        if wanted is None:
            return False
        query = next(query for query in queries if query.name == wanted.query)
        return calls.make(
            Want(
                span="page",
                operation=OPERATION,
                units=1,
                min_units=0,
                tokens_per_unit=TOKENS_PER_DEAL_PAGE,
                priority=Priority.LOW if wanted.in_background else PRIORITIES[query.priority],
                words=f"a page of {wanted.query}",
                claim=partial(self._claim, queries, calls.keepa),
            )
        )

    def _claim(
        self, queries: Sequence[DealQuery], keepa: Keepa, connection: Connection, _units: int
    ) -> PageJob | None:
        """Claims the most urgent page, which may be a newer one than the page seen before."""
        claim = claim_page(
            connection,
            queries,
            holder=self._workplace.holder,
            ttl_s=self._workplace.limits.claim_ttl_s,
            take_over=self._workplace.may_take_over,
        )
        if claim is None:
            return None
        query = next(query for query in queries if query.name == claim.query)
        return PageJob(claim, query, keepa)

    def _start(self, query: DealQuery, connection: Connection) -> None:
        # Checked again under the lock: another process may have been faster.
        progress = lock_progress(connection, query.name, query.selection_hash)
        stand = standings(connection, [query])[query.name]
        schedule = self._pace.schedule(query)
        for plan in due_scans(progress, schedule, running=stand.running, now_ms=stand.now_ms):
            scan_id = start_scan(connection, query, plan)
            if scan_id is not None:
                open_pages(connection, scan_id, [plan.first_page])
                log.info(
                    "Fetching deals using Sort Type: %s",
                    query.sort_words,
                    query=query.name,
                    scan=scan_id,
                    kind=plan.kind,
                    first_page=plan.first_page,
                )


def _log_end(claim: PageClaim, end: ScanEnd) -> None:
    watermark = instant(end.result.progress.watermark_ms)
    log.info(
        "scan complete",
        query=claim.query,
        scan=claim.scan_id,
        pages=end.pages,
        reason=end.reason,
        watermark=None if watermark is None else f"{watermark:%F %T}",
        **({"watermark_held": True} if end.result.watermark_held else {}),
        **({"gap": True} if end.result.gap is not None else {}),
    )
    if end.reason == "row limit":
        log.warning(
            "Keepa lists no more rows of a selection, and the rest is not seen:"
            " narrow it down or split it",
            query=claim.query,
            rows=MOST_ROWS,
        )
    log.info("verdicts", query=claim.query, scan=claim.scan_id, breakdown=end.breakdown.words())
