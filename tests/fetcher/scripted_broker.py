"""A broker that follows a script, for answers that a real one can't give at will."""

from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from protos.channel.options import SERVER, Options
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.waiting import wait_until


def until(condition: Callable[[], bool]) -> None:
    """Waits for *condition*; fails the test when it doesn't come true in time."""
    wait_until(condition, "a condition of the scripted broker")


@dataclass
class ScriptedBroker:
    """Grants everything unless a hook decides otherwise; keeps all requests."""

    ttl_s: float = 15.0
    epoch: int = 1
    key_fingerprint: str = ""
    on_acquire: Callable[[pb.AcquireLeaseRequest, grpc.ServicerContext], None] | None = None
    on_renew: Callable[[pb.RenewLeaseRequest, grpc.ServicerContext], None] | None = None
    on_settle: Callable[[pb.SettleLeaseRequest, grpc.ServicerContext], None] | None = None
    denial: pb.Denial | None = None
    acquires: list[pb.AcquireLeaseRequest] = field(default_factory=list)
    renewals: list[pb.RenewLeaseRequest] = field(default_factory=list)
    settles: list[pb.SettleLeaseRequest] = field(default_factory=list)
    buckets: int = 0
    state: pb.BucketState.ValueType = pb.BUCKET_STATE_SERVING

    def acquire(
        self, request: pb.AcquireLeaseRequest, context: grpc.ServicerContext
    ) -> pb.AcquireLeaseResponse:
        """Grants, denies or follows the hook."""
        self.acquires.append(request)
        if self.on_acquire:
            self.on_acquire(request, context)
        if self.denial:
            return pb.AcquireLeaseResponse(denial=self.denial)
        grant = pb.Grant(
            lease_id=request.lease_id,
            epoch=self.epoch,
            units=request.units,
            tokens=int(request.units * request.tokens_per_unit),
            ttl=_duration(self.ttl_s),
        )
        return pb.AcquireLeaseResponse(grant=grant)

    def renew(
        self, request: pb.RenewLeaseRequest, context: grpc.ServicerContext
    ) -> pb.RenewLeaseResponse:
        """Renews under this broker's epoch."""
        self.renewals.append(request)
        if self.on_renew:
            self.on_renew(request, context)
        return pb.RenewLeaseResponse(epoch=self.epoch, ttl=_duration(self.ttl_s))

    def settle(
        self, request: pb.SettleLeaseRequest, context: grpc.ServicerContext
    ) -> pb.SettleLeaseResponse:
        """Takes the settle unless the hook objects."""
        if self.on_settle:
            self.on_settle(request, context)
        self.settles.append(request)
        return pb.SettleLeaseResponse()

    def get_bucket(
        self, request: pb.GetBucketRequest, context: grpc.ServicerContext
    ) -> pb.GetBucketResponse:
        """A bucket that counts for key_fingerprint."""
        self.buckets += 1
        bucket = pb.Bucket(
            balance=33,
            capacity=300,
            refill_rate=5,
            state=self.state,
            key_fingerprint=self.key_fingerprint,
        )
        return pb.GetBucketResponse(bucket=bucket)


def _handlers(servicer: ScriptedBroker) -> "grpc.GenericRpcHandler[Any, Any]":
    methods: dict[str, tuple[Any, Any]] = {
        "AcquireLease": (servicer.acquire, pb.AcquireLeaseRequest),
        "RenewLease": (servicer.renew, pb.RenewLeaseRequest),
        "SettleLease": (servicer.settle, pb.SettleLeaseRequest),
        "GetBucket": (servicer.get_bucket, pb.GetBucketRequest),
    }
    return grpc.method_handlers_generic_handler(
        "tokenbroker.v1.TokenBrokerService",
        {
            name: grpc.unary_unary_rpc_method_handler(
                method, request.FromString, lambda answer: answer.SerializeToString()
            )
            for name, (method, request) in methods.items()
        },
    )


def _duration(value_s: float) -> Duration:
    message = Duration()
    message.FromMilliseconds(round(value_s * 1000))
    return message


class RunningBroker:
    """A scripted broker behind a real server on a port of its own."""

    def __init__(
        self, servicer: ScriptedBroker, *, port: int = 0, options: Options = SERVER
    ) -> None:
        self.servicer = servicer
        self._server = grpc.server(futures.ThreadPoolExecutor(16), options=options)
        self._server.add_generic_rpc_handlers((_handlers(servicer),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Goes away at once, as a killed process does."""
        self._server.stop(0).wait()
