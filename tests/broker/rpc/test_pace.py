"""A connection with many refused calls is held back; others are not."""

from typing import Any

import grpc

from broker.rpc.pace import PEERS_MAX, REFUSALS_AT_ONCE, TURN_MS, Pace
from protos.channel.access import DIRECT
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.broker.rpcs import DEADLINE_S, acquire, until
from tests.fix_service import Serve
from tests.fix_simulator import RunningSimulator


def refuse(pace: Pace, count: int, now_ms: int, peer: str = "a") -> None:
    """Counts so many refusals at once."""
    for _ in range(count):
        pace.refused(peer, now_ms)


def test_a_few_refusals_hold_no_call_back() -> None:
    """Typing errors cost a client nothing."""
    pace = Pace()
    refuse(pace, REFUSALS_AT_ONCE, 0)

    assert pace.pause_ms("a", 0) == 0


def test_calls_of_a_connection_take_turns() -> None:
    """Beyond what is free, a call at a time is due; other connections have their own."""
    pace = Pace()
    refuse(pace, REFUSALS_AT_ONCE + 50, 0)
    pauses_ms = [pace.pause_ms("a", 0) for _ in range(3)]

    assert pauses_ms == [(50 + turn) * TURN_MS for turn in range(3)]
    assert pace.pause_ms("b", 0) == 0


def test_a_connection_is_free_again_when_its_refusals_are_worked_off() -> None:
    """No more is held against it than its refusals."""
    pace = Pace()
    refuse(pace, REFUSALS_AT_ONCE + 50, 0)

    assert pace.pause_ms("a", 49 * TURN_MS) > 0
    assert pace.pause_ms("a", 51 * TURN_MS) == 0


def test_connections_of_long_ago_are_forgotten() -> None:
    """A client that connects anew for each call fills no memory."""
    pace = Pace()
    for number in range(10 * PEERS_MAX):
        pace.refused(f"peer-{number}", TURN_MS * number)

    assert len(pace) <= PEERS_MAX


async def test_others_are_served_beside_a_stream_of_refusals(
    slow_keepa: RunningSimulator, serve: Serve
) -> None:
    """Only the calls of the bothersome connection wait, and the metric counts them."""
    broker = await serve(slow_keepa, 100)
    async with grpc.aio.insecure_channel(broker.address, options=(DIRECT,)) as channel:
        stub: Any = pb_grpc.TokenBrokerServiceStub(channel)
        calls = [stub.AcquireLease(pb.AcquireLeaseRequest(holder="x")) for _ in range(1_000)]

        async def holds() -> bool:
            value = broker.metrics.registry.get_sample_value("tokenbroker_held_back_calls_total")
            return bool(value)

        await until(holds)
        answer = await broker.stub.AcquireLease(acquire(), timeout=DEADLINE_S)
        held = sum(not call.done() for call in calls)
        codes = {await call.code() for call in calls if call.done()}
        for call in calls:
            call.cancel()

    assert answer.grant.tokens == 5
    assert held > 0
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
