"""What operators look at: the allocator's state as plain values."""

from dataclasses import dataclass
from itertools import islice

from broker.core.allocator import Allocator
from broker.core.bucket import Observation
from broker.core.budgets import Obstacle, Standing
from broker.core.leases import BucketState, DenialReason, LeaseRequest
from broker.core.pace import Outlook


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
    oldest_lease_ms: int
    waiting: int
    probes: int
    probe_failures: int
    denials: dict[DenialReason, int]
    budgets: tuple[Standing, ...]
    # None before the first count, and while too little has been seen of the pace.
    outlook: Outlook | None


@dataclass(frozen=True, slots=True)
class WaitingView:
    """A request that waits; `eta_ms` is None when it is unknown."""

    request: LeaseRequest
    waited_ms: int
    tokens: int
    eta_ms: int | None
    reason: DenialReason
    # The budget's limit that it waits for, if that is the reason.
    obstacle: Obstacle | None


def snapshot(allocator: Allocator, now_ms: int) -> BucketView:
    """The bucket at *now_ms*; changes nothing."""
    ledger, bucket = allocator.ledger, allocator.ledger.bucket
    seen = bucket.observation
    balance = bucket.balance(now_ms)
    available = allocator.available(now_ms, projected=True)
    outlook = None
    if seen is not None:
        outlook = allocator.pace.outlook(
            ledger.gone_tokens,
            now_ms,
            balance=balance,
            available=available,
            capacity=bucket.capacity,
            refill_per_ms=seen.envelope.lump / bucket.period.ms,
        )
    return BucketView(
        state=allocator.state(now_ms),
        epoch=ledger.epoch,
        balance=balance,
        reserved=ledger.reserved,
        available=available,
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
        oldest_lease_ms=ledger.oldest_open_ms(now_ms) or 0,
        waiting=len(allocator.waitlist),
        probes=allocator.probing.probes,
        probe_failures=allocator.probing.failures,
        denials=dict(allocator.denials),
        budgets=allocator.budgets.standings(bucket.capacity, now_ms),
        outlook=outlook,
    )


def changes(allocator: Allocator, now_ms: int) -> tuple[object, ...]:
    """A value that differs whenever a watcher would see something new, time aside.

    Cheap: it is taken after every step.
    """
    ledger = allocator.ledger
    bucket, totals, probing = ledger.bucket, ledger.totals, allocator.probing
    return (
        allocator.state(now_ms),
        id(bucket.observation),
        totals.observations,
        bucket.observation is not None and bucket.ticks_landed(now_ms),
        (ledger.reserved, ledger.open_leases, len(allocator.waitlist)),
        (totals.grants, totals.settles, totals.late_settles, totals.expiries, totals.refusals),
        (probing.probes, probing.failures, *allocator.denials.values()),
        allocator.budgets.version,
    )


def waiting_view(allocator: Allocator, now_ms: int, most: int | None = None) -> list[WaitingView]:
    """The first *most* requests that wait, next to be served first; None: all."""
    order = list(islice(allocator.waitlist.order(), most))
    etas = allocator.etas_ms(now_ms, order)
    return [
        WaitingView(
            waiting.request,
            now_ms - waiting.since_ms,
            waiting.quote.tokens,
            etas[waiting.request.lease_id],
            allocator.reason(waiting, now_ms),
            allocator.obstacle(waiting, now_ms),
        )
        for waiting in order
    ]
