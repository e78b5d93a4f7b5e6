"""The console over a million deals: first paint, any filter, every page.

    python -m tests.bench.bench_console [--deals 1000000] [--keep]

Prints the time from request to the last byte of each address: the best and the median of
five, and fails if the first page takes 300 ms or any filter 500 ms (median).
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import aiohttp
import psycopg

from deploy.local.postgres import PostgresServer
from fetcher.postgres import migrate
from protos.process.addresses import Listen
from protos.web.serving import serving
from tests.fetcher.console.world import console_over

FIRST_MS: Final = 300
FILTER_MS: Final = 500
ROUNDS: Final = 5
OPTIONS: Final = {"fsync": "off", "synchronous_commit": "off", "shared_buffers": "512MB"}

# Without triggers, which would write a million points of history, and check every key.
FILL: Final = (
    "SET session_replication_role = replica",
    """
INSERT INTO listings (domain_id, asin, title, root_category, categories, image, amazon_minor,
                      rank, rating, reviews, new_offers, used_offers, reply_time)
SELECT 1, 'B' || lpad(n::text, 9, '0'),
       'Product ' || n || ' of ' || md5(n::text) || ' ' || md5((n * 7)::text),
       283155 + n % 20, '{283155}', '51' || substr(md5(n::text), 1, 8) || 'L.jpg', 2000 + n % 9000,
       n * 7919 % 2000000, n * 31 % 51, n * 17 % 5000, n % 40, n % 25, now()
  FROM generate_series(@first::bigint, @last::bigint) n""",
    """
INSERT INTO deals (domain_id, asin, price_type, price_minor, creation_time, price_since, raw,
                   reply_time)
SELECT 1, 'B' || lpad(n::text, 9, '0'), 2, 300 + n * 13 % 30000,
       now() - n * 37 % 7776000 * interval '1 s', now() - interval '1 day', '{}', now()
  FROM generate_series(@first::bigint, @last::bigint) n""",
    """
INSERT INTO verdicts (query, domain_id, asin, price_type, stage, state, failures, rule_version,
                      date_range, average_minor, drop_minor, drop_percent, profit_minor,
                      roi_percent, reply_time, judged_at)
SELECT 'query-' || n % 5, 1, 'B' || lpad(n::text, 9, '0'), 2, 'deal',
       CASE WHEN n % 10 < 2 THEN 'accepted' WHEN n % 10 = 2 THEN 'pending' ELSE 'rejected' END,
       CASE WHEN n % 10 < 3 THEN '[]'
            ELSE '[{"rule": "rank", "limit": {"max": 5}, "value": 6, "outcome": "failed"}]'
       END::jsonb,
       'a version', 3, 2000 + n % 30000, 1000, n * 11 % 95, n * 3 % 4000 - 1000, n * 5 % 150,
       now(), now() - n * 41 % 604800 * interval '1 s'
  FROM generate_series(@first::bigint, @last::bigint) n""",
    """
INSERT INTO deal_grid SELECT * FROM grid_rows
 WHERE asin BETWEEN 'B' || lpad(@first::text, 9, '0') AND 'B' || lpad(@last::text, 9, '0')""",
    """
INSERT INTO titles SELECT domain_id, asin, array_to_tsvector(title_words(title)) FROM listings
 WHERE asin BETWEEN 'B' || lpad(@first::text, 9, '0') AND 'B' || lpad(@last::text, 9, '0')""",
    """
INSERT INTO marks SELECT 1, 'B' || lpad((n * 100)::text, 9, '0'), 'ignored', 'x'
  FROM generate_series(1, 1000) n ON CONFLICT DO NOTHING""",
    "VACUUM (ANALYZE) deal_grid, titles",
    "ANALYZE",
)
# What Postgres builds faster at the end than row by row.
INDEXES: Final = """
SELECT indexname, indexdef FROM pg_indexes
 WHERE tablename IN ('deal_grid', 'titles') AND indexdef NOT LIKE 'CREATE UNIQUE%'
