"""Postgres as it fills: page writes, claims, reports, and what a deal takes of the disk.

    python -m tests.bench.bench_postgres --folder FOLDER --deals 1000000

One database grows to 1, 5 and 10 million deals, with a year of scans. At each stage the fetcher's
page writer runs beside COPY and merge, and each statement runs as the programs call it: claims
within a transaction that is rolled back. The folder keeps the database for the next stage.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import psycopg

from deploy.local.postgres import PostgresServer
from fetcher.postgres import migrate
from fetcher.postgres.database import Connection, connect
from fetcher.postgres.dead_pages import list_dead
from fetcher.postgres.deals import upsert_deals
from fetcher.postgres.health import freshness, stuck
from fetcher.postgres.measures import (
    COUNTED_MAX,
    measure_pages,
    measure_progress,
    measure_reading,
    measure_stored,
)
from fetcher.postgres.overview import queries_overview, rejections
from fetcher.postgres.pages import claim_page
from fetcher.postgres.products import claim_products, next_request
from fetcher.postgres.progress import standings
from fetcher.postgres.reports import count_rejections, count_states, list_deals, list_scans
from fetcher.postgres.story import product_story
from fetcher.queries.query import DealQuery
from fetcher.query_folder import QueryFolder
from tests.bench.bench_console import fill
from tests.bench.bench_page_writes import ROWS, compared, pages
from tests.bench.table import Row, at_least, at_most
from tests.fetcher.keepa_pages import asin

QUERIES: Final = Path(__file__).parents[2] / "deploy/queries"
OPTIONS: Final = {"fsync": "off", "synchronous_commit": "off", "shared_buffers": "512MB"}
STAGES: Final = (0, 1_000_000, 5_000_000, 10_000_000)
QUICK_STAGES: Final = (20_000,)
WRITES: Final = (0, 20_000, 1_000_000, 5_000_000)
REPORTED: Final = (0, 20_000, 1_000_000, 5_000_000, 10_000_000)
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 2
DAY: Final = timedelta(days=1)
# A query is read each five minutes, in one page more often than not.
YEAR: Final = timedelta(days=365)
WEEK: Final = timedelta(days=7)
GROWTH_PAGES: Final = 5
GROWTH_FIRST: Final = 900_000_000
REWRITES: Final = 13
VACUUMED_EACH: Final = 3
HOT_GOAL: Final = at_least(70)
UPDATES: Final = """
SELECT sum(n_tup_upd)::bigint, sum(n_tup_hot_upd)::bigint FROM pg_stat_user_tables
 WHERE relname IN ('listings', 'deals')
"""

SCANS: Final = (
    """
INSERT INTO scans (query, selection_hash, selection, sort_type, kind, background, plan, state,
                   end_page, end_reason, watermark, started_at, ended_at)
SELECT q.query, q.hash, '{}', 4, 'fresh', false, '{}', 'completed', 0, 'watermark', t, t,
       t + interval '2 s'
  FROM generate_series(now() - %(year)s::interval, now(), interval '5 min') t
 CROSS JOIN unnest(%(names)s::text[], %(hashes)s::text[]) AS q (query, hash)
 ORDER BY t""",
    """
INSERT INTO scan_pages (scan_id, page, state, reads, tokens, row_count, new_deals, fresh_deals,
                        oddities, facts, reply_time, done_at)
SELECT id, page, 'done', 1, 5, 150, 3, 3, '{}',
       '{"newest_ms": 1758000000000, "oldest_ms": 1757990000000}', started_at, started_at
  FROM scans CROSS JOIN generate_series(0, (id % 4 = 0)::integer) AS page
 WHERE state = 'completed'""",
    """
INSERT INTO scans (query, selection_hash, selection, sort_type, kind, background, plan)
SELECT q.query, q.hash, '{}', 4, 'full', true, '{}'
  FROM unnest(%(names)s::text[], %(hashes)s::text[]) AS q (query, hash)""",
    """
INSERT INTO scan_pages (scan_id, page)
SELECT id, page FROM scans CROSS JOIN generate_series(0, 60) AS page WHERE state = 'running'""",
    """
INSERT INTO watermarks (query, selection_hash, watermark, moved_at, last_scan, last_read,
                        last_full, newest_deal, newest_seen)
