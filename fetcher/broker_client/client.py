"""The blocking client: acquires leases, hands them to upkeep, shows the bucket."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import grpc
from opentelemetry.trace import SpanKind

from fetcher.broker_client.connection import Connection
from fetcher.broker_client.errors import (
    BrokerAwayError,
    BrokerRefusedError,
    ClosedError,
    ForkedError,
    LeaseDeniedError,
    WaitCancelledError,
)
from fetcher.broker_client.lease import Lease
from fetcher.broker_client.tracing import spans, trace_context
from fetcher.broker_client.upkeep import Upkeep
from fetcher.broker_client.verdicts import Verdict, verdict
from fetcher.broker_client.waiting import Silence, Wait
from fetcher.broker_client.wire import (
    BucketView,
    Priority,
    abandonment,
    acquire_request,
    bucket_view,
    granted_terms,
    instance_name,
    mean_costs,
    seconds,
)
from protos.channel.access import Access
from protos.channel.reasons import reason_of
from protos.tokenbroker.v1 import token_broker_pb2 as pb

log = logging.getLogger(__name__)


class BrokerClient:
    """A connection to the broker at *address* (host:port); thread-safe.

    It belongs to the process that made it; a child process makes its own.

    Args:
        address: Where the broker listens.
        holder: Name of this process instance; shares are equal between holders.
        key_fingerprint: Short hash of the Keepa key; a broker with another key refuses.
        ttl_s: Length of a lease between renewals; None for the broker's default.
        access: TLS, certificates and token; without it plaintext, with no identity.

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
        access = access or Access()
        self._process = os.getpid()
        self._silence = Silence(address, access)
        self._connection = Connection(address, access)
        self._upkeep = Upkeep(self._connection)
        self._lock = threading.Lock()
        self._waits: set[grpc.CallFuture[pb.AcquireLeaseResponse]] = set()
        self._stopping = threading.Event()
        self._closed = False
        self._connection.on_loss(self._upkeep.renew_all_now)

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
        """Holds tokens for one call; waits for them, and for the broker, up to *max_wait_s*.

        Args:
            operation: Key of the learned cost, such as "deal" or "product?offers=20".
            units: Most pages or ASINs wanted.
            min_units: Fewest that are useful; 0 means all or nothing.
            tokens_per_unit: Assumed cost of a unit until the broker has learned it.
            priority: Class of the request.
            max_wait_s: Longest wait in seconds; None waits for ever.

        Raises:
            LeaseDeniedError: The broker denied the lease; the error has the time to retry.
            BrokerAwayError: The broker could not be reached within max_wait_s.
            WaitCancelledError: `stop_waiting` was called.
            BrokerRefusedError: A person must act; KeyMismatchError is one such.
            ForkedError: This is not the process that made the client.
        """
        self._check_process()
        request = acquire_request(
            holder=self.holder,
            operation=operation,
            units=units,
            min_units=min_units,
            tokens_per_unit=tokens_per_unit,
            priority=priority,
            key_fingerprint=self._key_fingerprint,
            ttl_s=self._ttl_s,
        )
        held = self._acquire(request, max_wait_s)
        try:
            yield held
        finally:
            held.settle_if_open()

    def get_bucket(self, *, timeout_s: float = 5.0) -> BucketView:
        """Returns the bucket as the broker counts it now.

        Raises:
            BrokerAwayError: No answer within *timeout_s* seconds, or the client is closed.
            BrokerRefusedError: The broker does not serve this client.
            ForkedError: This is not the process that made the client.
        """
        self._check_process()
        with self._read_errors():
            return bucket_view(self._find_bucket(timeout_s))

    def _find_bucket(self, timeout_s: float) -> pb.Bucket:
        """Returns the leader's bucket, or a standby's if no leader is found."""
        tries = self._connection.tries
        while True:
            tries -= 1
            try:
                answer = self._connection.stub.GetBucket(pb.GetBucketRequest(), timeout=timeout_s)
            except grpc.RpcError as exc:
                if not tries or not self._connection.is_elsewhere(exc):
                    raise
            else:
                if not tries or answer.bucket.state != pb.BUCKET_STATE_STANDBY:
                    return answer.bucket
            self._connection.try_next()

    def get_costs(self, *, timeout_s: float = 5.0) -> dict[str, float]:
        """Returns what calls have cost lately: mean tokens per unit, by operation.

        Raises:
            BrokerAwayError: No answer within *timeout_s* seconds, or the client is closed.
            BrokerRefusedError: The broker does not serve this client.
            ForkedError: This is not the process that made the client.
        """
        self._check_process()
        with self._read_errors():
            answer = self._connection.stub.ListCosts(pb.ListCostsRequest(), timeout=timeout_s)
        return mean_costs(answer.costs)

    @contextmanager
    def _read_errors(self) -> Iterator[None]:
        """Translates the errors of an RPC that only reads."""
        try:
            yield
        except ValueError:
            # gRPC's error for a channel that was closed, perhaps just now by another thread.
            if self._closed:
                raise ClosedError from None
            raise
        except grpc.RpcError as exc:
            if self._closed:
                raise ClosedError from exc
            if verdict(exc) in {Verdict.AGAIN, Verdict.FEW_TIMES}:
                raise BrokerAwayError(self._silence.reason(exc)) from exc
            raise BrokerRefusedError(
                f"the broker refuses: {exc.details()}", reason=reason_of(exc)
            ) from exc

    def stop_waiting(self) -> None:
        """Ends every wait for tokens now, and refuses new ones; open leases go on."""
        if os.getpid() != self._process:
            return
        self._stopping.set()
        with self._lock:
            waits = list(self._waits)
        for wait in waits:
            wait.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs lacks it

    def close(self, *, timeout_s: float = 2.0) -> None:
        """Stops waiting, delivers queued settles within *timeout_s*, disconnects.

        Does nothing in a process other than the client's own.
        """
        if os.getpid() != self._process:
            return
        self.stop_waiting()
        if left := self._upkeep.close(timeout_s):
            log.warning("%d settles could not be delivered to the broker", left)
        self._closed = True
        self._connection.close()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkedError

    def _acquire(self, request: pb.AcquireLeaseRequest, max_wait_s: float | None) -> Lease:
        deadline_s = None if max_wait_s is None else time.monotonic() + max_wait_s
        wait = Wait(request, deadline_s, self._silence)
        try:
            with spans.begin("wait", kind=SpanKind.CLIENT, attributes=wait.about) as span:
                grant = self._granted(wait)
                span.set_attribute("tokens", grant.tokens)
        except (LeaseDeniedError, BrokerRefusedError):
            raise
        except BaseException:
            # A grant may be on its way to this client: its tokens must not stay held.
            self._upkeep.settle_later(abandonment(request, time.monotonic(), None))
            raise
        held = Lease(
            granted_terms(request, grant, None),
            ttl_s=seconds(grant.ttl),
            waited_s=seconds(grant.waited),
            settle=self._upkeep.settle,
        )
        self._upkeep.keep(held)
        return held

    def _granted(self, wait: Wait) -> pb.Grant:
        """Repeats the request while the broker is away; the same id joins the same wait."""
        while True:
            turn = self._connection.turn
            try:
                return wait.grant(self._ask(wait))
            except grpc.FutureCancelledError:
                raise WaitCancelledError("the wait for tokens was cancelled") from None
            except grpc.RpcError as exc:
                pause_s = wait.failed(exc, time.monotonic())
                self._upkeep.refresh(turn, exc)
            if self._stopping.wait(pause_s):
                raise WaitCancelledError("the wait for the broker was cancelled")

    def _ask(self, wait: Wait) -> pb.AcquireLeaseResponse:
        with self._lock:
            if self._stopping.is_set():
                raise WaitCancelledError("this client has stopped waiting for tokens")
            timeout_s = wait.timeout_s(time.monotonic())
            call = self._connection.stub.AcquireLease.future(
                wait.request, timeout=timeout_s, metadata=trace_context()
            )
            self._waits.add(call)
        try:
            return call.result()
        finally:
            with self._lock:
                self._waits.discard(call)
            call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs lacks it
