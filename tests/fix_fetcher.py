"""Fetchers in a world of their own: a simulator, a broker, a database, a folder of queries."""

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from deploy.local.program import Program
from fetcher.__main__ import main
from fetcher.broker_client import BrokerClient
from fetcher.keepa import Keepa
from fetcher.postgres import Database
from fetcher.query_folder import QueryFolder
from fetcher.work.shared import Limits, Workplace
from fetcher.work.worker import Worker, connections_of
from protos.process.settings import key_fingerprint
from tests.fix_broker import (
    RunningBroker,
    StartBroker,
    StartProgram,
    environment,
    launch_broker,
)
from tests.fix_simulator import RunningSimulator, StartSimulator, launch_simulator, price_type_of
from tests.in_process import run_here
from tests.waiting import DEADLINE_S, wait_until

ROOT = Path(__file__).parent.parent
TOO_MANY_REQUESTS = 429

# Enough tokens, and rows for a handful of pages. What one test has asked for must not
# come out of Keepa's cache in the next.
ORDINARY = {
    "rate": 200,
    "tick_seconds": 1,
    "products": 6000,
    "deals": 2500,
    "cache_seconds": 0,
}

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


Log = list[MutableMapping[str, Any]]


class World:
    """A simulator, a broker, a database and queries; fetchers are started into it.

    Simulator and broker may have served others before: figures count from the start
    of this world.

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
        self._calls_before = max((call["seq"] for call in simulator.calls()), default=0)
        self._spent_before = simulator.stats()["spent"]
        self._settled_before = broker.bucket().totals.spent_tokens

    def write_query(self, name: str, text: Mapping[str, object] | None = None) -> None:
        """Puts a query file into the folder; without *text* one that matches a lot."""
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
        """Starts one more fetcher."""
        return self._start_program("fetcher", "run", *arguments, **self.settings(**changes))

    def command(self, *arguments: str, **changes: object) -> CompletedProcess[str]:
        """Runs a `dealfetcher` command to its end, in this process."""
        return run_here(
            main, "dealfetcher", arguments, environment=self.environment(**changes), folder=ROOT
        )

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a query of the database yields."""
        with psycopg.connect(self.database_url) as connection:
            # Statements stand in the tests themselves.
            return connection.execute(statement.encode(), values).fetchall()

    def value(self, statement: str, *values: object) -> Any:
        """The single value that a query of the database yields."""
        return self.rows(statement, *values)[0][0]

    def execute(self, statement: str, *values: object) -> None:
        """Changes the database."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute(statement.encode(), values)

    def scans_completed(self) -> int:
        """How many scans have been completed."""
        return int(self.value("SELECT count(*) FROM scans WHERE state = 'completed'"))

    @contextmanager
    def worker(
        self, database_url: str = "", *, calls_in_flight: int = 1, **limits: Any
    ) -> Iterator[Worker]:
        """A fetcher's worker in this process, to be run in a thread."""
        api_key = self.simulator.api_key
        fingerprint = key_fingerprint(api_key)
        given = {"claim_ttl_s": 30, "attempts_max": 8, "retry_delay_s": 0.1, **limits}
        with (
            Database(
                database_url or self.database_url, connections_max=connections_of(calls_in_flight)
            ) as database,
            BrokerClient(self.broker.address, key_fingerprint=fingerprint) as broker,
        ):
            workplace = Workplace(
                broker.holder, database, broker, QueryFolder(self.queries), Limits(**given)
            )
            new_keepa = partial(Keepa, api_key, base_url=self.simulator.base_url)
            worker = Worker(workplace, new_keepa, "1.2.3", calls_in_flight=calls_in_flight)
            with closing(worker):
                yield worker

    @contextmanager
    def at_work(self, database_url: str = "", **limits: Any) -> Iterator[Log]:
        """A fetcher that works in threads of this process; yields its log as it grows."""
        with (
            self.worker(database_url, **limits) as worker,
            capture_logs() as lines,
            ThreadPoolExecutor(1) as pool,
        ):
            run = pool.submit(worker.run)
            try:
                yield lines
            finally:
                worker.end()
                run.result(DEADLINE_S)
        assert [line for line in lines if "unexpected" in line["event"]] == []

    def collect(self, **limits: Any) -> Log:
        """Work in this process until a scan of every query has been completed."""
        wanted = len(list(self.queries.glob("*.json")))
        with self.at_work(**limits) as lines:
            wait_until(lambda: self.scans_completed() >= wanted, "a completed scan of every query")
        return lines

    def calls(self, path: str = "/deal") -> list[dict[str, Any]]:
        """The calls of one kind that the simulator has seen."""
        calls = self.simulator.calls(since=self._calls_before)
        return [call for call in calls if call["path"] == path]

    def spent(self) -> int:
        """Tokens that the simulator has charged."""
        return int(self.simulator.stats()["spent"]) - int(self._spent_before)

    def served_deals(self) -> set[tuple[int, str, int]]:
        """Every deal in a delivered reply, by domain, ASIN and price type."""
        delivered = [call for call in self.calls() if call["delivered"]]
        return {
            (row[0], row[1], price_type_of(call)) for call in delivered for row in call["rows"]
        }

    def stored_deals(self) -> set[tuple[int, str, int]]:
        """Every deal in the database, by domain, ASIN and price type."""
        rows = self.rows("SELECT domain_id, asin, price_type FROM deals")
        return {(domain, asin, price_type) for domain, asin, price_type in rows}

    def assert_every_token_is_accounted_for(self) -> None:
        """The broker's spend equals the simulator's to the token, and nothing was refused."""
        settled = self.broker.bucket().totals.spent_tokens - self._settled_before
        refused = [call for call in self.calls() if call["status"] == TOO_MANY_REQUESTS]
        assert settled == self.spent()
        assert refused == []
        assert self.value("SELECT coalesce(sum(tokens), 0) FROM scan_pages") <= self.spent()


StartWorld = Callable[..., World]
CommonKeepa = Callable[[str], tuple[RunningSimulator, RunningBroker]]


@pytest.fixture(scope="session")
def common_keepa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommonKeepa]:
    """Simulators with their brokers that tests without special wishes share, by name."""
    started: dict[str, tuple[RunningSimulator, RunningBroker]] = {}

    def get(name: str) -> tuple[RunningSimulator, RunningBroker]:
        if name not in started:
            simulator = launch_simulator(**ORDINARY)
            folder = tmp_path_factory.mktemp(name)
            broker = launch_broker(
                simulator.base_url, simulator.api_key, folder=folder, name="broker"
            )
            started[name] = simulator, broker
        started[name][0].clear_faults()
        return started[name]

    yield get
    for simulator, broker in started.values():
        broker.program.stop()
        simulator.stop()


@pytest.fixture
def start_world(
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    common_keepa: CommonKeepa,
    database_url: str,
    start_program: StartProgram,
    tmp_path: Path,
) -> StartWorld:
    """A factory: ``start_world(rate=20, …)`` takes the simulator's options.

    Without options, simulator and broker are common to all such tests. Those that kill
    fetchers or the broker have a *rough* pair, because the others count its leases.
    """

    def start(*, rough: bool = False, **options: object) -> World:
        if options:
            simulator = start_simulator(**{**ORDINARY, **options})
            broker = start_broker(simulator.base_url, simulator.api_key)
        else:
            simulator, broker = common_keepa("rough" if rough else "common")
        queries = tmp_path / "queries"
        queries.mkdir(exist_ok=True)
        return World(simulator, broker, database_url, queries, start_program)

    return start
