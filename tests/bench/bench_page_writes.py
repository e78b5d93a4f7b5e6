"""Writing pages of 150 deals to Postgres: the fetcher's way beside COPY and a merge.

    python -m tests.bench.bench_page_writes

Both write the same columns to the same tables, listings and deals with the triggers of
their history, half of the rows new and half of them changed. Prints rows per second and
the median ratio of rounds taken by turns.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, page, row

PAGES: Final = 40
ROWS: Final = 150
ROUNDS: Final = 9
RATIO_MIN: Final = 0.8

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


def pages(round_number: int) -> Pages:
    """Pages with half of their rows from the previous round."""
    served_ms = NOON_MS + round_number * MINUTE_MS
    first = round_number * PAGES * ROWS // 2
    return [
        (
            page(
                row(first + number * ROWS + index, price=1000 + round_number, updated_ms=served_ms)
                for index in range(ROWS)
            ).deals,
            served_ms,
        )
        for number in range(PAGES)
    ]


def rate(connection: Connection, write: Write, arrived: Pages) -> float:
    """Rows per second, each page in a transaction of its own."""
    started_s = time.perf_counter()
    for deals, served_ms in arrived:
        with connection.transaction():
            write(connection, deals, served_ms)
    return len(arrived) * ROWS / (time.perf_counter() - started_s)


def measure(server: PostgresServer) -> dict[str, list[float]]:
    """Rows per second of both by turns, so other load slows both alike."""
    writes: dict[str, Write] = {"ours": write_ours, "copy + merge": write_copied}
    rates: dict[str, list[float]] = {label: [] for label in writes}
    with ExitStack() as stack:
        connections = {}
        for number, label in enumerate(writes):
            url = server.create_database(f"writes_{number}")
            migrate(url)
            connections[label] = stack.enter_context(connect(url))
        for round_number in range(ROUNDS):
            arrived = pages(round_number)
            for label, write in writes.items():
                rates[label].append(rate(connections[label], write, arrived))
    return rates


def main() -> None:
    """Measures both on a private server and prints them side by side; exits 1 if too slow."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(folder / "data", log_path=folder / "log") as server:
            rates = measure(server)
    ratio = statistics.median(ours / copied for ours, copied in zip(*rates.values(), strict=True))
    medians = {label: round(statistics.median(each)) for label, each in rates.items()}
    sys.stdout.write(json.dumps({**medians, "ratio": round(ratio, 2)}) + "\n")
    raise SystemExit(0 if ratio >= RATIO_MIN else 1)


if __name__ == "__main__":
    main()
