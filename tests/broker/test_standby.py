"""Two brokers, one leader: real processes, a real Postgres, a real simulator."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.program import stop_together
from fetcher.broker_client import BrokerClient, WaitCancelledError
from protos.channel.reasons import LEADER_KEY, REASON_KEY, reason_of
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import RPC_TIMEOUT_S, RunningBroker, launch_broker
from tests.fix_simulator import RunningSimulator, launch_simulator
from tests.waiting import wait_until

SERVICE = "tokenbroker.v1.TokenBrokerService"
# Promised on a machine that has time for it; `make chaos` prints what it has measured.
HANDOVER_S, TAKEOVER_S = 1.0, 10.0
SLACK_S = 60.0
# Of a client, in a rolling update.
PAUSE_S = 2.0
UPDATES = 3


@pytest.fixture(scope="module")
def keepa() -> Iterator[RunningSimulator]:
    """A Keepa with a full bucket that won't tick during a test."""
    simulator = launch_simulator(rate=20, tick_seconds=3600, products=100, deals=10)
    yield simulator
    simulator.stop()


class Pair:
    """Two brokers over one database; either may be gone, stopped or back."""

    def __init__(self, brokers: list[RunningBroker]) -> None:
        self.brokers = brokers

    def states(self) -> list[str]:
        """The state of each, "away" if it does not answer."""
        return [state_of(broker) for broker in self.brokers]

    def leader(self) -> RunningBroker:
        """The broker that grants; waits until one does."""
        states: list[str] = []

        def leads() -> bool:
            states[:] = self.states()
            return "serving" in states

        wait_until(leads, "a broker leads")
        return self.brokers[states.index("serving")]

    def other(self, broker: RunningBroker) -> RunningBroker:
        """The one that *broker* is not."""
        return next(each for each in self.brokers if each is not broker)


class Caller:
    """A client that leases without a break, and measures its longest pause of each update."""

    def __init__(self, addresses: str) -> None:
        self._client = BrokerClient(addresses, holder="caller")
        self._thread = threading.Thread(target=self._run)
        self._ended = threading.Event()
        self.epochs: list[int] = []
        self.pauses_s = [0.0]
        self._granted_s = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._client.stop_waiting()
        self._thread.join(RPC_TIMEOUT_S)
        self._client.close()
        del self.pauses_s[0]

    def begin(self) -> None:
        """Begins to measure another update."""
        self.await_call()
        self.pauses_s.append(0.0)

    def await_call(self) -> None:
        """Waits for the end of the present pause."""
        calls = len(self.epochs)
        wait_until(lambda: len(self.epochs) > calls, "another call")

    def _run(self) -> None:
        with suppress(WaitCancelledError):
            while not self._ended.wait(0.01):
                with self._client.lease("deal", tokens_per_unit=1) as lease:
                    now_s = time.monotonic()
                    self.pauses_s[-1] = max(self.pauses_s[-1], now_s - self._granted_s)
                    self._granted_s = now_s
                    self.epochs.append(lease.terms.epoch)
                    lease.settle_not_sent()


