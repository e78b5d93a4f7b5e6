"""Fetchers in a world of their own: a simulator, a broker, a database, a folder of queries."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.program import Program
from tests.fix_broker import RunningBroker, StartBroker, StartProgram, environment
from tests.fix_simulator import RunningSimulator, StartSimulator

DEADLINE_S = 60.0

# All deals of used items that dropped by a fifth within three months, newest first.
SELECTION: dict[str, object] = {
    "page": 0,
    "domainId": "1",
    "priceTypes": [2],
    "dateRange": "3",
    "deltaPercentRange": [20, 2147483647],
    "isFilterEnabled": True,
    "isRangeEnabled": True,
    "sortType": 1,
}


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait until *condition* holds; fail the test, saying *what*, when it doesn't in time."""
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up_at:
            pytest.fail(f"waited {deadline_s:.0f} s in vain: {what}")
        time.sleep(0.05)


class World:
    """A simulator, a broker, a database and queries; fetchers are started into it.

    Args:
        simulator: The Keepa.
        broker: Owner of its tokens.
        database_url: A migrated database.
        queries: The folder of query files.
    """

    def __init__(
        self,
        simulator: RunningSimulator,
        broker: RunningBroker,
        database_url: str,
        queries: Path,
        start_program: StartProgram,
    ) -> None:
        self.simulator = simulator
        self.broker = broker
        self.database_url = database_url
        self.queries = queries
        self._start_program = start_program

    def write_query(self, name: str, text: Mapping[str, object] | None = None) -> None:
        """Put a query file into the folder; without *text* one that matches a lot."""
        content = json.dumps(text or {"selection": SELECTION})
        (self.queries / f"{name}.json").write_text(content)

    def settings(self, **changes: object) -> dict[str, object]:
        """The settings of a fetcher in this world."""
        return {
            "keepa_base_url": self.simulator.base_url,
            "keepa_api_key": self.simulator.api_key,
            "broker_address": self.broker.address,
            "database_url": self.database_url,
            "queries": self.queries,
            "log_format": "json",
            "retry_delay_s": 0.1,
            **changes,
        }

    def environment(self, **changes: object) -> dict[str, str]:
        """The environment of a command in this world."""
        return environment(**self.settings(**changes))

    def start_fetcher(self, *arguments: str, **changes: object) -> Program:
        """Start one more fetcher."""
        return self._start_program("fetcher", "run", *arguments, **self.settings(**changes))

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a query of the database yields."""
        with psycopg.connect(self.database_url) as connection:
            # Statements stand in the tests themselves.
            return connection.execute(statement.encode(), values).fetchall()

    def value(self, statement: str, *values: object) -> Any:
        """The single value that a query of the database yields."""
        return self.rows(statement, *values)[0][0]

    def scans_completed(self) -> int:
        """How many scans have been completed."""
        return int(self.value("SELECT count(*) FROM scans WHERE state = 'completed'"))

    def stored_deals(self) -> set[tuple[int, str]]:
        """Every deal in the database, by domain and ASIN."""
        return {(domain, asin) for domain, asin in self.rows("SELECT domain_id, asin FROM deals")}

    def assert_every_token_is_accounted_for(self) -> None:
        """The broker's spend equals the simulator's to the token, and nothing was refused."""
        stats, totals = self.simulator.stats(), self.broker.bucket().totals
        assert totals.spent_tokens == stats["spent"]
        assert stats["throttled"] == 0
        assert self.value("SELECT coalesce(sum(tokens), 0) FROM scan_pages") <= stats["spent"]


StartWorld = Callable[..., World]


@pytest.fixture
def start_world(
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    start_program: StartProgram,
    database_url: str,
    tmp_path: Path,
) -> StartWorld:
    """A factory: ``start_world(rate=20, …)`` takes the simulator's options."""

    def start(**options: object) -> World:
        given = {"rate": 100, "tick_seconds": 1, "products": 6000, "deals": 2500, **options}
        simulator = start_simulator(**given)
        broker = start_broker(simulator.base_url, simulator.api_key)
        queries = tmp_path / "queries"
        queries.mkdir(exist_ok=True)
        return World(simulator, broker, database_url, queries, start_program)

    return start
