"""Converts protobuf requests to those of the core; refuses invalid fields.

A `Duration` becomes integer milliseconds.
"""

from math import isfinite
from typing import Final, NamedTuple

from google.protobuf.duration_pb2 import Duration

from broker.core.bucket import Envelope
from broker.core.leases import LeaseRequest, Outcome, Priority, Renewal, Settlement
from broker.journal.questions import By
from protos.tokenbroker.v1 import token_broker_pb2 as pb

ID_LENGTH_MAX: Final = 128
# Longer than any use, and far below where integers or timers overflow.
DURATION_S_MAX: Final = 366 * 86_400
TOKENS_MAX: Final = 10**9
NANOS: Final = 1_000_000_000
# Of the number of a list's entry.
PAGE_DIGITS_MAX: Final = 15
# The year 2201. A later time is noise and might not fit into a reply's Timestamp.
SERVER_TIME_S_MAX: Final = 7_293_840_000

PRIORITIES: Final = {
    pb.PRIORITY_HIGH: Priority.HIGH,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_LOW: Priority.LOW,
}
OUTCOMES: Final = {
    pb.OUTCOME_REPLIED: Outcome.REPLIED,
    pb.OUTCOME_REFUSED: Outcome.REFUSED,
    pb.OUTCOME_NOT_SENT: Outcome.NOT_SENT,
    pb.OUTCOME_UNKNOWN: Outcome.UNKNOWN,
}


class Ttl(NamedTuple):
    """The time to live of a lease that names none, and the longest; in milliseconds."""

    default_ms: int = 15_000
    longest_ms: int = 300_000


DEFAULT_TTL: Final = Ttl()
SPEND_KEYS: Final = {
    pb.SPEND_KEY_UNSPECIFIED: By.HOLDER,
    pb.SPEND_KEY_HOLDER: By.HOLDER,
    pb.SPEND_KEY_IDENTITY: By.IDENTITY,
    pb.SPEND_KEY_OPERATION: By.OPERATION,
    pb.SPEND_KEY_HOUR: By.HOUR,
    pb.SPEND_KEY_DAY: By.DAY,
}
DAY_MS: Final = 86_400_000


