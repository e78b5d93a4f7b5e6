"""Commits a page in processes that die by SIGKILL, each at a given statement.

    python -m tests.fetcher.dying_commit DATABASE_URL CLAIM

Reads a number from standard input, has a process commit the page and be killed at that
statement, and writes how the process ended: 0 if there were not so many statements.
"""

import json
import os
import signal
import sys
from typing import Any, Final, cast

import psycopg

from fetcher.postgres.database import Connection
from fetcher.postgres.pages import PageClaim
from fetcher.work.page_commit import PageReply, commit_page
from tests.fetcher.keepa_pages import query, reply, row

QUERY: Final = query(rules={"rank": {"max": 5100}}, alerts=[{"channel": "team"}])
ROWS: Final = 120
REJECTED: Final = 19


def paid_reply() -> PageReply:
    """The only page of its scan."""
    return reply([row(number) for number in range(ROWS)])


class MortalConnection:
    """A connection that kills its process at the n-th statement, from 0."""

    def __init__(self, connection: Connection, deadly: int) -> None:
        self._connection = connection
        self.left = deadly

    def execute(self, *arguments: Any) -> Any:
        """Runs one statement, or dies."""
        self._live()
        return self._connection.execute(*arguments)

    def rollback(self) -> None:
        """As it is."""
        self._connection.rollback()

    def cursor(self, **options: Any) -> Any:
        """Each cursor is used for one statement."""
        self._live()
        return self._connection.cursor(**options)

    def pipeline(self) -> Any:
        """As it is."""
        return self._connection.pipeline()

    def _live(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def commit(database_url: str, claim: PageClaim, deadly: int) -> None:
    """Commit the page, unless death comes first."""
    with psycopg.connect(database_url) as connection:
        mortal = cast("Connection", MortalConnection(connection, deadly))
        commit_page(mortal, claim, QUERY, paid_reply())


def main() -> None:
    """Sends one process after another into it."""
    database_url, claim = sys.argv[1], PageClaim(**json.loads(sys.argv[2]))
    for line in sys.stdin:
        child = os.fork()
        if not child:
            commit(database_url, claim, int(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
