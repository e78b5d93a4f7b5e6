"""Writing pages of 150 deals to Postgres: the fetcher's way beside COPY and a merge.

Both write the same columns to the same tables, listings and deals with the triggers of
their history, half of the rows new and half of them changed; also where very many deals are
present. Rounds are taken by turns.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from deploy.local.postgres import PostgresServer
from fetcher.postgres import migrate
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
from tests.bench.bench_console import OPTIONS, fill
from tests.bench.table import Row, at_least, median_ratio
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, page, row

PAGES: Final = 40
ROWS: Final = 150
ROUNDS: Final = 9
QUICK_PAGES: Final = 10
QUICK_ROUNDS: Final = 5
PRESENT: Final = (0, 1_000_000)
QUICK_PRESENT: Final = (0, 20_000)
GOAL: Final = at_least(1.0)
WHY: Final = (
    "the triggers that keep the history, the grid and the words of titles are most of both; two of"
    " them are called for each row"
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


def pages(round_number: int, count: int) -> Pages:
    """So many pages with half of their rows from the previous round."""
    served_ms = NOON_MS + round_number * MINUTE_MS
    first = round_number * count * ROWS // 2
    return [
        (
            page(
                row(first + number * ROWS + index, price=1000 + round_number, updated_ms=served_ms)
                for index in range(ROWS)
            ).deals,
            served_ms,
        )
        for number in range(count)
    ]


def rate(connection: Connection, write: Write, arrived: Pages) -> float:
    """Rows per second, each page in a transaction of its own."""
    started_s = time.perf_counter()
    for deals, served_ms in arrived:
        with connection.transaction():
            write(connection, deals, served_ms)
    return len(arrived) * ROWS / (time.perf_counter() - started_s)


def measure(server: PostgresServer, present: int, *, quick: bool) -> Row:
    """Rows per second of both by turns, with *present* deals of other products."""
    writes: dict[str, Write] = {"ours": write_ours, "copy + merge": write_copied}
    rates: dict[str, list[float]] = {label: [] for label in writes}
    with ExitStack() as stack:
        connections = {}
        for number, label in enumerate(writes):
            url = server.create_database(f"writes_{present}_{number}")
            migrate(url)
            fill(url, present)
            connections[label] = stack.enter_context(connect(url))
        for round_number in range(QUICK_ROUNDS if quick else ROUNDS):
            arrived = pages(round_number, QUICK_PAGES if quick else PAGES)
            turns = list(writes.items())
            for label, write in turns if round_number % 2 else reversed(turns):
                rates[label].append(rate(connections[label], write, arrived))
    ours, copied = rates.values()
    return Row(
        f"page writes beside COPY and merge, {present:,} deals present",
        median_ratio(ours, copied),
        "x",
        GOAL,
        f"{statistics.median(ours):,.0f} and {statistics.median(copied):,.0f} rows/s",
        WHY,
        {"rows_per_s": ours, "copied_rows_per_s": copied},
    )


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Both on a private server, beside other deals."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(folder / "data", log_path=folder / "log", options=OPTIONS) as server:
            for present in QUICK_PRESENT if quick else PRESENT:
                yield measure(server, present, quick=quick)
