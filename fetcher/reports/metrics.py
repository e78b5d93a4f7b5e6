"""Prometheus series of the collection, all beginning with `dealfetcher_`.

They come from the database: one process measures for all fetchers, also while none runs.
It measures at its own intervals: scrapes cost the database nothing.
"""

import math
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fetcher.errors import DatabaseAwayError, DatabaseNotSetUpError
from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.postgres.errors import MIGRATE
from fetcher.postgres.keepa_errors import count_errors
from fetcher.postgres.measures import (
    COUNTED_MAX,
    HourRead,
    PageCounts,
    QueryProgress,
    Stored,
    ask_nothing,
    count_fetchers,
    measure_pages,
    measure_progress,
    measure_reading,
    measure_stored,
)
from fetcher.postgres.outbox import ChannelCounts, count_messages
from fetcher.postgres.overview import Rejections, rejections
from fetcher.postgres.schema import missing_migrations
from fetcher.queries.query import DealQuery, QueryBook
from fetcher.query_folder import QueryFolder
from fetcher.scans.intervals import LONGEST_INTERVAL_MS
from fetcher.work.keepa_errors import ErrorKind
from fetcher.work.threads import Mishaps
from protos.process.metric_families import MetricFamilies
from protos.process.version import package_version

log = structlog.get_logger(__name__)

MEASURE_EVERY_S: Final = 10.0
# A large database is measured less often: measuring takes at most 1/20 of the time.
IDLE_SHARE: Final = 20.0
JUDGED_WITHIN: Final = timedelta(days=1)
ESTIMATED: Final = f"; estimated beyond {COUNTED_MAX:,}."
VERDICT_STATES: Final = ("accepted", "pending", "rejected")

