"""Several fetchers, one bucket: nothing is refused, lost, paid twice or uncounted."""

import re
import signal
from pathlib import Path

import grpc
import pytest

from deploy.local.program import Program, stop_together
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.e2e.collection import (
    fetch,
    paid_calls,
    same_page_at_once,
    stored_deals,
    times_dry,
    write_query,
)
from tests.fix_broker import RunningBroker, StartBroker, StartProgram
from tests.fix_simulator import RunningSimulator, StartSimulator
from tests.waiting import wait_until

# Unlike any other text, so finding it in an output means a leak.
KEY = "k3y" + "0123456789abcdef" * 4


class Fleet:
    """Fetchers that share a broker, a simulator and a database."""

    def __init__(self, start: StartProgram, **settings: object) -> None:
        self._start = start
        self._settings = settings
        self.fetchers: list[Program] = []

    def add(self, count: int) -> None:
        """Starts *count* more fetchers."""
        for _ in range(count):
            self.fetchers.append(self._start("fetcher", "run", **self._settings))

    def stop(self) -> list[int | None]:
        """Stops all; returns their exit codes."""
        stop_together(self.fetchers)
        return [fetcher.returncode for fetcher in self.fetchers]

    def holding(self, lease: pb.Lease) -> Program:
        """The fetcher with *lease*; a holder's name contains its process id."""
        pid = int(lease.holder.split("-")[-2])
        return next(fetcher for fetcher in self.fetchers if fetcher.pid == pid)


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """Two queries: many pages at a high priority, and few with details to buy."""
    folder = write_query(tmp_path / "queries", "wide", {}, priority="high")
    return write_query(
        folder, "narrow", {"deltaPercentRange": [60, 100]}, enrichment={"stats_days": 90}
    )


def open_leases(broker: RunningBroker) -> list[pb.Lease]:
    """The broker's open leases."""
    with grpc.insecure_channel(broker.address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        leases = stub.ListLeases(pb.ListLeasesRequest(), timeout=10).leases
    return [lease for lease in leases if lease.state == pb.LEASE_STATE_OPEN]


def calls_under_way(simulator: RunningSimulator) -> int:
    """Number of page calls without an answer from the simulator so far."""
    return sum(call["path"] == "/deal" and call["status"] is None for call in simulator.calls())


def test_a_fleet_shares_a_bucket_that_keeps_running_dry(
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    start_program: StartProgram,
    database_url: str,
    queries: Path,
) -> None:
    """Four fetchers empty the bucket several times: no refusal, every token accounted for."""
    simulator = start_simulator(
        api_key=KEY,
        rate=6,
        initial_tokens=20,
        tick_seconds=1,
        cache_seconds=2,
        deal_speed=60,
        latency="50-250",
    )
    broker = start_broker(simulator.base_url, KEY)
    fleet = Fleet(
        start_program,
        keepa_base_url=simulator.base_url,
        keepa_api_key=KEY,
        database_url=database_url,
        broker_address=broker.address,
        queries=queries,
        poll_speed=60,
    )
    fleet.add(4)
    wait_until(lambda: times_dry(simulator.calls()) >= 4, "a bucket that ran dry four times")
    wait_until(lambda: simulator.stats()["spent"] >= 150, "150 tokens spent")
    exit_codes = fleet.stop()
    stats, calls, bucket = simulator.stats(), simulator.calls(), broker.bucket()
    readers = [each.name for each in fleet.fetchers if "page read" in each.output()]
    output = broker.program.output() + "".join(each.output() for each in fleet.fetchers)

    assert exit_codes == [0, 0, 0, 0]
    assert stats["throttled"] == 0
    assert bucket.totals.refusals == 0
    assert bucket.totals.spent_tokens == stats["spent"]
    assert bucket.open_leases == 0
    assert bucket.foreign_tokens == 0
    assert same_page_at_once(calls) == []
    assert stored_deals(database_url) == simulator.served_deals()
    assert len(readers) > 1
    assert {call["path"] for call in paid_calls(calls)} == {"/deal", "/product"}
    assert KEY not in output
    assert "Traceback" not in output


def test_another_fetcher_finishes_the_page_of_a_killed_one(
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    start_program: StartProgram,
    database_url: str,
    tmp_path: Path,
) -> None:
    """A fetcher killed in mid-call loses its claim, and another reads the page."""
    simulator = start_simulator(rate=60, deals=400, cache_seconds=0)
    broker = start_broker(simulator.base_url, simulator.api_key, broker_lease_ttl_ms=2_000)
    fleet = Fleet(
        start_program,
        keepa_base_url=simulator.base_url,
        keepa_api_key=simulator.api_key,
        database_url=database_url,
        broker_address=broker.address,
        queries=write_query(tmp_path / "queries", "wide", {}),
        claim_ttl_s=2,
    )
    simulator.set_fault("latency:ms=20000,path=/deal,count=1")
    fleet.add(2)
    wait_until(lambda: calls_under_way(simulator) == 1, "a call under way")
    victim = fleet.holding(open_leases(broker)[0])
    victim.kill()
    wait_until(
        lambda: fetch(database_url, "SELECT state FROM scans") == [("completed",)],
        "the scan to be finished by the other",
    )
    survivor = next(fetcher for fetcher in fleet.fetchers if fetcher is not victim)
    pages = fetch(database_url, "SELECT DISTINCT state, holder FROM scan_pages")
    exit_codes = fleet.stop()

    assert victim.returncode == -signal.SIGKILL
    assert {state for state, _ in pages} <= {"done", "dropped"}
    assert all(re.search(rf"-{survivor.pid}-", holder) for _, holder in pages if holder)
    assert sorted(code or 0 for code in exit_codes) == [-signal.SIGKILL, 0]
    assert stored_deals(database_url) == simulator.served_deals()
    assert simulator.stats()["throttled"] == 0
