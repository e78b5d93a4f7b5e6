"""What an operator sees and steers, over a real channel."""

import asyncio
import time
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.broker.rpcs import DEADLINE_S, acquire, refusal, until, waiting
from tests.fix_service import Serve, running
from tests.fix_simulator import RunningSimulator

Code = grpc.StatusCode


async def test_a_pause_holds_requests_until_resumed(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """Requests that may wait are not denied."""
    broker = await serve(slow_keepa, 20)
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
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """Leases come first, then waiting requests in the order of service, with ETAs."""
    broker = await serve(slow_keepa, 7)
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
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """The bucket at once, then again on a change, long before the longest interval."""
    broker = await serve(slow_keepa, 20)
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


async def test_syncs_share_one_probe(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """However many operators ask, Keepa is asked once."""
    broker = await serve(slow_keepa, 20)
    slow_keepa.set_fault("latency:ms=500,path=/token")
    calls = slow_keepa.stats()["calls"]
    slow_keepa.change_account(balance=42)

    syncs = [broker.stub.SyncBucket(pb.SyncBucketRequest()) for _ in range(5)]
    buckets = [(await sync).bucket for sync in syncs]

    assert slow_keepa.stats()["calls"] == calls + 1
    assert {bucket.balance for bucket in buckets} == {42}
    assert {bucket.last_observation.source for bucket in buckets} == {pb.OBSERVATION_SOURCE_PROBE}


async def test_a_key_that_keepa_does_not_know_is_told(slow_keepa: RunningSimulator) -> None:
    """The zeros of Keepa's answer are no balance: nothing is known, so nothing is granted."""
    slow_keepa.clear_faults()
    async with running(slow_keepa, key="another") as broker:

        async def asked() -> bool:
            return broker.runtime.allocator.probing.failures > 0

        await until(asked)
        bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket
        denial = (await broker.stub.AcquireLease(acquire(max_wait=Duration()))).denial

    assert bucket.state == pb.BUCKET_STATE_SYNCING
    assert "check KEEPA_API_KEY" in bucket.upstream_trouble
    assert denial.reason == pb.DENIAL_REASON_NOT_SYNCED


async def test_a_sync_that_fails_says_why(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """The bucket shows the trouble until Keepa answers again."""
    broker = await serve(slow_keepa, 20)
    slow_keepa.set_fault("garbage:path=/token")

    failed = await refusal(broker.stub.SyncBucket(pb.SyncBucketRequest()))
    troubled = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket
    slow_keepa.clear_faults()
    healed = (await broker.stub.SyncBucket(pb.SyncBucketRequest())).bucket

    assert failed[::2] == (Code.UNAVAILABLE, "bad_reply")
    assert troubled.upstream_trouble == failed[1]
    assert healed.upstream_trouble == ""


async def test_a_watcher_has_a_least_interval(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """Whatever it asks for: without one it takes most of a core."""
    broker = await serve(slow_keepa, 5)
    request = pb.WatchBucketRequest(min_interval=Duration(), max_interval=Duration())

    began = time.monotonic()
    stream = broker.stub.WatchBucket(request)
    for _ in range(11):
        await stream.read()
    took_s = time.monotonic() - began
    stream.cancel()

    assert took_s >= 0.5


async def test_watching_an_idle_broker_wakes_no_other_watcher(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """Two watchers and a caller of GetBucket look: each stream has one message an interval."""
    broker = await serve(slow_keepa, 20)
    request = pb.WatchBucketRequest(
        min_interval=Duration(nanos=50_000_000), max_interval=Duration(seconds=60)
    )
    streams = [broker.stub.WatchBucket(request) for _ in range(2)]
    for stream in streams:
        await asyncio.wait_for(stream.read(), DEADLINE_S)

    async def further(stream: Any) -> int:
        """Messages before a change by the test itself, which is the last one."""
        number = 0
        while (await asyncio.wait_for(stream.read(), DEADLINE_S)).bucket.open_leases == 0:
            number += 1
        return number

    counts = [asyncio.create_task(further(stream)) for stream in streams]
    for _ in range(20):
        await broker.stub.GetBucket(pb.GetBucketRequest())
        await asyncio.sleep(0.05)
    await broker.stub.AcquireLease(acquire())
    numbers = await asyncio.gather(*counts)
    for stream in streams:
        stream.cancel()

    # A step of the broker's own, such as the end of its start, may be seen.
    assert max(numbers) <= 3


async def test_learned_costs_are_listed(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """By operation and size of the batch, with the mean and what is reserved."""
    broker = await serve(slow_keepa, 20)
    before = (await broker.stub.ListCosts(pb.ListCostsRequest())).costs
    grant = (await broker.stub.AcquireLease(acquire())).grant
    settle = pb.SettleLeaseRequest(
        lease_id="a", epoch=grant.epoch, holder="h", operation="deal", units=1, tokens=5,
        outcome=pb.OUTCOME_REPLIED, envelope=pb.Envelope(tokens_consumed=5),
    )  # fmt: skip
    await broker.stub.SettleLease(settle)
    (cost,) = (await broker.stub.ListCosts(pb.ListCostsRequest())).costs

    assert not before
    assert (cost.operation, cost.units_min, cost.units_max, cost.calls) == ("deal", 1, 1, 1)
    assert (cost.tokens_per_unit, cost.reserved_per_unit) == (5, 5)
