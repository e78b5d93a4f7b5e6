"""A fetcher in virtual time: simulated deals and tokens, the real scans and Postgres."""

import json
from collections.abc import Sequence
from typing import Final, Self

from deploy.keepa_simulator.account import KEEPA_TICK_MS, Account
from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.deal_endpoint import DealEndpoint
from deploy.keepa_simulator.exchange import Query
from deploy.keepa_simulator.listing import Listing
from fetcher.postgres import Database
from fetcher.postgres.pages import claim_page, open_pages
from fetcher.postgres.progress import Standing, lock_progress, standings
from fetcher.postgres.scans import start_scan
from fetcher.queries.query import DealQuery
from fetcher.replies.deals import DealPage, parse_deal_page
from fetcher.replies.units import CACHE_MS, MS_PER_MINUTE, TOKENS_PER_DEAL_PAGE, ms_to_minutes
from fetcher.scans.intervals import PolledQuery, plan_intervals, polled, share_for_scans
from fetcher.scans.plan import ScanPlan, Schedule, due_scans
from fetcher.work.page_commit import PageReply, commit_page

HOUR_MS: Final = 3_600_000
TICK_MS: Final = KEEPA_TICK_MS
# Noon of a day in November.
START_MS: Final = 1_763_899_200_000
# A page takes 0.3 to 1.4 s at Keepa; a fetcher looks for due scans every second.
CALL_MS: Final = 1_000
LOOK_EVERY_MS: Final = 1_000
REPLAN_EVERY_MS: Final = MS_PER_MINUTE
CLAIM_TTL_S: Final = 3_600.0


class WatchedCatalogue(Catalogue):
    """A catalogue that keeps the times of its events."""

    def __init__(self, *, products: int, deals: int, seed: int) -> None:
        # Before the first event.
        self.events_ms: dict[tuple[str, int], float] = {}
        self._event_ms: float | None = None
        super().__init__(
            seed=seed, domain=1, products=products, deals=deals, speed=1.0, start_ms=START_MS
        )

    def _event(self, at_ms: float) -> None:
        self._event_ms = at_ms
        super()._event(at_ms)

    def _add(self, number: int, listing: Listing) -> int:
        if self._event_ms is not None:
            self.events_ms[listing.facts.asin, listing.last_update] = self._event_ms
        return super()._add(number, listing)