def state_of(broker: RunningBroker) -> str:
    """The broker's state, "away" if it gives none within a second."""
    with grpc.insecure_channel(broker.address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        try:
            state = stub.GetBucket(pb.GetBucketRequest(), timeout=1).bucket.state
        except grpc.RpcError:
            return "away"
    return pb.BucketState.Name(state).removeprefix("BUCKET_STATE_").lower()


def ask(broker: RunningBroker, lease_id: str, timeout_s: float = RPC_TIMEOUT_S) -> int:
    """The epoch of a lease from *broker*; raises grpc.RpcError if it refuses."""
    with grpc.insecure_channel(broker.address) as channel:
        request = pb.AcquireLeaseRequest(
            lease_id=lease_id, holder="h", operation="deal", units=1, tokens_per_unit=1,
            priority=pb.PRIORITY_HIGH,
        )  # fmt: skip
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        return stub.AcquireLease(request, timeout=timeout_s).grant.epoch


@pytest.fixture
def pair(keepa: RunningSimulator, empty_database_url: str, tmp_path: Path) -> Iterator[Pair]:
    """Two brokers, of which one leads."""
    brokers = [
        launch_broker(
            keepa.base_url,
            keepa.api_key,
            folder=tmp_path,
            name=name,
            awaited=("serving", "standby"),
            broker_database_url=empty_database_url,
        )
        for name in ("first", "second")
    ]
    pair = Pair(brokers)
    pair.leader()
    yield pair
    for broker in brokers:
        with suppress(ProcessLookupError):
            os.kill(broker.program.pid, signal.SIGCONT)
    stop_together(broker.program for broker in brokers)


def test_the_standby_refuses_and_names_the_leader(pair: Pair) -> None:
    """Reads are answered; a request gets a reason for programs and an address for people."""
    leader = pair.leader()
    standby = pair.other(leader)
    wait_until(lambda: standby.bucket().leader, "the standby has read the leader's row")
    bucket = standby.bucket()
    with grpc.insecure_channel(standby.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        states = [
            stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=RPC_TIMEOUT_S).status
            for name in ("", SERVICE)
        ]
    with pytest.raises(grpc.RpcError) as refused:
        ask(standby, "a")
    error: Any = refused.value
    trailing = dict(error.trailing_metadata())

    assert bucket.state == pb.BUCKET_STATE_STANDBY
    assert bucket.leader == leader.address
    assert leader.bucket().leader == ""
    assert states == [1, 2]
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing[REASON_KEY] == "not_leader"
    assert trailing[LEADER_KEY] == leader.address


@pytest.mark.parametrize(
    ("number", "promised_s"), [(signal.SIGTERM, HANDOVER_S), (signal.SIGKILL, TAKEOVER_S)]
)
def test_the_standby_takes_over(pair: Pair, number: signal.Signals, promised_s: float) -> None:
    """At once when the leader hands over, else once its row has stood still for long enough."""
    leader = pair.leader()
    standby = pair.other(leader)
    epoch = ask(leader, "before")
    os.kill(leader.program.pid, number)
    began_s = time.monotonic()
    wait_until(lambda: state_of(standby) == "serving", "the standby leads")
    took_s = time.monotonic() - began_s

    assert took_s < promised_s + SLACK_S
    assert ask(standby, "after") > epoch


def test_an_update_makes_a_waiting_client_pause_for_two_seconds_at_most(pair: Pair) -> None:
    """The new version stands by before the old one ends, as a rolling update has it."""
    with Caller(",".join(broker.address for broker in pair.brokers)) as caller:
        for _ in range(UPDATES):
            old = pair.leader()
            wait_until(lambda: "standby" in pair.states(), "the new version is ready")
            caller.begin()
            old.program.stop()
            assert old.program.returncode == 0
            caller.await_call()
            old.program.start()
            wait_until(lambda: "away" not in pair.states(), "it is back as the next version")
        epochs = caller.epochs

    # The least: others' load on this machine may lengthen any of them.
    assert min(caller.pauses_s) < PAUSE_S, caller.pauses_s
    assert len(set(epochs)) >= UPDATES + 1
    assert epochs == sorted(epochs)


@pytest.mark.slow
def test_a_resumed_leader_grants_nothing(pair: Pair) -> None:
    """It was stopped while it led; whatever it is asked first afterwards, it refuses."""
    leader = pair.leader()
    standby = pair.other(leader)
    os.kill(leader.program.pid, signal.SIGSTOP)
    with grpc.insecure_channel(leader.address) as channel:
        # The first request that it will see; the kernel keeps it.
        request = pb.AcquireLeaseRequest(
            lease_id="early", holder="h", operation="deal", units=1, tokens_per_unit=1,
            priority=pb.PRIORITY_HIGH,
        )  # fmt: skip
        early: Any = pb_grpc.TokenBrokerServiceStub(channel).AcquireLease.future(
            request, timeout=RPC_TIMEOUT_S
        )
        began_s = time.monotonic()
        wait_until(lambda: state_of(standby) == "serving", "the standby leads")
        took_s = time.monotonic() - began_s
        os.kill(leader.program.pid, signal.SIGCONT)
        error = early.exception()
    wait_until(lambda: state_of(leader) == "standby", "the old leader stands by")
    wait_until(lambda: leader.bucket().leader == standby.address, "it names the new one")

    assert took_s < 15 + SLACK_S
    assert isinstance(error, grpc.RpcError)
    assert reason_of(error) == "not_leader"
    assert ask(standby, "late") > 0
