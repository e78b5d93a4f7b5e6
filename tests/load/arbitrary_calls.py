"""Arbitrary and out-of-order calls on the gRPC surface, with a seed.

python -m tests.load.arbitrary_calls --calls 100000 --seed 1
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from random import Random
from typing import Any, Final

import grpc

from protos.channel.reasons import reason_of
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.fix_service import ServedBroker, launch_keepa, running

AT_ONCE: Final = 32
CALLS_PER_ID: Final = 100
TIMEOUT_S: Final = 2.0
# Few ids, so that calls meet each other's leases in every order.
IDS: Final = ("a", "b", "c", "d", "", "x" * 300, "\u0000", "é")
INTEGERS: Final = (0, 1, -1, 5, 60, 300, 2**31 - 1, -(2**31))
LONGS: Final = (*INTEGERS, 7, 2**63 - 1, -(2**63))
FLOATS: Final = (0.0, 1.0, 5.0, -1.0, 1e308, float("nan"), float("inf"))
METHODS: Final = pb.DESCRIPTOR.services_by_name["TokenBrokerService"].methods_by_name
CALLS: Final = {name: getattr(pb, method.input_type.name) for name, method in METHODS.items()}
# How often beside one of each.
OFTEN: Final = {
    **dict.fromkeys(("AcquireLease", "SettleLease", "RenewLease", "ListLeases"), 6),
    "GetBucket": 3,
    "ResumeGrants": 2,
}
PROGRESS_S: Final = 10.0
# A broker may refuse with these; anything else is a bug of its own.
REFUSALS: Final = frozenset({
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
})  # fmt: skip


def arbitrary(message: Any, dice: Random) -> Any:
    """Fills some fields of *message* with values that are sound, odd or extreme."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated or dice.random() < 0.15:
            continue
        kind = field.cpp_type
        if kind == field.CPPTYPE_MESSAGE:
            arbitrary(getattr(message, field.name), dice)
        elif kind == field.CPPTYPE_STRING:
            setattr(message, field.name, dice.choice(IDS))
        elif kind == field.CPPTYPE_ENUM:
            setattr(message, field.name, dice.choice((0, 1, 2, 3, 4, 99)))
        elif kind == field.CPPTYPE_BOOL:
            setattr(message, field.name, dice.random() < 0.5)
        elif kind in {field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT}:
            setattr(message, field.name, dice.choice(FLOATS))
        elif kind == field.CPPTYPE_INT32:
            setattr(message, field.name, dice.choice(INTEGERS))
        else:
            setattr(message, field.name, dice.choice(LONGS))
    return message


def plausible(message: Any, dice: Random, number: int) -> Any:
    """Mends *message* so far that most of them reach the ledger.

    The few lease ids are new ones now and then: an ended lease is never granted again.
    """
    for name in ("lease_id", "holder", "operation"):
        if name in message.DESCRIPTOR.fields_by_name:
            setattr(message, name, dice.choice("abcd"))
    if "lease_id" in message.DESCRIPTOR.fields_by_name:
        message.lease_id += str(number // CALLS_PER_ID)
    for name, values in {"units": (1, 5), "epoch": (1, 7), "tokens": (1, 5, 300)}.items():
        if name in message.DESCRIPTOR.fields_by_name:
            setattr(message, name, dice.choice(values))
    if isinstance(message, pb.RenewLeaseRequest):
        message.ttl.FromMilliseconds(dice.choice((1, 1_000)))
    if isinstance(message, pb.SettleLeaseRequest):
        plausible_end(message, dice)
    if isinstance(message, pb.AcquireLeaseRequest):
        message.tokens_per_unit, message.min_units = 5.0, 0
        message.priority = pb.PRIORITY_NORMAL
        message.key_fingerprint = ""
        message.ClearField("max_wait")
        message.ClearField("ttl")
        message.max_wait.FromMilliseconds(dice.choice((0, 5)))
    return message


def plausible_end(message: pb.SettleLeaseRequest, dice: Random) -> None:
    """Lets a call end in a way that may have been, with numbers that contradict each other."""
    message.outcome = dice.choice(pb.Outcome.values()[1:])
    message.ClearField("call_duration")
    message.ClearField("envelope")
    if message.outcome == pb.OUTCOME_REPLIED or dice.random() < 0.2:
        said = message.envelope
        said.server_time.FromMilliseconds(int(time.time() * 1000) + dice.randint(-5_000, 5_000))
        said.processing_time.FromMilliseconds(dice.randint(0, 500))
        said.refill_in.FromMilliseconds(dice.randint(0, 1_000))
        said.tokens_left, said.tokens_consumed = dice.randint(-50, 400), dice.randint(0, 50)
        said.refill_rate = dice.choice((0, 5, 5, 5, 6))
        said.age.FromMilliseconds(dice.choice((0, 3, 60_000)))


async def one_call(broker: ServedBroker, dice: Random, codes: Counter[str], number: int) -> None:
    """Makes one call, and checks how it ended."""
    (name,) = dice.choices(list(CALLS), [OFTEN.get(name, 1) for name in CALLS])
    message = arbitrary(CALLS[name](), dice)
    if dice.random() < 0.7:
        message = plausible(message, dice, number)
    try:
        call = getattr(broker.stub, name)(message, timeout=TIMEOUT_S)
        if METHODS[name].server_streaming:
            await call.read()
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as exc:
        codes[f"{name} {exc.code().name}"] += 1
        if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            # A wait without an end of its own.
            return
        if exc.code() not in REFUSALS or not reason_of(exc):
            raise AssertionError(f"{name} {exc.code()}: {exc.details()}\n{message}") from exc
    else:
        codes[f"{name} OK"] += 1
    check_books(broker)


def check_books(broker: ServedBroker) -> None:
    """What is reserved is the sum of what is held, and never negative."""
    ledger = broker.runtime.allocator.ledger
    held = [lease.held for lease in ledger]
    assert ledger.reserved == sum(held), "reserved is not what is held"
    assert all(tokens >= 0 for tokens in held), "a hold is negative"


async def fuzz(calls: int, seed: int, *, progress: bool = False) -> Counter[str]:
    """Makes *calls* calls, many at once; returns how often each ended how."""
    keepa = launch_keepa(1.0)
    codes: Counter[str] = Counter()
    try:
        async with running(keepa) as broker:
            await asyncio.wait_for(broker.runtime.synced.wait(), 60)
            left = iter(range(calls))

            async def caller(number: int) -> None:
                dice = Random(f"{seed}/{number}")
                for call in left:
                    await one_call(broker, dice, codes, call)

            showing = asyncio.create_task(_show(codes, calls)) if progress else None
            await asyncio.gather(*(caller(number) for number in range(AT_ONCE)))
            if showing is not None:
                showing.cancel()
            # It still serves.
            await broker.stub.ResumeGrants(pb.ResumeGrantsRequest())
            bucket = (await broker.stub.GetBucket(pb.GetBucketRequest())).bucket
            assert bucket.state == pb.BUCKET_STATE_SERVING
    finally:
        keepa.stop()
    return codes


async def _show(codes: Counter[str], calls: int) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        sys.stderr.write(f"{codes.total():,} of {calls:,} calls\n")


def main() -> None:
    """Prints how often each kind of call ended how."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    codes = asyncio.run(fuzz(given.calls, given.seed, progress=True))
    sys.stdout.write(json.dumps(dict(sorted(codes.items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
