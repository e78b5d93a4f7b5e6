"""The broker's answers and views as protobuf messages."""

from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.core.bucket import Observation, Source
from broker.core.budgets import Mode, Span, Standing
from broker.core.costs import LearnedCost
from broker.core.leases import BucketState, DenialReason, Denied, Granted, Lease, LeaseState
from broker.core.ledger import Totals
from broker.core.pace import Outlook
from broker.core.snapshot import BucketView, WaitingView
from broker.journal.status import JournalState, JournalStatus
from broker.rpc.requests import PRIORITIES
from protos.tokenbroker.v1 import token_broker_pb2 as pb

REASONS: Final = {
    DenialReason.INSUFFICIENT_TOKENS: pb.DENIAL_REASON_INSUFFICIENT_TOKENS,
    DenialReason.TOO_LARGE: pb.DENIAL_REASON_TOO_LARGE,
    DenialReason.PAUSED: pb.DENIAL_REASON_PAUSED,
    DenialReason.NOT_SYNCED: pb.DENIAL_REASON_NOT_SYNCED,
    DenialReason.BUDGET_EXHAUSTED: pb.DENIAL_REASON_BUDGET_EXHAUSTED,
}
BUCKET_STATES: Final = {
    BucketState.SYNCING: pb.BUCKET_STATE_SYNCING,
    BucketState.RECOVERING: pb.BUCKET_STATE_RECOVERING,
    BucketState.SERVING: pb.BUCKET_STATE_SERVING,
    BucketState.PAUSED: pb.BUCKET_STATE_PAUSED,
    BucketState.STANDBY: pb.BUCKET_STATE_STANDBY,
}
JOURNAL_STATES: Final = {
    JournalState.OFF: pb.JOURNAL_STATE_OFF,
    JournalState.WRITING: pb.JOURNAL_STATE_WRITING,
    JournalState.BUFFERING: pb.JOURNAL_STATE_BUFFERING,
    JournalState.FENCED: pb.JOURNAL_STATE_FENCED,
}
LEASE_STATES: Final = {
    LeaseState.OPEN: pb.LEASE_STATE_OPEN,
    LeaseState.LAPSED: pb.LEASE_STATE_LAPSED,
    LeaseState.SETTLED: pb.LEASE_STATE_SETTLED,
}
SOURCES: Final = {
    Source.PROBE: pb.OBSERVATION_SOURCE_PROBE,
    Source.SETTLE: pb.OBSERVATION_SOURCE_SETTLE,
}
WIRE_PRIORITIES: Final = {priority: wire for wire, priority in PRIORITIES.items()}
SPANS: Final = {
    Span.HOUR: pb.BUDGET_SPAN_HOUR,
    Span.DAY: pb.BUDGET_SPAN_DAY,
    Span.MONTH: pb.BUDGET_SPAN_MONTH,
}
MODES: Final = {
    Mode.ENFORCE: pb.BUDGET_MODE_ENFORCE,
    Mode.SHADOW: pb.BUDGET_MODE_SHADOW,
}
# What a request waits for, as `tokenbroker leases` shows it.
WAITING_FOR: Final = {
    DenialReason.INSUFFICIENT_TOKENS: "tokens",
    DenialReason.TOO_LARGE: "more than a full bucket",
    DenialReason.PAUSED: "an operator to resume granting",
    DenialReason.NOT_SYNCED: "Keepa's first balance, or clients to renew after the start",
    DenialReason.BUDGET_EXHAUSTED: "room in budget",
}


