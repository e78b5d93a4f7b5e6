"""The client: acquires leases, hands them to upkeep, shows the bucket."""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import grpc
from opentelemetry.trace import SpanKind

from fetcher.broker_client.connection import Connection
from fetcher.broker_client.errors import (
    BrokerAwayError,
    BrokerRefusedError,
    KeyMismatchError,
    LeaseDeniedError,
    WaitCancelledError,
)
from fetcher.broker_client.lease import Lease
from fetcher.broker_client.tracing import trace_context, tracer
from fetcher.broker_client.upkeep import Upkeep
from fetcher.broker_client.wire import (
    TRY_AGAIN,
    BucketView,
    Priority,
    Settlement,
    Terms,
    bucket_view,
    duration,
    seconds,
)
from protos.channel.access import Access
from protos.channel.options import RECONNECT_MAX_MS, RECONNECT_MIN_MS
from protos.tokenbroker.v1 import token_broker_pb2 as pb

log = logging.getLogger(__name__)

# Pauses between repeats are those between grpc's own attempts to connect.
RECONNECT_MIN_S = RECONNECT_MIN_MS / 1000
RECONNECT_MAX_S = RECONNECT_MAX_MS / 1000

# Added to max_wait_s, so that the broker's own denial arrives before the deadline.
DENIAL_GRACE_S = 5.0


