"""The RPCs, over a real channel, with a real simulator as Keepa."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr

from broker.allocator import Allocator, AllocatorConfig
from broker.keepa_sync import KeepaSync
from broker.metrics import BrokerMetrics
from broker.reasons import REASON_KEY
from broker.runtime import BrokerRuntime
from broker.server import OPTIONS
from broker.service import TokenBrokerService
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_simulator import RunningSimulator, launch_simulator

Code = grpc.StatusCode
DEADLINE_S = 15.0
FINGERPRINT = "0123456789ab"
# A tick that comes soon, and one that no test lives to see.
SOON_S, NEVER_S = 1.0, 3600.0


@dataclass(frozen=True)
class Broker:
    """A broker within the test: its parts, and a stub that reaches it by network."""

    stub: Any
    runtime: BrokerRuntime
    metrics: BrokerMetrics


@asynccontextmanager
async def running(simulator: RunningSimulator, *, grace_ms: int = 0) -> AsyncIterator[Broker]:
    """Serve the account of *simulator* until the context ends."""
    config = AllocatorConfig(recovery_grace_ms=grace_ms)
    allocator = Allocator(config, epoch=7, started_ms=BrokerRuntime.now_ms())
    keepa = KeepaSync(simulator.base_url, SecretStr(simulator.api_key))
    runtime = BrokerRuntime(allocator, keepa)
    metrics = BrokerMetrics(runtime)
    server = grpc.aio.server(options=OPTIONS)
    service = TokenBrokerService(runtime, metrics, key_fingerprint=FINGERPRINT)
    pb_grpc.add_TokenBrokerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    runtime.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Broker(pb_grpc.TokenBrokerServiceStub(channel), runtime, metrics)
        runtime.stop()
        await server.stop(0)
    keepa.close()


@pytest.fixture(scope="module")
def slow_keepa() -> Iterator[RunningSimulator]:
    """A Keepa whose next tick is an hour away: nothing changes but by calls."""
    simulator = launch_simulator(rate=5, tick_seconds=NEVER_S, products=100, deals=10)
    yield simulator
    simulator.stop()


@pytest.fixture(scope="module")
def quick_keepa() -> Iterator[RunningSimulator]:
    """A Keepa that ticks every second."""
    simulator = launch_simulator(rate=5, tick_seconds=SOON_S, products=100, deals=10)
    yield simulator
    simulator.stop()


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Broker]]]:
    """Starts brokers: a simulator and its balance make a synced broker."""
    async with AsyncExitStack() as stack:

        async def start(simulator: RunningSimulator, balance: int, **options: int) -> Broker:
            simulator.clear_faults()
            simulator.change_account(balance=balance)
            broker = await stack.enter_async_context(running(simulator, **options))
            await asyncio.wait_for(broker.runtime.synced.wait(), DEADLINE_S)
            return broker

        yield start


Start = Callable[..., Awaitable[Broker]]


def acquire(lease_id: str = "a", **changes: Any) -> pb.AcquireLeaseRequest:
    """Ask for one deal page."""
    fields = {
        "lease_id": lease_id,
        "holder": "h",
        "operation": "deal",
        "units": 1,
        "tokens_per_unit": 5.0,
        "priority": pb.PRIORITY_NORMAL,
    }
    return pb.AcquireLeaseRequest(**{**fields, **changes})


def settle(grant: pb.Grant, **changes: Any) -> pb.SettleLeaseRequest:
    """Settle as not sent, unless said otherwise."""
    fields = {
        "lease_id": grant.lease_id,
        "epoch": grant.epoch,
        "holder": "h",
        "operation": "deal",
        "units": grant.units,
        "tokens": grant.tokens,
        "outcome": pb.OUTCOME_NOT_SENT,
    }
    return pb.SettleLeaseRequest(**{**fields, **changes})


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for *condition*, with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 - the condition is another process's
            await asyncio.sleep(0.01)


async def waiting(broker: Broker, number: int) -> None:
    """Wait until *number* requests wait."""

    async def reached() -> bool:
        return int((await broker.stub.GetBucket(pb.GetBucketRequest())).bucket.waiting) == number

    await until(reached)


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, str]:
    """Status, message and reason of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata: Any = caught.value.trailing_metadata()
    return caught.value.code(), caught.value.details() or "", dict(metadata).get(REASON_KEY, "")