def duration(milliseconds: float) -> Duration:
    """A Duration of *milliseconds*; a negative one becomes zero."""
    whole = max(0, round(milliseconds))
    return Duration(seconds=whole // 1000, nanos=whole % 1000 * 1_000_000)


def _set(duration: Duration, milliseconds: int) -> None:
    # In its place in a message: no second one is made and copied.
    duration.seconds, rest_ms = divmod(max(0, milliseconds), 1000)
    duration.nanos = rest_ms * 1_000_000


def answer(outcome: Granted | Denied, now_ms: int) -> pb.AcquireLeaseResponse:
    """The answer to an AcquireLease."""
    if isinstance(outcome, Granted):
        return _grant(outcome, now_ms)
    denial = pb.Denial(
        reason=REASONS[outcome.reason],
        largest_units=outcome.largest_units,
        message=outcome.message,
    )
    if outcome.retry_delay_ms is not None:
        denial.retry_delay.CopyFrom(duration(outcome.retry_delay_ms))
    return pb.AcquireLeaseResponse(denial=denial)


def _grant(granted: Granted, now_ms: int) -> pb.AcquireLeaseResponse:
    lease, response = granted.lease, pb.AcquireLeaseResponse()
    grant = response.grant
    grant.lease_id, grant.epoch = lease.lease_id, lease.epoch
    grant.units, grant.tokens = lease.units, lease.tokens
    _set(grant.ttl, lease.expires_ms - now_ms)
    _set(grant.waited, granted.waited_ms)
    return response


def lease(held: Lease, now_ms: int) -> pb.Lease:
    """A hold as an operator sees it."""
    is_open = held.state is LeaseState.OPEN
    return pb.Lease(
        lease_id=held.lease_id,
        holder=held.holder,
        operation=held.operation,
        units=held.units,
        tokens=held.held,
        state=LEASE_STATES[held.state],
        age=duration(now_ms - held.granted_ms),
        ttl=duration(held.expires_ms - now_ms if is_open else 0),
    )


def waiting(view: WaitingView) -> pb.Waiting:
    """A request that waits as an operator sees it."""
    request = view.request
    message = pb.Waiting(
        lease_id=request.lease_id,
        holder=request.holder,
        operation=request.operation,
        units=request.units,
        min_units=request.min_units,
        tokens=view.tokens,
        priority=WIRE_PRIORITIES[request.priority],
        since=duration(view.waited_ms),
        reason=WAITING_FOR[view.reason],
    )
    if view.obstacle is not None and view.reason is DenialReason.BUDGET_EXHAUSTED:
        message.reason += f" {view.obstacle.budget.name}: {view.obstacle.shortly}"
    if view.eta_ms is not None:
        message.eta.CopyFrom(duration(view.eta_ms))
    return message


def bucket(
    view: BucketView,
    totals: Totals,
    *,
    floor_tokens: int,
    max_debt_tokens: int,
    fingerprint: str,
    trouble: str,
    budgets_trouble: str,
    journal: JournalStatus,
    leader: str = "",
) -> pb.Bucket:
    """The bucket as an operator sees it.

    *trouble* is why Keepa's balance can't be read, *budgets_trouble* why changed budgets
    were refused, *journal* what is written, and *leader* where another broker that leads
    is reached.
    """
    message = pb.Bucket(
        balance=view.balance,
        reserved=view.reserved,
        available=view.available,
        capacity=view.capacity,
        refill_rate=view.refill_rate,
        refill_period=duration(view.refill_period_ms),
        floor_tokens=floor_tokens,
        max_debt_tokens=max_debt_tokens,
        drift_tokens=view.drift_tokens,
        foreign_tokens=view.foreign_tokens,
        open_leases=view.open_leases,
        waiting=view.waiting,
        epoch=view.epoch,
        state=BUCKET_STATES[view.state],
        totals=pb.Totals(
            grants=totals.grants,
            denials=sum(view.denials.values()),
            settles=totals.settles,
            late_settles=totals.late_settles,
            expiries=totals.expiries,
            refusals=totals.refusals,
            spent_tokens=totals.spent_tokens,
            probes=view.probes,
            probe_failures=view.probe_failures,
            drift_by_cause=view.drift_by_cause,
        ),
        key_fingerprint=fingerprint,
        upstream_trouble=trouble,
        budgets=[budget(standing) for standing in view.budgets],
        budgets_trouble=budgets_trouble,
        leader=leader,
        journal=pb.Journal(
            state=JOURNAL_STATES[journal.state],
            written=journal.written,
            lost=journal.lost,
            buffered=journal.buffered,
            lag=duration(journal.lag_ms),
            trouble=journal.trouble,
        ),
    )
    if view.outlook is not None:
        message.forecast.CopyFrom(_forecast(view.outlook))
    if view.next_refill_ms is not None:
        message.next_refill_in.CopyFrom(duration(view.next_refill_ms))
    if view.observation is not None:
        age_ms = view.observation_age_ms or 0
        message.last_observation.CopyFrom(_observation(view.observation, age_ms))
    return message


def _observation(seen: Observation, age_ms: int) -> pb.Observation:
    end_ms = seen.envelope.end_ms
    return pb.Observation(
        tokens_left=seen.envelope.tokens_left,
        observe_time=Timestamp(seconds=end_ms // 1000, nanos=end_ms % 1000 * 1_000_000),
        age=duration(age_ms),
        source=SOURCES[seen.source],
    )


def budget(standing: Standing) -> pb.Budget:
    """One limit of a budget as an operator sees it."""
    own, span = standing.budget, standing.span
    message = pb.Budget(
        name=own.name,
        holder=own.holder,
        operation=own.operation,
        tokens_per_hour=standing.limit if span is Span.HOUR else 0,
        used_tokens=standing.used,
        span=pb.BUDGET_SPAN_UNSPECIFIED if span is None else SPANS[span],
        limit_tokens=standing.limit,
        left_tokens=standing.left,
        time_zone=own.time_zone,
        mode=MODES[own.mode],
        denied=standing.denied,
        would_have_denied=standing.would_deny,
        in_flight_max=own.in_flight_max or 0,
        within="" if own.within is None else own.within.name,
    )
    if standing.resets_ms is not None:
        message.resets_in.CopyFrom(duration(standing.resets_ms))
    return message


def _forecast(outlook: Outlook) -> pb.Forecast:
    message = pb.Forecast(
        window=duration(outlook.window_ms),
        spent_tokens_per_hour=outlook.spent_per_hour,
        refilled_tokens_per_hour=outlook.refilled_per_hour,
    )
    if outlook.dry_ms is not None:
        message.dry_in.CopyFrom(duration(outlook.dry_ms))
    if outlook.full_ms is not None:
        message.full_in.CopyFrom(duration(outlook.full_ms))
    return message


def costs(learned: Sequence[LearnedCost]) -> pb.ListCostsResponse:
    """What calls have cost lately."""
    return pb.ListCostsResponse(
        costs=[
            pb.OperationCost(
                operation=cost.operation,
                units_min=cost.units_min,
                units_max=cost.units_max,
                calls=cost.calls,
                tokens_per_unit=cost.mean,
                reserved_per_unit=cost.price,
            )
            for cost in learned
        ]
    )


def page(
    leases: Sequence[Lease], waits: Sequence[WaitingView], now_ms: int, *, start: int, size: int
) -> pb.ListLeasesResponse:
    """*size* entries from number *start* on: leases first, then requests that wait."""
    end = start + size
    skipped = max(0, start - len(leases))
    response = pb.ListLeasesResponse(
        leases=[lease(held, now_ms) for held in leases[start:end]],
        waiting=[waiting(view) for view in waits[skipped : max(0, end - len(leases))]],
    )
    if end < len(leases) + len(waits):
        response.next_page_token = str(end)
    return response