SELECT q.query, q.hash, now(), now(), now(), now(), now(), now(), now()
  FROM unnest(%(names)s::text[], %(hashes)s::text[]) AS q (query, hash)""",
    "ANALYZE scans, scan_pages, watermarks",
)
# A thousand products wait for their details, and each tenth deal has some.
PRODUCTS: Final = """
INSERT INTO products (domain_id, asin, state, operation, parameters, unit_tokens)
SELECT domain_id, asin, CASE WHEN row_number() OVER () <= 1000 THEN 'wanted' ELSE 'known' END,
       'product', '{}', 1
  FROM listings WHERE asin LIKE '%%0' AND asin > %(after)s AND asin < 'B1'
ON CONFLICT DO NOTHING
"""
SIZES: Final = """
SELECT sum(pg_total_relation_size(name::regclass))::bigint FROM unnest(%s::text[]) AS name
"""
COLLECTED: Final = ("listings", "deals", "price_history", "deal_changes", "titles")

Call = Callable[[Connection, Sequence[DealQuery]], object]


def claim_details(connection: Connection, _: Sequence[DealQuery]) -> object:
    """Claims the products of the next call for details."""
    request = next_request(connection)
    return request and claim_products(connection, request, units=10, holder="bench", ttl_s=30)


def metrics(connection: Connection, queries: Sequence[DealQuery]) -> object:
    """All of a fetcher's scrape that grows with the tables."""
    return (
        measure_progress(connection, queries),
        measure_reading(connection, queries),
        measure_pages(connection),
        measure_stored(connection),
        rejections(connection, query=None, since=DAY, counted_max=COUNTED_MAX),
    )


def all_verdicts(connection: Connection, since: timedelta | None) -> object:
    """`dealfetcher rejections`: states and rules, all counted."""
    return (
        count_states(connection, query=None, since=since),
        count_rejections(connection, query=None, since=since),
    )


# What a fetcher does before each call, then reports that show what is asked for.
CLAIMS: Final[Mapping[str, Call]] = {
    "claim of a page": lambda c, q: claim_page(c, q, holder="bench", ttl_s=30),
    "claim of products": claim_details,
    "standings of the queries": standings,
}
REPORTS: Final[Mapping[str, Call]] = {
    "dealfetcher scans": lambda c, _: list_scans(c, query=None, limit=20),
    "dealfetcher deals": lambda c, _: list_deals(c, query=None, state=None, limit=20),
    "dealfetcher deals --query --state accepted": lambda c, _: list_deals(
        c, query="query-1", state="accepted", limit=20
    ),
    "dealfetcher explain": lambda c, _: product_story(c, "B000000777", changes=20),
    "dealfetcher doctor": lambda c, _: (freshness(c), stuck(c)),
    "dealfetcher pages dead": lambda c, _: list_dead(c, limit=20),
    "console, queries": queries_overview,
    "console, rejections of a day": lambda c, _: rejections(c, query=None, since=DAY),
    "metrics of the collection": metrics,
}
# These read every verdict by their nature.
COUNTS: Final[Mapping[str, Call]] = {
    "dealfetcher rejections --since 24h": lambda c, _: all_verdicts(c, DAY),
    "dealfetcher rejections": lambda c, _: all_verdicts(c, None),
}
CLAIM_GOAL: Final = at_most(10)
REPORT_GOAL: Final = at_most(500)


def times_ms(
    database_url: str, call: Call, queries: Sequence[DealQuery], rounds: int
) -> list[float]:
    """Milliseconds of *rounds* calls, after one to warm up; nothing is kept."""
    taken = []
    with connect(database_url) as connection:
        for _ in range(rounds + 1):
            began_s = time.perf_counter()
            call(connection, queries)
            taken.append((time.perf_counter() - began_s) * 1000)
            connection.rollback()
    return taken[1:]


def fill_scans(database_url: str, queries: Sequence[DealQuery], year: timedelta) -> None:
    """Makes a *year* of scans, and one under way for each query."""
    values = {
        "year": year,
        "names": [query.name for query in queries],
        "hashes": [query.selection_hash for query in queries],
    }
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in SCANS:
            connection.execute(statement, values if "%(" in statement else None)


def size_bytes(connection: Connection, tables: Sequence[str]) -> int:
    """Bytes of *tables* with their indexes."""
    row = connection.execute(SIZES, (list(tables),)).fetchone()
    assert row is not None
    return int(row[0])


