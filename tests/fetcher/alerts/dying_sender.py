"""Delivers one message in processes that die by SIGKILL, each at a given statement.

    python -m tests.fetcher.alerts.dying_sender DATABASE_URL CHANNELS_FILE

Reads a number from standard input, has a process serve the channel "team" until nothing is due
and be killed at that statement, and writes how the process ended: 0 if there were not so many.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from fetcher.alerts.channels import read_channels
from fetcher.alerts.sender import Sender, SendLimits
from fetcher.broker_client import BrokerClient
from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.query_folder import QueryFolder
from protos.process.watched_files import Followed
from tests.fetcher.dying_commit import MortalConnection

CLAIM_TTL_S = 0.05


class MortalDatabase(Database):
    """A database with a process that is killed at the n-th statement, from 0."""

    def __init__(self, database_url: str, deadly: int) -> None:
        super().__init__(database_url)
        self._left = deadly

    @contextmanager
    def connection(self, *, timeout_s: float | None = None) -> Iterator[Connection]:
        """Lends a connection that counts down."""
        with super().connection(timeout_s=timeout_s) as connection:
            mortal = MortalConnection(connection, self._left)
            yield cast("Connection", mortal)
            self._left = mortal.left


def serve(database_url: str, path: Path, deadly: int) -> None:
    """Delivers what is due, unless death comes first."""
    with MortalDatabase(database_url, deadly) as database:
        sender = Sender(
            holder=f"mortal-{os.getpid()}",
            version="1",
            database=database,
            channels=Followed([path], partial(read_channels, path)),
            folder=QueryFolder(Path("none")),
            # Never asked: channels are served only.
            broker=cast("BrokerClient", None),
            limits=SendLimits(claim_ttl_s=CLAIM_TTL_S, attempts_max=99, retry_delay_s=0.01),
            fetcher_silent_s=1.0,
        )
        while sender.serve("team") == 0:
            pass


def main() -> None:
    """Sends one process after another into it."""
    database_url, path = sys.argv[1], Path(sys.argv[2])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            # The log goes elsewhere: only the codes are read.
            os.dup2(2, 1)
            serve(database_url, path, int(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
