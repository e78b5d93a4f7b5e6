"""Reading pages of deals: start what is due, lease, claim, call, commit."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
from opentelemetry import trace

from fetcher.broker_client import Lease, LeaseLostError, Priority
from fetcher.errors import (
    ClaimLostError,
    KeepaResponseError,
    KeepaThrottledError,
    KeepaUnavailableError,
)
from fetcher.keepa import Keepa, Reply
from fetcher.postgres.database import Connection
from fetcher.postgres.pages import (
    PageClaim,
    claim_page,
    fail_page,
    next_page,
    open_pages,
    release_page,
)
from fetcher.postgres.progress import lock_progress, standings
from fetcher.postgres.scans import abandon_forgotten, start_scan
from fetcher.queries.query import DealQuery
from fetcher.replies.deals import parse_deal_page
from fetcher.replies.record import MalformedReplyError
from fetcher.replies.units import MOST_ROWS, TOKENS_PER_DEAL_PAGE
from fetcher.scans.plan import ScanPlan, due_scans
from fetcher.tracing import tracer
from fetcher.work.outage import KeyRefusedError, Outage
from fetcher.work.pace import Pace
from fetcher.work.page_commit import (
    Committed,
    PageReply,
    ScanEnd,
    bury_and_give_up,
    commit_page,
    write_deals,
)
from fetcher.work.paid_call import leased_call
from fetcher.work.shared import StoppedError, Workplace

log = structlog.get_logger(__name__)

OPERATION: Final = "deal"
PRIORITIES: Final = {
    "high": Priority.HIGH,
    "normal": Priority.NORMAL,
    "low": Priority.LOW,
}
LOOK_FOR_DUE_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class InHand:
    """The page that is being read; for giving it back when there is no time left."""

    claim: PageClaim
    lease: Lease


class ScanWork:
    """The page reader of one process; one thread runs it."""

    def __init__(self, workplace: Workplace, keepa: Keepa) -> None:
        self._workplace = workplace
        self._keepa = keepa
        self._outage = Outage(workplace)
        self._pace = Pace(workplace.broker, speed=workplace.limits.poll_speed)
        self._looked_at_s = float("-inf")
        self._in_hand: InHand | None = None

    def step(self) -> bool:
        """Read one page if there is one to read; False means that there was none."""
        queries = self._workplace.folder.book.queries
        if time.monotonic() - self._looked_at_s >= LOOK_FOR_DUE_EVERY_S:
            self._start_due(queries)
            self._looked_at_s = time.monotonic()
        wanted = self._workplace.persist(partial(next_page, queries=queries))
        if wanted is None:
            return False
        query = next(query for query in queries if query.name == wanted.query)
        priority = Priority.LOW if wanted.in_background else PRIORITIES[query.priority]
        self._workplace.doing = f"waiting for tokens for {wanted.query}"
        with (
            tracer.start_as_current_span("page"),
            self._workplace.broker.lease(
                OPERATION, units=1, tokens_per_unit=TOKENS_PER_DEAL_PAGE, priority=priority
            ) as lease,
        ):
            return self._claim_and_read(queries, lease)

    def give_back(self) -> None:
        """Return the page that a call is still out for, unharmed; its cost is unknown."""
        if (held := self._in_hand) is not None:
            held.lease.settle_unsaid()
            self._workplace.persist(partial(release_page, claim=held.claim))

    def _start_due(self, queries: tuple[DealQuery, ...]) -> None:
        self._workplace.persist(abandon_forgotten)
        standing = self._workplace.persist(partial(standings, queries=queries))
        self._pace.replan(queries, standing)
        for query in queries:
            stand = standing[query.name]
            schedule = self._pace.schedule(query)
            if due_scans(stand.progress, schedule, running=stand.running, now_ms=stand.now_ms):
                self._workplace.persist(partial(self._start, query))

    def _start(self, query: DealQuery, connection: Connection) -> None:
        # Looked at again under the lock: another process may have been faster.
        progress = lock_progress(connection, query.name, query.selection_hash)
        stand = standings(connection, [query])[query.name]
        schedule = self._pace.schedule(query)
        for plan in due_scans(progress, schedule, running=stand.running, now_ms=stand.now_ms):
            scan_id = start_scan(connection, query, plan)
            if scan_id is not None:
                open_pages(connection, scan_id, [plan.first_page])
                _say_started(query, plan, scan_id)

    def _claim_and_read(self, queries: tuple[DealQuery, ...], lease: Lease) -> bool:
        limits = self._workplace.limits
        # One try only: tokens must not stay held while Postgres is away.
        with self._workplace.database.connection() as connection:
            claim = claim_page(
                connection, queries, holder=self._workplace.holder, ttl_s=limits.claim_ttl_s
            )
        if claim is None:
            return False
        query = next(query for query in queries if query.name == claim.query)
        trace.get_current_span().set_attributes(_about(claim))
        self._workplace.doing = f"reading page {claim.page} of {claim.query}"
        self._in_hand = InHand(claim, lease)
        try:
            self._read(claim, query, lease)
        except (StoppedError, KeyRefusedError):
            raise
        except Exception as exc:
            # A mistake of ours: the heartbeat would keep the page for ever.
            self._fail(claim, f"unexpected {type(exc).__name__}")
            raise
        finally:
            self._in_hand = None
        return True

    def _read(self, claim: PageClaim, query: DealQuery, lease: Lease) -> None:
        if claim.attempts >= self._workplace.limits.attempts_max:
            self._bury(claim, "its readers died again and again")
            return
        call = partial(self._keepa.deals, query.page_selection(claim.page))
        try:
            self._store(claim, query, leased_call(lease, call))
            self._outage.over()
        except (LeaseLostError, KeepaThrottledError) as exc:
            log.info("page put back", **_about(claim), reason=str(exc))
            self._release(claim)
        except KeepaUnavailableError as exc:
            self._unavailable(claim, exc)
        except KeepaResponseError as exc:
            if exc.concerns_key:
                self._release(claim)
                raise KeyRefusedError(exc) from None
            self._bury(claim, str(exc))
        except MalformedReplyError as exc:
            self._fail(claim, str(exc))

    def _store(self, claim: PageClaim, query: DealQuery, reply: Reply) -> None:
        page = parse_deal_page(
            reply.body,
            domain_id=query.domain_id,
            price_type=query.price_type,
            date_range=query.date_range,
        )
        envelope = reply.envelope
        paid = PageReply(
            page=page,
            server_ms=int(time.time() * 1000) if envelope is None else envelope.timestamp_ms,
            tokens=0 if envelope is None else envelope.tokens_consumed,
        )
        try:
            with tracer.start_as_current_span("write"):
                done = self._workplace.persist(
                    partial(commit_page, claim=claim, query=query, reply=paid)
                )
        except ClaimLostError:
            # The page is read again by another process, but this reply was paid for too.
            log.warning("page was taken over meanwhile: only its deals kept", **_about(claim))
            self._workplace.persist(
                partial(write_deals, query=query, reply=paid, scan_id=claim.scan_id)
            )
            return
        _say_read(claim, query, paid, done)

    def _unavailable(self, claim: PageClaim, exc: KeepaUnavailableError) -> None:
        if exc.sent:
            self._fail(claim, str(exc))
        else:
            self._release(claim)
        self._outage.pause(exc)

    def _fail(self, claim: PageClaim, error: str) -> None:
        limits = self._workplace.limits
        if claim.attempts + 1 >= limits.attempts_max:
            self._bury(claim, error)
            return
        delay_s = limits.retry_delay(claim.attempts)
        log.warning("page failed", **_about(claim), error=error, retry_in_s=delay_s)
        self._change(claim, partial(fail_page, claim=claim, error=error, delay_s=delay_s))

    def _bury(self, claim: PageClaim, error: str) -> None:
        log.error("page put aside, scan given up", **_about(claim), error=error)
        self._change(claim, partial(bury_and_give_up, claim=claim, error=error))

    def _release(self, claim: PageClaim) -> None:
        self._change(claim, partial(release_page, claim=claim))

    def _change(self, claim: PageClaim, change: Callable[[Connection], None]) -> None:
        try:
            self._workplace.persist(change)
        except ClaimLostError as exc:
            log.info("claim lost", **_about(claim), reason=str(exc))


def _about(claim: PageClaim) -> dict[str, str | int]:
    return {"query": claim.query, "scan": claim.scan_id, "page": claim.page}


def _say_started(query: DealQuery, plan: ScanPlan, scan_id: int) -> None:
    log.info(
        "Fetching deals using Sort Type: %s",
        query.sort_words,
        query=query.name,
        scan=scan_id,
        kind=plan.kind,
        first_page=plan.first_page,
    )


def _say_read(claim: PageClaim, query: DealQuery, paid: PageReply, done: Committed) -> None:
    facts = done.facts
    log.info(
        "page read",
        **_about(claim),
        rows=facts.row_count,
        new=done.new_deals,
        tokens=paid.tokens,
        **({"oddities": dict(paid.page.oddities)} if paid.page.oddities else {}),
    )
    if facts.number == 0 and facts.is_stale:
        log.warning(
            "the newest deal is older than 24 hours",
            query=claim.query,
            hours=round((facts.newest_age_ms or 0) / 3_600_000, 1),
            sent=query.page_selection(0),
        )
    if done.order_lost:
        log.warning(
            "rows don't come newest first: this scan can't stop at what is known"
            " and reads every page",
            **_about(claim),
            sort=query.sort_words,
            order=facts.order.words(),
        )
    if done.end is not None:
        _say_ended(claim, done.end)


def _say_ended(claim: PageClaim, end: ScanEnd) -> None:
    log.info(
        "scan complete",
        query=claim.query,
        scan=claim.scan_id,
        pages=end.pages,
        reason=end.reason,
        watermark=_time(end.result.progress.watermark_ms),
        **({"watermark_held": True} if end.result.watermark_held else {}),
        **({"gap": True} if end.result.gap is not None else {}),
    )
    if end.reason == "row limit":
        log.warning(
            "Keepa lists no more rows of a selection: what lies beyond is not seen,"
            " so narrow it down or split it",
            query=claim.query,
            rows=MOST_ROWS,
        )
    log.info("verdicts", query=claim.query, scan=claim.scan_id, breakdown=end.breakdown.words())


def _time(unix_ms: int | None) -> str | None:
    return None if unix_ms is None else f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%F %T}"
