"""`dealfetcher alive`: the health check of a container."""

import socket
from subprocess import CompletedProcess

from fetcher.__main__ import main
from fetcher.postgres import Database
from fetcher.postgres.workers import beat
from tests.fix_broker import environment
from tests.fix_fetcher import ROOT
from tests.in_process import run_here


def alive(database_url: str) -> CompletedProcess[str]:
    """What the check answers now."""
    given = environment(database_url=database_url)
    return run_here(main, "dealfetcher", ("alive",), environment=given, folder=ROOT)


def test_alive_finds_the_heartbeat(database_url: str) -> None:
    """A heartbeat of this host is a sign of life; none, or that of another host, is not."""
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder="elsewhere-1-abc", version="1", doing="idle")
    before = alive(database_url).returncode
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder=f"{socket.gethostname()}-1-abc", version="1", doing="idle")
    after = alive(database_url).returncode

    assert (before, after) == (1, 0)


def test_a_fetcher_that_does_not_work_is_not_alive(database_url: str) -> None:
    """A process that beats but is stuck, or can't begin, is named with what it does."""
    holder = f"{socket.gethostname()}-1-abc"
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder=holder, version="1", doing="stuck: scans: claiming", silent_s=61)
    stuck = alive(database_url)
    with Database(database_url) as database, database.connection() as connection:
        beat(connection, holder=holder, version="1", doing="idle")
        beat(connection, holder=holder, version="1", doing="stuck: scans: claiming", silent_s=61)
    recently = alive(database_url).returncode

    assert stuck.returncode == 1
    assert f"fetcher {holder} has not worked for " in stuck.stderr
    assert stuck.stderr.endswith("stuck: scans: claiming\n")
    assert recently == 0
