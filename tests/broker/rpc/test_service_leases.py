"""A lease from the request to its settle, over a real channel."""

from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from broker.core.allocator import AllocatorConfig
from broker.core.limits import Limits
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.broker.rpcs import acquire, refusal, settle, until, waiting
from tests.fix_service import FINGERPRINT, Serve, running
from tests.fix_simulator import RunningSimulator

Code = grpc.StatusCode


async def test_a_lease_is_granted_and_settled(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """Tokens are held for the call and come back when it was not sent."""
    broker = await serve(slow_keepa, 20)

    grant = (await broker.stub.AcquireLease(acquire())).grant
    held = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket
    settled = await broker.stub.SettleLease(settle(grant))
    after = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert (grant.lease_id, grant.units, grant.tokens, grant.epoch) == ("a", 1, 5, 7)
    assert (held.balance, held.reserved, held.available, held.open_leases) == (20, 5, 15, 1)
    assert not settled.late
    assert (after.available, after.open_leases, after.key_fingerprint) == (20, 0, FINGERPRINT)


async def test_a_repeated_request_returns_the_open_grant(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """With the time that is left to it, and without a second hold."""
    broker = await serve(slow_keepa, 20)

    async def aged() -> bool:
        lease = (await broker.stub.ListLeases(pb.ListLeasesRequest())).leases[0]
        return bool(lease.age.ToMilliseconds() >= 20)

    first = (await broker.stub.AcquireLease(acquire())).grant
    await until(aged)
    second = (await broker.stub.AcquireLease(acquire())).grant
    bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert (second.lease_id, second.tokens) == (first.lease_id, first.tokens)
    assert second.ttl.ToMilliseconds() <= first.ttl.ToMilliseconds() - 10
    assert bucket.reserved == 5


async def test_a_crowd_gets_what_there_is_and_no_more(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """However many ask in the same moment, no token is promised twice."""
    broker = await serve(slow_keepa, 20)
    requests = [acquire(str(number), max_wait=Duration()) for number in range(30)]

    calls = [broker.stub.AcquireLease(request) for request in requests]
    outcomes = [(await call).WhichOneof("outcome") for call in calls]
    bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket

    assert 1 <= outcomes.count("grant") <= 4
    assert bucket.reserved == 5 * outcomes.count("grant")


async def test_the_outcome_decides_what_stays_held(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """A refused call cost nothing; one that never answered may have cost all it held."""
    broker = await serve(slow_keepa, 20)
    refusal = pb.Envelope(tokens_left=20, refill_rate=5)
    held = {}

    for outcome in (pb.OUTCOME_NOT_SENT, pb.OUTCOME_REFUSED, pb.OUTCOME_UNKNOWN):
        grant = (await broker.stub.AcquireLease(acquire(str(outcome)))).grant
        await broker.stub.SettleLease(settle(grant, outcome=outcome, envelope=refusal))
        held[outcome] = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket.reserved

    assert held == {pb.OUTCOME_NOT_SENT: 0, pb.OUTCOME_REFUSED: 0, pb.OUTCOME_UNKNOWN: 5}


async def test_the_state_of_a_lease_decides_the_status(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """Ended, in use for something else, never granted: three different statuses."""
    broker = await serve(slow_keepa, 20)
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
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """The error names the field, for the client's author."""
    broker = await serve(slow_keepa, 20)

    code, message, reason = await refusal(broker.stub.AcquireLease(acquire(units=0)))

    assert (code, message) == (Code.INVALID_ARGUMENT, "units must be positive")
    assert reason == "invalid_argument"


async def test_another_key_is_refused(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """Its tokens are in another bucket, which this broker does not count."""
    broker = await serve(slow_keepa, 20)

    right = await broker.stub.AcquireLease(acquire(key_fingerprint=FINGERPRINT))
    code, message, _ = await refusal(
        broker.stub.AcquireLease(acquire("b", key_fingerprint="ffffffffffff"))
    )

    assert right.WhichOneof("outcome") == "grant"
    assert code is Code.FAILED_PRECONDITION
    assert "ffffffffffff" in message
    assert FINGERPRINT in message


async def test_a_settled_call_is_counted_once(slow_keepa: RunningSimulator, serve: Serve) -> None:
    """By operation and by holder, however often the settle is repeated."""
    broker = await serve(slow_keepa, 20)
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


async def test_a_lease_of_the_greatest_age_is_not_renewed(slow_keepa: RunningSimulator) -> None:
    """The refusal names the setting; the hold stays, and the settle still counts."""
    slow_keepa.clear_faults()
    slow_keepa.change_account(balance=20)
    config = AllocatorConfig(recovery_grace_ms=0, lease_age_ms_max=100)
    async with running(slow_keepa, config=config) as broker:
        await broker.runtime.synced.wait()
        grant = (await broker.stub.AcquireLease(acquire())).grant
        fields = ("lease_id", "epoch", "units", "tokens")
        renewal = pb.RenewLeaseRequest(
            holder="h", operation="deal", **{name: getattr(grant, name) for name in fields}
        )

        async def lapsed() -> bool:
            return (await bucket()).open_leases == 0

        async def bucket() -> pb.Bucket:
            answer: pb.GetBucketResponse = await broker.stub.GetBucket(pb.GetBucketRequest())
            return answer.bucket

        await until(lapsed)
        code, message, reason = await refusal(broker.stub.RenewLease(renewal))
        held = await bucket()
        settled = await broker.stub.SettleLease(settle(grant))
        after = await bucket()

    assert (code, reason) == (Code.FAILED_PRECONDITION, "lease_too_old")
    assert "BROKER_LEASE_AGE_MAX" in message
    assert (held.reserved, settled.late, after.reserved) == (5, True, 0)


async def test_a_caller_at_its_limits_is_refused_with_the_setting(
    slow_keepa: RunningSimulator,
) -> None:
    """Of open leases and of waits; others are served, and so is the caller after a settle."""
    slow_keepa.clear_faults()
    slow_keepa.change_account(balance=10)
    config = AllocatorConfig(recovery_grace_ms=0, limits=Limits(leases=1, waits=1))
    async with running(slow_keepa, config=config) as broker:
        await broker.runtime.synced.wait()
        grant = (await broker.stub.AcquireLease(acquire("a", holder="one"))).grant
        leases = await refusal(broker.stub.AcquireLease(acquire("b", holder="one")))
        await broker.stub.SettleLease(settle(grant, holder="one"))
        again = (await broker.stub.AcquireLease(acquire("b", holder="one"))).WhichOneof("outcome")
        first = broker.stub.AcquireLease(acquire("c", holder="two", units=9))
        await waiting(broker, 1)
        waits = await refusal(broker.stub.AcquireLease(acquire("d", holder="two")))
        first.cancel()

    assert again == "grant"
    for (code, message, reason), setting in ((leases, "LEASES"), (waits, "WAITS")):
        assert (code, reason) == (Code.RESOURCE_EXHAUSTED, "limit_reached")
        assert f"BROKER_CALLER_{setting}_MAX" in message
