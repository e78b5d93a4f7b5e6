"""Exports of many deals: time and memory of each format, against the bounds of the project.

    python -m tests.bench.bench_export [ROWS]

Fills a database with a million rows, and runs `dealfetcher deals --format … --to …` as users
do. Prints seconds and the peak of the process's memory; exits 1 if a bound is broken.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import psycopg

from deploy.local.postgres import PostgresServer
from fetcher.deals.formats import ExportFormat
from fetcher.postgres import migrate

ROWS: Final = 1_000_000
SECONDS_MAX: Final = 60.0
MEGABYTES_MAX: Final = 200.0
OPTIONS: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

# Triggers write history that no export reads.
FILL: Final = (
    "SET session_replication_role = replica",
    """INSERT INTO listings (domain_id, asin, title, categories, rank, rating, reviews, reply_time)
       SELECT 1, 'B' || lpad(n::text, 9, '0'), 'Product ' || n || repeat(' of some kind', 5),
              '{}', n %% 500000, n %% 50, n %% 1000, now() FROM generate_series(1, %s) n""",
    """INSERT INTO deals (domain_id, asin, price_type, price_minor, creation_time, raw, reply_time)
       SELECT 1, 'B' || lpad(n::text, 9, '0'), 2, n %% 10000,
              now() - n * interval '1 second', '{}', now() FROM generate_series(1, %s) n""",
    """INSERT INTO deal_grid (query, domain_id, asin, price_type, state, price_minor, date_range,
              drop_minor, drop_percent, profit_minor, roi_percent, rank, rating, reviews,
              new_offers, used_offers, root_category, creation_time, created_ms, reply_time,
              judged_at, title, failed_rules, changed)
       SELECT 'books', 1, 'B' || lpad(n::text, 9, '0'), 2, 'accepted', n %% 10000, 3, n %% 5000,
              n %% 100, n %% 3000, n %% 300, n %% 500000, n %% 50, n %% 1000, n %% 20, n %% 30, 1,
              now() - n * interval '1 second', n, now(), now(), 'product ' || n, '{}', 1
         FROM generate_series(1, %s) n""",
    "ANALYZE",
)


# The images have no pandas, which the test's client of Keepa brings and pyarrow imports.
COMMAND: Final = """
import sys

class WithoutPandas:
    def find_spec(self, name, path, target=None):
        if name == "pandas":
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, WithoutPandas())
from fetcher.__main__ import main
main()
"""


def fill(database_url: str, rows: int) -> None:
    """Writes *rows* judged deals."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in FILL:
            connection.execute(statement.encode(), (rows,) if "%s" in statement else None)


def run(database_url: str, kind: ExportFormat, target: Path) -> tuple[float, float]:
    """Exports once; returns the seconds, and the peak of memory in megabytes."""
    started_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "deals", "--format", kind, "--to", str(target)],
        env=os.environ | {"DATABASE_URL": database_url},
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{kind} ended with {status}"
    return time.monotonic() - started_s, _megabytes(usage)


def _megabytes(usage: resource.struct_rusage) -> float:
    # Kilobytes, on Linux.
    return usage.ru_maxrss / 1024


def main() -> int:
    """Runs all formats."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    broken = False
    with tempfile.TemporaryDirectory(prefix="keepa-export-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(folder / "data", log_path=folder / "log", options=OPTIONS) as server:
            url = server.create_database("export")
            migrate(url)
            fill(url, rows)
            for kind in ExportFormat:
                target = folder / f"deals.{kind}"
                seconds, megabytes = run(url, kind, target)
                size = target.stat().st_size / 1e6
                broken |= seconds > SECONDS_MAX or megabytes > MEGABYTES_MAX
                print(  # noqa: T201 - a program for people
                    f"{kind}: {rows} rows in {seconds:.1f} s, {megabytes:.0f} MB of memory,"
                    f" {size:.0f} MB written"
                )
                target.unlink()
    return int(broken)


if __name__ == "__main__":
    raise SystemExit(main())
