"""Decides which request gets tokens now: the ledger counts, the waitlist orders.

Rule 1: no await, no I/O, no clock. The edge calls a method with now_ms, drains
        `take_outcomes`, starts a probe if one is wanted, and comes back at
        `next_wake_ms` at the latest.
Rule 2: a grant rests on tokens that Keepa has confirmed. Lumps that should have
        landed since are confirmed by a probe first, unless Keepa can't be asked.
Rule 3: only what Keepa confirms makes anyone wait, at most one probe a tick.
Rule 4: if Keepa's balance covers the head, the head is granted within one sync.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Final, NamedTuple

from broker.core import records
from broker.core.bucket import PROBE, Envelope, Observation
from broker.core.budgets import Budget, BudgetBook, Obstacle, Periods
from broker.core.costs import CostBook
from broker.core.drift import ROUNDING_TOKENS
from broker.core.errors import LeaseConflictError, LeaseEndedError
from broker.core.events import Event
from broker.core.evidence import UNPROBED_TICKS_MAX, UNPROBED_TICKS_MOVED_MAX, Doubts
from broker.core.forecast import CallTimes, foresee
from broker.core.holds import Holds
from broker.core.leases import (
    MESSAGES,
    NOT_SENT,
    REFUSED,
    SERVING,
    BucketState,
    DenialReason,
    Denied,
    Granted,
    Lease,
    LeaseRequest,
    Renewal,
    Settled,
    Settlement,
)
from broker.core.ledger import LEASE_AGE_MS_MAX, Ledger
from broker.core.limits import DEFAULT_LIMITS, Limits
from broker.core.pace import Pace
from broker.core.probing import FRESH_MS, Probing, Prospect, Reason, reason_to_ask
from broker.core.quotes import Batch, MustWait, Quotes, TooLarge
from broker.core.recovery import Recovered
from broker.core.replay import carried_lease
from broker.core.waitlist import Deadlines, Waiting, Waitlist

# How long a wait keeps its place after its connection broke. Broker and client notice a dead
# connection up to 13 s apart; the rest is for the way back.
ABSENCE_MS: Final = 30_000
# A forecast at every denial goes no further: its work must not grow with the waitlist.
FORESEEN_MAX: Final = 100
# Requests of a holder that are looked at while budgets keep its first ones waiting.
LOOKED_PAST_MAX: Final = 50
# Calls that scatter seldom cost their price: one in 200 does. Until what they likely cost is
# there, and not until their price is, a lone one waits; this bounds what that may cost others.
DEBT_HORIZON_MS: Final = 15 * 60_000
# Answers of one step; the rest follow a millisecond later, so that no step is long.
ANSWERS_MAX: Final = 50
# Costs that await a probe's judgement; more of them would teach nothing new.
CLAIMS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class AllocatorConfig:
    """How to allocate; tokens and milliseconds.

    `debt_horizon_ms` is the refill time within which a lone call's price must be paid
    back if it takes the balance below zero; 0 allows no debt.
    `recovery_grace_ms` is the time after a start without a journal in which
    living clients re-present their leases; nothing is granted before.
    """

    floor_tokens: int = 0
    debt_horizon_ms: int = DEBT_HORIZON_MS
    lease_age_ms_max: int = LEASE_AGE_MS_MAX
    recovery_grace_ms: int = 3_000
    budgets: tuple[Budget, ...] = ()
    limits: Limits = DEFAULT_LIMITS


class Claim(NamedTuple):
    """What a settle reports that a call of *caller* has cost."""

    operation: str
    units: int
    cost_tokens: int
    caller: str


class Allocator:
    """The broker's whole logic, driven from outside."""

    def __init__(self, config: AllocatorConfig, *, epoch: int, started_ms: int) -> None:
        self.config = config
        # Where holders are their own callers, str returns them without a call in Python.
        caller = config.limits.caller if config.limits.signed else str
        self._caller = caller
        self.ledger = Ledger(epoch, config.lease_age_ms_max, holds=Holds(caller))
        self.costs = CostBook()
        self.waitlist = Waitlist(caller)
        self.budgets = BudgetBook(config.budgets, is_open=self.ledger.holds.is_open)
        self.quotes = Quotes(
            self.ledger, self.costs, self.budgets, config.floor_tokens, config.debt_horizon_ms
        )
        self.probing = Probing()
        self.doubts = Doubts()
        # Costs in reports that a probe has yet to decide on.
        self._claims: list[Claim] = []
        self.call_times = CallTimes()
        self.pace = Pace()
        self.paused = False
        self.denials: dict[DenialReason, int] = dict.fromkeys(DenialReason, 0)
        self._recovered_ms = started_ms + config.recovery_grace_ms
        # Until then the head's wait stands confirmed by Keepa.
        self._confirmed_until_ms = started_ms
        # Since then a probe's answer could serve the head, which waits.
        self._doubt_since_ms: int | None = None
        self._outcomes: list[Granted | Denied] = []
        # The last step had more to answer than one may.
        self._unfinished = False
        self._deadlines = Deadlines()
        self._budget_wake_ms: int | None = None
        # Until then the head yields to a holder that is to come back.
        self._yields_until_ms: int | None = None
        self.record(records.Started(started_ms, epoch, config.lease_age_ms_max))

    def restore(self, recovered: Recovered, now_ms: int) -> None:
        """Takes over what the journal remembers, before the first step: there is no grace.

        Leases keep their ends, so that those which ran out meanwhile lapse.
        """
        for carried in recovered.leases:
            lease = carried_lease(carried, self.ledger.epoch)
            self.ledger.carry(lease, now_ms)
            self.budgets.hold(
                lease.lease_id,
                lease.holder,
                lease.operation,
                lease.tokens,
                lease.overrun if lease.proven else 0,
                lease.granted_ms,
                charged=True,
            )
        for lease_id, ended in recovered.ended:
            self.ledger.remember_ended(lease_id, ended)
        for cost in recovered.costs:
            caller = self._caller(cost.holder)
            self.costs.learn(cost.operation, cost.units, cost.tokens, cost.at_ms, caller=caller)
        for charge in recovered.charges:
            self.budgets.charge(charge.holder, charge.operation, charge.tokens, charge.at_ms)
        self.paused = self.paused or recovered.paused
        self._recovered_ms = now_ms

    def begin_epoch(self, epoch: int, now_ms: int) -> None:
        """Goes on with the same books under a larger epoch."""
        assert epoch > self.ledger.epoch
        self.ledger.epoch = epoch
        age_ms_max = self.config.lease_age_ms_max
        self.record(records.Started(now_ms, epoch, age_ms_max, continues=True))

    def record(self, record: records.Record) -> None:
        """Adds *record* to the journal of this step."""
        self.ledger.records.append(record)

    # --- clients -----------------------------------------------------------

    def acquire(self, request: LeaseRequest, now_ms: int) -> None:
        """Queues a request, joins its wait, or repeats its open grant.

        Raises:
            LeaseConflictError: lease_id is in use with other arguments.
            LeaseEndedError: lease_id was settled or abandoned.
            LimitReachedError: The caller waits for, or holds, as much as one may.
        """
        lease_id = request.lease_id
        self.ledger.expire(now_ms)
        lease = self.ledger.lease(lease_id)
        if lease is not None:
            if lease.request is None or not lease.request.repeats(request):
                raise LeaseConflictError(lease_id)
            self._outcomes.append(Granted(lease, 0))
            return
        if self.ledger.has_ended(lease_id):
            raise LeaseEndedError(lease_id)
        self.waitlist.forget_absent(now_ms)
        waiting = self.waitlist.find(lease_id)
        is_new = waiting is None
        if waiting is None:
            waiting = Waiting(request, now_ms, self.quotes.offer(request))
            self._check_limits(waiting)
            self.waitlist.add(waiting)
        elif waiting.request.repeats(request):
            waiting.request = request
            self.waitlist.restore(lease_id)
        else:
            raise LeaseConflictError(lease_id)
        self._deadlines.add(request)
        self._decide(now_ms)
        if is_new and lease_id in self.waitlist:
            self.record(self._waited(waiting, now_ms))

    def _waited(self, waiting: Waiting, now_ms: int) -> records.Waited:
        probing = self.probing
        return records.Waited(
            now_ms,
            waiting.request,
            waiting.quote.least_tokens,
            self.available(now_ms, projected=False),
            self.reason(waiting, now_ms).value,
            asking=probing.in_flight or probing.wanted is not None,
        )

    def _check_limits(self, waiting: Waiting) -> None:
        limits, holder, ledger = self.config.limits, waiting.request.holder, self.ledger
        limits.check_waits(holder, self.waitlist.waits_of(holder))
        share = ledger.holds.share(holder)
        limits.check_leases(holder, share.leases)
        if limits.reserved_share < 1 and ledger.bucket.observation is not None:
            least_tokens = waiting.quote.least_tokens
            limits.check_share(holder, least_tokens, share.tokens, ledger.bucket_tokens)

    def cancel(self, lease_id: str, now_ms: int) -> None:
        """The client stopped waiting; a grant that never reached it is taken back."""
        self.ledger.expire(now_ms)
        self._deadlines.drop(lease_id)
        if self.waitlist.remove(lease_id) is None:
            self._revoke(lease_id, now_ms)
        self._decide(now_ms)

    def detach(self, lease_id: str, now_ms: int) -> None:
        """The wait's connection broke, or its client called it off; gRPC shows both alike.

        Its place is kept for `ABSENCE_MS`: a repeat takes it up, NOT_SENT gives it up.
        Meanwhile nothing is granted to it, and no request stands behind it. A grant that
        never reached its client is taken back.
        """
        self.detach_all([lease_id], now_ms)

    def detach_all(self, lease_ids: Iterable[str], now_ms: int) -> None:
        """Detaches several waits at once, so that none is granted what another gives up."""
        self.ledger.expire(now_ms)
        for lease_id in lease_ids:
            self._deadlines.drop(lease_id)
            if lease_id in self.waitlist:
                self.waitlist.park(lease_id, now_ms + ABSENCE_MS)
            else:
                self._revoke(lease_id, now_ms)
        self._decide(now_ms)

    def _revoke(self, lease_id: str, now_ms: int) -> None:
        lease = self.ledger.revoke(lease_id)
        if lease is None:
            return
        self._correct(lease, -lease.tokens, now_ms)
        self.budgets.give_back(lease_id)
        self.record(
            records.Revoked(
                now_ms,
                lease_id,
                lease.holder,
                lease.operation,
                lease.units,
                lease.tokens,
                lease.granted_ms,
            )
        )

    def renew(self, renewal: Renewal, now_ms: int) -> Lease:
        """Prolong a lease; see `Ledger.renew`. One that still waits has none."""
        self.ledger.expire(now_ms)
        self._check_not_waiting(renewal.lease_id)
        is_new = self.ledger.lease(renewal.lease_id) is None
        if is_new:
            share = self.ledger.holds.share(renewal.holder)
            self.config.limits.check_leases(renewal.holder, share.leases)
        lease = self.ledger.renew(renewal, now_ms)
        lease_id, holder, expires_ms = lease.lease_id, lease.holder, lease.expires_ms
        if is_new:
            operation, units, tokens = lease.operation, lease.units, lease.tokens
            self.record(
                records.Adopted(now_ms, lease_id, holder, operation, units, tokens, expires_ms)
            )
        else:
            self.record(records.Renewed(now_ms, lease_id, holder, expires_ms))
        self._count_adopted(lease, now_ms)
        self._decide(now_ms)
        return lease

    def settle(self, settlement: Settlement, now_ms: int) -> Settled:
        """Ends a lease at its real cost; see `Ledger.settle`.

        NOT_SENT also abandons an id if its grant never reached the client.
        """
        self.ledger.expire(now_ms)
        lease_id = settlement.lease_id
        if settlement.outcome is NOT_SENT and self._abandons(settlement):
            self._deadlines.drop(lease_id)
            self.waitlist.remove(lease_id)
            self.ledger.abandon(lease_id)
            holder, operation = settlement.holder, settlement.operation
            self.record(records.Abandoned(now_ms, lease_id, holder, operation))
            self._decide(now_ms)
            return Settled(late=False)
        self._check_not_waiting(lease_id)
        held = self.ledger.holds.lease(lease_id)
        settled = self.ledger.settle(settlement, now_ms)
        lease, cost, doubt = settled.lease, settled.cost_tokens, settled.doubt
        if lease is not None:
            self.record(
                records.Settled(
                    now_ms,
                    settlement,
                    settled.late,
                    cost,
                    None if doubt is None else doubt.value,
                    lease.granted_ms,
                    None if held is None else held.tokens,
                )
            )
        self._weigh_report(settlement, settled, now_ms)
        if lease is not None and cost is not None:
            if lease.request is not None and not settled.late:
                self.call_times.learn(now_ms - lease.granted_ms)
            if cost > 0:
                operation, units = settlement.operation, settlement.units
                caller = self._caller(settlement.holder)
                if doubt is None:
                    self.costs.learn(operation, units, cost, now_ms, caller=caller)
                elif len(self._claims) < CLAIMS_MAX:
                    self._claims.append(Claim(operation, units, cost, caller))
            self._correct(lease, cost - lease.tokens, now_ms)
            self.budgets.settle(lease_id, lease.holder, lease.operation, cost, now_ms)
        elif lease is not None:
            self._count_adopted(lease, now_ms)
        self._decide(now_ms)
        return settled

    def _weigh_report(self, settlement: Settlement, settled: Settled, now_ms: int) -> None:
        """Looks at what a settle shows beside its cost: that Keepa answers, or a doubt."""
        if settlement.envelope is not None:
            self.probing.seen_alive(now_ms - settlement.age_ms)
        # The broker can't find out which report was wrong; a probe replaces them all.
        if settled.doubt is not None or self.ledger.contradicts_itself:
            refused = settlement.outcome is REFUSED and settled.doubt is not None
            self.doubts.raised(refused=settlement.holder if refused else None)

    def _check_not_waiting(self, lease_id: str) -> None:
        """Refuses an old lease of the same id: its hold would stand in the way of the grant.

        Raises:
            LeaseConflictError: A request waits under this id.
        """
        if lease_id in self.waitlist:
            raise LeaseConflictError(lease_id)

    def _count_adopted(self, lease: Lease, now_ms: int) -> None:
        """A lease of an earlier epoch counts against the budgets as of its adoption."""
        if lease.request is None:
            self.budgets.hold(
                lease.lease_id, lease.holder, lease.operation, lease.tokens, 0, now_ms
            )

    def _abandons(self, settlement: Settlement) -> bool:
        """Whether this ends an id that holds nothing, so that it can't be used later."""
        lease_id = settlement.lease_id
        if lease_id in self.waitlist:
            return True
        known = self.ledger.lease(lease_id) is not None or self.ledger.has_ended(lease_id)
        return settlement.epoch == 0 and not known

    # --- Keepa -------------------------------------------------------------

    def probe_wanted(self, now_ms: int) -> bool:
        """Whether to ask Keepa now; true until `probe_started`."""
        return self.probing.may_start(now_ms) and self._reason_to_ask(now_ms) is not None

    def probe_started(self, now_ms: int) -> Reason:
        """A probe is on its way, never two at once; returns why."""
        reason = self._reason_to_ask(now_ms) or Reason.OPERATOR
        self.doubts.asked(now_ms, self.ledger.bucket.period.ms)
        self.probing.started(reason, now_ms)
        return reason

    def _reason_to_ask(self, now_ms: int) -> Reason | None:
        bucket = self.ledger.bucket
        if bucket.observation is None:
            return Reason.START
        if self.probing.wanted is not None:
            return self.probing.wanted
        if not bucket.period.placed and bucket.ticks_landed(now_ms) > 0:
            return Reason.PERIOD
        if self.doubts.pending and self.doubts.due(now_ms):
            return Reason.REPORT
        check_ms = self._check_reports_ms
        return Reason.REPORT if check_ms is not None and now_ms >= check_ms else None

    @property
    def _check_reports_ms(self) -> int | None:
        """When a count that rests on clients' reports is checked; None if it does not."""
        bucket = self.ledger.bucket
        seen, probed = bucket.observation, bucket.probed
        if seen is None or probed is None or seen.source is PROBE:
            return None
        moved = self.ledger.drift.rests_on_reports
        ticks = UNPROBED_TICKS_MOVED_MAX if moved else UNPROBED_TICKS_MAX
        return probed.arrived_ms + ceil(ticks * bucket.period.ms) + 1

    def probe_answered(self, envelope: Envelope, requested_ms: int, now_ms: int) -> None:
        """Keepa's count has arrived; *envelope* must be an observation."""
        assert envelope.is_observation
        self.ledger.expire(now_ms)
        self.probing.answered()
        self.doubts.decided()
        if self.ledger.observe(Observation(envelope, now_ms, requested_ms, PROBE)):
            self._judge_claims(now_ms)
        for given_up in self.ledger.written_off:
            self.budgets.write_off(given_up.lease_id, given_up.cost)
        self.ledger.written_off.clear()
        self._decide(now_ms)

    def _judge_claims(self, now_ms: int) -> None:
        """Learns the costs of doubted reports if Keepa's count leaves room for all of them.

        Otherwise a few invented costs would price all others out.
        """
        claims, self._claims = self._claims, []
        if self.ledger.drift.last_unexplained_tokens <= ROUNDING_TOKENS:
            for operation, units, cost_tokens, caller in claims:
                self.costs.learn(operation, units, cost_tokens, now_ms, caller=caller)

    def probe_failed(self, now_ms: int) -> None:
        """Keepa gave no count; until it does, the projection must serve."""
        self.ledger.expire(now_ms)
        self.probing.failed(now_ms)
        self._decide(now_ms)

    # --- operators and time --------------------------------------------------

    def pause(self, now_ms: int, *, by: str = "") -> None:
        """Stops granting; open leases go on."""
        self.paused = True
        self.record(records.Paused(now_ms, by))
        self.advance(now_ms)

    def resume(self, now_ms: int, *, by: str = "") -> None:
        """Takes up granting again."""
        self.paused = False
        self.record(records.Resumed(now_ms, by))
        self.advance(now_ms)

    def set_budgets(self, budgets: Iterable[Budget], now_ms: int) -> None:
        """Replaces all budgets; spend so far counts on."""
        budgets = tuple(budgets)
        self.budgets.replace(budgets)
        self.record(records.BudgetsChanged(now_ms, budgets))
        self.advance(now_ms)

    def set_weights(self, weights: Mapping[str, float], now_ms: int) -> None:
        """Lets identities share each priority class by *weights*; see `Waitlist.set_weights`."""
        self.waitlist.set_weights(weights)
        self.advance(now_ms)

    def set_periods(self, periods: Periods, now_ms: int) -> None:
        """Takes the present days and months of the budgets' time zones."""
        self.budgets.set_periods(periods)
        self.advance(now_ms)

    def advance(self, now_ms: int) -> None:
        """Lets time pass: expiries, ticks, deadlines."""
        self.ledger.expire(now_ms)
        self._decide(now_ms)

    def next_wake_ms(self, now_ms: int) -> int | None:
        """When `advance` is due even if nothing else happens."""
        probing, bucket = self.probing, self.ledger.bucket
        may_start = probing.may_start(now_ms)
        times = [
            self.ledger.next_expiry_ms(),
            self._deadlines.next_wake_ms(),
            self._check_reports_ms if may_start else probing.next_wake_ms(now_ms),
        ]
        if self._unfinished:
            times.append(now_ms)
        if self.doubts.pending:
            times.append(self.doubts.next_wake_ms(now_ms))
        waits = len(self.waitlist) > 0
        if bucket.observation is not None and (waits or not bucket.period.placed):
            times.append(bucket.next_tick_ms(now_ms))
        if waits:
            if not self.paused:
                times.append(self._budget_wake_ms)
            if now_ms < self._recovered_ms:
                times.append(self._recovered_ms)
            times.append(self._yields_until_ms)
            times.append(self.ledger.next_over_ms(now_ms))
            if self._doubt_since_ms is not None and now_ms < self._doubt_since_ms + FRESH_MS:
                times.append(self._doubt_since_ms + FRESH_MS)
        due_ms = None
        for time_ms in times:
            if time_ms is not None and (due_ms is None or time_ms < due_ms):
                due_ms = time_ms
        return None if due_ms is None else max(due_ms, now_ms + 1)

    def take_outcomes(self) -> list[Granted | Denied]:
        """What has been decided since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def take_events(self) -> list[Event]:
        """The events since the last call, for logs and metrics."""
        if not self.ledger.events:
            return []
        events = list(self.ledger.events)
        self.ledger.events.clear()
        return events

    def take_records(self) -> list[records.Record]:
        """The records since the last call, for the journal."""
        taken = list(self.ledger.records)
        self.ledger.records.clear()
        return taken

    def state(self, now_ms: int) -> BucketState:
        """Whether grants are made, and why not."""
        if self.ledger.bucket.observation is None:
            return BucketState.SYNCING
        if self.paused:
            return BucketState.PAUSED
        if now_ms < self._recovered_ms:
            return BucketState.RECOVERING
        return SERVING

    def available(self, now_ms: int, *, projected: bool) -> int:
        """Tokens that calls may be expected to cost now; not positive: none may be made.

        Args:
            now_ms: The broker's clock.
            projected: Count lumps that should have landed but are not confirmed.
        """
        return self.grantable(self.ledger.headroom(now_ms, projected=projected))

    def grantable(self, headroom: int) -> int:
        """What of *headroom* may be granted; see `available`."""
        return headroom - self.config.floor_tokens

    def first_in_line(self) -> list[Waiting]:
        """The requests that are served next, as far as it is worth while to foresee."""
        return list(islice(self.waitlist.order(), FORESEEN_MAX))

    def etas_ms(
        self, now_ms: int, order: Sequence[Waiting] | None = None
    ) -> dict[str, int | None]:
        """Expected delay until each waiting request is granted, in order of service.

        Args:
            now_ms: The broker's clock.
            order: The first of the requests in that order; None: all.
        """
        if order is None:
            order = list(self.waitlist.order())
        if self.ledger.bucket.observation is None or self.paused:
            return {waiting.request.lease_id: None for waiting in order}
        available = self.available(now_ms, projected=True)
        forecast = foresee(self.ledger, self.costs, self.call_times, available, now_ms)
        etas = forecast.etas_ms(order)
        if self.budgets.exist:
            for waiting in order:
                eta_ms, obstacle = etas[waiting.request.lease_id], self.obstacle(waiting, now_ms)
                if eta_ms is not None and obstacle is not None:
                    # Room that depends on calls in flight comes when one of them ends.
                    free_ms = obstacle.free_ms or now_ms + round(self.call_times.usual_ms)
                    etas[waiting.request.lease_id] = max(eta_ms, free_ms - now_ms)
        return etas

    # --- deciding ----------------------------------------------------------

    def _decide(self, now_ms: int) -> None:
        """Grants what can be granted; then answers the requests that are out of time."""
        self._unfinished = False
        if self.pace.due_ms is None or now_ms >= self.pace.due_ms:
            self.pace.note(self.ledger.gone_tokens, now_ms)
        self._serve(now_ms)
        # Behind the denied ones a request may have stood that the tokens cover.
        if self._deadlines.are_due(now_ms) and self._deny_overdue(now_ms):
            self._serve(now_ms)

    def _serve(self, now_ms: int) -> None:
        """Grants to the head while it can be granted."""
        self._yields_until_ms = None
        if self.state(now_ms) is not SERVING:
            return
        self.probing.wanted = None
        while (head := self._head(now_ms)) is not None:
            if len(self._outcomes) >= ANSWERS_MAX:
                self._unfinished = True
                return
            head.offer = self.quotes.offer(head.request)
            if isinstance(head.offer, TooLarge):
                self._deny(head, DenialReason.TOO_LARGE, {}, now_ms)
                continue
            available = self.available(now_ms, projected=False)
            batch = self._batch_now(head, available, now_ms)
            if not isinstance(batch, Batch):
                return
            unconfirmed = self.ledger.bucket.unconfirmed_tokens(now_ms)
            left_tokens = available + unconfirmed - batch.tokens
            self._yields_until_ms = self.waitlist.yields_until(head, left_tokens, now_ms)
            if self._yields_until_ms is not None:
                break
            self._grant(head, batch, now_ms)
        self._doubt_since_ms = None

    def _head(self, now_ms: int) -> Waiting | None:
        """The request to serve next; holders that can't be granted now are passed over.

        Their budget is used up, or Keepa has just refused them.
        """
        # Past wake-ups must not stay: they would ring without end.
        self._budget_wake_ms = None
        limited = self.config.limits.reserved_share < 1
        refused = self._refused_holders(now_ms)
        if not (refused or self.budgets.exist or limited):
            return self.waitlist.head()
        for queue in self.waitlist.queues():
            # Behind a request that its budget keeps waiting, another operation may stand.
            for waiting in islice(queue, LOOKED_PAST_MAX):
                if waiting.request.holder in refused:
                    break
                # A settle of the caller's own brings it back; every step looks again.
                if limited and self._share_room(waiting) < waiting.quote.least_tokens:
                    break
                # Dearer than when it came, it may have outgrown the room it waits for.
                waiting.offer = self.quotes.offer(waiting.request)
                if isinstance(waiting.offer, TooLarge):
                    return waiting
                obstacles = self.quotes.obstacles(waiting.request, waiting.quote, now_ms)
                if not obstacles:
                    return waiting
                for obstacle in obstacles:
                    if (changes_ms := obstacle.changes_ms) is not None:
                        wake_ms = self._budget_wake_ms or changes_ms
                        self._budget_wake_ms = min(changes_ms, wake_ms)
        return None

    def _refused_holders(self, now_ms: int) -> AbstractSet[str]:
        """Holders that would only be refused again while the count is in doubt.

        The doubt may be an invented one, so it holds up no other holder, and only until
        Keepa's answer, or until there is none to wait for.
        """
        doubts = self.doubts
        if doubts.refused and self.probing.is_worth_waiting_for(now_ms):
            return doubts.refused
        return frozenset()

    def obstacle(self, waiting: Waiting, now_ms: int) -> Obstacle | None:
        """The budget's limit that keeps *waiting* waiting longest; None if none does."""
        if not self.budgets.exist:
            return None
        obstacles = self.quotes.obstacles(waiting.request, waiting.quote, now_ms)
        return obstacles[0] if obstacles else None

    def _share_room(self, waiting: Waiting) -> int:
        """Tokens that the caller may be granted within its share of a full bucket."""
        ledger, holder = self.ledger, waiting.request.holder
        held = ledger.holds.share(holder).tokens
        room = self.config.limits.room(held, ledger.bucket_tokens)
        return waiting.quote.tokens if room is None else room

    def _batch_now(
        self, waiting: Waiting, available: int, now_ms: int
    ) -> Batch | MustWait | Reason:
        """What to grant to the head; else for what it waits: tokens, or Keepa's answer.

        Args:
            waiting: The head.
            available: Tokens that may be granted by Keepa's last count.
            now_ms: The broker's clock.
        """
        batch = self._batch(waiting, available, now_ms)
        reason = reason_to_ask(self._prospect(waiting, batch, now_ms))
        self.probing.wanted = reason
        if reason is not None:
            if self.probing.is_worth_waiting_for(now_ms):
                return reason
            unconfirmed = self.ledger.bucket.unconfirmed_tokens(now_ms)
            return self._batch(waiting, available + unconfirmed, now_ms)
        if isinstance(batch, MustWait) and self._doubt_since_ms is None:
            self._confirmed_until_ms = self.ledger.bucket.next_tick_ms(now_ms)
        return batch

    def _batch(self, waiting: Waiting, tokens: int, now_ms: int) -> Batch | MustWait:
        return self.quotes.batch(waiting.request, waiting.quote, tokens, now_ms)

    def _prospect(self, waiting: Waiting, batch: Batch | MustWait, now_ms: int) -> Prospect:
        """What the present count offers *waiting*, and what speaks against relying on it."""
        bucket = self.ledger.bucket
        assert bucket.observation is not None
        waits, doubt = isinstance(batch, MustWait), False
        if waits:
            doubt = self._would_help(waiting, now_ms)
            # A doubt that one head leaves behind is as old for the next one.
            if not doubt:
                self._doubt_since_ms = None
            elif self._doubt_since_ms is None:
                self._doubt_since_ms = now_ms
        since_ms, doubts = self._doubt_since_ms, self.doubts
        doubted_ms = 0 if since_ms is None else now_ms - since_ms
        ripe_ms = FRESH_MS if doubt and self.ledger.open_leases else 0
        return Prospect(
            short=isinstance(batch, MustWait) or batch.units < waiting.quote.units,
            waits=waits,
            ticks=bucket.ticks_landed(now_ms),
            age_ms=now_ms - bucket.observation.arrived_ms,
            period_ms=bucket.period.ms,
            # While the gap between such probes lasts, the count as it is must do.
            disputed=doubts.pending and (doubts.due(now_ms) or self.probing.in_flight),
            doubt=doubt,
            doubt_ripe=doubted_ms >= ripe_ms,
            confirmed=now_ms < self._confirmed_until_ms,
        )

    def _would_help(self, waiting: Waiting, now_ms: int) -> bool:
        """Whether a probe asked now could show enough to serve *waiting*."""
        headroom = self.ledger.headroom_if_asked(now_ms)
        return isinstance(self._batch(waiting, self.grantable(headroom), now_ms), Batch)

    def _grant(self, waiting: Waiting, batch: Batch, now_ms: int) -> None:
        request = waiting.request
        self._deadlines.drop(request.lease_id)
        self.waitlist.serve(waiting, batch.tokens, now_ms)
        quote, waited_ms = waiting.quote, now_ms - waiting.since_ms
        overrun, proven = quote.overrun(batch.tokens), quote.proven
        if self.budgets.exist:
            self.quotes.count_shadows(request, quote, now_ms)
        self.budgets.hold(
            request.lease_id,
            request.holder,
            request.operation,
            batch.tokens,
            # No call yet stands against a mere prior.
            overrun if quote.is_seen else 0,
            now_ms,
        )
        lease = self.ledger.reserve(
            request, batch.units, batch.tokens, now_ms, overrun=overrun, proven=proven
        )
        self._outcomes.append(Granted(lease, waited_ms))
        self.record(
            records.Granted(
                now_ms,
                request,
                lease.units,
                lease.tokens,
                overrun,
                lease.expires_ms,
                waited_ms,
                proven,
            )
        )

    def _correct(self, lease: Lease, tokens: int, now_ms: int) -> None:
        """The call of *lease* is over; it cost *tokens* more, or less, than it was charged."""
        if lease.request is not None:
            self.waitlist.settled(lease.request.priority, lease.holder, tokens, now_ms)

    # --- denying -----------------------------------------------------------

    def _deny_overdue(self, now_ms: int) -> bool:
        """Answers the requests that are out of time, but not before Keepa has been asked.

        Returns whether there were any.
        """
        undecided = self.probing.wanted is not None or self.probing.in_flight
        due = self._deadlines.passed(self.waitlist, now_ms, undecided=undecided)
        if not due:
            return False
        delays = self._retry_delays_ms(now_ms, undecided=undecided)
        for waiting in due[: max(1, ANSWERS_MAX - len(self._outcomes))]:
            self._deny(waiting, self.reason(waiting, now_ms), delays, now_ms)
        return True

    def _retry_delays_ms(self, now_ms: int, *, undecided: bool) -> dict[str, int | None]:
        """When to come back: as forecast, but not before anything can be decided.

        Requests behind the first `FORESEEN_MAX` come back when the last of these is due:
        it can't be their turn sooner.
        """
        etas, state = self.etas_ms(now_ms, self.first_in_line()), self.state(now_ms)
        if len(self.waitlist) > len(etas):
            last_ms = max((eta_ms for eta_ms in etas.values() if eta_ms is not None), default=None)
            etas = {waiting.request.lease_id: last_ms for waiting in self.waitlist} | etas
        if state is BucketState.PAUSED or (state is SERVING and not undecided):
            return etas
        synced = self.ledger.bucket.observation is not None
        soonest_ms = max(self.probing.retry_delay_ms(now_ms), self._recovered_ms - now_ms)
        return {
            lease_id: None if synced and eta_ms is None else max(eta_ms or 0, soonest_ms)
            for lease_id, eta_ms in etas.items()
        }

    def reason(self, waiting: Waiting, now_ms: int) -> DenialReason:
        """Why *waiting* has not been granted."""
        state = self.state(now_ms)
        if state is BucketState.PAUSED:
            return DenialReason.PAUSED
        if state is not SERVING:
            return DenialReason.NOT_SYNCED
        if self.obstacle(waiting, now_ms) is not None:
            return DenialReason.BUDGET_EXHAUSTED
        return DenialReason.INSUFFICIENT_TOKENS

    def _deny(
        self, waiting: Waiting, reason: DenialReason, delays: dict[str, int | None], now_ms: int
    ) -> None:
        request = waiting.request
        self._deadlines.drop(request.lease_id)
        self.waitlist.remove(request.lease_id)
        self.denials[reason] += 1
        tokens = available = self.available(now_ms, projected=False)
        if reason is DenialReason.TOO_LARGE:
            offer = waiting.offer
            assert isinstance(offer, TooLarge)
            tokens = offer.most_tokens
            message = (
                f"{request.least} units may cost more than the {tokens} tokens"
                " that a full bucket, or a budget, ever allows"
            )
        else:
            needs = waiting.quote.least_tokens
            if reason is DenialReason.BUDGET_EXHAUSTED:
                obstacle = self.obstacle(waiting, now_ms)
                assert obstacle is not None
                message = f"{obstacle.words}; {needs} tokens are needed"
                self.budgets.denied(obstacle.budget.name)
            else:
                message = MESSAGES[reason].format(tokens=tokens, needs=needs)
            if self.probing.in_flight:
                message += "; Keepa has been asked, and has not answered yet"
        largest = self.quotes.largest_units(request, tokens)
        delay_ms = delays.get(request.lease_id)
        self._outcomes.append(Denied(request.lease_id, reason, delay_ms, largest, message))
        waited_ms = now_ms - waiting.since_ms
        self.record(records.Denied(now_ms, request, reason.value, delay_ms, waited_ms, available))
