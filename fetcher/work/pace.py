"""How often each query is read: as its author says, or as the tokens and its yield allow."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from fetcher.broker_client import BrokerClient, BrokerClientError
from fetcher.postgres.progress import Standing
from fetcher.queries.query import DealQuery
from fetcher.replies.units import CACHE_MS
from fetcher.scans.intervals import PolledQuery, plan_intervals, polled, share_for_scans
from fetcher.scans.plan import Schedule

log = structlog.get_logger(__name__)

# More often at first, while the broker is still learning how fast tokens come.
REPLAN_FIRST_S: Final = 2.0
REPLAN_MAX_S: Final = 60.0

# A plan is logged again when an interval has changed by this factor.
NEWS_FACTOR: Final = 2
PLAN_EVENT: Final = "how often each query is read"
# Up to here a duration is given in the smaller unit.
SMALL_MAX: Final = 90

# While no broker has ever answered, scans that are started could not be read anyway.
UNKNOWN_INTERVAL_MS: Final = 5 * 60_000


class Pace:
    """The intervals in force; planned anew every minute or so and when the queries change.

    *speed* is how many times as fast Keepa's world turns: 1 but for simulators.
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
        """When *query* is to be read again."""
        planned_ms = self._intervals_ms.get(query.name, UNKNOWN_INTERVAL_MS)
        full_ms = query.full_scan_every_ms
        return Schedule(
            interval_ms=round((query.interval_ms or planned_ms) / self._speed),
            full_scan_every_ms=None if full_ms is None else round(full_ms / self._speed),
            max_pages=query.pages_per_scan,
            cache_ms=round(CACHE_MS / self._speed),
        )

    def replan(self, queries: Iterable[DealQuery], standings: Mapping[str, Standing]) -> None:
        """Plan the intervals anew if it is time."""
        wanted = list(queries)
        names = tuple(f"{query.name} {query.selection_hash}" for query in wanted)
        now_s = time.monotonic()
        if names == self._planned_for and now_s - self._planned_at_s < self._replan_after_s:
            return
        self._replan_after_s = min(2 * self._replan_after_s, REPLAN_MAX_S)
        self._planned_for, self._planned_at_s = names, now_s
        self._ask_budget()
        if self._tokens_per_ms is None:
            return
        planned = plan_intervals(
            {query.name: self._polled(query, standings[query.name]) for query in wanted},
            tokens_per_ms=self._tokens_per_ms * share_for_scans(wanted),
        )
        # A first plan rests on a guess at the refill: one that the next confirms is logged.
        if _alike(planned, self._intervals_ms) and not _alike(planned, self._logged_ms):
            self._logged_ms = planned
            log.info(PLAN_EVENT, **{query.name: self._words(query, planned) for query in wanted})
        self._intervals_ms = planned

    def _words(self, query: DealQuery, planned_ms: Mapping[str, int]) -> str:
        if query.interval_ms is not None:
            return f"every {_rounded(query.interval_ms / self._speed)}, as its file says"
        return f"every {_rounded(planned_ms[query.name] / self._speed)}, as the tokens allow"

    def _ask_budget(self) -> None:
        try:
            bucket = self._broker.get_bucket(timeout_s=2.0)
        except BrokerClientError:
            # The last answer serves until the broker is back.
            return
        if bucket.refill_rate > 0 and bucket.refill_period_s > 0:
            per_ms = bucket.refill_rate / (bucket.refill_period_s * 1000)
            self._tokens_per_ms = per_ms / self._speed

    def _polled(self, query: DealQuery, standing: Standing) -> PolledQuery:
        yields_per_ms = standing.yields.per_ms / self._speed
        return polled(query, yields_per_ms=yields_per_ms, last_pages=standing.last_pages)


def _alike(one_ms: Mapping[str, int], other_ms: Mapping[str, int]) -> bool:
    """Whether two plans are for the same queries, and their intervals of the same size."""
    return one_ms.keys() == other_ms.keys() and all(
        interval_ms / NEWS_FACTOR < other_ms[name] < interval_ms * NEWS_FACTOR
        for name, interval_ms in one_ms.items()
    )


def _rounded(duration_ms: float) -> str:
    """*duration_ms* as people say it: 45 s, 4 min, 3 h."""
    seconds = duration_ms / 1000
    for unit in ("s", "min"):
        if seconds < SMALL_MAX:
            return f"{max(1, round(seconds))} {unit}"
        seconds /= 60
    return f"{round(seconds)} h"
