"""While Keepa hangs, clients with short deadlines get a reason, over a real channel."""

from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.broker.rpcs import acquire, until
from tests.fix_service import NEVER_S, Serve, ServedBroker, running
from tests.fix_simulator import RunningSimulator

# Of the call; all shorter than the broker's patience with Keepa.
DEADLINES_S = (1.0, 1.5, 1.9)
HANG = "timeout:path=/token"


async def ask_all(broker: ServedBroker) -> list[pb.Denial]:
    """One request a deadline, all at once; a call that exceeds it fails the test."""
    calls = [
        broker.stub.AcquireLease(acquire(str(seconds)), timeout=seconds) for seconds in DEADLINES_S
    ]
    return [(await call).denial for call in calls]


async def last_seen_s(broker: ServedBroker) -> float:
    """Age of the broker's last word from Keepa."""
    bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket
    return float(bucket.last_observation.age.ToMilliseconds() / 1000)


async def test_a_short_call_is_denied_with_a_reason(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """The denial reports missing tokens and a delay."""
    broker = await serve(slow_keepa, 3)

    async def stale() -> bool:
        return await last_seen_s(broker) > 1.1

    await until(stale)
    slow_keepa.set_fault(HANG)
    denials = await ask_all(broker)
    slow_keepa.clear_faults()

    assert {denial.reason for denial in denials} == {pb.DENIAL_REASON_INSUFFICIENT_TOKENS}
    assert all(0 < denial.retry_delay.seconds <= NEVER_S for denial in denials)
    assert all("has not answered yet" in denial.message for denial in denials)
    assert broker.runtime.allocator.probing.probes > 1


async def test_before_keepas_first_word_too(slow_keepa: RunningSimulator) -> None:
    """A broker without a balance yet denies with a delay."""
    slow_keepa.clear_faults()
    slow_keepa.change_account(balance=20)
    slow_keepa.set_fault(HANG)
    async with running(slow_keepa) as broker:
        denials = await ask_all(broker)
        slow_keepa.clear_faults()

    assert {denial.reason for denial in denials} == {pb.DENIAL_REASON_NOT_SYNCED}
    assert all(0 < denial.retry_delay.ToMilliseconds() <= 2_000 for denial in denials)
