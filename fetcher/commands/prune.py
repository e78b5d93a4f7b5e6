"""Deletion of old rows."""

import signal
import threading
from collections.abc import Callable
from datetime import timedelta

from fetcher.commands.output import EXIT_FAILED, EXIT_OK, Format, print_json, print_line, when
from fetcher.errors import DatabaseAwayError
from fetcher.postgres.database import connect
from fetcher.postgres.retention import (
    ALERT_STATEMENTS,
    HISTORY_STATEMENTS,
    STATEMENTS,
    last_page,
    prune_some,
)


def prune_database(
    database_url: str,
    *,
    days: int,
    history_days: int,
    alert_days: int,
    force: bool,
    output: Format,
) -> int:
    """Deletes rows that Keepa has not served for *days* days; returns the exit code.

    Prices older than that are rolled up to one row a day, and deleted after *history_days*.
    Alerts are deleted *alert_days* after they were delivered or set aside.

    Refuses while nothing has been collected for a day: the age of rows then comes from
    the lack of scans, not from the deals.
    """
    with connect(database_url) as connection:
        newest, is_stale = last_page(connection)
        if is_stale and not force:
            print_line(
                f"nothing deleted: the last page was read at {when(newest)}, and while"
                " collection stands still old rows are the only ones (--force deletes anyway)"
            )
            return EXIT_FAILED
        ages = dict.fromkeys(STATEMENTS, days)
        ages |= dict.fromkeys(HISTORY_STATEMENTS, max(days, history_days))
        ages |= dict.fromkeys(ALERT_STATEMENTS, alert_days)
        deleted = dict.fromkeys(ages, 0)
        for what, age in ages.items():
            while count := prune_some(connection, what, timedelta(days=age)):
                # A transaction per batch: fetchers never wait for a long one.
                connection.commit()
                deleted[what] += count
    if output is Format.JSON:
        print_json(deleted)
    else:
        print_line(f"deleted: {', '.join(f'{count} {what}' for what, count in deleted.items())}")
    return EXIT_OK


def repeat(prune_once: Callable[[], int], *, every: timedelta) -> int:
    """Prunes at once and then every *every*, until a signal comes; returns the exit code.

    While Postgres is away, it waits for the next time.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        try:
            prune_once()
        except DatabaseAwayError as exc:
            print_line(f"nothing deleted this time: {exc}")
        stop.wait(every.total_seconds())
    return EXIT_OK