class VirtualReader:
    """One fetcher with a clock of its own.

    Args:
        database_url: A migrated database.
        queries: The queries to collect.
        rate: Tokens that a tick brings.
        products: Products of the catalogue.
        deals: Approximate number of current deals.
        seed: Equal seeds give equal events.
        warm_up_ms: Deals that change this soon after the start don't count, because the
            first scans have to read all listed deals once.
    """

    def __init__(
        self,
        database_url: str,
        queries: Sequence[DealQuery],
        *,
        rate: int,
        products: int = 20_000,
        deals: int = 1_500,
        seed: int = 1,
        warm_up_ms: int = 2 * HOUR_MS,
    ) -> None:
        # By query: the time since the price change, for every deal written for the first time.
        self.ages_ms: dict[str, list[float]] = {query.name: [] for query in queries}
        self._counts_from_ms = START_MS + warm_up_ms
        self._queries = {query.name: query for query in queries}
        self._database = Database(database_url)
        self._catalogue = WatchedCatalogue(products=products, deals=deals, seed=seed)
        self._keepa = DealEndpoint(lambda _: self._catalogue, CACHE_MS)
        self._account = Account(
            rate=rate, tick_ms=TICK_MS, next_tick_ms=START_MS + TICK_MS, balance=0
        )
        self._now_ms = START_MS
        self._intervals_ms: dict[str, int] = {}
        self._planned_ms = START_MS - REPLAN_EVERY_MS
        self._standings: dict[str, Standing] = {}
        self._seen: set[tuple[str, str, int]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @property
    def spent_tokens(self) -> int:
        """The cost of all calls."""
        return self._account.spent

    def read_for(self, duration_ms: int) -> None:
        """Reads all due pages that tokens allow, for this long."""
        end_ms = self._now_ms + duration_ms
        self._look()
        pages_open = False
        while self._now_ms < end_ms:
            self._plan()
            pages_open |= self._start_due()
            pages_open = pages_open and self._read_page()
            if not pages_open:
                self._now_ms += LOOK_EVERY_MS

    def _look(self) -> None:
        with self._database.connection() as connection:
            self._standings = standings(connection, list(self._queries.values()))

    def _plan(self) -> None:
        if self._now_ms - self._planned_ms < REPLAN_EVERY_MS:
            return
        self._planned_ms = self._now_ms
        share = share_for_scans(self._queries.values())
        self._intervals_ms = plan_intervals(
            {name: self._polled(name) for name in self._queries},
            tokens_per_ms=self._account.rate / TICK_MS * share,
        )

    def _polled(self, name: str) -> PolledQuery:
        stand = self._standings[name]
        return polled(
            self._queries[name], yields_per_ms=stand.yields.per_ms, last_pages=stand.last_pages
        )

    def _start_due(self) -> bool:
        started = False
        for query in self._queries.values():
            stand = self._standings[query.name]
            schedule = Schedule(
                interval_ms=query.interval_ms or self._intervals_ms[query.name],
                full_scan_every_ms=query.full_scan_every_ms,
                max_pages=query.pages_per_scan,
            )
            for plan in due_scans(
                stand.progress, schedule, running=stand.running, now_ms=self._now_ms
            ):
                self._start(query, plan)
                started = True
        if started:
            self._look()
        return started

    def _start(self, query: DealQuery, plan: ScanPlan) -> None:
        with self._database.connection() as connection:
            lock_progress(connection, query.name, query.selection_hash)
            scan_id = start_scan(connection, query, plan)
            assert scan_id is not None
            open_pages(connection, scan_id, [plan.first_page])

    def _read_page(self) -> bool:
        """Reads one page, or waits a moment for tokens; returns False without a page to read."""
        self._account.advance(self._now_ms)
        if self._account.balance < TOKENS_PER_DEAL_PAGE:
            self._now_ms += min(LOOK_EVERY_MS, self._account.refill_in_ms(self._now_ms))
            return True
        with self._database.connection() as connection:
            claim = claim_page(
                connection, list(self._queries.values()), holder="virtual", ttl_s=CLAIM_TTL_S
            )
        if claim is None:
            return False
        query = self._queries[claim.query]
        paid = self._call(query, claim.page)
        with self._database.connection() as connection:
            commit_page(connection, claim, query, paid)
        self._note(query, paid.page)
        self._look()
        return True

    def _call(self, query: DealQuery, number: int) -> PageReply:
        asked_ms = self._now_ms
        selection = json.dumps(query.page_selection(number))
        answer = self._keepa.answer(Query({"selection": selection}, None, asked_ms))
        self._account.charge(answer.cost, asked_ms)
        self._now_ms += CALL_MS
        body = {**answer.fields, "deals": json.loads(answer.fields["deals"])}
        page = parse_deal_page(
            body,
            domain_id=query.domain_id,
            price_type=query.price_type,
            date_range=query.date_range,
        )
        return PageReply(page, server_ms=asked_ms, tokens=answer.cost)

    def _note(self, query: DealQuery, page: DealPage) -> None:
        """Records the age of each deal that is written for the first time."""
        for deal in page.deals:
            key = (deal.asin, ms_to_minutes(deal.creation_ms or 0))
            event_ms = self._catalogue.events_ms.get(key)
            if event_ms is None or event_ms < self._counts_from_ms:
                continue
            if (query.name, *key) not in self._seen:
                self._seen.add((query.name, *key))
                self.ages_ms[query.name].append(self._now_ms - event_ms)