"""

ADDRESSES: Final[Mapping[str, str]] = {
    "first page": "/",
    "any verdict": "/?state=",
    "rare words in titles": "/?state=&title=c4ca4238",
    "words that nothing has": "/?state=&title=no+such+thing",
    "a drop, by drop": "/?state=&drop_percent_min=50&sort=drop",
    "a price, by price": "/?state=accepted&price_min=1000&price_max=2000&sort=price",
    "a rank, by rank": "/?state=&rank_max=50000&sort=rank",
    "a profit, by profit": "/?state=accepted&profit_min=2000&sort=profit",
    "a return, by return": "/?state=&roi_percent_min=100&sort=roi",
    "rating and reviews": "/?state=&rating_min=45&reviews_min=4000",
    "offers": "/?state=&new_offers_min=39&used_offers_min=20",
    "one query": "/?state=&query=query-3",
    "a rule": "/?state=rejected&rule=rank",
    "a young deal": "/?state=&created_within=1h",
    "judged lately": "/?state=&judged_within=1h",
    "one product": "/?state=&asin=B000500000",
    "nothing matches at all": "/?state=accepted&rank_max=10&reviews_min=4999&price_max=310",
    "everything at once": "/?state=accepted&query=query-1&price_min=1000&drop_percent_min=20"
    "&rank_max=1500000&rating_min=30&reviews_min=100&created_within=31d&title=product&sort=profit",
    "a deal's story": "/deal/1/B000000010",
    "rejections of a day": "/rejections?since=24h",
    "rejections of all time": "/rejections?since=",
    "queries": "/queries",
    "fleet": "/fleet",
    "dead pages": "/dead",
    "marks": "/marks",
}
# Pages that count by their nature.
UNBOUND: Final = {"rejections of a day", "rejections of all time"}


def fill(database_url: str, deals: int, *, first: int = 1) -> None:
    """Makes deals up to so many, from the *first* on: a million in a minute.

    Without any, no table is analyzed: a plan for an empty one would stay in use as it fills.
    """
    if deals < first:
        return
    with psycopg.connect(database_url, autocommit=True) as connection:
        indexes = connection.execute(INDEXES).fetchall()
        connection.execute("SET maintenance_work_mem = '256MB'")
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}".encode())
        *inserts, vacuum, analyze = FILL
        for statement in inserts:
            bounded = statement.replace("@first", str(first)).replace("@last", str(deals))
            connection.execute(bounded.encode())
        for statement in (*(definition for _, definition in indexes), vacuum, analyze):
            connection.execute(statement.encode())


async def measure(database_url: str, queries: Path) -> dict[str, list[float]]:
    """Milliseconds of each address, and of the tenth page of the first."""
    took: dict[str, list[float]] = {}
    with console_over(database_url, queries) as routes:
        async with (
            serving(routes, Listen("127.0.0.1", 0), setting="BENCH", name="bench") as listen,
            aiohttp.ClientSession(f"http://{listen}") as session,
        ):

            async def get(name: str, address: str) -> str:
                started = time.perf_counter()
                async with session.get(address) as reply:
                    text = await reply.text()
                    assert reply.status == 200, (address, reply.status, text[:500])
                took.setdefault(name, []).append(1000 * (time.perf_counter() - started))
                return text

            for _ in range(ROUNDS):
                for name, address in ADDRESSES.items():
                    await get(name, address)
                address = "/"
                for _ in range(10):
                    text = await get("next pages", address)
                    link = text.partition('rel="next"')[0].rpartition('href="')[2]
                    address = link.partition('"')[0].replace("&amp;", "&")
    return took


def main() -> int:
    """Fills a database, measures, judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deals", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="keeps the database for the next time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-console-") as name:
        folder = asked.folder or Path(name)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        is_filled = (folder / "filled").exists()
        with PostgresServer(folder / "data", log_path=folder / "log", options=OPTIONS) as server:
            url = server.create_database("console")
            if not is_filled:
                started = time.monotonic()
                migrate(url)
                fill(url, asked.deals)
                (folder / "filled").touch()
                took_s = time.monotonic() - started
                sys.stdout.write(f"{asked.deals:,} deals made in {took_s:.0f} s\n")
            took = asyncio.run(measure(url, Path("deploy/queries")))
    slow = []
    for what, times in took.items():
        median, limit = statistics.median(times), FIRST_MS if what == "first page" else FILTER_MS
        verdict = "" if median < limit or what in UNBOUND else f"  over {limit} ms"
        slow += [what] if verdict else []
        line = f"{what:26} best {min(times):6.0f} ms  median {median:6.0f} ms{verdict}"
        sys.stdout.write(f"{line}\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
