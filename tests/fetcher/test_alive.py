"""`dealfetcher alive`: the health check of a container."""

import socket

from fetcher.postgres import Database
from fetcher.postgres.workers import beat
from tests.fix_broker import StartProgram

ENDED_S = 90.0


def test_alive_finds_the_heartbeat(database_url: str, start_program: StartProgram) -> None:
    """A heartbeat of this host is a sign of life; none, or that of another host, is not."""
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder="elsewhere-1-abc", version="1", doing="idle")
    before = start_program("fetcher", "alive", database_url=database_url).wait(ENDED_S)
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder=f"{socket.gethostname()}-1-abc", version="1", doing="idle")
    after = start_program("fetcher", "alive", database_url=database_url).wait(ENDED_S)

    assert (before, after) == (1, 0)


def test_a_fetcher_that_does_not_work_is_not_alive(
    database_url: str, start_program: StartProgram
) -> None:
    """A process that beats but is stuck, or can't begin, is named with what it does."""
    holder = f"{socket.gethostname()}-1-abc"
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder=holder, version="1", doing="stuck: scans: claiming", silent_s=61)
    alive = start_program("fetcher", "alive", database_url=database_url)
    code = alive.wait(ENDED_S)
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder=holder, version="1", doing="idle")
        beat(connection, holder=holder, version="1", doing="stuck: scans: claiming", silent_s=61)
    recently = start_program("fetcher", "alive", database_url=database_url).wait(ENDED_S)

    assert code == 1
    assert f"fetcher {holder} has not worked for " in alive.last_message
    assert alive.last_message.endswith("stuck: scans: claiming")
    assert recently == 0
