"""Waiting within the broker, and how a wait ends, over a real channel."""

import time
from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from broker.core.bucket import Envelope
from broker.core.costs import SAMPLES_MIN
from broker.core.probing import Reason
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.broker.rpcs import DEADLINE_S, acquire, refusal, settle, until, waiting
from tests.fix_proxy import StartProxy
from tests.fix_service import NEVER_S, SOON_S, Serve, ServedBroker
from tests.fix_simulator import RunningSimulator

# A busy machine may be late by this, and is still far from an hour.
SLACK_S = 60.0

Code = grpc.StatusCode


async def test_no_wait_means_an_answer_at_once(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """The answer is a denial with a delay, not an error."""
    broker = await serve(slow_keepa, 3)

    answer = await broker.stub.AcquireLease(acquire(max_wait=Duration()))

    assert answer.denial.reason == pb.DENIAL_REASON_INSUFFICIENT_TOKENS
    assert 0 < answer.denial.retry_delay.seconds <= NEVER_S
    assert "3 tokens are available, 5 are needed" in answer.denial.message


async def test_the_answer_comes_before_the_deadline(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """The client gets the reason instead of DEADLINE_EXCEEDED, and Keepa its peace."""
    broker = await serve(slow_keepa, 3)
    calls = slow_keepa.stats()["calls"]

    answer = await broker.stub.AcquireLease(acquire(), timeout=5.0)

    assert answer.denial.reason == pb.DENIAL_REASON_INSUFFICIENT_TOKENS
    assert slow_keepa.stats()["calls"] <= calls + 1


async def test_the_wait_ends_with_the_tick(quick_keepa: RunningSimulator, serve: Serve) -> None:
    """Tokens are handed out the moment they land, without polling."""
    broker = await serve(quick_keepa, 0)

    began = time.monotonic()
    answer = await broker.stub.AcquireLease(acquire(), timeout=DEADLINE_S)
    took_s = time.monotonic() - began

    assert answer.grant.tokens == 5
    assert took_s < 2 * SOON_S + SLACK_S
    assert answer.grant.waited.ToMilliseconds() <= took_s * 1000


@pytest.mark.parametrize("skew_ms", [-3_600_000, 3_600_000], ids=["slow", "fast"])
async def test_a_wrong_clock_at_keepa_delays_nobody(
    quick_keepa: RunningSimulator, serve: Serve, skew_ms: int
) -> None:
    """The tick counts from the reply; the clocks' difference does not matter."""
    broker = await serve(quick_keepa, 0)
    quick_keepa.set_fault(f"skew:ms={skew_ms}")
    await broker.stub.SyncBucket(pb.SyncBucketRequest())

    answer = await broker.stub.AcquireLease(acquire(), timeout=DEADLINE_S)
    quick_keepa.clear_faults()

    assert answer.grant.waited.ToMilliseconds() < 1_000 * (2 * SOON_S + SLACK_S)


async def test_a_cancelled_wait_leaves_nothing(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """It leaves no hold and delays no other request."""
    broker = await serve(slow_keepa, 3)
    call = broker.stub.AcquireLease(acquire())
    await waiting(broker, 1)

    call.cancel()
    await waiting(broker, 0)
    bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert bucket.reserved == 0


async def test_repeats_of_a_request_share_its_wait(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """When one of two calls is cancelled, the other still gets the grant."""
    broker = await serve(slow_keepa, 3)
    first = broker.stub.AcquireLease(acquire())
    await waiting(broker, 1)
    second = broker.stub.AcquireLease(acquire())
    await until(_shared(broker))

    first.cancel()
    await broker.stub.GetBucket(pb.GetBucketRequest())
    slow_keepa.change_account(balance=20)
    await broker.stub.SyncBucket(pb.SyncBucketRequest())

    assert (await second).grant.tokens == 5


def _shared(broker: ServedBroker) -> Callable[[], Awaitable[bool]]:
    async def both() -> bool:
        return any(wait.calls > 1 for wait in broker.runtime._waits.values())

    return both


async def test_thousands_wait_and_all_are_sent_away_at_the_end(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """A stopping broker answers every wait, so that clients turn to its successor."""
    broker = await serve(slow_keepa, 3)
    calls = [broker.stub.AcquireLease(acquire(str(number))) for number in range(2_000)]
    await waiting(broker, len(calls))

    broker.runtime.stop()
    answers = [await refusal(call) for call in calls]
    late = await refusal(broker.stub.AcquireLease(acquire("late")))

    assert {answer[::2] for answer in [*answers, late]} == {(Code.UNAVAILABLE, "stopping")}


async def test_a_wait_that_its_connection_cuts_keeps_its_place(
    slow_keepa: RunningSimulator, serve: Serve, start_proxy: StartProxy
) -> None:
    """Its client comes back under the same id, and neither place nor time is lost."""
    broker = await serve(slow_keepa, 3)
    proxy = start_proxy(broker.address)
    async with grpc.aio.insecure_channel(proxy.address) as channel:
        first = pb_grpc.TokenBrokerServiceStub(channel).AcquireLease(acquire("1", holder="A"))
        await waiting(broker, 1)
        others = [broker.stub.AcquireLease(acquire(name, holder=name)) for name in "23"]
        await waiting(broker, 3)

        proxy.cut()
        code, _, reason = await refusal(first)
    await waiting(broker, 2)
    again = broker.stub.AcquireLease(acquire("1", holder="A"))
    await waiting(broker, 3)
    waits = (await broker.stub.ListLeases(pb.ListLeasesRequest())).waiting
    for call in (again, *others):
        call.cancel()

    assert (code, reason) == (Code.UNAVAILABLE, "")
    assert [wait.lease_id for wait in waits] == ["1", "2", "3"]
    assert waits[0].since.ToNanoseconds() >= waits[1].since.ToNanoseconds()


async def test_a_doubted_wait_ends_when_freshness_does(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """Calls overlapped, and a reply may lack one: Keepa is asked a second later, not at the tick.

    Others spend as well, so that the broker's own books are not enough. A third call is under
    way, and its reply might settle the matter first.
    """
    broker = await serve(slow_keepa, 33)
    allocator = broker.runtime.allocator
    for _ in range(SAMPLES_MIN):
        allocator.costs.learn("deal", 1, 5, 0)
    slow_keepa.change_account(balance=29)
    await broker.stub.SyncBucket(pb.SyncBucketRequest())
    # No lease lapses before the test's deadline: that would wake the broker as well.
    asked = [acquire(name, ttl=Duration(seconds=2 * int(DEADLINE_S))) for name in "abc"]
    grants = [(await broker.stub.AcquireLease(request)).grant for request in asked]
    slow_keepa.change_account(balance=14)
    probed = allocator.ledger.bucket.probed
    assert probed is not None
    granted_ms = max(lease.granted_ms for lease in allocator.ledger)
    since_ms = granted_ms - probed.arrived_ms
    for grant, start_ms, took_ms, left in ((grants[1], 18, 60, 19), (grants[0], 28, 100, 14)):
        said = reply(probed.envelope, since_ms + start_ms, took_ms, left)
        settled = settle(grant, outcome=pb.OUTCOME_REPLIED, envelope=said)
        await broker.stub.SettleLease(settled)
    calls = slow_keepa.stats()["calls"]

    answer = await broker.stub.AcquireLease(acquire("next"), timeout=DEADLINE_S)

    assert answer.grant.tokens == 5
    assert allocator.probing.by_reason[Reason.REPORT] == 0
    assert slow_keepa.stats()["calls"] == calls + 1


def reply(known: Envelope, later_ms: int, took_ms: int, left: int) -> pb.Envelope:
    """The envelope of a call that began *later_ms* after *known*, before the next tick."""
    start_ms = known.end_ms + later_ms
    said = pb.Envelope(tokens_left=left, tokens_consumed=5, refill_rate=known.refill_rate)
    said.server_time.FromMilliseconds(start_ms)
    said.processing_time.FromMilliseconds(took_ms)
    said.refill_in.FromMilliseconds(known.next_tick_ms - start_ms - took_ms)
    return said