families: Final = MetricFamilies("dealfetcher")
gauge, gauges = families.gauge, families.gauges


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measures of the collection at one moment."""

    queries: Sequence[DealQuery]
    known_s: Sequence[float]
    progress: Sequence[QueryProgress]
    reading: Sequence[HourRead]
    pages: PageCounts
    verdicts: Rejections
    keepa_errors: Mapping[str, int]
    messages: Sequence[ChannelCounts]
    stored: Stored
    fetchers: int
    latency_s: float
    took_s: float


class Measuring:
    """Measures the collection at intervals, and keeps the latest measurement.

    Args:
        silent_s: Longest silence of a fetcher that counts as alive, in seconds.
        retention: Age at which `dealfetcher prune` deletes.
    """

    def __init__(
        self, database: Database, folder: QueryFolder, *, silent_s: float, retention: timedelta
    ) -> None:
        self._database, self._folder, self._silent_s = database, folder, silent_s
        self.retention = retention
        self.latest: Measurement | None = None
        self.database_up = False
        # When each selection was first seen, on the monotonic clock.
        self._first_seen_s: dict[str, float] = {}
        self._problem = ""
        self._mishaps = Mishaps("metrics")

    @property
    def book(self) -> QueryBook:
        """The queries and errors that were read last."""
        return self._folder.book

    def run(self, stop: threading.Event) -> None:
        """Measures until *stop* is set."""
        while not stop.is_set():
            started_s = time.monotonic()
            least_pause_s = MEASURE_EVERY_S
            try:
                self._measure_or_log_why()
            except Exception as exc:  # noqa: BLE001 - the loop's top level; logged there
                self.database_up = False
                least_pause_s = self._mishaps.note(exc)
            else:
                self._mishaps.over()
            took_s = time.monotonic() - started_s
            stop.wait(max(least_pause_s, IDLE_SHARE * took_s))

    def _measure_or_log_why(self) -> None:
        self._folder.refresh()
        queries, now_s = self._folder.book.queries, time.monotonic()
        known_s = [
            now_s - self._first_seen_s.setdefault(query.selection_hash, now_s) for query in queries
        ]
        try:
            with self._database.connection() as connection:
                self.latest = measure(connection, queries, known_s, silent_s=self._silent_s)
        except DatabaseAwayError as exc:
            if str(exc) != self._problem:
                self._problem = str(exc)
                log.warning("measurement failed: trying again", problem=self._problem)
            self.database_up = False
            return
        if self._problem:
            self._problem = ""
            log.info("the database can be measured again")
        self.database_up = True


def measure(
    connection: Connection,
    queries: Sequence[DealQuery],
    known_s: Sequence[float],
    *,
    silent_s: float,
) -> Measurement:
    """Measures the collection now; *known_s* is for how long each of *queries* has been there.

    Raises:
        DatabaseAwayError: Postgres can't be reached, or its tables are not up to date.
    """
    started_s = time.monotonic()
    ask_nothing(connection)
    latency_s = time.monotonic() - started_s
    if missing := missing_migrations(connection):
        raise DatabaseNotSetUpError(f"the database lacks {', '.join(sorted(missing))}", MIGRATE)
    return Measurement(
        queries=queries,
        known_s=known_s,
        progress=measure_progress(connection, queries),
        reading=measure_reading(connection, queries),
        pages=measure_pages(connection),
        verdicts=rejections(connection, query=None, since=JUDGED_WITHIN, counted_max=COUNTED_MAX),
        keepa_errors=count_errors(connection),
        messages=count_messages(connection),
        stored=measure_stored(connection),
        fetchers=count_fetchers(connection, silent_s=silent_s),
        latency_s=latency_s,
        took_s=time.monotonic() - started_s,
    )


class CollectionCollector(Collector):
    """Turns the latest measurement into series; without a database it yields none."""

    def __init__(self, measuring: Measuring) -> None:
        self._measuring = measuring

    def describe(self) -> Iterable[Metric]:
        """Returns nothing: only a scrape has the names, and they are unique."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yields all series of this moment."""
        latest = self._measuring.latest
        up = self._measuring.database_up
        build = GaugeMetricFamily(
            "dealfetcher_build_info", "1, with the version.", labels=["version", "python"]
        )
        build.add_metric([package_version(), platform.python_version()], 1.0)
        yield build
        yield gauge("database_up", "1 while the database can be measured.", up)
        yield from _of_files(self._measuring.book)
        if latest is None or not up:
            return
        yield gauge("database_latency_seconds", "Time to the database and back.", latest.latency_s)
        yield gauge("measure_seconds", "Time that measuring the database took.", latest.took_s)
        stored = latest.stored
        yield gauge("deals", f"Deals stored{ESTIMATED}", stored.deals)
        text = "Age of the oldest reply stored; in a large database, of those in a sample."
        yield gauge("oldest_deal_age_seconds", text, stored.oldest_age_s or 0.0)
        retention_s = self._measuring.retention.total_seconds()
        yield gauge("retention_seconds", "Age at which deals are pruned.", retention_s)
        yield gauge("database_size_bytes", "Size of the database.", stored.size_bytes)
        yield gauge("fetchers", "Fetchers that are alive.", latest.fetchers)
        yield gauge("dead_pages", "Pages given up, to be looked at.", latest.pages.dead)
        pages = {"ready": latest.pages.ready, "claimed": latest.pages.claimed}
        yield gauges("open_pages", "Pages of running scans still to be read.", "state", pages)
        # Every kind from the start: a rate needs the series before its first event.
        errors = dict.fromkeys(ErrorKind, 0) | dict(latest.keepa_errors)
        yield families.counters("keepa_errors", "Failed calls to Keepa.", "kind", errors)
        yield from _of_queries(latest)

        yield from _of_verdicts(latest)
        yield from _of_alerts(latest.messages)


def _of_files(book: QueryBook) -> Iterator[Metric]:
    """Yields which version of each query is read, and which files are refused."""
    versions = GaugeMetricFamily(
        "dealfetcher_query_info",
        "1, with the versions of the query's selection and rules.",
        labels=["query", "selection", "rules"],
    )
    for query in book.queries:
        versions.add_metric([query.name, query.selection_hash, query.rules.version], 1.0)
    yield versions
    refused = {error.query: 1 for error in book.errors}
    accepted = {query.name: 0 for query in book.queries}
    text = "1 while the file can't be used; `dealfetcher queries check` has the reason."
    yield gauges("query_file_refused", text, "query", accepted | refused)


