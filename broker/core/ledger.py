"""The token ledger: leases over the bucket.

Rule 1: every change to balance, leases and holds lives in this file.
Rule 2: no I/O, no await, no logging and no clock; callers pass now_ms.
Rule 3: reserved is everything that the current observation does not certainly
        include. It may err low by what is in flight; it never errs high.
        The last probe, less all that has happened since, is as honest a count:
        it stands in where no reply since shows spending that is not ours.
Rule 4: a hold ends by knowledge only: a settle, or an observation that must
        include the call. Time alone refunds nothing.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil
from typing import Final

from broker.core.bucket import Bucket, Observation, Source
from broker.core.drift import Drift, Included
from broker.core.errors import LeaseConflictError, LeaseEndedError, LeaseNotFoundError
from broker.core.leases import (
    Ended,
    Lease,
    LeaseRequest,
    LeaseState,
    Outcome,
    Renewal,
    Settled,
    Settlement,
)
from broker.core.settled_calls import SettledCalls
from broker.core.totals import Totals

# No call takes longer (Keepa's own client reads for 120 s at most).
CALL_MS_MAX: Final = 120_000
# For so long after somebody else was seen to spend, our own books are not enough.
STRANGER_MS: Final = 3_600_000
# Ended leases are remembered for replays and late acquires.
ENDED_MAX: Final = 100_000
# Before any moment of the broker's clock.
LONG_AGO_MS: Final = -(1 << 62)


@dataclass(slots=True)
class Ledger:
    """Balance, holds and leases of one account."""

    epoch: int
    bucket: Bucket = field(default_factory=Bucket)
    drift: Drift = field(default_factory=Drift)
    totals: Totals = field(default_factory=Totals)
    reserved: int = 0
    open_leases: int = 0
    # Open and lapsed, in the order of their grants.
    _leases: dict[str, Lease] = field(default_factory=dict)
    _lapsed: dict[str, Lease] = field(default_factory=dict)
    # Open leases whose calls may cost more than they hold.
    _risky: dict[str, Lease] = field(default_factory=dict)
    _settled: SettledCalls = field(default_factory=SettledCalls)
    # The last probe; costs that it may lack, and those that it certainly lacks.
    _probed: Observation | None = None
    _spent_since_probe: int = 0
    _spent_after_probe: int = 0
    _foreign_tokens: int = 0
    _stranger_ms: int = LONG_AGO_MS
    _ended: OrderedDict[str, Ended] = field(default_factory=OrderedDict)
    _expiries: list[tuple[int, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Lease]:
        """All holds: open and lapsed leases, then settled but uncertain calls."""
        yield from self._leases.values()
        yield from self._settled.uncertain.values()

    @property
    def uncertain(self) -> bool:
        """Whether a new observation could release a settled call's hold."""
        return bool(self._settled.uncertain)

    @property
    def uncertain_tokens(self) -> int:
        """Costs that the headroom lacks although Keepa's count probably includes them."""
        return 0 if self.rests_on_probe else self._settled.uncertain_tokens

    def lease(self, lease_id: str) -> Lease | None:
        """The open or lapsed lease *lease_id*."""
        return self._leases.get(lease_id)

    def has_ended(self, lease_id: str) -> bool:
        """Whether *lease_id* was settled, abandoned or written off."""
        return lease_id in self._ended

    def holder(self, lease_id: str) -> str | None:
        """Whose the lease *lease_id* is that can still be settled at a cost; None: nobody's."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            return lease.holder
        ended = self._ended.get(lease_id)
        return None if ended is None or ended.written_off is None else ended.holder

    def headroom(self, now_ms: int, *, projected: bool) -> int:
        """Balance less holds: observed, or with the lumps that should have landed.

        Both of two counts err low: the last observation less all that it may lack,
        and the last probe less all that has happened since. The higher one is nearer.
        """
        balance = self.bucket.balance(now_ms) if projected else self.bucket.observed
        if self.rests_on_probe:
            assert self._probed is not None
            balance += self._booked(self._probed) - (self.bucket.observed - self.reserved)
        return balance - self.reserved

    @property
    def rests_on(self) -> Observation | None:
        """What Keepa said that the headroom is computed from."""
        return self._probed if self.rests_on_probe else self.bucket.observation

    @property
    def rests_on_probe(self) -> bool:
        """Whether the last probe and our own books tell more than the last reply."""
        probed, seen = self._probed, self.bucket.observation
        if probed is None or seen is None or not self.bucket.same_tick(probed, seen):
            return False
        if seen.arrived_ms - self._stranger_ms < STRANGER_MS:
            return False
        booked = self._booked(probed)
        # A reply below that shows spending that is not in the books.
        return self.bucket.observed - self.reserved < booked <= self.bucket.observed

    def _booked(self, probed: Observation) -> int:
        return probed.envelope.tokens_left - self._spent_since_probe - self._held_open

    @property
    def _held_open(self) -> int:
        """Tokens held for calls of which no settle has come."""
        return self.reserved - self._settled.uncertain_tokens

    def headroom_if_asked(self, now_ms: int) -> int:
        """The most headroom that a probe asked now could show.

        Its answer includes every settled call, and ends the holds of lost ones that
        must be over. It tells no more than any reply since the last tick did, less
        what was charged after that reply.
        """
        probed, seen = self._probed, self.bucket.observation
        assert seen is not None
        most = seen.envelope.tokens_left
        if self.bucket.straddles_tick:
            most += ceil(seen.envelope.lump)
        elif probed is not None and self.bucket.same_tick(probed, seen):
            known = probed.envelope.tokens_left
            # A probe that told less than a later reply has missed a lump.
            if known >= most:
                most = min(most, known - self._spent_after_probe)
        return most - self.in_flight_tokens(now_ms)

    def in_flight_tokens(self, now_ms: int) -> int:
        """Tokens held for calls that may still run."""
        over_ms = now_ms - CALL_MS_MAX
        over = sum(lost.tokens for lost in self._lapsed.values() if lost.granted_ms <= over_ms)
        return self._held_open - over

    def next_over_ms(self, now_ms: int) -> int | None:
        """When the next lost call must be over, so that a probe can end its hold."""
        times = (lost.granted_ms + CALL_MS_MAX for lost in self._lapsed.values())
        return min((time for time in times if time > now_ms), default=None)

    @property
    def overrun_tokens(self) -> int:
        """The most by which a call in flight may plausibly exceed its hold."""
        return max((lease.overrun for lease in self._risky.values()), default=0)

    def reserve(
        self, request: LeaseRequest, units: int, tokens: int, now_ms: int, *, overrun: int = 0
    ) -> Lease:
        """Hold *tokens* for a call of *units* units that may cost *overrun* more.

        Whether the tokens are there is the caller's decision.
        """
        assert tokens > 0
        assert units > 0
        assert request.lease_id not in self._leases
        assert request.lease_id not in self._ended
        lease = Lease(
            request.lease_id,
            request.holder,
            request.operation,
            units,
            tokens,
            self.epoch,
            granted_ms=now_ms,
            expires_ms=now_ms + request.ttl_ms,
            sent_after_ms=now_ms,
            request=request,
            overrun=overrun,
        )
        self._hold(lease)
        self.totals.grants += 1
        return lease

    def revoke(self, lease_id: str) -> Lease | None:
        """Take back a grant that never reached its client; leaves no trace."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            self._drop(lease)
            self.totals.grants -= 1
        return lease

    def renew(self, renewal: Renewal, now_ms: int) -> Lease:
        """Prolong a lease; one of an older epoch is adopted, a lapsed one revived.

        Raises:
            LeaseEndedError: It has been settled, abandoned or written off.
            LeaseNotFoundError: It was never granted in this epoch.
            LeaseConflictError: Another holder has it.
        """
        lease = self._leases.get(renewal.lease_id)
        if lease is None:
            if renewal.lease_id in self._ended:
                raise LeaseEndedError(renewal.lease_id)
            if renewal.epoch >= self.epoch:
                raise LeaseNotFoundError(renewal.lease_id)
            return self._adopt(renewal, now_ms)
        if lease.holder != renewal.holder:
            raise LeaseConflictError(renewal.lease_id)
        if lease.state is LeaseState.LAPSED:
            lease.state = LeaseState.OPEN
            del self._lapsed[lease.lease_id]
            self._count_open(lease)
        lease.expires_ms = now_ms + renewal.ttl_ms
        heappush(self._expiries, (lease.expires_ms, lease.lease_id))
        return lease

    def settle(self, settlement: Settlement, now_ms: int) -> Settled:
        """Replace a hold by what the call really cost. Counts once per lease.

        Raises:
            LeaseNotFoundError: It was never granted in this epoch.
            LeaseConflictError: Another holder has it.
        """
        lease_id = settlement.lease_id
        lease = self._leases.get(lease_id)
        if lease is None:
            return self._settle_without_hold(settlement, now_ms)
        if lease.holder != settlement.holder:
            raise LeaseConflictError(lease_id)
        late = lease.state is LeaseState.LAPSED
        if settlement.outcome is Outcome.UNKNOWN:
            if not late:
                self._lapse(lease)
                self.totals.unknown_outcomes += 1
            return Settled(late, lease)
        self._end(lease_id, Ended(late))
        self._drop(lease)
        return self._take_cost(lease, settlement, now_ms, late=late)

    def abandon(self, lease_id: str) -> None:
        """Remember that nobody will use *lease_id*, so that a late acquire is refused."""
        assert lease_id not in self._leases
        if lease_id not in self._ended:
            self._end(lease_id, Ended(late=False))

    def expire(self, now_ms: int) -> None:
        """Lapse every lease whose client has fallen silent. The hold stays."""
        while self._expiries and self._expiries[0][0] <= now_ms:
            _, lease_id = heappop(self._expiries)
            lease = self._leases.get(lease_id)
            if lease is None or lease.state is not LeaseState.OPEN or lease.expires_ms > now_ms:
                continue
            self._lapse(lease)
            self.totals.expiries += 1

    def next_expiry_ms(self) -> int | None:
        """When the next lease may lapse."""
        while self._expiries:
            expires_ms, lease_id = self._expiries[0]
            lease = self._leases.get(lease_id)
            if (
                lease is not None
                and lease.state is LeaseState.OPEN
                and lease.expires_ms == expires_ms
            ):
                return expires_ms
            heappop(self._expiries)
        return None

    def observe(self, observation: Observation) -> bool:
        """Take a probe's answer as the truth, unless something later is known."""
        if not self._is_news(observation):
            return False
        self._adopt_observation(observation, None)
        return True

    def _is_news(self, observation: Observation) -> bool:
        if not observation.envelope.is_observation:
            return False
        if self.bucket.supersedes(observation):
            return True
        self.totals.stale_observations += 1
        return False

    def _take_cost(
        self, lease: Lease, settlement: Settlement, now_ms: int, *, late: bool
    ) -> Settled:
        """Account for a call whose hold has just been dropped."""
        envelope, outcome = settlement.envelope, settlement.outcome
        self.totals.settles += 1
        self.totals.late_settles += late
        self.totals.refusals += outcome is Outcome.REFUSED
        if envelope is not None and outcome is Outcome.REPLIED:
            lease.cost = envelope.tokens_consumed
        self.totals.spent_tokens += lease.cost
        lease.state, lease.settled_ms = LeaseState.SETTLED, now_ms
        if lease.cost:
            self._settled.add(lease)
            self._book(lease)
        if envelope is not None and envelope.is_observation:
            lease.interval_ms = (envelope.server_time_ms, envelope.end_ms)
            arrived_ms = now_ms - settlement.age_ms
            own = Observation(envelope, arrived_ms, lease.sent_after_ms, Source.SETTLE)
            if self._is_news(own):
                self._adopt_observation(own, lease)
                return Settled(late, lease, lease.cost)
        if lease.cost:
            self._include_or_reserve(lease)
        return Settled(late, lease, lease.cost)

    def _book(self, lease: Lease) -> None:
        """Keep the count of what the last probe lacks."""
        self._spent_since_probe += lease.cost
        if self._probed is not None and lease.sent_after_ms >= self._probed.arrived_ms:
            self._spent_after_probe += lease.cost

    def _include_or_reserve(self, lease: Lease) -> None:
        """A settled call whose envelope is no news: is it in the current observation?"""
        known = self.bucket.observation
        if known is not None and self._settled.includes(known, lease):
            self.drift.settled_late(lease.tokens, lease.cost, self.reserved)
        else:
            self._reserve_cost(lease)

    def _adopt_observation(self, observation: Observation, own: Lease | None) -> None:
        """Make *observation* the balance, and reserve what it may not include."""
        included = Included()
        if own is not None:
            included.add(own.tokens, own.cost)
        for lease in self._settled.included_by(observation):
            self._release_cost(lease)
            included.add(lease.tokens, lease.cost)
        for lease in self._settled.missing_from(observation, own):
            self._reserve_cost(lease)
            included.remove(lease.tokens, lease.cost)
        self._compare(observation, included)
        self.bucket.adopt(observation)
        self.totals.observations += 1
        self._write_off_lost(observation)
        if observation.source is Source.PROBE:
            self._probed, self._spent_after_probe = observation, 0
            self._spent_since_probe = self._settled.cost_since(observation.requested_ms)

    def _compare(self, observation: Observation, included: Included) -> None:
        known = self.bucket.observation
        if known is not None:
            self.drift.compare(
                known.envelope,
                observation.envelope,
                ticks=self.bucket.ticks_between(observation),
                included=included,
                in_flight=self.reserved,
            )
            self._look_for_strangers(observation)

    def _look_for_strangers(self, observation: Observation) -> None:
        """Note when others spend; suspicion ends when our own calls explain it."""
        before, self._foreign_tokens = self._foreign_tokens, self.drift.foreign_tokens
        if self._foreign_tokens > before:
            self._stranger_ms = observation.arrived_ms
        elif self._foreign_tokens < before:
            self._stranger_ms = LONG_AGO_MS

    def _write_off_lost(self, observation: Observation) -> None:
        """Give up lapsed leases whose charge the observation must show, or shows."""
        if not self._lapsed:
            return
        asked_ms = observation.requested_ms
        lost = [p for p in self._lapsed.values() if asked_ms >= p.granted_ms + CALL_MS_MAX]
        shown = self.drift.shown_in_flight
        # With nothing else in flight, a charge that shows can only be theirs; but a
        # lump that the reply may lack looks like one.
        alone = len(self._lapsed) == len(self._leases) and not self._settled.uncertain
        alone = alone and not self.bucket.straddles_tick
        if alone and shown and (len(self._lapsed) == 1 or shown >= self.reserved):
            lost = list(self._lapsed.values())
        for lease in lost:
            self._drop(lease)
            cost = self.drift.written_off(lease.tokens, self.reserved)
            # The last probe may lack it as well.
            self._spent_since_probe += lease.tokens
            self.totals.written_off_tokens += cost
            self._end(lease.lease_id, Ended(True, cost, lease.holder))

    def _settle_without_hold(self, settlement: Settlement, now_ms: int) -> Settled:
        """Settle a lease that this epoch holds nothing for."""
        lease_id, outcome = settlement.lease_id, settlement.outcome
        ended = self._ended.get(lease_id)
        if ended is not None and ended.written_off is None:
            return Settled(ended.late)
        if ended is None and settlement.epoch >= self.epoch:
            raise LeaseNotFoundError(lease_id)
        if outcome is Outcome.UNKNOWN:
            if ended is not None:
                return Settled(late=True)
            return Settled(late=True, lease=self._adopt_lapsed(settlement, now_ms))
        if ended is not None and ended.written_off:
            self.totals.written_off_tokens -= ended.written_off
        self._end(lease_id, Ended(late=True))
        lease = self._stranger(settlement, now_ms)
        return self._take_cost(lease, settlement, now_ms, late=True)

    def _stranger(self, call: Settlement | Renewal, now_ms: int) -> Lease:
        """A lease of which only its client knows; granted we know not when."""
        return Lease(
            call.lease_id,
            call.holder,
            call.operation,
            call.units,
            call.tokens,
            self.epoch,
            granted_ms=now_ms,
            expires_ms=now_ms,
            sent_after_ms=LONG_AGO_MS,
        )

    def _adopt(self, renewal: Renewal, now_ms: int) -> Lease:
        lease = self._stranger(renewal, now_ms)
        lease.expires_ms = now_ms + renewal.ttl_ms
        self._hold(lease)
        return lease

    def _adopt_lapsed(self, settlement: Settlement, now_ms: int) -> Lease:
        lease = self._stranger(settlement, now_ms)
        self._hold(lease)
        self._lapse(lease)
        self.totals.unknown_outcomes += 1
        return lease

    def _hold(self, lease: Lease) -> None:
        self._leases[lease.lease_id] = lease
        self.reserved += lease.tokens
        self._count_open(lease)
        heappush(self._expiries, (lease.expires_ms, lease.lease_id))

    def _count_open(self, lease: Lease) -> None:
        self.open_leases += 1
        if lease.overrun > 0:
            self._risky[lease.lease_id] = lease

    def _lapse(self, lease: Lease) -> None:
        lease.state = LeaseState.LAPSED
        self.open_leases -= 1
        self._lapsed[lease.lease_id] = lease
        self._risky.pop(lease.lease_id, None)

    def _drop(self, lease: Lease) -> None:
        del self._leases[lease.lease_id]
        self._lapsed.pop(lease.lease_id, None)
        self._risky.pop(lease.lease_id, None)
        self.reserved -= lease.tokens
        self.open_leases -= lease.state is LeaseState.OPEN

    def _reserve_cost(self, lease: Lease) -> None:
        self._settled.uncertain[lease.lease_id] = lease
        self.reserved += lease.cost

    def _release_cost(self, lease: Lease) -> None:
        del self._settled.uncertain[lease.lease_id]
        self.reserved -= lease.cost

    def _end(self, lease_id: str, ended: Ended) -> None:
        self._ended[lease_id] = ended
        self._ended.move_to_end(lease_id)
        if len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)
