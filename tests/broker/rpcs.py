"""RPCs as the tests of the service send them, and ways to await what comes of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from protos.channel.reasons import REASON_KEY
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.fix_service import ServedBroker

DEADLINE_S = 90.0


def acquire(lease_id: str = "a", **changes: Any) -> pb.AcquireLeaseRequest:
    """Asks for one deal page."""
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
    """Settles as not sent by default."""
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
    """Waits for *condition*, with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 - the condition is another process's
            await asyncio.sleep(0.01)


async def waiting(broker: ServedBroker, number: int) -> None:
    """Waits until *number* requests wait."""

    async def reached() -> bool:
        return int((await broker.stub.GetBucket(pb.GetBucketRequest())).bucket.waiting) == number

    await until(reached)


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, str]:
    """Status, message and reason of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata: Any = caught.value.trailing_metadata()
    return caught.value.code(), caught.value.details() or "", dict(metadata).get(REASON_KEY, "")
