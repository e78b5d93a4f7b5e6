"""Writing pages of 150 deals to Postgres: the fetcher's way beside COPY and a merge.

Both write the same columns to the same tables, listings and deals with the triggers of
their history, each its own products, half of the rows new and half of them changed. Rounds are
taken by turns, in the database of `bench_postgres`.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from fetcher.postgres.database import Connection, connect, instant
from fetcher.postgres.deals import (
    UPSERT_DEALS,
    UPSERT_LISTINGS,
    as_jsonb,
    deal_record,
    listing_record,
    upsert_deals,
)
from fetcher.replies.deals import Deal
from tests.bench.processes import precise_cpu_s
from tests.bench.table import Goal, Row, at_least, at_most, median_ratio
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, page, row

PAGES: Final = 20
ROWS: Final = 150
ROUNDS: Final = 9
QUICK_PAGES: Final = 6
WARM_UP_PAGES: Final = 5
QUICK_ROUNDS: Final = 2
# Behind the deals that are present, and far enough apart.
RANGES: Final = (100_000_000, 200_000_000)
GOAL: Final = at_least(1.0)
CPU_GOAL: Final = at_most(1.0)
WHY: Final = (
    "both read the same JSON of deals, some 20 ms of a page's 50 in Postgres, and call the same"
    " triggers; COPY lets Postgres read while the client still writes. See the processor time"
)

Pages = Sequence[tuple[Sequence[Deal], int]]
Write = Callable[[Connection, Sequence[Deal], int], None]

Record = Callable[[Deal], dict[str, Any]]

TABLES: Final[Mapping[str, tuple[str, Record]]] = {
    "listings": (UPSERT_LISTINGS, listing_record),
    "deals": (UPSERT_DEALS, deal_record),
}


def write_ours(connection: Connection, deals: Sequence[Deal], served_ms: int) -> None:
    """Writes as the fetcher does."""
    upsert_deals(connection, deals, reply_time_ms=served_ms)


def write_copied(connection: Connection, deals: Sequence[Deal], served_ms: int) -> None:
    """Copies into temporary tables, then merges each."""
    for table, (upsert, record_of) in TABLES.items():
        columns = upsert.split("(", 1)[1].split(")", 1)[0]
        connection.execute(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS arrived_{table}"
            f" (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS".encode()
        )
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY arrived_{table} ({columns}) FROM STDIN".encode()) as copy,
        ):
            for deal in deals:
                record = record_of(deal)
                if "raw" in record:
                    record["raw"] = as_jsonb(record["raw"])
                copy.write_row((*record.values(), instant(served_ms)))
        merge = (
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM arrived_{table}"
            " ORDER BY domain_id, asin ON CONFLICT" + upsert.split("ON CONFLICT", 1)[1]
        )
        connection.execute(merge.encode())


def pages(first: int, round_number: int, count: int) -> Pages:
    """So many pages, half of their rows from the previous round; products from *first* on."""
    served_ms = NOON_MS + round_number * MINUTE_MS
    first += round_number * count * ROWS // 2
    return [
        (
            page(
                row(
                    first + number * ROWS + index,
                    title=f"Product {first + number * ROWS + index}, as many words as titles have",
                    price=1000 + round_number,
                    created_ms=NOON_MS,
                    updated_ms=served_ms,
                )
                for index in range(ROWS)
            ).deals,
            served_ms,
        )
        for number in range(count)
    ]


def written(connection: Connection, write: Write, arrived: Pages) -> tuple[float, float]:
    """Rows a second, each page in a transaction of its own; processor time of a page in ms."""
    backend = connection.info.backend_pid
    used_s = time.process_time() + precise_cpu_s(backend)
    started_s = time.perf_counter()
    for deals, served_ms in arrived:
        with connection.transaction():
            write(connection, deals, served_ms)
    took_s = time.perf_counter() - started_s
    used_s = time.process_time() + precise_cpu_s(backend) - used_s
    return len(arrived) * ROWS / took_s, used_s / len(arrived) * 1000


def compared(database_url: str, present: int, *, quick: bool) -> Iterator[Row]:
    """Rows per second and processor time of both by turns, beside *present* other deals."""
    writes: dict[str, Write] = {"ours": write_ours, "copy + merge": write_copied}
    found: dict[str, list[tuple[float, float]]] = {label: [] for label in writes}
    with ExitStack() as stack:
        connections = {label: stack.enter_context(connect(database_url)) for label in writes}
        # The first pages of a connection plan their statements.
        for (label, write), first in zip(writes.items(), RANGES, strict=True):
            written(connections[label], write, pages(first + 2 * present, -10, WARM_UP_PAGES))
        for round_number in range(QUICK_ROUNDS if quick else ROUNDS):
            turns = list(zip(writes.items(), RANGES, strict=True))
            for (label, write), first in turns if round_number % 2 else reversed(turns):
                # Each stage writes products of its own.
                arrived = pages(first + 2 * present, round_number, QUICK_PAGES if quick else PAGES)
                found[label].append(written(connections[label], write, arrived))
    measures: tuple[tuple[str, str, Goal], ...] = (
        ("rows a second", "rows/s", GOAL),
        ("processor time, client and server", "ms a page", CPU_GOAL),
    )
    for place, (what, unit, goal) in enumerate(measures):
        ours, copied = ([result[place] for result in results] for results in found.values())
        yield Row(
            f"page writes beside COPY and merge, {present:,} deals present: {what}",
            median_ratio(ours, copied),
            "x",
            goal,
            f"{statistics.median(ours):,.0f} and {statistics.median(copied):,.0f} {unit}",
            WHY,
            {"ours": ours, "copy_and_merge": copied},
        )
