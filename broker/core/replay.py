"""Rebuilds the books from the journal's records, with the ledger that wrote them.

Within one epoch the replay ends at the very books of the broker: same balance, holds and
totals. Across epochs one ledger goes on, so that Keepa's count after a restart is compared
with the books before it: what the journal lacks shows as a difference.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from broker.core import records
from broker.core.bucket import Observation, Source
from broker.core.drift import Cause
from broker.core.errors import BrokerError
from broker.core.leases import Lease, LeaseState, Renewal
from broker.core.ledger import Ledger

# Of so many differences each is named; the tokens of all are summed up.
DIFFERENCES_MAX: Final = 1_000


class Gap(Enum):
    """Kind of a difference."""

    # Keepa's count shows spending, or tokens, that no record explains.
    UNEXPLAINED = "unexplained"
    # The journal has the end of a lease, but no beginning.
    NO_GRANT = "no_grant"
    # The record's cost is not what the books make of the same reply.
    OTHER_COST = "other_cost"
    # A lease ended twice, or was granted after its end.
    TWICE = "twice"
    # A restarted broker did not take over an open lease.
    FORGOTTEN = "forgotten"
    # The broker could not keep records.
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the records do not explain; `tokens` where it moves the count."""

    at_ms: int
    gap: Gap
    tokens: int = 0
    lease_id: str = ""
    holder: str = ""


@dataclass(slots=True)
class Spend:
    """Tokens and calls of one holder and operation."""

    tokens: int = 0
    calls: int = 0


@dataclass(slots=True)
class Sums:
    """What the replay has counted; tokens, or numbers of records."""

    records: int = 0
    epochs: int = 0
    probes: int = 0
    # Keepa's first and last count, and their times on Keepa's clock.
    first: Observation | None = None
    last: Observation | None = None
    unexplained_tokens: int = 0
    # Of lost calls that a full bucket hid: booked as estimated.
    unwitnessed_tokens: int = 0
    differences: int = 0