class InvalidRequestError(Exception):
    """A field of a request is invalid; the message begins with its name."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


def lease_request(
    request: pb.AcquireLeaseRequest,
    *,
    now_ms: int,
    patience_ms: int | None,
    ttl: Ttl,
) -> LeaseRequest:
    """Reads an AcquireLease.

    Args:
        request: The message as received.
        now_ms: The broker's clock.
        patience_ms: Time until the RPC must have its answer; None for no limit.
        ttl: Bounds of the lease's time to live.

    Raises:
        InvalidRequestError: a field is invalid.
    """
    _identity(request.lease_id, request.holder, request.operation)
    _require(request.units > 0, "units", "must be positive")
    _require(0 <= request.min_units <= request.units, "min_units", "must be 0 to units")
    _require(
        isfinite(request.tokens_per_unit) and 0 <= request.tokens_per_unit <= TOKENS_MAX,
        "tokens_per_unit",
        "must be a number of tokens, not negative",
    )
    _require(request.priority in PRIORITIES, "priority", "must be PRIORITY_HIGH, NORMAL or LOW")
    waits = [] if patience_ms is None else [patience_ms]
    if request.HasField("max_wait"):
        waits.append(_milliseconds(request.max_wait, "max_wait"))
    return LeaseRequest(
        lease_id=request.lease_id,
        holder=request.holder,
        operation=request.operation,
        units=request.units,
        min_units=request.min_units,
        tokens_per_unit=request.tokens_per_unit,
        priority=PRIORITIES[request.priority],
        ttl_ms=_ttl_ms(request, ttl),
        deadline_ms=now_ms + min(waits) if waits else None,
        answer_by_ms=None if patience_ms is None else now_ms + patience_ms,
    )


def renewal(request: pb.RenewLeaseRequest, ttl: Ttl) -> Renewal:
    """Reads a RenewLease.

    Raises:
        InvalidRequestError: a field is invalid.
    """
    _identity(request.lease_id, request.holder, request.operation)
    _require(request.epoch > 0, "epoch", "must be the grant's")
    _require(request.units > 0, "units", "must be positive")
    _require(0 < request.tokens <= TOKENS_MAX, "tokens", "must be the grant's, positive")
    return Renewal(
        lease_id=request.lease_id,
        epoch=request.epoch,
        holder=request.holder,
        operation=request.operation,
        units=request.units,
        tokens=request.tokens,
        ttl_ms=_ttl_ms(request, ttl),
    )


def settlement(request: pb.SettleLeaseRequest) -> Settlement:
    """Reads a SettleLease.

    Raises:
        InvalidRequestError: a field is invalid.
    """
    _identity(request.lease_id, request.holder, request.operation)
    _require(request.epoch >= 0, "epoch", "must not be negative")
    _require(0 <= request.tokens <= TOKENS_MAX, "tokens", "must be the grant's")
    _require(request.outcome in OUTCOMES, "outcome", "must be one of the named outcomes")
    outcome = OUTCOMES[request.outcome]
    has_envelope = request.HasField("envelope")
    if outcome is Outcome.REPLIED:
        _require(request.units > 0, "units", "must be positive")
        _require(has_envelope, "envelope", "must be set for OUTCOME_REPLIED")
    _require(request.units >= 0, "units", "must not be negative")
    return Settlement(
        lease_id=request.lease_id,
        epoch=request.epoch,
        holder=request.holder,
        operation=request.operation,
        units=request.units,
        tokens=request.tokens,
        outcome=outcome,
        envelope=_envelope(request.envelope) if has_envelope else None,
        age_ms=_milliseconds(request.envelope.age, "envelope.age") if has_envelope else 0,
        call_ms=_milliseconds(request.call_duration, "call_duration"),
    )


def interval_ms(message: pb.WatchBucketRequest, field: str, default_ms: int) -> int:
    """Reads the duration *field* of a WatchBucket, in milliseconds.

    Raises:
        InvalidRequestError: it is invalid.
    """
    if not message.HasField(field):  # type: ignore[arg-type]  # one of two literals
        return default_ms
    return _milliseconds(getattr(message, field), field)


Paged = pb.ListLeasesRequest | pb.ExplainLeaseRequest | pb.ListSpendRequest


def page(request: Paged, *, size: int, size_max: int) -> tuple[int, int]:
    """Reads the page of a list; returns the first entry's number and the maximum of entries.

    Raises:
        InvalidRequestError: a field is invalid.
    """
    _require(request.page_size >= 0, "page_size", "must not be negative")
    token = request.page_token
    _require(
        not token or (token.isascii() and token.isdecimal() and len(token) <= PAGE_DIGITS_MAX),
        "page_token",
        "must be a next_page_token",
    )
    return int(token or 0), min(request.page_size or size, size_max)


def story(request: pb.ExplainLeaseRequest) -> None:
    """Checks an ExplainLease.

    Raises:
        InvalidRequestError: not exactly one of lease and holder is set, or it can't be one.
    """
    one = bool(request.lease_id) != bool(request.holder)
    _require(one, "lease_id", "or holder must be set, and not both")
    name = "lease_id" if request.lease_id else "holder"
    text = request.lease_id or request.holder
    _require(len(text) <= ID_LENGTH_MAX * 2, name, "is too long")
    _require(text.isprintable(), name, "must be printable")


def spend(request: pb.ListSpendRequest) -> tuple[By, int]:
    """Reads a ListSpend; returns what to sum up by, and how far back in milliseconds.

    Raises:
        InvalidRequestError: a field is invalid.
    """
    _require(request.by in SPEND_KEYS, "by", "must be one of the named keys")
    if not request.HasField("since"):
        return SPEND_KEYS[request.by], DAY_MS
    since_ms = _milliseconds(request.since, "since")
    _require(since_ms > 0, "since", "must be positive")
    return SPEND_KEYS[request.by], since_ms


def _require(condition: bool, field: str, problem: str) -> None:  # noqa: FBT001 - reads as a rule
    if not condition:
        raise InvalidRequestError(field, problem)


def _identity(lease_id: str, holder: str, operation: str) -> None:
    # Three texts a call: what is right is found so without building a message for it.
    for text in (lease_id, holder, operation):
        if not text or len(text) > ID_LENGTH_MAX or not text.isprintable():
            break
    else:
        return
    for field, text in (("lease_id", lease_id), ("holder", holder), ("operation", operation)):
        _require(bool(text), field, "must not be empty")
        _require(len(text) <= ID_LENGTH_MAX, field, f"must be at most {ID_LENGTH_MAX} characters")
        _require(text.isprintable(), field, "must be printable")


def _ttl_ms(request: pb.AcquireLeaseRequest | pb.RenewLeaseRequest, ttl: Ttl) -> int:
    if not request.HasField("ttl"):
        return min(ttl.default_ms, ttl.longest_ms)
    ttl_ms = _milliseconds(request.ttl, "ttl")
    _require(ttl_ms > 0, "ttl", "must be positive")
    return min(ttl_ms, ttl.longest_ms)


def _milliseconds(duration: Duration, field: str) -> int:
    """Converts *duration*, rounded up so that no positive one becomes zero."""
    seconds = duration.seconds
    nanos = seconds * 1_000_000_000 + duration.nanos
    if nanos < 0:
        raise InvalidRequestError(field, "must not be negative")
    if seconds > DURATION_S_MAX:
        raise InvalidRequestError(field, "must be at most a year")
    return -(-nanos // 1_000_000)


def _envelope(message: pb.Envelope) -> Envelope:
    reduction = message.token_flow_reduction
    _require(
        isfinite(reduction) and 0 <= reduction <= TOKENS_MAX,
        "envelope.token_flow_reduction",
        "must be a number of tokens, not negative",
    )
    consumed, rate = message.tokens_consumed, message.refill_rate
    _require(0 <= consumed <= TOKENS_MAX, "envelope.tokens_consumed", "must not be negative")
    _require(0 <= rate <= TOKENS_MAX, "envelope.refill_rate", "must not be negative")
    _require(abs(message.tokens_left) <= TOKENS_MAX, "envelope.tokens_left", "is out of range")
    time = message.server_time
    _require(
        0 <= time.seconds <= SERVER_TIME_S_MAX and 0 <= time.nanos < NANOS,
        "envelope.server_time",
        "must be between the years 1970 and 2201",
    )
    return Envelope(
        server_time_ms=time.seconds * 1000 + time.nanos // 1_000_000,
        processing_ms=_milliseconds(message.processing_time, "envelope.processing_time"),
        tokens_left=message.tokens_left,
        tokens_consumed=consumed,
        refill_in_ms=_milliseconds(message.refill_in, "envelope.refill_in"),
        refill_rate=rate,
        token_flow_reduction=reduction,
    )
