"""What operators look at: the allocator's state as plain values."""

from dataclasses import dataclass

from broker.core.allocator import Allocator
from broker.core.answers import BucketState, DenialReason
from broker.core.bucket import Observation
from broker.core.budgets import Standing
from broker.core.leases import LeaseRequest


@dataclass(frozen=True, slots=True)
class BucketView:
    """The bucket at one moment; tokens and milliseconds."""

    state: BucketState
    epoch: int
    balance: int
    reserved: int
    available: int
    capacity: int
    refill_rate: int
    refill_period_ms: float
    next_refill_ms: int | None
    tick_error_ms: float
    observation: Observation | None
    observation_age_ms: int | None
    drift_tokens: int
    drift_by_cause: dict[str, int]
    foreign_tokens: int
    open_leases: int
    waiting: int
    probes: int
    probe_failures: int
    denials: dict[DenialReason, int]
    budgets: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class WaitingView:
    """A request that waits; `eta_ms` is None when nobody can tell."""

    request: LeaseRequest
    waited_ms: int
    tokens: int
    eta_ms: int | None
    reason: DenialReason


def bucket_view(allocator: Allocator, now_ms: int) -> BucketView:
    """The bucket now."""
    ledger, bucket = allocator.ledger, allocator.ledger.bucket
    seen = bucket.observation
    return BucketView(
        state=allocator.state(now_ms),
        epoch=ledger.epoch,
        balance=bucket.balance(now_ms),
        reserved=ledger.reserved,
        available=allocator.available(now_ms, projected=True),
        capacity=bucket.capacity,
        refill_rate=0 if seen is None else seen.envelope.refill_rate,
        refill_period_ms=bucket.period.ms,
        next_refill_ms=None if seen is None else bucket.next_tick_ms(now_ms) - now_ms,
        tick_error_ms=bucket.period.error_ms,
        observation=seen,
        observation_age_ms=None if seen is None else now_ms - seen.arrived_ms,
        drift_tokens=ledger.drift.last_tokens,
        drift_by_cause={c.value: tokens for c, tokens in ledger.drift.by_cause.items()},
        foreign_tokens=ledger.drift.foreign_tokens,
        open_leases=ledger.open_leases,
        waiting=len(allocator.waitlist),
        probes=allocator.probing.probes,
        probe_failures=allocator.probing.failures,
        denials=dict(allocator.denials),
        budgets=allocator.budgets.standings(bucket.capacity, now_ms),
    )


def waiting_view(allocator: Allocator, now_ms: int) -> list[WaitingView]:
    """Who waits, first served first."""
    etas = allocator.etas_ms(now_ms)
    return [
        WaitingView(
            waiting.request,
            now_ms - waiting.since_ms,
            waiting.quote.tokens,
            etas[waiting.request.lease_id],
            allocator.reason(waiting, now_ms),
        )
        for waiting in allocator.waitlist.order()
    ]