def _of_queries(latest: Measurement) -> Iterator[Metric]:
    newest = {one.query: _age(one.newest_deal_age_s) for one in latest.progress}
    yield gauges("query_newest_deal_age_seconds", "Age of the newest deal seen.", "query", newest)
    moved = {one.query: _age(one.watermark_age_s) for one in latest.progress}
    yield gauges("query_watermark_age_seconds", "Time since the watermark moved.", "query", moved)
    scanned = {one.query: _age(one.scan_age_s) for one in latest.progress}
    yield gauges("query_scan_age_seconds", "Time since the last scan.", "query", scanned)
    names = [query.name for query in latest.queries]
    known = dict(zip(names, latest.known_s, strict=True))
    yield gauges(
        "query_known_seconds", "Time since the query's file was first read.", "query", known
    )
    pauses = {one.query: _age(one.usual_pause_s) for one in latest.progress}
    yield gauges("query_usual_pause_seconds", "Mean time between two new deals.", "query", pauses)
    gaps = {one.query: one.gaps for one in latest.progress}
    yield gauges("query_gaps", "Gaps still to be read.", "query", gaps)
    intervals = {
        query.name: (query.interval_ms or LONGEST_INTERVAL_MS) / 1000 for query in latest.queries
    }
    yield gauges(
        "query_interval_seconds", "Longest time wanted between scans.", "query", intervals
    )
    rows = {hour.query: hour.rows for hour in latest.reading}
    yield gauges("hour_rows", "Deals read and written within an hour.", "query", rows)
    new_deals = {hour.query: hour.new_deals for hour in latest.reading}
    yield gauges("hour_new_deals", "Deals never seen before, within an hour.", "query", new_deals)
    tokens = {hour.query: hour.tokens for hour in latest.reading}
    yield gauges("hour_tokens", "Tokens spent on pages within an hour.", "query", tokens)


def _of_alerts(messages: Sequence[ChannelCounts]) -> Iterator[Metric]:
    waiting = {one.channel: one.waiting for one in messages}
    yield gauges("alerts_waiting", "Messages to be delivered.", "channel", waiting)
    dead = {one.channel: one.dead for one in messages}
    yield gauges("alerts_dead", "Messages set aside, to be looked at.", "channel", dead)
    delivered = {one.channel: one.delivered for one in messages}
    yield gauges("hour_alerts", "Messages delivered within an hour.", "channel", delivered)
    late = {one.channel: one.late_s for one in messages}
    text = "Time that the oldest due message has waited."
    yield gauges("alerts_late_seconds", text, "channel", late)
    lags = {one.channel: one.lag_s for one in messages if one.lag_s is not None}
    text = "95th percentile of the time from due to delivered, within an hour."
    yield gauges("alerts_lag_seconds", text, "channel", lags)


def _of_verdicts(latest: Measurement) -> Iterator[Metric]:
    verdicts = GaugeMetricFamily(
        "dealfetcher_day_verdicts",
        f"Deals judged within a day{ESTIMATED}",
        labels=["query", "state"],
    )
    rules = GaugeMetricFamily(
        "dealfetcher_day_rejections",
        f"Rules against deals rejected within a day; a deal counts for each{ESTIMATED}",
        labels=["query", "rule"],
    )
    rows = latest.verdicts.rows
    # Every state of a query that has judged: a series that comes and goes is no zero.
    states = {
        (query, state): 0 for query in {row["query"] for row in rows} for state in VERDICT_STATES
    }
    for row in rows:
        if row["rule"] is None:
            states[row["query"], row["state"]] = row["deals"]
        else:
            rules.add_metric([row["query"], row["rule"]], row["deals"])
    for labels, deals in sorted(states.items()):
        verdicts.add_metric(labels, deals)
    yield verdicts
    yield rules


def _age(age_s: float | None) -> float:
    """Returns infinity for an event that never happened, so that alerts fire."""
    return math.inf if age_s is None else max(0.0, age_s)
