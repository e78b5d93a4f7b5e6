"""Connects to a running broker; turns each error into one readable line."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

import grpc

from protos.channel.access import Access, addresses_of
from protos.channel.options import CLIENT, SEVERAL
from protos.channel.reasons import reason_of
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

# The broker answers in milliseconds or not at all.
TIMEOUT_S: Final = 5.0
AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# Standbys that one name may lead to before the leader is found.
TRIES: Final = 4
# Keepa may be slow: the sum of the broker's time-outs for connect, read and body.
SYNC_TIMEOUT_S: Final = 30.0


class CommandError(Exception):
    """A command failed; the message is one readable line."""


@dataclass(frozen=True, slots=True)
class Target:
    """A broker's address, and the credentials for it."""

    address: str
    access: Access = field(default_factory=Access)


@contextmanager
def connect(target: Target) -> Iterator[pb_grpc.TokenBrokerServiceStub]:
    """Yields a stub for the broker *target*; converts any RPC error to a CommandError.

    Raises:
        CommandError: an RPC failed.
        CredentialError: a file of the settings can't be used.
    """
    addresses = addresses_of(target.address)
    several = len(addresses) > 1
    with ExitStack() as stack:
        channels = (
            stack.enter_context(target.access.channel(each, SEVERAL if several else CLIENT))
            # A name may stand for several brokers: each new channel finds one of them.
            for each in (addresses if several else addresses * TRIES)
        )
        try:
            yield _leading(channels, several=several)
        except grpc.RpcError as exc:
            raise CommandError(explain(target, exc)) from None


def _leading(channels: Iterable[grpc.Channel], *, several: bool) -> pb_grpc.TokenBrokerServiceStub:
    """A stub for the first of *channels* that leads to no standby, else to one that answers.

    Raises:
        grpc.RpcError: The only broker does not answer.
    """
    standby = silent = None
    for channel in channels:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        try:
            bucket = stub.GetBucket(pb.GetBucketRequest(), timeout=TIMEOUT_S).bucket
        except grpc.RpcError as exc:
            if exc.code() not in AWAY:
                return stub
            if not several:
                raise
            silent = silent or stub
        else:
            if bucket.state != pb.BUCKET_STATE_STANDBY:
                return stub
            standby = standby or stub
    found = standby or silent
    assert found is not None
    return found


def explain(target: Target, exc: grpc.RpcError) -> str:
    """The reason for a failed RPC to *target*, in one line."""
    assert isinstance(exc, grpc.Call)
    address = target.address
    if reason_of(exc):
        return exc.details() or ""
    match exc.code():
        case grpc.StatusCode.UNAVAILABLE:
            silence = target.access.silence(address, exc.details())
            if target.access.trouble(exc.details()):
                return silence
            return f"{silence}: start one with `tokenbroker serve`, or set BROKER_ADDRESS"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the broker at {address} does not answer in time"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"what answers at {address} is not a token broker of this version"
        case code:
            return f"the broker at {address}: {code.name}: {exc.details()}"
