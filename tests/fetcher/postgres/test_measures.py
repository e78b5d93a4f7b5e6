"""Measures of the collection: exact where that is cheap, else near the truth."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fetcher.postgres import Database
from fetcher.postgres.measures import measure_stored
from fetcher.queries.query import parse_query
from fetcher.query_folder import QueryFolder
from fetcher.reports.metrics import CollectionCollector, Measuring
from fetcher.work.page_commit import write_deals
from tests.fetcher.keepa_pages import NOON_MS, query_text, reply, row
from tests.waiting import DEADLINE_S, wait_until

# 20,000 deals, one a minute.
MANY = (
    """
INSERT INTO listings (domain_id, asin, title, root_category, categories, reply_time)
SELECT 1, 'B' || lpad(n::text, 9, '0'), 'x', 1, '{1}', now() FROM generate_series(1, 20000) n""",
    """
INSERT INTO deals (domain_id, asin, price_type, price_minor, raw, reply_time)
SELECT 1, 'B' || lpad(n::text, 9, '0'), 2, 100, '{}', now() - n * interval '1 min'
  FROM generate_series(1, 20000) n""",
    "ANALYZE deals",
)


def test_deals_beyond_a_number_are_estimated(database_url: str) -> None:
    """By Postgres' own estimate, and from a sample that stays the same."""
    with Database(database_url) as database, database.connection() as connection:
        for statement in MANY:
            connection.execute(statement)
        exact = measure_stored(connection)
        sampled = measure_stored(connection, counted_max=2_000)
        again = measure_stored(connection, counted_max=2_000)

    assert exact.deals == 20_000
    assert exact.oldest_age_s == pytest.approx(20_000 * 60, abs=60)
    assert sampled.deals == pytest.approx(20_000, rel=0.05)
    assert sampled.oldest_age_s is not None
    assert 16_000 * 60 < sampled.oldest_age_s < 20_001 * 60
    assert again.oldest_age_s == pytest.approx(sampled.oldest_age_s, abs=60)


def test_series_count_the_verdicts_of_a_day(database_url: str, tmp_path: Path) -> None:
    """Each state of a query that has judged, also that of no deal; and each rule."""
    query = parse_query("used", query_text(rules={"price": {"max": 1006}}))
    rows = [row(number, price=1000 + number) for number in range(10)]
    stop, registry = threading.Event(), CollectorRegistry()
    with Database(database_url) as database:
        with database.connection() as connection:
            write_deals(connection, query, reply(rows, NOON_MS), scan_id=None)
        measuring = Measuring(
            database, QueryFolder(tmp_path), silent_s=30, retention=timedelta(days=90)
        )
        registry.register(CollectionCollector(measuring))
        thread = threading.Thread(target=measuring.run, args=(stop,))
        thread.start()
        wait_until(lambda: measuring.latest is not None, "a measurement")
        stop.set()
        thread.join(DEADLINE_S)

    def series(name: str, label: str, value: str) -> float | None:
        return registry.get_sample_value(f"dealfetcher_{name}", {"query": "used", label: value})

    states = {
        state: series("day_verdicts", "state", state)
        for state in ("accepted", "pending", "rejected")
    }
    assert states == {"accepted": 7, "pending": 0, "rejected": 3}
    assert series("day_rejections", "rule", "price") == 3
    assert registry.get_sample_value("dealfetcher_deals") == 10
