"""The gRPC service: each RPC validates, takes one step of the runtime, and translates.

Statuses: INVALID_ARGUMENT names the field; FAILED_PRECONDITION, NOT_FOUND and
ALREADY_EXISTS concern the lease; UNAVAILABLE means to try again. Every error carries
`tokenbroker-reason` in its trailing metadata. With an identities file, the broker puts
the caller's identity before the holder, and refuses calls on another identity's lease.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import grpc
import structlog
from msgspec.structs import replace
from opentelemetry import trace

from broker.access.identities import RefusedError, caller, still_let_in
from broker.core.errors import (
    BrokerError,
    LeaseConflictError,
    LeaseEndedError,
    LeaseNotFoundError,
    LeaseTooOldError,
    LimitReachedError,
)
from broker.core.leases import Denied, Granted, LeaseRequest, Renewal, Settlement
from broker.keepa_status import KeepaSyncError
from broker.rpc import replies, requests, stories
from broker.rpc.gate import STATUSES as GATE_STATUSES
from broker.rpc.gate import RefusalLog
from broker.rpc.requests import InvalidRequestError
from broker.runtime import BrokerRuntime, BrokerStoppingError, NotLeadingError
from broker.telemetry.metrics import BrokerMetrics
from protos.channel.reasons import LEADER_KEY, REASON_KEY, Reason
from protos.postgres.errors import DatabaseError
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    # A broker without a database does without the driver's memory.
    from broker.journal.journal import Journal

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Code = grpc.StatusCode
Call = TypeVar("Call", LeaseRequest, Renewal, Settlement)

STATUSES: Final = {
    InvalidRequestError: (Code.INVALID_ARGUMENT, Reason.INVALID_ARGUMENT),
    LeaseNotFoundError: (Code.NOT_FOUND, Reason.LEASE_NOT_FOUND),
    LeaseConflictError: (Code.ALREADY_EXISTS, Reason.LEASE_CONFLICT),
    LeaseEndedError: (Code.FAILED_PRECONDITION, Reason.LEASE_ENDED),
    LeaseTooOldError: (Code.FAILED_PRECONDITION, Reason.LEASE_TOO_OLD),
    LimitReachedError: (Code.RESOURCE_EXHAUSTED, Reason.LIMIT_REACHED),
    BrokerStoppingError: (Code.UNAVAILABLE, Reason.STOPPING),
}

# The answer leaves this long before the deadline, so that it arrives in time. A short
# deadline loses no more than a quarter to that.
DEADLINE_MARGIN_MS: Final = 250
WATCH_MIN_INTERVAL_MS: Final = 250
# Lower requests are raised to it: without it, one watcher takes most of a core.
WATCH_LEAST_INTERVAL_MS: Final = 50
WATCH_MAX_INTERVAL_MS: Final = 1_000
PAGE_SIZE: Final = 100
PAGE_SIZE_MAX: Final = 1_000


class NoJournalError(Exception):
    """The broker keeps no journal."""

    def __init__(self) -> None:
        super().__init__(
            "this broker keeps no journal: set BROKER_DATABASE_URL for it, and restart it"
        )


class refusals:  # noqa: N801 - a context manager, which costs a call less than a generator's
    """Converts the broker's exceptions to a status with a reason."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    async def __aenter__(self) -> None:
        """Nothing."""

    async def __aexit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        """Ends the RPC with the status of *exc*, if it is an error of the broker's."""
        if exc is not None:
            await refuse_for(exc, self._context)


