"""`dealfetcher alive`: the health check of a container."""

import socket

from fetcher.postgres import Database
from fetcher.postgres.workers import beat
from tests.fix_broker import StartProgram

ENDED_S = 30.0


def test_alive_hears_the_heartbeat(database_url: str, start_program: StartProgram) -> None:
    """A heartbeat of this host is a sign of life; none, or that of another host, is not."""
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder="elsewhere-1-abc", version="1", doing="idle")
    before = start_program("fetcher", "alive", database_url=database_url).wait(ENDED_S)
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder=f"{socket.gethostname()}-1-abc", version="1", doing="idle")
    after = start_program("fetcher", "alive", database_url=database_url).wait(ENDED_S)

    assert (before, after) == (1, 0)
