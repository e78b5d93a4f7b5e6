"""A gateway process: killed in a call, stopped in a call, and shared by real clients."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.bench.bench_sharing import run
from tests.fix_broker import RunningBroker, launch_broker
from tests.fix_gateway import GatewayProcess, launch_gateway
from tests.fix_simulator import RunningSimulator, launch_simulator
from tests.waiting import wait_until

CALL = "import sys, requests; requests.get(sys.argv[1], timeout=60)"


@pytest.fixture
def keepa() -> Iterator[RunningSimulator]:
    """A Keepa that does not tick."""
    keepa = launch_simulator(rate=20, tick_seconds=3600, products=100, deals=10)
    yield keepa
    keepa.stop()


@pytest.fixture
def broker(keepa: RunningSimulator, tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker with leases that lapse soon."""
    broker = launch_broker(
        keepa.base_url, keepa.api_key, folder=tmp_path, name="broker", broker_lease_ttl_ms=2000
    )
    yield broker
    broker.program.stop()


def under_way(keepa: RunningSimulator, gateway: GatewayProcess) -> subprocess.Popen[bytes]:
    """A program that has a call under way through *gateway*: Keepa has begun with it."""
    url = f"{gateway.url}/topseller?key=alice&domain=1"
    program = subprocess.Popen([sys.executable, "-c", CALL, url], stderr=subprocess.DEVNULL)
    wait_until(lambda: "/topseller" in keepa.stats()["calls_by_path"], "the call")
    return program


def test_the_cost_of_a_killed_gateway_is_found(
    keepa: RunningSimulator, broker: RunningBroker, tmp_path: Path
) -> None:
    """Its lease lapses, and the broker's probe finds the charge; nothing counts twice."""
    with launch_gateway(keepa, broker.address, folder=tmp_path) as gateway:
        keepa.set_fault("latency:ms=3000,path=/topseller,count=1")
        program = under_way(keepa, gateway)
        gateway.program.kill()
        program.wait(60)
        wait_until(lambda: keepa.stats()["spent"] == 50, "the charge")
        wait_until(lambda: broker.bucket().open_leases == 0, "the end of the lease")
    with broker.access.channel(broker.address) as channel:
        synced = pb_grpc.TokenBrokerServiceStub(channel).SyncBucket(pb.SyncBucketRequest())

    assert synced.bucket.balance == keepa.stats()["balance"] == 1150


def test_a_stopped_gateway_reads_its_calls_to_the_end(
    keepa: RunningSimulator, broker: RunningBroker, tmp_path: Path
) -> None:
    """SIGTERM leaves no call without a cost."""
    with launch_gateway(keepa, broker.address, folder=tmp_path) as gateway:
        keepa.set_fault("latency:ms=2000,path=/topseller,count=1")
        program = under_way(keepa, gateway)
        gateway.program.stop()
        program.wait(60)

    assert broker.bucket().totals.spent_tokens == 50
    assert broker.bucket().totals.expiries == 0


def test_a_reply_of_25_megabytes_takes_little_memory(
    keepa: RunningSimulator, broker: RunningBroker, tmp_path: Path
) -> None:
    """It streams through: the process's peak grows by less than half of it, as it travels."""
    with launch_gateway(keepa, broker.address, folder=tmp_path) as gateway:

        def read(number: int) -> int:
            url = f"{gateway.url}/category?key=alice&domain=1&category=0&n={number}"
            return len(requests.get(url, timeout=60).content)

        # Modules, buffers and pools that every process has after some calls.
        keepa.set_fault("pad:mb=1,count=1")
        small = read(0)
        before = peak_bytes(gateway.program.pid)
        keepa.set_fault("pad:mb=25,count=1")
        large = read(1)
        grown = peak_bytes(gateway.program.pid) - before

    assert (small > 1_000_000, large > 25_000_000) == (True, True)
    assert grown < 6_000_000


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.slow
def test_unmodified_clients_share_one_account(tmp_path: Path) -> None:
    """Four programs, two of them asynchronous, twenty ticks: nothing refused, all spent."""
    found = run(25, "deals", ticks=20, tick_s=1.0, shared=True, folder=tmp_path)

    assert found.refused == 0
    assert found.lowest == 0
    assert found.spent_share >= 0.99