async def test_a_lease_is_granted_and_settled(slow_keepa: RunningSimulator, start: Start) -> None:
    """Tokens are held for the call and come back when it was not sent."""
    broker = await start(slow_keepa, 20)

    grant = (await broker.stub.AcquireLease(acquire())).grant
    held = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket
    settled = await broker.stub.SettleLease(settle(grant))
    after = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert (grant.lease_id, grant.units, grant.tokens, grant.epoch) == ("a", 1, 5, 7)
    assert (held.balance, held.reserved, held.available, held.open_leases) == (20, 5, 15, 1)
    assert not settled.late
    assert (after.available, after.open_leases, after.key_fingerprint) == (20, 0, FINGERPRINT)


async def test_a_repeated_request_returns_the_open_grant(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """With the time that is left to it, and without a second hold."""
    broker = await start(slow_keepa, 20)

    first = (await broker.stub.AcquireLease(acquire())).grant
    second = (await broker.stub.AcquireLease(acquire())).grant
    bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert (second.lease_id, second.tokens) == (first.lease_id, first.tokens)
    assert second.ttl.ToMilliseconds() <= first.ttl.ToMilliseconds()
    assert bucket.reserved == 5


async def test_the_state_of_a_lease_decides_the_status(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """Ended, in use for something else, never granted: three different statuses."""
    broker = await start(slow_keepa, 20)
    grant = (await broker.stub.AcquireLease(acquire())).grant
    renewal: dict[str, Any] = {"holder": "h", "operation": "deal", "units": 1, "tokens": 5}

    conflict = await refusal(broker.stub.AcquireLease(acquire(units=2)))
    unknown = await refusal(
        broker.stub.RenewLease(pb.RenewLeaseRequest(lease_id="z", epoch=7, **renewal))
    )
    renewed = await broker.stub.RenewLease(
        pb.RenewLeaseRequest(lease_id="a", epoch=7, ttl=Duration(seconds=60), **renewal)
    )
    await broker.stub.SettleLease(settle(grant))
    ended = await refusal(broker.stub.AcquireLease(acquire()))

    assert conflict[::2] == (Code.ALREADY_EXISTS, "lease_conflict")
    assert unknown[::2] == (Code.NOT_FOUND, "lease_not_found")
    assert 59 <= renewed.ttl.seconds <= 60
    assert ended[::2] == (Code.FAILED_PRECONDITION, "lease_ended")


async def test_a_senseless_request_names_its_field(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """So that whoever wrote the client finds it."""
    broker = await start(slow_keepa, 20)

    code, message, reason = await refusal(broker.stub.AcquireLease(acquire(units=0)))

    assert (code, message) == (Code.INVALID_ARGUMENT, "units must be positive")
    assert reason == "invalid_argument"


async def test_another_key_is_refused(slow_keepa: RunningSimulator, start: Start) -> None:
    """Its tokens are in another bucket, of which we know nothing."""
    broker = await start(slow_keepa, 20)

    right = await broker.stub.AcquireLease(acquire(key_fingerprint=FINGERPRINT))
    code, message, _ = await refusal(
        broker.stub.AcquireLease(acquire("b", key_fingerprint="ffffffffffff"))
    )

    assert right.WhichOneof("outcome") == "grant"
    assert code is Code.FAILED_PRECONDITION
    assert "ffffffffffff" in message
    assert FINGERPRINT in message


async def test_no_wait_means_an_answer_at_once(slow_keepa: RunningSimulator, start: Start) -> None:
    """A denial that says when to come back, not an error."""
    broker = await start(slow_keepa, 3)

    answer = await broker.stub.AcquireLease(acquire(max_wait=Duration()))

    assert answer.denial.reason == pb.DENIAL_REASON_INSUFFICIENT_TOKENS
    assert 0 < answer.denial.retry_delay.seconds <= NEVER_S
    assert "3 tokens are available, 5 are needed" in answer.denial.message


async def test_the_answer_comes_before_the_deadline(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """The client gets the reason instead of DEADLINE_EXCEEDED, and Keepa its peace."""
    broker = await start(slow_keepa, 3)
    calls = slow_keepa.stats()["calls"]

    answer = await broker.stub.AcquireLease(acquire(), timeout=2.0)

    assert answer.denial.reason == pb.DENIAL_REASON_INSUFFICIENT_TOKENS
    assert slow_keepa.stats()["calls"] <= calls + 1


async def test_the_wait_ends_with_the_tick(quick_keepa: RunningSimulator, start: Start) -> None:
    """Tokens are handed out the moment they land, without polling."""
    broker = await start(quick_keepa, 0)

    began = time.monotonic()
    answer = await broker.stub.AcquireLease(acquire(), timeout=DEADLINE_S)
    took_s = time.monotonic() - began

    assert answer.grant.tokens == 5
    assert took_s < 2 * SOON_S + 1
    assert answer.grant.waited.ToMilliseconds() <= took_s * 1000


async def test_a_cancelled_wait_leaves_nothing(slow_keepa: RunningSimulator, start: Start) -> None:
    """No hold, and nobody is held up behind it."""
    broker = await start(slow_keepa, 3)
    call = broker.stub.AcquireLease(acquire())
    await waiting(broker, 1)

    call.cancel()
    await waiting(broker, 0)
    bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert bucket.reserved == 0


async def test_repeats_of_a_request_share_its_wait(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """When one of two calls is cancelled, the other still gets the grant."""
    broker = await start(slow_keepa, 3)
    first = broker.stub.AcquireLease(acquire())
    await waiting(broker, 1)
    second = broker.stub.AcquireLease(acquire())
    await until(_shared(broker))

    first.cancel()
    await broker.stub.GetBucket(pb.GetBucketRequest())
    slow_keepa.change_account(balance=20)
    await broker.stub.SyncBucket(pb.SyncBucketRequest())

    assert (await second).grant.tokens == 5


def _shared(broker: Broker) -> Callable[[], Awaitable[bool]]:
    async def both() -> bool:
        return any(wait.calls > 1 for wait in broker.runtime._waits.values())

    return both


async def test_a_pause_holds_requests_until_resumed(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """Nobody is turned away who is ready to wait."""
    broker = await start(slow_keepa, 20)
    paused = (await broker.stub.PauseGrants(pb.PauseGrantsRequest())).bucket

    denied = await broker.stub.AcquireLease(acquire("b", max_wait=Duration()))
    patient = broker.stub.AcquireLease(acquire())
    await waiting(broker, 1)
    resumed = (await broker.stub.ResumeGrants(pb.ResumeGrantsRequest())).bucket

    assert paused.state == pb.BUCKET_STATE_PAUSED
    assert denied.denial.reason == pb.DENIAL_REASON_PAUSED
    assert resumed.state == pb.BUCKET_STATE_SERVING
    assert (await patient).grant.tokens == 5


async def test_leases_and_waits_are_listed_in_pages(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """Leases first, then who waits, in the order of service and with a forecast."""
    broker = await start(slow_keepa, 7)
    await broker.stub.AcquireLease(acquire("open"))
    parked = []
    for number in range(3):
        parked.append(broker.stub.AcquireLease(acquire(f"wait-{number}", min_units=1)))
        await waiting(broker, number + 1)

    first = await broker.stub.ListLeases(pb.ListLeasesRequest(page_size=2))
    second = await broker.stub.ListLeases(
        pb.ListLeasesRequest(page_size=2, page_token=first.next_page_token)
    )
    for call in parked:
        call.cancel()

    assert [lease.lease_id for lease in first.leases] == ["open"]
    assert [wait.lease_id for wait in first.waiting] == ["wait-0"]
    assert [wait.lease_id for wait in second.waiting] == ["wait-1", "wait-2"]
    assert not second.next_page_token
    assert first.waiting[0].eta.seconds > 0
    assert first.leases[0].state == pb.LEASE_STATE_OPEN


async def test_a_watcher_sees_changes_when_they_happen(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """The bucket at once, then again on a change, long before the longest interval."""
    broker = await start(slow_keepa, 20)
    request = pb.WatchBucketRequest(
        min_interval=Duration(nanos=1_000_000), max_interval=Duration(seconds=60)
    )

    stream = broker.stub.WatchBucket(request)
    before = (await asyncio.wait_for(stream.read(), DEADLINE_S)).bucket
    await broker.stub.AcquireLease(acquire())
    after = before
    while after.open_leases == 0:
        after = (await asyncio.wait_for(stream.read(), DEADLINE_S)).bucket
    stream.cancel()

    assert (before.open_leases, before.available) == (0, 20)
    assert (after.open_leases, after.available) == (1, 15)


async def test_syncs_share_one_probe(slow_keepa: RunningSimulator, start: Start) -> None:
    """However many operators ask, Keepa is asked once."""
    broker = await start(slow_keepa, 20)
    slow_keepa.set_fault("latency:ms=500,path=/token")
    calls = slow_keepa.stats()["calls"]
    slow_keepa.change_account(balance=42)

    syncs = [broker.stub.SyncBucket(pb.SyncBucketRequest()) for _ in range(5)]
    buckets = [(await sync).bucket for sync in syncs]

    assert slow_keepa.stats()["calls"] == calls + 1
    assert {bucket.balance for bucket in buckets} == {42}
    assert {bucket.last_observation.source for bucket in buckets} == {pb.OBSERVATION_SOURCE_PROBE}


async def test_a_sync_that_fails_says_why(slow_keepa: RunningSimulator, start: Start) -> None:
    """The bucket tells the trouble until Keepa answers again."""
    broker = await start(slow_keepa, 20)
    slow_keepa.set_fault("garbage:path=/token")

    failed = await refusal(broker.stub.SyncBucket(pb.SyncBucketRequest()))
    troubled = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket
    slow_keepa.clear_faults()
    healed = (await broker.stub.SyncBucket(pb.SyncBucketRequest())).bucket

    assert failed[::2] == (Code.UNAVAILABLE, "bad_reply")
    assert troubled.upstream_trouble == failed[1]
    assert healed.upstream_trouble == ""


async def test_a_settled_call_is_counted_once(slow_keepa: RunningSimulator, start: Start) -> None:
    """By operation and by holder, however often the settle is repeated."""
    broker = await start(slow_keepa, 20)
    grant = (await broker.stub.AcquireLease(acquire())).grant
    envelope = pb.Envelope(tokens_left=14, tokens_consumed=6, refill_rate=5)
    request = settle(grant, outcome=pb.OUTCOME_REPLIED, envelope=envelope)

    await broker.stub.SettleLease(request)
    await broker.stub.SettleLease(request)
    value = broker.metrics.registry.get_sample_value

    assert value("tokenbroker_operation_spent_tokens_total", {"operation": "deal"}) == 6
    assert value("tokenbroker_holder_spent_tokens_total", {"holder": "h"}) == 6
    assert value("tokenbroker_settles_total", {"outcome": "replied"}) == 1
    assert value("tokenbroker_grants_total") == 1
    assert value("tokenbroker_spent_tokens_total") == 6


async def test_thousands_wait_and_all_are_sent_away_at_the_end(
    slow_keepa: RunningSimulator, start: Start
) -> None:
    """A stopping broker answers every wait, so that clients turn to its successor."""
    broker = await start(slow_keepa, 3)
    calls = [broker.stub.AcquireLease(acquire(str(number))) for number in range(2_000)]
    await waiting(broker, len(calls))

    broker.runtime.stop()
    answers = [await refusal(call) for call in calls]
    late = await refusal(broker.stub.AcquireLease(acquire("late")))

    assert {answer[::2] for answer in [*answers, late]} == {(Code.UNAVAILABLE, "stopping")}