class Replay:
    """The books as the records have them so far."""

    def __init__(self) -> None:
        self.ledger = Ledger(0, gives_up=False)
        self.spend: dict[tuple[str, str], Spend] = defaultdict(Spend)
        self.sums = Sums()
        self.differences: list[Difference] = []
        # Holds at a restart that have not been taken over yet.
        self._left: dict[str, Lease] = {}
        self._unwitnessed: dict[str, int] = {}
        self._started = False
        self._take: dict[type, Callable[[Any], None]] = {
            records.Started: self._started_epoch,
            records.Carried: self._carried,
            records.Granted: self._granted,
            records.Revoked: self._revoked,
            records.Renewed: self._renewed,
            records.Adopted: self._adopted,
            records.Expired: self._expired,
            records.Settled: self._settled,
            records.Abandoned: self._abandoned,
            records.Observed: self._observed,
            records.WrittenOff: self._written_off,
            records.Corrected: self._corrected,
            records.Unrecorded: self._unrecorded,
            records.Lost: self._lost,
        }

    def take(self, record: records.Record) -> None:
        """The next record, in the order in which they were made."""
        self.sums.records += 1
        if self._left and not isinstance(record, records.Carried):
            self._name_forgotten(record.at_ms)
        by_cause = self.ledger.drift.by_cause
        before = by_cause[Cause.FOREIGN]
        take = self._take.get(type(record))
        if take is not None:
            take(record)
        # Also what a call takes back that turns out to have cost more than was held for it.
        tokens = before - by_cause[Cause.FOREIGN]
        if tokens:
            self.sums.unexplained_tokens += tokens
            self._differ(record.at_ms, Gap.UNEXPLAINED, tokens)
        # Its own records and events would only pile up.
        self.ledger.records.clear()
        self.ledger.events.clear()

    def _differ(
        self, at_ms: int, gap: Gap, tokens: int = 0, *, lease_id: str = "", holder: str = ""
    ) -> None:
        self.sums.differences += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(Difference(at_ms, gap, tokens, lease_id, holder))

    def _count(self, holder: str, operation: str, tokens: int, calls: int) -> None:
        spend = self.spend[holder, operation]
        spend.tokens += tokens
        spend.calls += calls

    # --- epochs ------------------------------------------------------------

    def _started_epoch(self, record: records.Started) -> None:
        self.sums.epochs += 1
        self.ledger.epoch = record.epoch
        self.ledger.lease_age_ms_max = record.lease_age_ms_max
        if not record.continues:
            for state in (LeaseState.OPEN, LeaseState.LAPSED):
                self._left |= {hold.lease_id: hold for hold in self.ledger.holds.leases(state)}

    def _carried(self, record: records.Carried) -> None:
        self._left.pop(record.lease_id, None)
        if self.ledger.lease(record.lease_id) is not None:
            self.ledger.expire(record.at_ms)
            return
        if self._started:
            self._differ(
                record.at_ms, Gap.NO_GRANT, lease_id=record.lease_id, holder=record.holder
            )
        self.ledger.carry(carried_lease(record, self.ledger.epoch), record.at_ms)

    def _name_forgotten(self, at_ms: int) -> None:
        for lease in self._left.values():
            self._differ(
                at_ms, Gap.FORGOTTEN, lease.tokens, lease_id=lease.lease_id, holder=lease.holder
            )
        self._left.clear()

    # --- leases ------------------------------------------------------------

    def _granted(self, record: records.Granted) -> None:
        request = record.request
        known = self.ledger.lease(request.lease_id) is not None
        if known or self.ledger.has_ended(request.lease_id):
            self._differ(record.at_ms, Gap.TWICE, lease_id=request.lease_id, holder=request.holder)
            return
        units, tokens = record.units, record.tokens
        self.ledger.reserve(
            request,
            units,
            tokens,
            record.at_ms,
            overrun=record.overrun,
            proven=record.proven,
        )

    def _revoked(self, record: records.Revoked) -> None:
        if self.ledger.revoke(record.lease_id) is None:
            self._differ(
                record.at_ms, Gap.NO_GRANT, lease_id=record.lease_id, holder=record.holder
            )

    def _renewed(self, record: records.Renewed) -> None:
        lease = self.ledger.lease(record.lease_id)
        if lease is None:
            self._differ(
                record.at_ms, Gap.NO_GRANT, lease_id=record.lease_id, holder=record.holder
            )
            return
        self._renew(record, lease.operation, lease.units, lease.tokens)

    def _adopted(self, record: records.Adopted) -> None:
        self._renew(record, record.operation, record.units, record.tokens)

    def _renew(
        self, record: records.Renewed | records.Adopted, operation: str, units: int, tokens: int
    ) -> None:
        ttl_ms = record.expires_ms - record.at_ms
        # Of an earlier epoch, as every lease was that the broker adopted.
        epoch = self.ledger.epoch - 1
        renewal = Renewal(record.lease_id, epoch, record.holder, operation, units, tokens, ttl_ms)
        try:
            self.ledger.renew(renewal, record.at_ms)
        except BrokerError:
            self._differ(record.at_ms, Gap.TWICE, lease_id=record.lease_id, holder=record.holder)

    def _expired(self, record: records.Expired) -> None:
        self.ledger.expire(record.at_ms)

    def _settled(self, record: records.Settled) -> None:
        call = record.settlement
        if record.cost is not None:
            self._count(call.holder, call.operation, record.cost, 1)
        place = {"lease_id": call.lease_id, "holder": call.holder}
        cost = record.cost or 0
        try:
            settled = self.ledger.settle(call, record.at_ms)
        except BrokerError:
            self._differ(record.at_ms, Gap.NO_GRANT, cost, **place)
            return
        if settled.lease is None:
            self._differ(record.at_ms, Gap.TWICE, cost, **place)
        elif settled.cost_tokens != record.cost:
            self._differ(record.at_ms, Gap.OTHER_COST, cost - (settled.cost_tokens or 0), **place)

    def _abandoned(self, record: records.Abandoned) -> None:
        if self.ledger.lease(record.lease_id) is None:
            self.ledger.abandon(record.lease_id)

    # --- Keepa -------------------------------------------------------------

    def _observed(self, record: records.Observed) -> None:
        self.sums.probes += 1
        seen = Observation(record.envelope, record.at_ms, record.requested_ms, Source.PROBE)
        if not self._started:
            # What was known of the holds with which the replay begins.
            self.ledger.drift.by_cause[Cause.IN_FLIGHT] = -record.in_flight
            self.ledger.shows_since_ms = record.shows_since_ms
        self.ledger.observe(seen)
        self.sums.first = self.sums.first or seen
        self.sums.last = seen
        self._started = True

    def _written_off(self, record: records.WrittenOff) -> None:
        self._count(record.holder, record.operation, record.cost, 1)
        self.ledger.give_up(record)
        if record.unwitnessed:
            self.sums.unwitnessed_tokens += record.unwitnessed
            self._unwitnessed[record.lease_id] = record.unwitnessed

    def _corrected(self, record: records.Corrected) -> None:
        self._count(record.holder, record.operation, record.tokens, -1)
        self.sums.unwitnessed_tokens -= self._unwitnessed.pop(record.lease_id, 0)

    def _unrecorded(self, record: records.Unrecorded) -> None:
        self._count("", "", record.tokens, 0)
        if record.tokens > 0:
            self.ledger.note_unrecorded(record.tokens)
        else:
            # What showed as unexplained has found its call.
            explained = min(-record.tokens, self.sums.unexplained_tokens)
            self.sums.unexplained_tokens -= explained

    def _lost(self, record: records.Lost) -> None:
        self._differ(record.at_ms, Gap.LOST, record.number)


def carried_lease(record: records.Carried, epoch: int) -> Lease:
    """The lease that *record* takes over into *epoch*."""
    return Lease(
        record.lease_id,
        record.holder,
        record.operation,
        record.units,
        record.tokens,
        epoch,
        granted_ms=record.granted_ms,
        expires_ms=record.expires_ms,
        sent_after_ms=record.granted_ms,
        request=record.request,
        state=LeaseState.LAPSED if record.lapsed else LeaseState.OPEN,
        overrun=record.overrun,
        proven=record.proven,
    )
