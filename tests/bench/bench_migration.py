"""Migrating a full database of version 0.1: its duration, and the waits of others.

    python -m tests.bench.bench_migration [ROWS]

Beside each migration, one connection reads deals and verdicts all the time, and another
writes a row of each. The benchmark prints the longest waits and the strongest lock on each
table.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from deploy.local.postgres import PostgresServer
from fetcher.postgres.schema import known_migrations
from tests.fetcher.first_schema import apply_migrations, fill_first_schema

ROWS: Final = 1_000_000
PAUSE_S: Final = 0.02

READ: Final = """
SELECT (SELECT asin FROM deals LIMIT 1), (SELECT asin FROM verdicts LIMIT 1)
"""
# Two rows that hold up no migration for long.
WRITE: Final = """
WITH d AS (UPDATE deals SET first_seen = first_seen WHERE asin = 'B000000000')
UPDATE verdicts SET judged_at = judged_at WHERE asin = 'B000000000'
"""
LOCKS: Final = """
SELECT relation::regclass::text, mode FROM pg_locks
 WHERE granted AND pid = ANY(%s) AND relation::regclass::text IN
       ('deals', 'verdicts', 'products', 'listings', 'scans', 'scan_pages', 'deal_changes')
"""
MIGRATING: Final = """
SELECT array_agg(pid) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND application_name NOT IN ('beside', 'psql')
"""
STRENGTH: Final = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)


class Beside:
    """Reads and writes of others while a migration runs."""

    def __init__(self, database_url: str) -> None:
        self.longest_wait_s = {"read": 0.0, "write": 0.0}
        self.strongest: dict[str, str] = {}
        self._url = database_url
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(step,))
            for step in (self._read, self._write, self._look)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, step: Callable[[psycopg.Connection[Any]], None]) -> None:
        with psycopg.connect(self._url, autocommit=True, application_name="beside") as connection:
            while not self._end.is_set():
                step(connection)
                self._end.wait(PAUSE_S)

    def _read(self, connection: psycopg.Connection[Any]) -> None:
        with self._timed("read"):
            connection.execute(READ)

    def _write(self, connection: psycopg.Connection[Any]) -> None:
        with self._timed("write"):
            connection.execute(WRITE)

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute(MIGRATING).fetchone()
        for table, mode in connection.execute(LOCKS, (row[0] if row else None,)):
            held = self.strongest.get(table, STRENGTH[0])
            self.strongest[table] = max(held, mode, key=STRENGTH.index)

    @contextmanager
    def _timed(self, what: str) -> Any:
        started_s = time.perf_counter()
        yield
        waited_s = time.perf_counter() - started_s
        self.longest_wait_s[what] = max(self.longest_wait_s[what], waited_s)


def measure(server: PostgresServer, rows: int) -> None:
    """Fills a database, migrates it step by step and prints one line each."""
    url = server.create_database("old")
    started_s = time.perf_counter()
    fill_first_schema(url, rows)
    _print({"rows": rows, "filled_s": round(time.perf_counter() - started_s, 1)})
    for name in sorted(known_migrations())[1:]:
        started_s = time.perf_counter()
        with Beside(url) as beside:
            apply_migrations(url, name)
        _print(
            {
                "migration": name,
                "took_s": round(time.perf_counter() - started_s, 2),
                "longest_wait_s": {k: round(v, 2) for k, v in beside.longest_wait_s.items()},
                "strongest_lock": beside.strongest,
            }
        )


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measures on a private server."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        server = PostgresServer(folder / "data", log_path=folder / "log")
        measure(stack.enter_context(server), rows)


if __name__ == "__main__":
    main()
