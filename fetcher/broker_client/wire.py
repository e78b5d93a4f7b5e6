"""Conversions between plain values and the messages of tokenbroker.v1."""

import os
import socket
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from fetcher.broker_client.tracing import trace_context
from fetcher.replies.envelope import Envelope
from protos.tokenbroker.v1 import token_broker_pb2 as pb

NANOS_PER_S: Final = 10**9


class Priority(Enum):
    """Class of a request; the classes share tokens 8 : 4 : 1."""

    HIGH = pb.PRIORITY_HIGH
    NORMAL = pb.PRIORITY_NORMAL
    LOW = pb.PRIORITY_LOW


@dataclass(frozen=True, slots=True)
class OnBehalf:
    """The caller for which a program leases tokens, as a gateway does.

    *holder* takes the place of the client's own name. *token* is the caller's bearer token:
    the broker judges the caller and not the program.
    """

    holder: str
    token: str = field(default="", repr=False)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of calls for this caller."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass(frozen=True, slots=True)
class CallerView:
    """An identity of the broker's file; both are empty at a broker without identities."""

    identity: str
    role: str


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a grant; every later message about the lease repeats them."""

    lease_id: str
    epoch: int
    holder: str
    operation: str
    units: int
    tokens: int
    # Of the caller's token, if the lease is on behalf of one.
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Settlement:
    """How one lease ended; *ended_at_s* is this process's monotonic clock."""

    terms: Terms
    outcome: pb.Outcome.ValueType
    ended_at_s: float
    envelope: Envelope | None = None
    call_duration_s: float | None = None
    # A settlement that is sent late still belongs to the trace in which it was made.
    trace: tuple[tuple[str, str], ...] = field(default_factory=trace_context)

    def request(self, now_s: float) -> pb.SettleLeaseRequest:
        """Returns the message as of *now_s*: the envelope's age grows while it waits."""
        envelope, call_s = self.envelope, self.call_duration_s
        return pb.SettleLeaseRequest(
            lease_id=self.terms.lease_id,
            epoch=self.terms.epoch,
            holder=self.terms.holder,
            operation=self.terms.operation,
            units=self.terms.units,
            tokens=self.terms.tokens,
            outcome=self.outcome,
            envelope=None if envelope is None else _envelope(envelope, now_s - self.ended_at_s),
            call_duration=None if call_s is None else duration(call_s),
        )


@dataclass(frozen=True, slots=True)
class BucketView:
    """The broker's bucket at one instant; plain counts are tokens."""

    balance: int
    reserved: int
    available: int
    capacity: int
    refill_rate: int
    next_refill_in_s: float
    refill_period_s: float
    observed_tokens: int
    observed_age_s: float
    drift_tokens: int
    foreign_tokens: int
    open_leases: int
    waiting: int
    epoch: int
    state: str
    key_fingerprint: str
    spent_tokens: int


def bucket_view(bucket: pb.Bucket) -> BucketView:
    """Returns a plain copy of *bucket*; *state* is the enum's last word in lower case."""
    state = pb.BucketState.Name(bucket.state).removeprefix("BUCKET_STATE_").lower()
    return BucketView(
        balance=bucket.balance,
        reserved=bucket.reserved,
        available=bucket.available,
        capacity=bucket.capacity,
        refill_rate=bucket.refill_rate,
        next_refill_in_s=seconds(bucket.next_refill_in),
        refill_period_s=seconds(bucket.refill_period),
        observed_tokens=bucket.last_observation.tokens_left,
        observed_age_s=seconds(bucket.last_observation.age),
        drift_tokens=bucket.drift_tokens,
        foreign_tokens=bucket.foreign_tokens,
        open_leases=bucket.open_leases,
        waiting=bucket.waiting,
        epoch=bucket.epoch,
        state=state,
        key_fingerprint=bucket.key_fingerprint,
        spent_tokens=bucket.totals.spent_tokens,
    )


def mean_costs(costs: Iterable[pb.OperationCost]) -> dict[str, float]:
    """Returns the mean cost of a unit by operation, over batches of every size."""
    tokens: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for cost in costs:
        # Counter holds floats as well; its type does not show that.
        tokens[cost.operation] += cost.tokens_per_unit * cost.calls  # type: ignore[assignment]
        calls[cost.operation] += cost.calls
    return {operation: tokens[operation] / count for operation, count in calls.items() if count}


def _envelope(envelope: Envelope, age_s: float) -> pb.Envelope:
    server_time = Timestamp()
    server_time.FromMilliseconds(envelope.server_time_ms)
    return pb.Envelope(
        server_time=server_time,
        processing_time=duration(envelope.processing_ms / 1000),
        tokens_left=envelope.tokens_left,
        tokens_consumed=envelope.tokens_consumed,
        refill_in=duration(envelope.refill_in_ms / 1000),
        refill_rate=envelope.refill_rate,
        token_flow_reduction=envelope.token_flow_reduction,
        age=duration(age_s),
    )


def instance_name() -> str:
    """Returns a name for this process instance: readable, and never reused."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def acquire_request(
    *,
    holder: str,
    operation: str,
    units: int,
    min_units: int,
    tokens_per_unit: float,
    priority: Priority,
    key_fingerprint: str,
    ttl_s: float | None,
) -> pb.AcquireLeaseRequest:
    """Returns a request under a new id."""
    request = pb.AcquireLeaseRequest(
        lease_id=str(uuid.uuid4()),
        holder=holder,
        operation=operation,
        units=units,
        min_units=min_units,
        tokens_per_unit=tokens_per_unit,
        priority=priority.value,
        key_fingerprint=key_fingerprint,
    )
    if ttl_s is not None:
        request.ttl.CopyFrom(duration(ttl_s))
    return request


def granted_terms(
    request: pb.AcquireLeaseRequest, grant: pb.Grant, behalf: OnBehalf | None
) -> Terms:
    """Returns the terms of *grant* for *request*."""
    return Terms(
        lease_id=request.lease_id,
        epoch=grant.epoch,
        holder=request.holder,
        operation=request.operation,
        units=grant.units,
        tokens=grant.tokens,
        metadata=behalf.metadata if behalf else (),
    )


def abandonment(
    request: pb.AcquireLeaseRequest, now_s: float, behalf: OnBehalf | None
) -> Settlement:
    """Returns the settlement that ends the id of an abandoned request, granted or not."""
    terms = Terms(
        lease_id=request.lease_id,
        epoch=0,
        holder=request.holder,
        operation=request.operation,
        units=request.units,
        tokens=0,
        metadata=behalf.metadata if behalf else (),
    )
    return Settlement(terms, pb.OUTCOME_NOT_SENT, now_s)


def renewal(terms: Terms, ttl_s: float) -> pb.RenewLeaseRequest:
    """Returns a heartbeat from which a restarted broker can adopt the lease."""
    return pb.RenewLeaseRequest(
        lease_id=terms.lease_id,
        epoch=terms.epoch,
        holder=terms.holder,
        operation=terms.operation,
        units=terms.units,
        tokens=terms.tokens,
        ttl=duration(ttl_s),
    )


def duration(value_s: float) -> Duration:
    """Returns *value_s* seconds as a Duration; negative counts as zero."""
    # Several times faster than Duration.FromTimedelta.
    whole_s, nanos = divmod(max(0, round(value_s * NANOS_PER_S)), NANOS_PER_S)
    return Duration(seconds=whole_s, nanos=nanos)


def seconds(message: Duration) -> float:
    """Returns a Duration in seconds."""
    return message.seconds + message.nanos / NANOS_PER_S
