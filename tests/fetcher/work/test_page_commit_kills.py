"""A fetcher killed at any statement of a page's commit leaves nothing half done."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from fetcher.postgres import Database
from fetcher.postgres.alerts import end_first_run, standings_of_alerts
from fetcher.postgres.pages import PageClaim
from fetcher.postgres.progress import lock_progress
from tests.fetcher.dying_commit import QUERY, REJECTED, ROWS
from tests.fetcher.keepa_pages import NOON_MS
from tests.fetcher.work.test_page_commit import claim, start, state
from tests.fix_fetcher import ROOT


@contextmanager
def dying_commits(database_url: str, claimed: PageClaim) -> Iterator[Callable[[int], int]]:
    """Commits in processes of their own: takes the deadly statement, gives the exit code."""
    command = [sys.executable, "-m", "tests.fetcher.dying_commit", database_url]
    with subprocess.Popen(
        [*command, json.dumps(asdict(claimed))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, heard = process.stdin, process.stdout

        def commit(deadly: int) -> int:
            told.write(f"{deadly}\n")
            told.flush()
            return int(heard.readline())

        yield commit
        told.close()


def test_a_kill_at_any_statement_of_a_commit_leaves_nothing_behind(database_url: str) -> None:
    """Data, verdicts, alerts, page, scan and watermark change together or not at all."""
    with Database(database_url) as database:
        start(database, QUERY)
        with database.connection() as connection:
            # The first scan after an alert was added reports nothing.
            standings_of_alerts(connection, QUERY)
            end_first_run(connection, QUERY)
        claimed = claim(database, QUERY)
        assert claimed is not None
        before = state(database)
        deadly = 0
        with dying_commits(database_url, claimed) as commit:
            while (code := commit(deadly)) == -signal.SIGKILL:
                assert state(database) == before
                deadly += 1
        after = state(database)
        with database.connection() as connection:
            progress = lock_progress(connection, QUERY.name, QUERY.selection_hash)

    assert code == 0
    assert deadly > 12
    assert len(after["deals"]) == ROWS
    assert sum(row["state"] == "rejected" for (row,) in after["verdicts"]) == REJECTED
    assert [row["state"] for (row,) in after["scans"]] == ["completed"]
    assert progress.watermark_ms == NOON_MS
    assert len(after["alert_messages"]) == 1
    assert len(after["alerts"]) == ROWS - REJECTED