async def refuse_for(exc: BaseException, context: Context) -> None:
    """Ends the RPC with the status of *exc*; returns if that is no error of the broker's."""
    match exc:
        case BrokerError() | InvalidRequestError() | BrokerStoppingError():
            code, reason = STATUSES[type(exc)]
            await refuse(context, code, str(exc), reason)
        case NotLeadingError():
            about = {LEADER_KEY: exc.leader} if exc.leader else {}
            await refuse(context, Code.UNAVAILABLE, str(exc), Reason.NOT_LEADER, **about)
        case RefusedError():
            await refuse(context, GATE_STATUSES[exc.reason], str(exc), exc.reason.value)
        case KeepaSyncError():
            await refuse(context, Code.UNAVAILABLE, str(exc), exc.failure)
        case NoJournalError():
            await refuse(context, Code.FAILED_PRECONDITION, str(exc), Reason.NO_JOURNAL)
        case DatabaseError():
            message = f"the journal can't be read: {exc}"
            await refuse(context, Code.UNAVAILABLE, message, Reason.JOURNAL_AWAY)


async def refuse(
    context: Context, code: grpc.StatusCode, message: str, reason: str, **about: str
) -> None:
    """Ends the RPC with *code*, and *about* as further metadata; never returns."""
    metadata = ((REASON_KEY, str(reason)), *about.items())
    await context.abort(code, message, trailing_metadata=metadata)


