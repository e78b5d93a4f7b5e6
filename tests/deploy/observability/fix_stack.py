"""A whole collection for tests of metrics: simulator, broker, fetcher, metrics command."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest

from deploy.local.ports import free_port
from tests.fix_broker import RunningBroker, StartBroker, StartProgram
from tests.fix_simulator import StartSimulator

DEADLINE_S = 120.0
POLL_S = 0.2

QUERY = {
    "name": "books",
    "interval": "1s",
    "rules": {"drop_percent": {"min": 70}},
    "selection": {
        "page": 0,
        "domainId": 1,
        "priceTypes": [2],
        "dateRange": 3,
        "isFilterEnabled": True,
        "isRangeEnabled": True,
        "sortType": 1,
    },
}


@dataclass(frozen=True, slots=True)
class RunningStack:
    """The addresses of a running collection's metrics, host:port each."""

    broker: str
    metrics: str

    def scrape(self) -> str:
        """Both expositions, the broker's first."""
        return _read(f"http://{self.broker}/metrics") + _read(f"http://{self.metrics}/metrics")


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Blocks until *condition* holds; fails the test if it does not in time."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"no {what} within {deadline_s:.0f} s"
        time.sleep(POLL_S)


@pytest.fixture
def stack(
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    start_program: StartProgram,
    database_url: str,
    tmp_path: Path,
) -> RunningStack:
    """A collection after the first verdicts."""
    queries = tmp_path / "queries"
    queries.mkdir()
    (queries / "books.json").write_text(json.dumps(QUERY), encoding="utf-8")
    simulator = start_simulator(tick_seconds=1, deal_speed=60)
    budgets = tmp_path / "budgets.toml"
    budgets.write_text("[budgets.all]\ntokens_per_hour = 1000000\n", encoding="utf-8")
    broker: RunningBroker = start_broker(
        simulator.base_url, simulator.api_key, broker_budgets_file=budgets
    )
    shared = {"database_url": database_url, "queries": queries}
    start_program(
        "fetcher",
        "run",
        broker_address=broker.address,
        keepa_base_url=simulator.base_url,
        keepa_api_key=simulator.api_key,
        **shared,
    )
    address = f"127.0.0.1:{free_port()}"
    running = RunningStack(broker.http_url.removeprefix("http://"), address)
    # Started once there is something to measure, because it measures at intervals.
    rejected = "SELECT count(*) FROM verdicts WHERE state = 'rejected'"
    with psycopg.connect(database_url, autocommit=True) as connection:
        wait_for(lambda: connection.execute(rejected).fetchone() != (0,), "verdict")
    start_program("fetcher", "metrics", metrics_listen=address, **shared)
    wait_for(lambda: "dealfetcher_day_rejections{" in _try(f"http://{address}/metrics"), "metrics")
    return running


def _read(url: str) -> str:
    with urlopen(url, timeout=60) as reply:
        return str(reply.read().decode())


def _try(url: str) -> str:
    try:
        return _read(url)
    except OSError:
        return ""
