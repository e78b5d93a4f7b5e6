"""The asyncio client: the verbs and guarantees of `BrokerClient`, for one event loop.

Both clients share the decisions (`waiting.py`, `duties.py`, `lease.py`); this module awaits.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import grpc
from opentelemetry.trace import SpanKind

from fetcher.broker_client.connection import AsyncConnection
from fetcher.broker_client.duties import (
    FIRST_SETTLE_TIMEOUT_S,
    RETRY_PAUSE_S,
    RETRY_TIMEOUT_S,
    Duties,
)
from fetcher.broker_client.errors import (
    BrokerAwayError,
    BrokerRefusedError,
    ClosedError,
    ForkedError,
    LeaseDeniedError,
    WaitCancelledError,
)
from fetcher.broker_client.lease import AsyncLease, HeldLease
from fetcher.broker_client.tracing import spans, trace_context
from fetcher.broker_client.verdicts import Verdict, verdict
from fetcher.broker_client.waiting import Silence, Wait
from fetcher.broker_client.wire import (
    BucketView,
    CallerView,
    OnBehalf,
    Priority,
    Settlement,
    abandonment,
    acquire_request,
    bucket_view,
    granted_terms,
    instance_name,
    renewal,
    seconds,
)
from protos.channel.access import Access
from protos.channel.reasons import reason_of
from protos.tokenbroker.v1 import token_broker_pb2 as pb

log = logging.getLogger(__name__)


class AsyncBrokerClient:
    """A connection to the broker at *address* (host:port); make it where the loop runs.

    It belongs to its event loop, and to the process that made it.

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
        self._connection = AsyncConnection(address, access)
        self._duties = Duties()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._waits: set[Any] = set()
        self._closing = False
        self._flush_until_s = 0.0
        self._logged: set[type[Exception]] = set()
        # The loop keeps weak references only.
        self._keeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._first_settles: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def lease(
        self,
        operation: str,
        *,
        units: int = 1,
        min_units: int = 0,
        tokens_per_unit: float = 1.0,
        priority: Priority = Priority.NORMAL,
        max_wait_s: float | None = None,
        absence_max_s: float | None = None,
        behalf: OnBehalf | None = None,
    ) -> AsyncIterator[AsyncLease]:
        """Holds tokens for one call; see `BrokerClient.lease`.

        A cancelled wait leaves no hold; the end of a cancelled block settles its lease.
        *absence_max_s* bounds the time for which the broker may be away, within max_wait_s.
        With *behalf* the lease is that caller's: its holder, and its token in every call.

        Raises:
            LeaseDeniedError: The broker denied the lease; the error has the time to retry.
            BrokerAwayError: The broker could not be reached within max_wait_s or absence_max_s.
            WaitCancelledError: `stop_waiting` was called.
            BrokerRefusedError: A person must act; KeyMismatchError is one such.
            ForkedError: This is not the process that made the client.
        """
        self._check_process()
        if self._keeper is None and not self._closing:
            self._keeper, self._watcher = _task(self._keep_up()), _task(self._watch())
        request = acquire_request(
            holder=behalf.holder if behalf else self.holder,
            operation=operation,
            units=units,
            min_units=min_units,
            tokens_per_unit=tokens_per_unit,
            priority=priority,
            key_fingerprint=self._key_fingerprint,
            ttl_s=self._ttl_s,
        )
        deadline_s = None if max_wait_s is None else time.monotonic() + max_wait_s
        wait = Wait(request, deadline_s, self._silence, absence_max_s=absence_max_s)
        held = await self._acquire(wait, behalf)
        try:
            yield held
        finally:
            await held.settle_if_open()

    async def get_caller(self, behalf: OnBehalf, *, timeout_s: float = 5.0) -> CallerView:
        """Returns the identity that the broker finds for a caller's token.

        Raises:
            BrokerAwayError: No answer within *timeout_s* seconds, or the client is closed.
            BrokerRefusedError: The broker has no identity for the token.
            ForkedError: This is not the process that made the client.
        """
        answer = await self._read(
            self._connection.stub.GetCaller, pb.GetCallerRequest(), behalf, timeout_s
        )
        return CallerView(answer.identity, answer.role)

    async def get_bucket(
        self, *, timeout_s: float = 5.0, behalf: OnBehalf | None = None
    ) -> BucketView:
        """Returns the bucket as the broker counts it now, with *behalf* if it may see it.

        Raises:
            BrokerAwayError: No answer within *timeout_s* seconds, or the client is closed.
            BrokerRefusedError: The broker does not serve this client.
            ForkedError: This is not the process that made the client.
        """
        tries = self._connection.tries
        while True:
            tries -= 1
            call = self._connection.stub.GetBucket
            try:
                answer = await self._read(call, pb.GetBucketRequest(), behalf, timeout_s)
            except ClosedError:
                raise
            except BrokerAwayError as exc:
                cause = exc.__cause__
                assert isinstance(cause, grpc.RpcError)
                if not tries or not self._connection.is_elsewhere(cause):
                    raise
            else:
                if not tries or answer.bucket.state != pb.BUCKET_STATE_STANDBY:
                    return bucket_view(answer.bucket)
            self._connection.try_next()
            self._follow_channel()

    async def _read(
        self, method: Any, request: Any, behalf: OnBehalf | None, timeout_s: float
    ) -> Any:
        self._check_process()
        if self._closing:
            raise ClosedError
        metadata = behalf.metadata if behalf else ()
        try:
            return await method(request, timeout=timeout_s, metadata=metadata)
        except asyncio.CancelledError:
            # A channel that closes cancels its calls, but not the task that waits for one.
            task = asyncio.current_task()
            if self._closing and task is not None and not task.cancelling():
                raise ClosedError from None
            raise
        except grpc.RpcError as exc:
            if verdict(exc) in {Verdict.AGAIN, Verdict.FEW_TIMES}:
                raise BrokerAwayError(self._silence.reason(exc)) from exc
            raise BrokerRefusedError(
                f"the broker refuses: {exc.details()}", reason=reason_of(exc)
            ) from exc

    def stop_waiting(self) -> None:
        """Ends every wait for tokens now, and refuses new ones; open leases go on."""
        self._stopping.set()
        for call in list(self._waits):
            call.cancel()

    async def close(self, *, timeout_s: float = 2.0) -> None:
        """Stops waiting, delivers queued settles within *timeout_s*, disconnects.

        Does nothing in a process other than the client's own.
        """
        if os.getpid() != self._process:
            return
        self.stop_waiting()
        self._flush_until_s = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        # Upkeep ends by itself: a settle that is cut off would be sent twice.
        if self._keeper is not None:
            await asyncio.wait([self._keeper, *self._first_settles])
            while self._duties.settles_left and time.monotonic() < self._flush_until_s:
                await self._survive(self._deliver())
        if self._watcher is not None:
            self._watcher.cancel()
        if left := self._duties.settles_left:
            log.warning("%d settles could not be delivered to the broker", left)
        await self._connection.close()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkedError

    # --- waiting -------------------------------------------------------------

    async def _acquire(self, wait: Wait, behalf: OnBehalf | None) -> AsyncLease:
        try:
            with spans.begin("wait", kind=SpanKind.CLIENT, attributes=wait.about) as span:
                grant = await self._granted(wait, behalf)
                span.set_attribute("tokens", grant.tokens)
        except (LeaseDeniedError, BrokerRefusedError):
            raise
        except BaseException:
            # A grant may be on its way to this client: its tokens must not stay held.
            self._settle_later(abandonment(wait.request, time.monotonic(), behalf))
            raise
        held = AsyncLease(
            granted_terms(wait.request, grant, behalf),
            ttl_s=seconds(grant.ttl),
            waited_s=seconds(grant.waited),
            settle=self._settle,
        )
        if self._duties.keep(held):
            self._wake.set()
        return held

    async def _granted(self, wait: Wait, behalf: OnBehalf | None) -> pb.Grant:
        """Repeats the request while the broker is away; the same id joins the same wait."""
        while True:
            turn = self._connection.turn
            try:
                return wait.grant(await self._ask(wait, behalf))
            except grpc.RpcError as exc:
                pause_s = wait.failed(exc, time.monotonic())
                self._refresh(turn, exc)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                raise WaitCancelledError("the wait for the broker was cancelled")

    async def _ask(self, wait: Wait, behalf: OnBehalf | None) -> pb.AcquireLeaseResponse:
        if self._stopping.is_set():
            raise WaitCancelledError("this client has stopped waiting for tokens")
        timeout_s = wait.timeout_s(time.monotonic())
        call = self._connection.stub.AcquireLease(
            wait.request,
            timeout=timeout_s,
            metadata=(*trace_context(), *(behalf.metadata if behalf else ())),
        )
        self._waits.add(call)
        try:
            answer: pb.AcquireLeaseResponse = await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._stopping.is_set() and task is not None and not task.cancelling():
                # The call was cancelled, not its caller.
                raise WaitCancelledError("the wait for tokens was cancelled") from None
            raise
        finally:
            self._waits.discard(call)
        return answer

    # --- upkeep --------------------------------------------------------------

    async def _keep_up(self) -> None:
        """Renews open leases, and repeats settles until the broker takes them."""
        while not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._duties.pause_s()):
                    await self._wake.wait()
            self._wake.clear()
            await self._survive(self._renew_due())
            await self._survive(self._deliver())

    async def _survive(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits *work*; logs an unexpected error once, and does not end the upkeep for it.

        Without upkeep, leases lapse under their calls, and their costs are never reported.
        """
        try:
            await work
        except Exception as exc:
            if type(exc) not in self._logged:
                self._logged.add(type(exc))
                log.exception("unexpected error in the upkeep of leases: trying again")
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _watch(self) -> None:
        """Renews all leases whenever the connection is lost: the broker may be a new one."""
        channel, ready = self._connection.channel, grpc.ChannelConnectivity.READY
        while True:
            before = channel.get_state()
            await channel.wait_for_state_change(before)
            if before is ready:
                self._duties.renew_all()
                self._wake.set()

    async def _renew_due(self) -> None:
        now_s = time.monotonic()
        due = self._duties.due(now_s)
        # Sent together: a renewal that hangs must not let the other leases lapse.
        await asyncio.gather(*(self._survive(self._renew(lease, now_s)) for lease in due))

    async def _renew(self, lease: HeldLease, now_s: float) -> None:
        turn = self._connection.turn
        try:
            answer = await self._connection.stub.RenewLease(
                renewal(lease.terms, lease.ttl_s),
                timeout=RETRY_TIMEOUT_S,
                metadata=lease.terms.metadata,
                wait_for_ready=True,
            )
        except grpc.RpcError as exc:
            self._duties.renewal_failed(lease, exc)
            self._refresh(turn, exc)
        else:
            self._duties.renewed(lease, answer, asked_at_s=now_s)

    async def _settle(self, lease: HeldLease, settlement: Settlement) -> None:
        """Ends *lease*, even if its caller is cancelled meanwhile."""
        self._duties.ended(lease)
        task = _task(self._settle_first(settlement))
        self._first_settles.add(task)
        task.add_done_callback(self._first_settles.discard)
        await asyncio.shield(task)

    async def _settle_first(self, settlement: Settlement) -> None:
        try:
            is_over = await self._send(settlement, FIRST_SETTLE_TIMEOUT_S, wait_for_ready=False)
        except Exception:
            # The caller holds a reply that was paid for: it must go on.
            log.exception("unexpected error in a settle: trying again")
            is_over = False
        if not is_over:
            self._settle_later(settlement)

    def _settle_later(self, settlement: Settlement) -> None:
        self._duties.settle_later(settlement)
        self._wake.set()

    async def _deliver(self) -> None:
        """Sends queued settles in order until the broker does not take one."""
        while (settlement := self._duties.next_settlement()) is not None:
            try:
                taken = await self._send(settlement, RETRY_TIMEOUT_S, wait_for_ready=True)
            except Exception:
                # Kept behind the others, which it must not block.
                self._duties.settle_later(settlement)
                raise
            except BaseException:
                # A cancelled settle has not been taken either.
                self._duties.settle_later(settlement, first=True)
                raise
            if not taken:
                self._duties.settle_later(settlement, first=True)
                return

    async def _send(
        self, settlement: Settlement, timeout_s: float, *, wait_for_ready: bool
    ) -> bool:
        """Returns whether the broker has given its final answer to *settlement*."""
        turn = self._connection.turn
        try:
            await self._connection.stub.SettleLease(
                settlement.request(time.monotonic()),
                timeout=timeout_s,
                metadata=(*settlement.trace, *settlement.terms.metadata),
                wait_for_ready=wait_for_ready,
            )
        except grpc.RpcError as exc:
            self._refresh(turn, exc)
            return self._duties.settle_is_over(settlement, exc)
        return self._duties.settle_is_over(settlement, None)

    def _refresh(self, turn: int, exc: grpc.RpcError) -> None:
        """Follows the leader after a call in *turn* of the connection that failed with *exc*."""
        # New certificates are a few small files, read in the loop: only a failed call
        # leads here.
        if self._connection.refresh(turn, exc):
            self._follow_channel()

    def _follow_channel(self) -> None:
        """Watches the new channel; its broker may have no lease yet, so all are renewed soon."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = _task(self._watch())
        self._duties.renew_all(time.monotonic() + RETRY_PAUSE_S)
        self._wake.set()


def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)