def growth(database_url: str) -> Iterator[Row]:
    """Bytes of a new deal, and of a change to one."""
    # The same products twice: a round begins half a round behind the one before it.
    half = GROWTH_PAGES * ROWS // 2
    rounds = (pages(GROWTH_FIRST, 0, GROWTH_PAGES), pages(GROWTH_FIRST - half, 1, GROWTH_PAGES))
    with connect(database_url) as connection:
        sizes = [size_bytes(connection, COLLECTED)]
        for arrived in rounds:
            for deals, served_ms in arrived:
                with connection.transaction():
                    upsert_deals(connection, deals, reply_time_ms=served_ms)
            sizes.append(size_bytes(connection, COLLECTED))
        for what, before, after in zip(("new deal", "change"), sizes, sizes[1:], strict=False):
            yield Row(
                f"disk that a {what} takes, with indexes",
                (after - before) / (GROWTH_PAGES * ROWS),
                "bytes",
                beside=", ".join(COLLECTED),
            )


def rewrites(server: PostgresServer) -> Row:
    """How many updates touch no index where the same pages come again with other prices."""
    database_url = server.create_database("rewrites")
    migrate(database_url)
    half = GROWTH_PAGES * ROWS // 2
    for number in range(REWRITES):
        with connect(database_url) as connection:
            for deals, served_ms in pages((REWRITES - number) * half, number, GROWTH_PAGES):
                with connection.transaction():
                    upsert_deals(connection, deals, reply_time_ms=served_ms)
        # In the place of autovacuum, which would come at a moment of its own.
        if number % VACUUMED_EACH == 0:
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE listings, deals")
    with psycopg.connect(database_url) as connection:
        counts = connection.execute(UPDATES).fetchone()
    assert counts is not None
    return Row(
        "updates of deals that touch no index, the same pages again and again",
        counts[1] / counts[0] * 100,
        "%",
        HOT_GOAL,
        f"of {counts[0]:,}; each page is rewritten {VACUUMED_EACH} times between vacuums",
    )


def stage(
    database_url: str, present: int, queries: Sequence[DealQuery], *, quick: bool
) -> Iterator[Row]:
    """The rows of one stage: each statement, then page writes."""
    for calls, goal in ((CLAIMS, CLAIM_GOAL), (REPORTS, REPORT_GOAL), (COUNTS, None)):
        for name, call in calls.items() if present in REPORTED else ():
            taken_ms = times_ms(database_url, call, queries, QUICK_ROUNDS if quick else ROUNDS)
            yield Row(
                f"{name}, {present:,} deals",
                statistics.median(taken_ms),
                "ms",
                goal,
                "reads every verdict of the time" if goal is None else "",
                samples={"ms": taken_ms},
            )
    if present in WRITES:
        yield from compared(database_url, present, quick=quick)


def sample_queries() -> Sequence[DealQuery]:
    """The queries that come with the project."""
    folder = QueryFolder(QUERIES)
    folder.refresh()
    return folder.book.queries


@contextmanager
def server_in(folder: Path) -> Iterator[PostgresServer]:
    """A private server with its files in *folder*."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    with PostgresServer(folder / "data", log_path=folder / "log", options=OPTIONS) as server:
        yield server


def grow(database_url: str, present: int, deals: int) -> None:
    """Adds deals to those that are *present*, up to *deals*, and products."""
    fill(database_url, deals, first=present + 1)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(PRODUCTS, {"after": asin(present)})
        connection.execute("ANALYZE products")


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """All stages of one database."""
    queries = sample_queries()
    with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name, server_in(Path(name)) as it:
        database_url = it.create_database("deals")
        migrate(database_url)
        fill_scans(database_url, queries, WEEK if quick else YEAR)
        present = 0
        for deals in QUICK_STAGES if quick else STAGES:
            grow(database_url, present, deals)
            present = deals
            yield from stage(database_url, deals, queries, quick=quick)
        yield from growth(database_url)
        if not quick:
            yield rewrites(it)


def main() -> None:
    """Grows the database of a folder to a number of deals, and prints the rows of that stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="keeps the database")
    parser.add_argument("--deals", type=int, required=True, help="grow to so many deals")
    asked = parser.parse_args()
    queries, reached = sample_queries(), asked.folder / "deals"
    with server_in(asked.folder) as server:
        database_url = server.create_database("deals")
        migrate(database_url)
        if not reached.exists():
            fill_scans(database_url, queries, YEAR)
            reached.write_text("0")
        grow(database_url, int(reached.read_text()), asked.deals)
        reached.write_text(str(asked.deals))
        for row in stage(database_url, asked.deals, queries, quick=False):
            print(f"{row.what}: {row.measured}  {row.beside}", flush=True)  # noqa: T201 - the result


if __name__ == "__main__":
    main()
