"""A gateway process: killed in a call, stopped in a call, and shared by real clients."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def under_way(broker: RunningBroker, gateway: GatewayProcess) -> subprocess.Popen[bytes]:
    """A program that has a call under way through *gateway*."""
    url = f"{gateway.url}/topseller?key=alice&domain=1"
    program = subprocess.Popen([sys.executable, "-c", CALL, url], stderr=subprocess.DEVNULL)
    wait_until(lambda: broker.bucket().open_leases == 1, "the call")
    return program


def test_the_cost_of_a_killed_gateway_is_found(
    keepa: RunningSimulator, broker: RunningBroker, tmp_path: Path
) -> None:
    """Its lease lapses, and the broker's probe finds the charge; nothing counts twice."""
    with launch_gateway(keepa, broker.address, folder=tmp_path) as gateway:
        keepa.set_fault("latency:ms=3000,path=/topseller,count=1")
        program = under_way(broker, gateway)
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
        program = under_way(broker, gateway)
        gateway.program.stop()
        program.wait(60)

    assert broker.bucket().totals.spent_tokens == 50
    assert broker.bucket().totals.expiries == 0


@pytest.mark.slow
def test_unmodified_clients_share_one_account(tmp_path: Path) -> None:
    """Four programs, two of them asynchronous, twenty ticks: nothing refused, all spent."""
    found = run(25, "deals", ticks=20, tick_s=1.0, shared=True, folder=tmp_path)

    assert found.refused == 0
    assert found.lowest >= -25
    assert found.spent_share >= 0.99
