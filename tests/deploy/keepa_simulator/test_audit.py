"""The audit names deals that were served but never stored."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psycopg
import pytest
import requests

from deploy.keepa_simulator.__main__ import main
from deploy.keepa_simulator.audit import calls_of_journal, compare, newest_served
from deploy.keepa_simulator.keepa_time import unix_ms
from tests.fix_broker import environment
from tests.fix_simulator import RunningSimulator, StartSimulator
from tests.in_process import run_here

SELECTION = json.dumps({"domainId": 1, "priceTypes": [1], "dateRange": 3, "sortType": 1})
TABLE = """
CREATE TABLE deals (
    domain_id integer, asin text, price_type integer, last_update timestamptz,
    PRIMARY KEY (domain_id, asin, price_type)
)
"""


def serve_a_page(simulator: RunningSimulator) -> list[tuple[int, str, datetime]]:
    """Requests a page; returns its rows in the form of the table."""
    reply = requests.get(
        f"{simulator.base_url}/deal",
        {"key": simulator.api_key, "selection": SELECTION},
        timeout=30,
    ).json()
    return [
        (1, row["asin"], datetime.fromtimestamp(unix_ms(row["lastUpdate"]) / 1000, UTC))
        for row in reply["deals"]["dr"]
    ]


def store(database_url: str, rows: list[tuple[int, str, datetime]]) -> None:
    """Creates the table and inserts *rows*."""
    with psycopg.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(TABLE)
        cursor.executemany("INSERT INTO deals VALUES (%s, %s, 1, %s)", rows)


def command(*arguments: str) -> CompletedProcess[str]:
    """Runs the audit."""
    return run_here(
        main,
        "keepa-simulator",
        ("audit", *arguments),
        environment=environment(),
        folder=Path.cwd(),
    )


def audit(database_url: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of the command."""
    done = command("-o", "json", "--database-url", database_url, *arguments)
    return done.returncode, json.loads(done.stdout)


def test_missing_deal_is_named(
    start_simulator: StartSimulator, empty_database_url: str, tmp_path: Path
) -> None:
    """The command names a lost row and a stale one, and exits 1."""
    journal = tmp_path / "calls.jsonl"
    simulator = start_simulator(journal=journal)
    lost, (_, stale, updated), *rows = serve_a_page(simulator)
    stored = [(1, stale, updated - timedelta(hours=1)), *rows, (3, "B000000000", updated)]
    store(empty_database_url, stored)
    by_url = audit(empty_database_url, "--simulator-url", simulator.base_url)
    by_file = audit(empty_database_url, "--journal", str(journal))

    assert by_url == by_file
    assert by_url == (
        1,
        {
            "served": 150,
            "stored": 150,
            "missing": [[1, lost[1], 1]],
            "stale": [[1, stale, 1]],
            "unserved": [[3, "B000000000", 1]],
            "is_complete": False,
        },
    )


def test_complete_database_passes(
    start_simulator: StartSimulator, empty_database_url: str
) -> None:
    """With every served row stored, the command exits 0."""
    simulator = start_simulator()
    store(empty_database_url, serve_a_page(simulator))
    code, report = audit(empty_database_url, "--simulator-url", simulator.base_url)

    assert code == 0
    assert report["is_complete"]


def test_reply_that_was_cut_is_not_expected(
    start_simulator: StartSimulator, tmp_path: Path
) -> None:
    """Deals of an incomplete reply do not count as missing."""
    journal = tmp_path / "calls.jsonl"
    simulator = start_simulator(journal=journal, fault="cut:count=1")
    with pytest.raises(requests.RequestException):
        serve_a_page(simulator)
    simulator.stop()
    calls = list(calls_of_journal(journal))

    assert len(calls[0]["rows"]) == 150
    assert compare(newest_served(calls), {}).served == 0


def test_unreachable_database_is_one_line() -> None:
    """No traceback and no password, exit code 2."""
    url = "postgresql://me:secret@127.0.0.1:1/none"
    done = command("--database-url", url, "--journal", "/dev/null")

    assert done.returncode == 2
    assert "can't compare" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
