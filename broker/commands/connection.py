"""A connection to a running broker, with its errors in one line for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc

from broker.reasons import REASON_KEY
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

# An operator's question is answered in milliseconds or not at all.
TIMEOUT_S: Final = 5.0
# Keepa may be slow: connect, read and body timeouts of the broker together.
SYNC_TIMEOUT_S: Final = 30.0


class CommandError(Exception):
    """A command failed; the message is one line for people."""


@contextmanager
def connect(address: str) -> Iterator[pb_grpc.TokenBrokerServiceStub]:
    """A stub for the broker at *address*; any RPC error becomes a CommandError."""
    with grpc.insecure_channel(address) as channel:
        try:
            yield pb_grpc.TokenBrokerServiceStub(channel)
        except grpc.RpcError as exc:
            raise CommandError(explain(address, exc)) from None


def explain(address: str, exc: grpc.RpcError) -> str:
    """Why an RPC to *address* failed."""
    assert isinstance(exc, grpc.Call)
    if REASON_KEY in dict(exc.trailing_metadata() or ()):
        return exc.details() or ""
    match exc.code():
        case grpc.StatusCode.UNAVAILABLE:
            return (
                f"no broker answers at {address}: start one with `tokenbroker serve`,"
                " or set BROKER_ADDRESS"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the broker at {address} does not answer in time"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"what answers at {address} is not a token broker of this version"
        case code:
            return f"the broker at {address} says {code.name}: {exc.details()}"
