"""How often each query is read: as its file sets, or as the tokens and its yield allow."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from fetcher.broker_client import BrokerClient, BrokerClientError
from fetcher.postgres.progress import Standing
from fetcher.queries.query import DealQuery
from fetcher.replies.units import CACHE_MS, span_words
from fetcher.scans.intervals import plan_intervals, polled, share_for_scans
from fetcher.scans.plan import Schedule

log = structlog.get_logger(__name__)

# More often at first, while the broker still learns how fast tokens come.
REPLAN_FIRST_S: Final = 2.0
REPLAN_MAX_S: Final = 60.0

# A plan is logged again when an interval has changed by this factor.
NEWS_FACTOR: Final = 2
PLAN_EVENT: Final = "how often each query is read"


# Until a broker has answered once: scans that are started could not be read anyway.
UNKNOWN_INTERVAL_MS: Final = 5 * 60_000


class Pace:
    """The present intervals; planned again every minute or so and when the queries change.

    *speed* is how many times faster than real time intervals pass: 1 except for simulators.
    """

    def __init__(self, broker: BrokerClient, *, speed: float = 1.0) -> None:
        self._broker = broker
        self._speed = speed
        self._intervals_ms: dict[str, int] = {}
        self._logged_ms: dict[str, int] = {}
        self._planned_for: tuple[str, ...] = ()
        self._planned_at_s = float("-inf")
        self._replan_after_s = REPLAN_FIRST_S
        self._tokens_per_ms: float | None = None

    def schedule(self, query: DealQuery) -> Schedule:
        """Returns when *query* is to be read again."""
        planned_ms = self._intervals_ms.get(query.name, UNKNOWN_INTERVAL_MS)
        full_ms = query.full_scan_every_ms
        return Schedule(
            interval_ms=round((query.interval_ms or planned_ms) / self._speed),
            full_scan_every_ms=None if full_ms is None else round(full_ms / self._speed),
            max_pages=query.pages_per_scan,
            cache_ms=round(CACHE_MS / self._speed),
        )

    def replan(self, queries: Iterable[DealQuery], standings: Mapping[str, Standing]) -> None:
        """Plans the intervals again if it is time."""
        wanted = list(queries)
        names = tuple(f"{query.name} {query.selection_hash}" for query in wanted)
        now_s = time.monotonic()
        if names == self._planned_for and now_s - self._planned_at_s < self._replan_after_s:
            return
        self._replan_after_s = min(2 * self._replan_after_s, REPLAN_MAX_S)
        self._planned_for, self._planned_at_s = names, now_s
        self._update_budget()
        if self._tokens_per_ms is None:
            return
        planned = plan_intervals(
            {
                query.name: polled(
                    query,
                    yields_per_ms=standings[query.name].yields.per_ms / self._speed,
                    last_pages=standings[query.name].last_pages,
                )
                for query in wanted
            },
            tokens_per_ms=self._tokens_per_ms * share_for_scans(wanted),
        )
        # A first plan rests on a guess at the refill: a plan that the next confirms is logged.
        if _alike(planned, self._intervals_ms) and not _alike(planned, self._logged_ms):
            self._logged_ms = planned
            words = {}
            for query in wanted:
                source = "the tokens allow" if query.interval_ms is None else "its file sets"
                interval_ms = (query.interval_ms or planned[query.name]) / self._speed
                words[query.name] = f"every {span_words(interval_ms / 1000)}, as {source}"
            log.info(PLAN_EVENT, **words)
        self._intervals_ms = planned

    def _update_budget(self) -> None:
        try:
            bucket = self._broker.get_bucket(timeout_s=2.0)
        except BrokerClientError:
            # The last answer serves until the broker is back.
            return
        if bucket.refill_rate > 0 and bucket.refill_period_s > 0:
            per_ms = bucket.refill_rate / (bucket.refill_period_s * 1000)
            self._tokens_per_ms = per_ms / self._speed


def _alike(one_ms: Mapping[str, int], other_ms: Mapping[str, int]) -> bool:
    """Returns whether two plans have the same queries and intervals of similar size."""
    return one_ms.keys() == other_ms.keys() and all(
        interval_ms / NEWS_FACTOR < other_ms[name] < interval_ms * NEWS_FACTOR
        for name, interval_ms in one_ms.items()
    )
