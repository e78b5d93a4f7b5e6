"""The token ledger: leases over the bucket.

Rule 1: every change to balance and leases starts in this file; the sums of what is held
        are kept by holds.py.
Rule 2: no I/O, no await, no logging and no clock; callers pass now_ms.
Rule 3: reserved is everything that the current observation does not certainly
        include. It may err low by what is in flight; it never errs high.
        The last probe, less all that has happened since, is as honest a count:
        it stands in where no reply since shows spending that is not ours.
Rule 4: a hold ends by knowledge only: a settle, or an observation that must
        include the call. Time alone refunds nothing.
Rule 5: what a client reports is evidence. It moves the count only where the model
        explains it (evidence.py); plan, period and foreign spending come from
        probes alone, and no claim holds more than a bucket can.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Final

from msgspec import Struct

from broker.core.bucket import PROBE, SETTLE, Bucket, Observation
from broker.core.drift import ROUNDING_TOKENS, Drift, Included, Split
from broker.core.errors import (
    LeaseConflictError,
    LeaseEndedError,
    LeaseNotFoundError,
    LeaseTooOldError,
)
from broker.core.events import Event, EventKind
from broker.core.evidence import BELIEVED_WORST, Doubt, doubt_of
from broker.core.holds import Holds
from broker.core.leases import (
    LAPSED,
    OPEN,
    REFUSED,
    REPLIED,
    SETTLED,
    UNKNOWN,
    Ended,
    Lease,
    LeaseRequest,
    Renewal,
    Settled,
    Settlement,
)
from broker.core.records import Carried, Corrected, Expired, Observed, Record, WrittenOff

# No call takes longer (Keepa's own client reads for 120 s at most).
CALL_MS_MAX: Final = 120_000
# For so long after others were seen to spend, the own books are not enough.
STRANGER_MS: Final = 3_600_000
# Ended leases are remembered for replays and late acquires.
ENDED_MAX: Final = 100_000
# No call takes longer than minutes: a lease renewed for longer belongs to a hung client.
LEASE_AGE_MS_MAX: Final = 600_000
# Before the first count shows a capacity, leases of earlier epochs are adopted up to this sum.
UNSYNCED_TOKENS_MAX: Final = 1_000_000
# After a first count that earlier epochs may have spent of, their clients settle again.
STRAGGLERS_MS: Final = 30_000
# Events are kept until they are taken; beyond this number the oldest go.
EVENTS_MAX: Final = 10_000
# Records likewise: the edge takes them after every step.
RECORDS_MAX: Final = 100_000
# Before any moment of the broker's clock.
LONG_AGO_MS: Final = -(1 << 62)


@dataclass(slots=True)
class Totals:
    """Sums since the start; tokens or counts."""

    grants: int = 0
    settles: int = 0
    late_settles: int = 0
    expiries: int = 0
    refusals: int = 0
    unknown_outcomes: int = 0
    spent_tokens: int = 0
    # Taken as spent by calls without a reported cost.
    written_off_tokens: int = 0
    observations: int = 0
    stale_observations: int = 0
    # Settled envelopes that did not fit the model.
    implausible_reports: int = 0


class Comparison(Struct, frozen=True):
    """What an observation shows beside the one before it.

    `ticks` landed between the two. `released` are the uncertain calls that it certainly
    includes, `missing` those that the one before included and it may not; `split` is None for
    the first observation.
    """

    ticks: int
    released: list[Lease]
    missing: list[Lease]
    split: Split | None


@dataclass(slots=True)
class Ledger:
    """Balance, holds and leases of one account."""

    epoch: int
    lease_age_ms_max: int = LEASE_AGE_MS_MAX
    bucket: Bucket = field(default_factory=Bucket)
    drift: Drift = field(default_factory=Drift)
    totals: Totals = field(default_factory=Totals)
    holds: Holds = field(default_factory=Holds)
    # What has happened since the events were taken last.
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    # The same for the journal; what the allocator decides stands between.
    records: deque[Record] = field(default_factory=lambda: deque(maxlen=RECORDS_MAX))
    # Lost calls given up lately.
    written_off: list[WrittenOff] = field(default_factory=list)
    # Keepa's counts show every charge of a call granted since; None before the first count. A
    # full bucket hides charges: refill that would have lapsed makes up for them.
    shows_since_ms: int | None = None
    # What the first count includes without a record, until settles of earlier epochs explain
    # it; and Keepa's time of that count.
    unrecorded_tokens: int = 0
    _unrecorded_ms: int = LONG_AGO_MS
    # Until then a charge that shows may be theirs.
    _stragglers_until_ms: int = LONG_AGO_MS
    # A replay gives up what its records give up, and nothing by itself.
    gives_up: bool = True
    # The last probe; costs that it may lack, and those that it certainly lacks.
    _spent_since_probe: int = 0
    _spent_after_probe: int = 0
    _foreign_tokens: int = 0
    _stranger_ms: int = LONG_AGO_MS
    _ended: OrderedDict[str, Ended] = field(default_factory=OrderedDict)
    _expiries: list[tuple[int, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Lease]:
        """All holds: open and lapsed leases, then settled but uncertain calls."""
        return iter(self.holds)

    @property
    def reserved(self) -> int:
        """Tokens of all holds."""
        return self.holds.reserved

    @property
    def gone_tokens(self) -> int:
        """Tokens spent since the start: by settled calls, lost ones and others."""
        totals = self.totals
        return totals.spent_tokens + totals.written_off_tokens + self.drift.foreign_tokens

    @property
    def open_leases(self) -> int:
        """Leases that are open."""
        return self.holds.open_leases

    @property
    def uncertain_tokens(self) -> int:
        """Costs that the headroom lacks although Keepa's count probably includes them."""
        return 0 if self.rests_on_probe else self.holds.uncertain_tokens

    def lease(self, lease_id: str) -> Lease | None:
        """The open or lapsed lease *lease_id*."""
        return self.holds.lease(lease_id)

    def has_ended(self, lease_id: str) -> bool:
        """Whether *lease_id* was settled, abandoned or written off."""
        return lease_id in self._ended

    def holder(self, lease_id: str) -> str | None:
        """The holder of *lease_id* while it can still be settled at a cost, else None."""
        lease = self.holds.lease(lease_id)
        if lease is not None:
            return lease.holder
        ended = self._ended.get(lease_id)
        return None if ended is None or ended.written_off is None else ended.holder

    @property
    def contradicts_itself(self) -> bool:
        """Whether the count, as reports have it, can't be true beside what is held."""
        return self.drift.contradicts(self.reserved)

    def headroom(self, now_ms: int, *, projected: bool) -> int:
        """Balance less holds: observed, or with the lumps that should have landed.

        Both of two counts err low: the last observation less all that it may lack,
        and the last probe less all that has happened since. The higher one is nearer.
        """
        bucket = self.bucket
        balance = bucket.balance(now_ms) if projected else bucket.observed
        return balance - self.reserved + self.probe_lead

    def oldest_open_ms(self, now_ms: int) -> int | None:
        """The age of the oldest open lease; None without one."""
        opened = self.holds.leases(OPEN)
        granted_ms = min((lease.granted_ms for lease in opened), default=None)
        return None if granted_ms is None else now_ms - granted_ms

    @property
    def rests_on(self) -> Observation | None:
        """The observation that the headroom is computed from."""
        return self.bucket.probed if self.rests_on_probe else self.bucket.observation

    @property
    def rests_on_probe(self) -> bool:
        """Whether the last probe and the own books show more than the last reply."""
        return self.probe_lead > 0

    @property
    def probe_lead(self) -> int:
        """Tokens by which the last probe and the own books show more than the last reply.

        0 where they show less, or where the reply shows spending that is not in the books.
        """
        bucket = self.bucket
        probed, seen = bucket.probed, bucket.observation
        if probed is None or seen is None or not bucket.same_tick(probed, seen):
            return 0
        if seen.arrived_ms - self._stranger_ms < STRANGER_MS:
            return 0
        spent = self._spent_since_probe + self.holds.unsettled_tokens
        booked, shown = probed.envelope.tokens_left - spent, bucket.observed
        if booked > shown + bucket.lacking_tokens:
            return 0
        return max(0, booked - (shown - self.reserved))

    def headroom_if_asked(self, now_ms: int) -> int:
        """The most headroom that a probe asked now could show.

        Its answer includes every settled call, and ends the holds of lost ones that
        must be over. It shows no more than any reply since the last tick did, less
        what was charged after that reply.
        """
        probed, seen = self.bucket.probed, self.bucket.observation
        assert seen is not None
        most = seen.envelope.tokens_left + self.bucket.lacking_tokens
        if probed is not None and self.bucket.same_tick(probed, seen):
            known = probed.envelope.tokens_left
            # A probe that showed less than a later reply has missed a lump.
            if known >= seen.envelope.tokens_left:
                most = min(most, known - self._spent_after_probe)
        return most - self.in_flight_tokens(now_ms)

    def in_flight_tokens(self, now_ms: int) -> int:
        """Tokens held for calls that may still run."""
        over_ms = now_ms - CALL_MS_MAX
        lapsed = self.holds.leases(LAPSED)
        over = sum(lost.tokens for lost in lapsed if lost.granted_ms <= over_ms)
        return self.holds.unsettled_tokens - over

    def next_over_ms(self, now_ms: int) -> int | None:
        """When the next lost call must be over, so that a probe can end its hold."""
        lapsed = self.holds.leases(LAPSED)
        times = (lost.granted_ms + CALL_MS_MAX for lost in lapsed)
        return min((time for time in times if time > now_ms), default=None)

    def reserve(
        self,
        request: LeaseRequest,
        units: int,
        tokens: int,
        now_ms: int,
        *,
        overrun: int = 0,
        proven: bool = True,
    ) -> Lease:
        """Holds *tokens* for a call of *units* units that may cost *overrun* more.

        Whether the tokens are there is the caller's decision. *proven*: enough calls have
        shown the cost.
        """
        assert tokens > 0
        assert units > 0
        assert request.lease_id not in self._ended
        lease = Lease(
            request.lease_id,
            request.holder,
            request.operation,
            units,
            tokens,
            self.epoch,
            granted_ms=now_ms,
            expires_ms=now_ms + min(request.ttl_ms, self.lease_age_ms_max),
            sent_after_ms=now_ms,
            request=request,
            overrun=overrun,
            proven=proven,
        )
        self._hold(lease)
        self.totals.grants += 1
        return lease

    def revoke(self, lease_id: str) -> Lease | None:
        """Takes back a grant that never reached its client; leaves no trace."""
        lease = self.holds.lease(lease_id)
        if lease is not None:
            self.holds.remove(lease)
            self.totals.grants -= 1
        return lease

    def renew(self, renewal: Renewal, now_ms: int) -> Lease:
        """Prolong a lease; one of an older epoch is adopted, a lapsed one revived.

        Raises:
            LeaseEndedError: It has been settled, abandoned or written off.
            LeaseNotFoundError: It was never granted in this epoch, or claims more than
                a bucket can hold beside the others that were adopted.
            LeaseConflictError: Another holder has it.
            LeaseTooOldError: It has reached its greatest age; it lapses, and is not refunded.
        """
        lease = self.holds.lease(renewal.lease_id)
        if lease is None:
            if renewal.lease_id in self._ended:
                raise LeaseEndedError(renewal.lease_id)
            if renewal.epoch >= self.epoch or renewal.tokens > self._adoptable_tokens:
                raise LeaseNotFoundError(renewal.lease_id)
            lease = self._stranger(renewal, now_ms)
            lease.expires_ms = now_ms + min(renewal.ttl_ms, self.lease_age_ms_max)
            self._hold(lease)
            return lease
        if lease.holder != renewal.holder:
            raise LeaseConflictError(renewal.lease_id)
        last_ms = lease.granted_ms + self.lease_age_ms_max
        if now_ms >= last_ms:
            raise LeaseTooOldError(renewal.lease_id, self.lease_age_ms_max)
        if lease.state is LAPSED:
            self.holds.revive(lease)
            lease.timer_ms = None
        lease.expires_ms = min(now_ms + renewal.ttl_ms, last_ms)
        # A heartbeat moves the end; the timer that is set finds that out when it rings.
        if lease.timer_ms is None or lease.expires_ms < lease.timer_ms:
            self._set_timer(lease)
        return lease

    def settle(self, settlement: Settlement, now_ms: int) -> Settled:
        """Replaces a hold by what the call really cost. Counts once per lease.

        Raises:
            LeaseNotFoundError: It was never granted in this epoch.
            LeaseConflictError: Another holder has it.
        """
        lease_id = settlement.lease_id
        lease = self.holds.lease(lease_id)
        if lease is None:
            return self._settle_without_hold(settlement, now_ms)
        if lease.holder != settlement.holder:
            raise LeaseConflictError(lease_id)
        late = lease.state is LAPSED
        if settlement.outcome is UNKNOWN:
            if not late:
                self.holds.lapse(lease)
                self._note_unknown(lease)
            return Settled(late, lease)
        self._end(lease_id, Ended(late))
        self.holds.remove(lease)
        return self._take_cost(lease, settlement, now_ms, late=late)

    def carry(self, lease: Lease, now_ms: int) -> None:
        """Takes over the hold of a lease that an earlier epoch granted."""
        lapsed, lease.state = lease.state is LAPSED, OPEN
        self.holds.add(lease)
        if lapsed:
            self.holds.lapse(lease)
        else:
            self._set_timer(lease)
        self.records.append(
            Carried(
                now_ms,
                lease.lease_id,
                lease.holder,
                lease.operation,
                lease.units,
                lease.tokens,
                lease.overrun,
                lease.granted_ms,
                lease.expires_ms,
                lapsed,
                lease.request,
                lease.proven,
            )
        )

    def remember_ended(self, lease_id: str, ended: Ended) -> None:
        """Takes over what an earlier epoch remembered of a lease that holds nothing."""
        self._end(lease_id, ended)

    def abandon(self, lease_id: str) -> None:
        """Remember that *lease_id* will not be used, so that a late acquire is refused."""
        assert self.holds.lease(lease_id) is None
        if lease_id not in self._ended:
            self._end(lease_id, Ended(late=False))

    def expire(self, now_ms: int) -> None:
        """Lapse every lease with a silent client. The hold stays."""
        # No timer rings later than its lease expires.
        if not self._expiries or self._expiries[0][0] > now_ms:
            return
        while (expires_ms := self.next_expiry_ms()) is not None and expires_ms <= now_ms:
            _, lease_id = heappop(self._expiries)
            lease = self.holds.lease(lease_id)
            assert lease is not None
            self.holds.lapse(lease)
            self.totals.expiries += 1
            self.events.append(Event(EventKind.EXPIRED, lease.holder))
            self.records.append(Expired(now_ms, lease_id, lease.holder))

    def next_expiry_ms(self) -> int | None:
        """When the next lease may lapse."""
        while self._expiries:
            timer_ms, lease_id = self._expiries[0]
            lease = self.holds.lease(lease_id)
            if lease is None or lease.state is not OPEN or lease.timer_ms != timer_ms:
                heappop(self._expiries)
            elif lease.expires_ms > timer_ms:
                heappop(self._expiries)
                self._set_timer(lease)
            else:
                return lease.expires_ms
        return None

    def _set_timer(self, lease: Lease) -> None:
        lease.timer_ms = lease.expires_ms
        heappush(self._expiries, (lease.expires_ms, lease.lease_id))

    def observe(self, observation: Observation) -> bool:
        """Takes a probe's answer as the truth, unless something later is known."""
        if not (observation.envelope.is_observation and self._is_news(observation)):
            self.records.append(self._observed(observation, taken=False))
            return False
        if self.bucket.observation is None:
            self._trim_adopted(observation)
        self._adopt_observation(observation, self._compare(observation, None))
        return True

    def _is_news(self, observation: Observation) -> bool:
        if self.bucket.supersedes(observation):
            return True
        self.totals.stale_observations += 1
        return False

    def _take_cost(
        self, lease: Lease, settlement: Settlement, now_ms: int, *, late: bool, held: bool = True
    ) -> Settled:
        """Account for a call; its hold, if it was *held*, has just been dropped."""
        self._book(lease, settlement, now_ms, late=late)
        envelope, doubt = settlement.envelope, None
        if envelope is not None and envelope.is_observation:
            arrived_ms = now_ms - settlement.age_ms
            own = Observation(envelope, arrived_ms, lease.sent_after_ms, SETTLE)
            interval_ms = (envelope.server_time_ms, own.end_ms)
            # Before the first probe, and without a hold, there is nothing to compare with.
            comparable = held and self.bucket.observation is not None
            if self._is_news(own) and comparable:
                lease.interval_ms = interval_ms
                judged = self._judge(own, lease)
                if isinstance(judged, Comparison):
                    self._adopt_observation(own, judged)
                    return Settled(late, lease, lease.cost)
                doubt = judged
                self.totals.implausible_reports += 1
                self.events.append(Event(EventKind.IMPLAUSIBLE, lease.holder, doubt=doubt))
            lease.interval_ms = None if doubt else interval_ms
        # The envelope is no news: is the call in the observation?
        if lease.cost:
            known = self.bucket.observation
            if known is not None and self.holds.includes(known, lease):
                cost = lease.cost - self._explain_unrecorded(lease)
                self.drift.settled_late(lease.tokens, cost, self.reserved)
            else:
                self.holds.keep(lease)
        return Settled(late, lease, lease.cost, doubt)

    def _book(self, lease: Lease, settlement: Settlement, now_ms: int, *, late: bool) -> None:
        """Books what the call of *lease* has cost."""
        envelope, outcome, totals = settlement.envelope, settlement.outcome, self.totals
        cost = 0
        if outcome is REFUSED:
            totals.refusals += 1
            self.events.append(Event(EventKind.REFUSED, lease.holder))
        elif outcome is REPLIED and envelope is not None:
            # No client can claim more for a call than its worst price, or a full bucket.
            cost, worst = envelope.tokens_consumed, lease.tokens + lease.overrun
            if cost > worst:
                cost = min(cost, max(worst, self.bucket_tokens))
        totals.settles += 1
        totals.late_settles += late
        totals.spent_tokens += cost
        lease.state, lease.cost, lease.settled_ms = SETTLED, cost, now_ms
        if cost:
            self.holds.remember(lease)
            self._spent_since_probe += cost
            probed = self.bucket.probed
            if probed is not None and lease.sent_after_ms >= probed.arrived_ms:
                self._spent_after_probe += cost

    @property
    def bucket_tokens(self) -> int:
        """The most that the bucket can hold."""
        if self.bucket.observation is None:
            return UNSYNCED_TOKENS_MAX
        return max(self.bucket.capacity, self.bucket.observed)

    @property
    def _adoptable_tokens(self) -> int:
        """What leases of earlier epochs may still claim, all together a full bucket."""
        return self.bucket_tokens - self.holds.adopted_tokens

    def _trim_adopted(self, first: Observation) -> None:
        """Cuts what was adopted before the first count to what a bucket can hold."""
        room = max(first.envelope.capacity, first.envelope.tokens_left)
        for state in (OPEN, LAPSED):
            for lease in self.holds.leases(state):
                if lease.request is None:
                    self.holds.resize(lease, min(lease.tokens, room))
                    room -= lease.tokens

    def _judge(self, own: Observation, lease: Lease) -> Comparison | Doubt:
        """What the reply to the call of *lease* shows; or why it is not Keepa's count."""
        doubt = doubt_of(self.bucket, own)
        if doubt is not None:
            return doubt
        if lease.cost > lease.tokens:
            believed = min(lease.tokens + lease.overrun, BELIEVED_WORST * lease.tokens)
            if lease.cost > believed:
                return Doubt.COST
        comparison = self._compare(own, lease)
        # Each refill may round, and no report more than that: small steps must not add up.
        assert self.bucket.probed is not None
        ticks = self.bucket.ticks_apart(self.bucket.probed, own)
        assert comparison.split is not None
        rest = comparison.split.rest
        if abs(self.drift.rounded_tokens + rest) <= ROUNDING_TOKENS * (1 + ticks):
            return comparison
        return Doubt.MORE if rest > 0 else Doubt.FEWER

    def _compare(self, observation: Observation, own: Lease | None) -> Comparison:
        """What *observation* shows beside the one before it; changes nothing.

        Args:
            observation: Newer than any before.
            own: The call that it answers, if any.
        """
        included, in_flight = Included(), self.reserved
        if own is not None:
            included.add(own.tokens, own.cost)
        released = self.holds.included_by(observation)
        for lease in released:
            included.add(lease.tokens, lease.cost)
            in_flight -= lease.cost
        missing = self.holds.missing_from(observation, own)
        for lease in missing:
            included.remove(lease.tokens, lease.cost)
            in_flight += lease.cost
        known = self.bucket.observation
        if known is None:
            return Comparison(0, released, missing, None)
        ticks = self.bucket.ticks_between(observation, included.cost)
        split = self.drift.split(
            known.envelope,
            observation.envelope,
            ticks=ticks,
            included=included,
            in_flight=in_flight,
            held=partial(self._held_beside, released, missing),
        )
        return Comparison(ticks, released, missing, split)

    def _held_beside(self, released: Sequence[Lease], missing: Sequence[Lease]) -> list[int]:
        """Tokens of each call that a count may include or not; see `_compare`."""
        gone = {lease.lease_id for lease in released}
        held = [lease.held for lease in self.holds if lease.lease_id not in gone]
        return held + [lease.cost for lease in missing]

    def _adopt_observation(self, observation: Observation, comparison: Comparison) -> None:
        """Makes *observation* the balance, and reserves what it may not include."""
        for lease in comparison.released:
            self.holds.release(lease)
        for lease in comparison.missing:
            self.holds.keep(lease)
        probed = observation.source is PROBE
        if comparison.split is not None:
            self.drift.take(comparison.split, self.reserved, probed=probed)
            if self.drift.foreign_tokens != self._foreign_tokens:
                self._look_for_strangers(observation)
        capacity = self.bucket.capacity
        lapses = self.bucket.lapses_before(observation, comparison.ticks)
        if lapses or self.shows_since_ms is None:
            self.shows_since_ms = observation.arrived_ms
        self.bucket.adopt(observation)
        if self.bucket.capacity != capacity:
            refill_rate = observation.envelope.refill_rate
            self.events.append(Event(EventKind.PLAN, tokens=refill_rate))
        self.totals.observations += 1
        if probed:
            self.records.append(self._observed(observation, taken=True))
            self._write_off_lost(observation)
            self._spent_after_probe = 0
            self._spent_since_probe = self.holds.cost_since(observation.requested_ms)

    def _observed(self, observation: Observation, *, taken: bool) -> Observed:
        drift, unexplained = self.drift.last_tokens, self.drift.last_unexplained_tokens
        return Observed(
            observation.arrived_ms,
            observation.requested_ms,
            observation.envelope,
            taken,
            drift if taken else 0,
            unexplained if taken else 0,
            self.drift.foreign_tokens,
            self.drift.shown_in_flight,
            self.shows_since_ms,
        )

    def _look_for_strangers(self, observation: Observation) -> None:
        """Notes when others spend; suspicion ends when our own calls explain it."""
        before, self._foreign_tokens = self._foreign_tokens, self.drift.foreign_tokens
        if self._foreign_tokens > before:
            self._stranger_ms = observation.arrived_ms
            spent = self._foreign_tokens - before
            self.events.append(Event(EventKind.FOREIGN_SPEND, tokens=spent))
        elif self._foreign_tokens < before:
            self._stranger_ms = LONG_AGO_MS

    def _write_off_lost(self, observation: Observation) -> None:
        """Gives up lapsed leases if a probe's answer must show their charge, or shows it.

        A report that denies such a charge, or shows a little of it, would free the whole.
        Where no count can show it, the call is taken to have cost what is held for it.
        """
        assert observation.source is PROBE
        assert self.shows_since_ms is not None
        lapsed = self.holds.leases(LAPSED)
        if not lapsed or not self.gives_up:
            return
        asked_ms = observation.requested_ms
        lost = [lease for lease in lapsed if asked_ms >= lease.granted_ms + CALL_MS_MAX]
        shown = self.drift.shown_in_flight
        # With nothing else in flight, a charge that shows can only be theirs; but a
        # lump that the reply may lack looks like one, and less than what they hold may
        # be what a false report has left behind.
        alone = len(lapsed) == len(self.holds) and not self.bucket.straddles_tick
        if asked_ms < self._stragglers_until_ms:
            alone = False
        if alone and shown >= self.reserved:
            lost = lapsed
        for lease in lost:
            self.holds.remove(lease)
            cost, unwitnessed = self.drift.written_off(lease.tokens), 0
            if lease.granted_ms < self.shows_since_ms:
                unwitnessed = lease.tokens - cost
                cost = lease.tokens
            self.totals.written_off_tokens += cost
            self._end(lease.lease_id, Ended(True, cost, lease.holder, unwitnessed))
            given_up = WrittenOff(
                observation.arrived_ms,
                lease.lease_id,
                lease.holder,
                lease.operation,
                lease.units,
                lease.tokens,
                cost,
                lease.granted_ms,
                unwitnessed,
            )
            self.records.append(given_up)
            self.written_off.append(given_up)

    def give_up(self, record: WrittenOff) -> None:
        """Gives up a lost call as another ledger has, if this one still holds its tokens."""
        lease = self.holds.lease(record.lease_id)
        if lease is None:
            return
        self.holds.remove(lease)
        self.drift.written_off(record.cost - record.unwitnessed)
        self.totals.written_off_tokens += record.cost
        ended = Ended(True, record.cost, lease.holder, record.unwitnessed)
        self._end(lease.lease_id, ended)

    def amend(self, record: WrittenOff) -> None:
        """Adds what the counts have shown meanwhile of a call that has just been given up."""
        shown = self.drift.written_off(record.tokens)
        if not record.unwitnessed:
            record.cost += shown
            self.totals.written_off_tokens += shown
            self._end(record.lease_id, Ended(True, record.cost, record.holder))

    def _settle_without_hold(self, settlement: Settlement, now_ms: int) -> Settled:
        """Settles a lease that this epoch holds nothing for."""
        lease_id, outcome = settlement.lease_id, settlement.outcome
        ended = self._ended.get(lease_id)
        if ended is not None and ended.written_off is None:
            return Settled(ended.late)
        if ended is None:
            self._check_stranger(settlement)
        if outcome is UNKNOWN:
            if ended is not None:
                return Settled(late=True)
            lease = self._stranger(settlement, now_ms)
            self._hold(lease)
            self.holds.lapse(lease)
            self._note_unknown(lease)
            return Settled(late=True, lease=lease)
        if ended is not None and ended.written_off:
            self.totals.written_off_tokens -= ended.written_off
            self.drift.written_on(ended.written_off - ended.unwitnessed)
            self.records.append(
                Corrected(now_ms, lease_id, ended.holder, settlement.operation, -ended.written_off)
            )
        self._end(lease_id, Ended(late=True))
        lease = self._stranger(settlement, now_ms)
        return self._take_cost(lease, settlement, now_ms, late=True, held=False)

    def _check_stranger(self, settlement: Settlement) -> None:
        """Refuses a lease that no epoch can have granted.

        Raises:
            LeaseNotFoundError: It claims to be of this epoch, or more than a bucket can hold.
        """
        tokens = settlement.tokens if settlement.outcome is UNKNOWN else 0
        if settlement.envelope is not None and settlement.outcome is REPLIED:
            tokens = settlement.envelope.tokens_consumed
        if settlement.epoch >= self.epoch or tokens > max(0, self._adoptable_tokens):
            raise LeaseNotFoundError(settlement.lease_id)

    def _stranger(self, call: Settlement | Renewal, now_ms: int) -> Lease:
        """A lease that only its client remembers, granted at an unknown moment."""
        return Lease(
            call.lease_id,
            call.holder,
            call.operation,
            call.units,
            max(1, call.tokens),
            self.epoch,
            granted_ms=now_ms,
            expires_ms=now_ms,
            sent_after_ms=LONG_AGO_MS,
        )

    def note_unrecorded(self, tokens: int) -> None:
        """The last probe includes *tokens* spent in earlier epochs without a record."""
        assert self.bucket.probed is not None
        self.unrecorded_tokens = tokens
        self._unrecorded_ms = self.bucket.probed.envelope.server_time_ms
        self._stragglers_until_ms = self.bucket.probed.arrived_ms + STRAGGLERS_MS

    def _explain_unrecorded(self, settled: Lease) -> int:
        """The part of what was not recorded that a call explains which this epoch never held."""
        interval_ms = settled.interval_ms
        if interval_ms is None or interval_ms[1] >= self._unrecorded_ms:
            return 0
        if settled.sent_after_ms != LONG_AGO_MS:
            return 0
        part = min(settled.cost, self.unrecorded_tokens)
        self.unrecorded_tokens -= part
        return part

    def _note_unknown(self, lease: Lease) -> None:
        self.totals.unknown_outcomes += 1
        self.events.append(Event(EventKind.COST_UNKNOWN, lease.holder))

    def _hold(self, lease: Lease) -> None:
        self.holds.add(lease)
        self._set_timer(lease)

    def _end(self, lease_id: str, ended: Ended) -> None:
        self._ended[lease_id] = ended
        self._ended.move_to_end(lease_id)
        if len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)
