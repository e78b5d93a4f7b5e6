"""What only an asyncio client can do: be cancelled, anywhere."""

import asyncio
import threading
from collections.abc import AsyncIterator

import grpc
import pytest

from fetcher.broker_client import AsyncBrokerClient
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.fetcher.scripted_broker import RunningBroker, ScriptedBroker
from tests.fix_broker_client import ENVELOPE
from tests.waiting import DEADLINE_S


@pytest.fixture
async def broker() -> AsyncIterator[RunningBroker]:
    """Grants everything."""
    running = RunningBroker(ScriptedBroker())
    yield running
    running.stop()


async def settled(broker: RunningBroker, count: int) -> list[pb.SettleLeaseRequest]:
    """The settles, once there are *count*."""
    async with asyncio.timeout(DEADLINE_S):
        while len(broker.servicer.settles) < count:  # noqa: ASYNC110 - another thread's list
            await asyncio.sleep(0.01)
    return broker.servicer.settles


async def test_a_cancelled_wait_leaves_no_hold(broker: RunningBroker) -> None:
    """Its id is settled as not sent, in case a grant is on its way."""
    arrived = asyncio.Event()
    loop, over = asyncio.get_running_loop(), threading.Event()

    def wait(_request: object, context: grpc.ServicerContext) -> None:
        loop.call_soon_threadsafe(arrived.set)
        context.add_callback(over.set)
        over.wait(DEADLINE_S)

    broker.servicer.on_acquire = wait
    async with AsyncBrokerClient(broker.address) as client:

        async def hold() -> None:
            async with client.lease("deal"):
                raise AssertionError("it was granted")

        task = asyncio.create_task(hold())
        await asyncio.wait_for(arrived.wait(), DEADLINE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        settles = await settled(broker, 1)

    assert (settles[0].outcome, settles[0].epoch) == (pb.OUTCOME_NOT_SENT, 0)
    assert settles[0].lease_id == broker.servicer.acquires[0].lease_id


@pytest.mark.parametrize("calling", [False, True], ids=["before the call", "in the call"])
async def test_a_cancelled_block_settles_its_lease(broker: RunningBroker, calling: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Once, and as what is known of the call."""
    async with AsyncBrokerClient(broker.address) as client:
        inside = asyncio.Event()

        async def call() -> None:
            async with client.lease("deal") as lease:
                if calling:
                    lease.calling()
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(call())
        await asyncio.wait_for(inside.wait(), DEADLINE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        settles = list(await settled(broker, 1))

    expected = pb.OUTCOME_UNKNOWN if calling else pb.OUTCOME_NOT_SENT
    assert [settle.outcome for settle in settles] == [expected]


async def test_a_settle_outlives_its_cancelled_caller(broker: RunningBroker) -> None:
    """What a call cost reaches the broker once, though its task ended in mid-settle."""
    arrived, loop, go_on = asyncio.Event(), asyncio.get_running_loop(), threading.Event()

    def dawdle(_request: object, _context: grpc.ServicerContext) -> None:
        loop.call_soon_threadsafe(arrived.set)
        go_on.wait(DEADLINE_S)

    broker.servicer.on_settle = dawdle
    async with AsyncBrokerClient(broker.address) as client:

        async def call() -> None:
            async with client.lease("deal") as lease:
                lease.calling()
                await lease.settle_replied(ENVELOPE)

        task = asyncio.create_task(call())
        await asyncio.wait_for(arrived.wait(), DEADLINE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
    settles = await settled(broker, 1)

    assert [settle.outcome for settle in settles] == [pb.OUTCOME_REPLIED]


async def test_many_waits_share_one_client(broker: RunningBroker) -> None:
    """Each task has its own lease, settled once."""

    async def call(client: AsyncBrokerClient) -> None:
        async with client.lease("deal") as lease:
            lease.calling()
            await lease.settle_replied(ENVELOPE)

    async with AsyncBrokerClient(broker.address) as client:
        await asyncio.gather(*(call(client) for _ in range(50)))

    asked = {request.lease_id for request in broker.servicer.acquires}
    assert len(asked) == 50
    assert sorted(settle.lease_id for settle in broker.servicer.settles) == sorted(asked)