def instance_name() -> str:
    """A name for this process instance, telling to people and never reused."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


class BrokerClient:
    """A connection to the broker at *address* (host:port); thread-safe.

    Args:
        address: Where the broker listens.
        holder: Name of this process instance; shares are equal between holders.
        key_fingerprint: Short hash of the Keepa key; a broker with another key refuses.
        ttl_s: Length of a lease between renewals; None for the broker's default.
        access: TLS, certificates and token; without it plaintext, as nobody.

    Raises:
        CredentialError: A file of *access* can't be used.
    """

    def __init__(
        self,
        address: str,
        *,
        holder: str | None = None,
        key_fingerprint: str = "",
        ttl_s: float | None = None,
        access: Access | None = None,
    ) -> None:
        self.address = address
        self.holder = holder or instance_name()
        self._key_fingerprint = key_fingerprint
        self._ttl_s = ttl_s
        self._connection = Connection(address, access or Access())
        self._upkeep = Upkeep(self._connection)
        self._lock = threading.Lock()
        self._waits: set[grpc.CallFuture[pb.AcquireLeaseResponse]] = set()
        self._stopping = threading.Event()
        # Reasons logged since the broker last answered.
        self._away: set[str] = set()
        self._connection.subscribe(self._connectivity_changed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def lease(
        self,
        operation: str,
        *,
        units: int = 1,
        min_units: int = 0,
        tokens_per_unit: float = 1.0,
        priority: Priority = Priority.NORMAL,
        max_wait_s: float | None = None,
    ) -> Iterator[Lease]:
        """Hold tokens for one call; waits for them, and for the broker, as long as asked.

        Args:
            operation: Key of the learned cost, such as "deal" or "product?offers=20".
            units: Most pages or ASINs wanted.
            min_units: Fewest that are useful; 0 means all or nothing.
            tokens_per_unit: What one is believed to cost until the broker knows better.
            priority: Class of the request.
            max_wait_s: Longest wait in seconds; None waits for ever.

        Raises:
            LeaseDeniedError: The broker said no, and when to ask again.
            BrokerAwayError: The broker could not be reached within max_wait_s.
            WaitCancelledError: `stop_waiting` was called.
            BrokerRefusedError: A person must act; KeyMismatchError is one such.
        """
        request = pb.AcquireLeaseRequest(
            holder=self.holder,
            operation=operation,
            units=units,
            min_units=min_units,
            tokens_per_unit=tokens_per_unit,
            priority=priority.value,
            key_fingerprint=self._key_fingerprint,
        )
        if self._ttl_s is not None:
            request.ttl.CopyFrom(duration(self._ttl_s))
        held = self._acquire(request, max_wait_s)
        try:
            yield held
        finally:
            held.settle_unsaid()

    def get_bucket(self, *, timeout_s: float = 5.0) -> BucketView:
        """The bucket as the broker sees it now.

        Raises:
            BrokerAwayError: No answer within *timeout_s* seconds.
            BrokerRefusedError: The broker won't tell this client.
        """
        try:
            answer = self._connection.stub.GetBucket(pb.GetBucketRequest(), timeout=timeout_s)
        except grpc.RpcError as exc:
            if exc.code() in TRY_AGAIN:
                raise BrokerAwayError(self._silence(exc)) from exc
            raise BrokerRefusedError(f"the broker refuses: {exc.details()}") from exc
        return bucket_view(answer.bucket)

    def stop_waiting(self) -> None:
        """End every wait for tokens now, and refuse new ones; open leases go on."""
        self._stopping.set()
        with self._lock:
            waits = list(self._waits)
        for wait in waits:
            wait.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs lacks it

    def close(self, *, timeout_s: float = 2.0) -> None:
        """Stop waiting, deliver queued settles within *timeout_s*, disconnect."""
        self.stop_waiting()
        if left := self._upkeep.close(timeout_s):
            log.warning("%d settles could not be delivered to the broker", left)
        self._connection.close()

    def _acquire(self, request: pb.AcquireLeaseRequest, max_wait_s: float | None) -> Lease:
        deadline_s = None if max_wait_s is None else time.monotonic() + max_wait_s
        request.lease_id = str(uuid.uuid4())
        try:
            with tracer.start_as_current_span(
                "wait", kind=SpanKind.CLIENT, attributes=_about(request)
            ) as span:
                grant = self._granted(request, deadline_s)
                span.set_attribute("tokens", grant.tokens)
        except (LeaseDeniedError, BrokerRefusedError):
            raise
        except BaseException:
            # A grant may be crossing our going away: its tokens must not stay held.
            self._abandon(request)
            raise
        return self._open(request, grant)

    def _granted(self, request: pb.AcquireLeaseRequest, deadline_s: float | None) -> pb.Grant:
        """Repeat *request* while the broker is away; the same id joins the same wait."""
        pause_s = RECONNECT_MIN_S
        while True:
            try:
                answer = self._ask(request, deadline_s)
            except grpc.FutureCancelledError:
                raise WaitCancelledError("the wait for tokens was called off") from None
            except grpc.RpcError as exc:
                self._judge(exc, request, deadline_s)
            else:
                self._broker_answers()
                return _grant(answer)
            if self._stopping.wait(pause_s):
                raise WaitCancelledError("the wait for the broker was called off")
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)

    def _ask(
        self, request: pb.AcquireLeaseRequest, deadline_s: float | None
    ) -> pb.AcquireLeaseResponse:
        timeout_s = None
        if deadline_s is not None:
            wait_s = max(0.0, deadline_s - time.monotonic())
            request.max_wait.CopyFrom(duration(wait_s))
            timeout_s = wait_s + DENIAL_GRACE_S
        with self._lock:
            if self._stopping.is_set():
                raise WaitCancelledError("this client waits for no more tokens")
            call = self._connection.stub.AcquireLease.future(
                request, timeout=timeout_s, metadata=trace_context()
            )
            self._waits.add(call)
        try:
            return call.result()
        finally:
            with self._lock:
                self._waits.discard(call)
            call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs lacks it

    def _judge(
        self, exc: grpc.RpcError, request: pb.AcquireLeaseRequest, deadline_s: float | None
    ) -> None:
        """Return when the request is worth repeating, else raise."""
        if exc.code() is grpc.StatusCode.FAILED_PRECONDITION:
            theirs = self.get_bucket().key_fingerprint
            if self._key_fingerprint and theirs != self._key_fingerprint:
                raise KeyMismatchError(self._key_fingerprint, theirs) from exc
            # The lease was granted and lapsed while its grant was lost on the way.
            request.lease_id = str(uuid.uuid4())
            return
        if exc.code() not in TRY_AGAIN:
            raise BrokerRefusedError(f"the broker refuses: {exc.details()}") from exc
        if deadline_s is not None and time.monotonic() >= deadline_s:
            raise BrokerAwayError(self._silence(exc)) from exc
        silence = self._silence(exc)
        if silence not in self._away:
            self._away.add(silence)
            log.warning("%s; waiting for it", silence)
        self._connection.refresh()

    def _silence(self, exc: grpc.RpcError) -> str:
        return self._connection.silence(exc)

    def _broker_answers(self) -> None:
        if self._away:
            self._away.clear()
            log.info("the broker at %s answers again", self.address)

    def _open(self, request: pb.AcquireLeaseRequest, grant: pb.Grant) -> Lease:
        terms = Terms(
            lease_id=request.lease_id,
            epoch=grant.epoch,
            holder=request.holder,
            operation=request.operation,
            units=grant.units,
            tokens=grant.tokens,
        )
        held = Lease(
            terms,
            ttl_s=seconds(grant.ttl),
            waited_s=seconds(grant.waited),
            settle=self._upkeep.settle,
        )
        self._upkeep.keep(held)
        return held

    def _abandon(self, request: pb.AcquireLeaseRequest) -> None:
        terms = Terms(
            lease_id=request.lease_id,
            epoch=0,
            holder=request.holder,
            operation=request.operation,
            units=request.units,
            tokens=0,
        )
        self._upkeep.settle_later(Settlement(terms, pb.OUTCOME_NOT_SENT, time.monotonic()))

    def _connectivity_changed(self, state: grpc.ChannelConnectivity) -> None:
        # Renewals wait for the connection, so they go out the moment it is back.
        if state is not grpc.ChannelConnectivity.READY:
            self._upkeep.renew_all_now()


def _about(request: pb.AcquireLeaseRequest) -> dict[str, str | int]:
    return {
        "lease": request.lease_id,
        "holder": request.holder,
        "operation": request.operation,
        "units": request.units,
    }


def _grant(answer: pb.AcquireLeaseResponse) -> pb.Grant:
    if answer.HasField("grant"):
        return answer.grant
    denial = answer.denial
    raise LeaseDeniedError(
        pb.DenialReason.Name(denial.reason).removeprefix("DENIAL_REASON_"),
        denial.message,
        retry_delay_s=seconds(denial.retry_delay),
        largest_units=denial.largest_units,
    )