def patience_ms(context: Context) -> int | None:
    """Time until the answer must leave, in milliseconds; None without a deadline."""
    remaining_s: float | None = context.time_remaining()
    if remaining_s is None:
        return None
    remaining_ms = int(remaining_s * 1000)
    return max(0, remaining_ms - min(DEADLINE_MARGIN_MS, remaining_ms // 4))


class TokenBrokerService(pb_grpc.TokenBrokerServiceServicer):
    """The contract's RPCs over one runtime."""

    def __init__(
        self,
        runtime: BrokerRuntime,
        metrics: BrokerMetrics,
        *,
        key_fingerprint: str,
        ttl: requests.Ttl = requests.DEFAULT_TTL,
        traced: bool = False,
    ) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._fingerprint = key_fingerprint
        self._refusals = RefusalLog()
        self._ttl = ttl
        # Whether a span or a log line takes what happens to a lease: both are costly to build.
        self._watched = traced or logging.getLogger(__name__).isEnabledFor(logging.DEBUG)

    async def AcquireLease(  # noqa: N802 - gRPC's name
        self, request: pb.AcquireLeaseRequest, context: Context
    ) -> pb.AcquireLeaseResponse:
        """Waits for tokens; see the contract."""
        async with refusals(context):
            wanted = requests.lease_request(
                request,
                now_ms=self._runtime.now_ms(),
                patience_ms=patience_ms(context),
                ttl=self._ttl,
            )
            wanted = self._signed(wanted)
            key = request.key_fingerprint
            if key and key != self._fingerprint:
                # The bucket of another key is not the broker's to lease.
                message = (
                    f"the client uses another Keepa key ({key}) than the broker"
                    f" ({self._fingerprint}): give both the same KEEPA_API_KEY"
                )
                await refuse(context, Code.FAILED_PRECONDITION, message, Reason.OTHER_KEY)
            outcome = await self._runtime.acquire(wanted, still_let_in.get())
        if isinstance(outcome, Granted):
            self._metrics.granted(wanted.priority, outcome.waited_ms)
        if self._watched:
            self._note_answer(wanted, outcome)
        return replies.answer(outcome, self._runtime.now_ms())

    async def RenewLease(  # noqa: N802 - gRPC's name
        self, request: pb.RenewLeaseRequest, context: Context
    ) -> pb.RenewLeaseResponse:
        """Prolongs a lease; see the contract."""
        async with refusals(context):
            renewal = requests.renewal(request, self._ttl)
            lease, ttl_ms = self._runtime.renew(self._signed(renewal))
        return pb.RenewLeaseResponse(epoch=lease.epoch, ttl=replies.duration(ttl_ms))

    async def SettleLease(  # noqa: N802 - gRPC's name
        self, request: pb.SettleLeaseRequest, context: Context
    ) -> pb.SettleLeaseResponse:
        """Ends a lease; see the contract."""
        async with refusals(context):
            settlement = self._signed(requests.settlement(request))
            settled = self._runtime.settle(settlement)
            await self._runtime.recorded()
        self._metrics.settled(settlement, settled)
        if self._watched:
            about = {
                "outcome": settlement.outcome.value,
                "tokens": settled.cost_tokens or 0,
                "late": settled.late,
            }
            self._note("lease settled", settlement, about)
        return pb.SettleLeaseResponse(late=settled.late)

    async def GetCaller(  # noqa: N802 - gRPC's name
        self, _request: pb.GetCallerRequest, _context: Context
    ) -> pb.GetCallerResponse:
        """The identity behind the call."""
        identity = caller.get()
        if identity is None:
            return pb.GetCallerResponse()
        return pb.GetCallerResponse(identity=identity.name, role=identity.role.value)

    async def GetBucket(  # noqa: N802 - gRPC's name
        self, _request: pb.GetBucketRequest, _context: Context
    ) -> pb.GetBucketResponse:
        """The bucket now."""
        return pb.GetBucketResponse(bucket=self._bucket())

    async def WatchBucket(  # noqa: N802 - gRPC's name
        self, request: pb.WatchBucketRequest, context: Context
    ) -> AsyncIterator[pb.WatchBucketResponse]:
        """Streams the bucket after each change, between the two intervals of the request."""
        async with refusals(context):
            asked_ms = requests.interval_ms(request, "min_interval", WATCH_MIN_INTERVAL_MS)
            least_ms = max(asked_ms, WATCH_LEAST_INTERVAL_MS)
            most_ms = requests.interval_ms(request, "max_interval", WATCH_MAX_INTERVAL_MS)
            with self._runtime.watching() as changed:
                while not self._runtime.stopping:
                    yield pb.WatchBucketResponse(bucket=self._bucket())
                    changed.clear()
                    await asyncio.sleep(least_ms / 1000)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(0, most_ms - least_ms) / 1000):
                            await changed.wait()
            raise BrokerStoppingError

    async def ListLeases(  # noqa: N802 - gRPC's name
        self, request: pb.ListLeasesRequest, context: Context
    ) -> pb.ListLeasesResponse:
        """Lists leases and waiting requests in pages."""
        async with refusals(context):
            start, size = requests.page(request, size=PAGE_SIZE, size_max=PAGE_SIZE_MAX)
        # One entry more than the page holds shows whether another page follows.
        most = start + size + 1
        leases = self._runtime.leases(most)
        waits = self._runtime.waiting(most - len(leases))
        return replies.page(leases, waits, self._runtime.now_ms(), start=start, size=size)

    async def ListCosts(  # noqa: N802 - gRPC's name
        self, _request: pb.ListCostsRequest, _context: Context
    ) -> pb.ListCostsResponse:
        """Lists what calls have cost lately."""
        return replies.costs(self._runtime.allocator.costs.learned())

    async def ExplainLease(  # noqa: N802 - gRPC's name
        self, request: pb.ExplainLeaseRequest, context: Context
    ) -> pb.ExplainLeaseResponse:
        """Returns the story of a lease, or of a holder."""
        async with refusals(context):
            requests.story(request)
            start, size = requests.page(request, size=PAGE_SIZE, size_max=PAGE_SIZE_MAX)
            lease_id, holder, most = request.lease_id, request.holder, size + 1
            told = await self._journal().ask(
                lambda reader: reader.story(
                    lease_id=lease_id, holder=holder, start=start, most=most
                )
            )
        return stories.story(told, start=start, size=size)

    async def ListSpend(  # noqa: N802 - gRPC's name
        self, request: pb.ListSpendRequest, context: Context
    ) -> pb.ListSpendResponse:
        """Sums up the tokens spent."""
        async with refusals(context):
            by, since_ms = requests.spend(request)
            start, size = requests.page(request, size=PAGE_SIZE, size_max=PAGE_SIZE_MAX)
            total, rows = await self._journal().ask(
                lambda reader: reader.spend(by, since_ms=since_ms, start=start, most=size + 1)
            )
        return stories.spend(total, rows, start=start, size=size)

    def _journal(self) -> "Journal":
        """The journal.

        Raises:
            NoJournalError: there is none.
        """
        if self._runtime.journal is None:
            raise NoJournalError
        return self._runtime.journal

    async def SyncBucket(  # noqa: N802 - gRPC's name
        self, _request: pb.SyncBucketRequest, context: Context
    ) -> pb.SyncBucketResponse:
        """Asks Keepa now."""
        async with refusals(context):
            await self._runtime.sync()
        return pb.SyncBucketResponse(bucket=self._bucket())

    async def PauseGrants(  # noqa: N802 - gRPC's name
        self, _request: pb.PauseGrantsRequest, context: Context
    ) -> pb.PauseGrantsResponse:
        """Stops granting."""
        async with refusals(context):
            self._runtime.pause(_caller_name(context))
        log.info("granting paused", by=_caller_name(context))
        return pb.PauseGrantsResponse(bucket=self._bucket())

    async def ResumeGrants(  # noqa: N802 - gRPC's name
        self, _request: pb.ResumeGrantsRequest, context: Context
    ) -> pb.ResumeGrantsResponse:
        """Resumes granting."""
        async with refusals(context):
            self._runtime.resume(_caller_name(context))
        log.info("granting resumed", by=_caller_name(context))
        return pb.ResumeGrantsResponse(bucket=self._bucket())

    def _signed(self, call: Call) -> Call:
        """*call* under its caller's identity, if there is one.

        Raises:
            RefusedError: the lease belongs to another identity.
        """
        identity = caller.get()
        if identity is None:
            return call
        holder = self._runtime.holder(call.lease_id)
        if holder is not None and not identity.owns(holder):
            self._metrics.refused(Reason.FOREIGN_LEASE)
            self._refusals.note(
                Reason.FOREIGN_LEASE, identity.name, self._runtime.now_ms(), holder=holder
            )
            raise RefusedError(
                Reason.FOREIGN_LEASE,
                f"lease {call.lease_id!r} is not {identity.name}'s: use the credentials that"
                " acquired it",
            )
        call = replace(call, holder=identity.signed(call.holder))
        if isinstance(call, LeaseRequest):
            call = replace(call, priority=identity.capped(call.priority))
        return call

    def _bucket(self) -> pb.Bucket:
        return replies.bucket(
            self._runtime.bucket(),
            self._runtime.allocator.ledger.totals,
            floor_tokens=self._runtime.allocator.config.floor_tokens,
            max_debt_tokens=self._runtime.allocator.quotes.debt_tokens,
            fingerprint=self._fingerprint,
            trouble=str(self._runtime.probes.trouble or ""),
            budgets_trouble=self._runtime.budgets_trouble,
            journal=self._runtime.journal_status,
            leader=self._runtime.leader,
        )

    def _note_answer(self, wanted: LeaseRequest, outcome: Granted | Denied) -> None:
        if isinstance(outcome, Granted):
            about = {"tokens": outcome.lease.tokens, "waited_ms": outcome.waited_ms}
            self._note("lease granted", wanted, about)
        else:
            self._note("lease denied", wanted, {"reason": outcome.reason.value})

    @staticmethod
    def _note(event: str, call: LeaseRequest | Settlement, about: Mapping[str, str | int]) -> None:
        whole = {
            "lease": call.lease_id,
            "holder": call.holder,
            "operation": call.operation,
            **about,
        }
        trace.get_current_span().set_attributes(whole)
        log.debug(event, **whole)


def _caller_name(context: Context) -> str:
    identity = caller.get()
    return f"{identity.name} at {context.peer()}" if identity else context.peer()
