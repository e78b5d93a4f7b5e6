"""Deleting what is old."""

from datetime import timedelta

from fetcher.commands.output import EXIT_FAILED, EXIT_OK, Format, print_json, say, when
from fetcher.postgres.database import Connection, connect
from fetcher.postgres.retention import STATEMENTS, last_page, prune_some


def prune_database(database_url: str, *, days: int, force: bool, output: Format) -> int:
    """Delete what was not seen for *days* days; returns the exit code.

    Refuses while nothing has been collected for a day: then "not seen" says
    nothing about the deals, only about us.
    """
    with connect(database_url) as connection:
        newest, is_stale = last_page(connection)
        if is_stale and not force:
            say(
                f"nothing deleted: the last page was read at {when(newest)}, and while"
                " collection stands still old rows are the only ones (--force deletes anyway)"
            )
            return EXIT_FAILED
        deleted = {what: _prune(connection, what, timedelta(days=days)) for what in STATEMENTS}
    if output is Format.JSON:
        print_json(deleted)
    else:
        say(f"deleted: {', '.join(f'{count} {what}' for what, count in deleted.items())}")
    return EXIT_OK


def _prune(connection: Connection, what: str, older_than: timedelta) -> int:
    total = 0
    while True:
        count = prune_some(connection, what, older_than)
        # Each lot by itself: fetchers wait for no long transaction.
        connection.commit()
        total += count
        if not count:
            return total
