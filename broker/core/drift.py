"""Why Keepa's count differs from what the ledger expected.

Every observation is compared with the projection of the one before it. The
difference is split among causes, in an order that names the certain ones
first; what no cause explains was spent by another program with the same key.
"""

from copy import copy
from dataclasses import dataclass
from typing import Final

from broker.core.bucket import Envelope
from broker.core.kinds import Kind

# A refill of fractions of a token may round either way.
ROUNDING_TOKENS: Final = 1


class Cause(Kind):
    """Why an observation was not what the ledger predicted."""

    # A call still in flight is charged already; comes back when it settles.
    IN_FLIGHT = "in_flight"
    # A settled call cost more or less than was held for it.
    ESTIMATE = "estimate"
    # A tick on the edge of a reply, refill lost at capacity, a changed plan.
    REFILL = "refill"
    # Keepa gave part of the refill to other uses of the account.
    FLOW_REDUCTION = "flow_reduction"
    # None of the broker's own calls explains it.
    FOREIGN = "foreign"


@dataclass(slots=True)
class Included:
    """Calls that a new observation includes and the one before did not, in tokens."""

    held: int = 0
    cost: int = 0
    # Sum of what single calls cost above their holds.
    overrun: int = 0

    def add(self, held: int, cost: int) -> None:
        """One more call."""
        self.held += held
        self.cost += cost
        self.overrun += max(0, cost - held)

    def remove(self, held: int, cost: int) -> None:
        """The observation before included this call, the new one may not."""
        self.held -= held
        self.cost -= cost


class Drift:
    """Differences by cause, in tokens; negative means Keepa had less."""

    def __init__(self) -> None:
        self.by_cause: dict[Cause, int] = dict.fromkeys(Cause, 0)
        # Observed minus predicted, and its unexplained part, at the last observation.
        self.last_tokens = 0
        self.last_unexplained_tokens = 0
        # What reports since the last probe have put down to rounding, what lumps that probe
        # and reports may lack, and what the count includes but does not show.
        self.rounded_tokens = 0
        self._owed_tokens = 0
        self._unshown_tokens = 0
        # Spent by others since the start; only grows, but for our own calls
        # that later turn out to explain it.
        self.foreign_tokens = 0

    @property
    def shown_in_flight(self) -> int:
        """Tokens that observations show as spent by calls still held for."""
        return -self.by_cause[Cause.IN_FLIGHT]

    @property
    def rests_on_reports(self) -> bool:
        """Whether reports have moved the count by what only a probe can confirm.

        A call in flight may have been charged or not, a lump may have landed or not.
        """
        moved = max(self.shown_in_flight, self._owed_tokens, abs(self.rounded_tokens))
        return moved > ROUNDING_TOKENS

    def contradicts(self, in_flight: int) -> bool:
        """Whether some report must have been wrong, whichever it was.

        Args:
            in_flight: Tokens held for calls that the count may include or not. It must
                not show more of them spent; and what it includes for certain must show.
        """
        stranded = self.shown_in_flight - in_flight
        return max(stranded, self._unshown_tokens) > ROUNDING_TOKENS

    def unexplained(
        self, known: Envelope, new: Envelope, *, ticks: int, included: Included, in_flight: int
    ) -> int:
        """What `compare` would put down to foreign spending; changes nothing."""
        trial = copy(self)
        trial.by_cause = dict(self.by_cause)
        trial.compare(known, new, ticks=ticks, included=included, in_flight=in_flight)
        return trial.last_unexplained_tokens

    def compare(
        self,
        known: Envelope,
        new: Envelope,
        *,
        ticks: int,
        included: Included,
        in_flight: int,
        probed: bool = False,
    ) -> None:
        """Split the difference between *new* and what *known* let expect.

        Args:
            known: The observation before.
            new: The observation now.
            ticks: Refills between the two.
            included: Calls that only *new* includes.
            in_flight: Tokens held for calls that *new* may include or not.
            probed: *new* is a probe's answer, on which alone spending counts as foreign.
        """
        predicted = known.refilled(ticks) - included.cost
        rest = new.tokens_left - predicted
        self.last_tokens = rest + included.held - included.cost
        self.by_cause[Cause.ESTIMATE] += included.held - included.cost
        rest -= self._changed_refill(rest, known, new, ticks)
        rest -= self._shown_at_last(rest)
        rest -= self._in_flight(rest, in_flight)
        rest -= self._own_overrun(rest, included.overrun)
        refill = self._refill(rest, known, new, ticks, included.cost)
        rest -= refill
        self.last_unexplained_tokens = rest
        if not probed:
            # Rounding, or the ledger would not have taken the report.
            self.by_cause[Cause.REFILL] += rest
            self.rounded_tokens += rest
        else:
            self.rounded_tokens = self._unshown_tokens = 0
            # What was owed before has landed, or never will.
            self._owed_tokens = max(0, -refill)
            self.by_cause[Cause.FOREIGN] += rest
            self.foreign_tokens = max(0, self.foreign_tokens - rest)
            self._claim_stranded(in_flight)

    def settled_late(self, held: int, cost: int, in_flight: int) -> None:
        """A call that the current observation already includes has become known."""
        self.by_cause[Cause.ESTIMATE] += held - cost
        rest = cost - self._in_flight(cost, in_flight)
        rest -= self._own_overrun(rest, max(0, cost - held))
        self.by_cause[Cause.REFILL] += rest
        landed = min(rest, self._owed_tokens)
        self._owed_tokens -= landed
        self._unshown_tokens += rest - landed

    def written_off(self, held: int) -> int:
        """A lost call is given up; returns what it had evidently cost."""
        cost = min(held, self.shown_in_flight)
        self.by_cause[Cause.IN_FLIGHT] += cost
        self.by_cause[Cause.ESTIMATE] -= cost
        return cost

    def written_on(self, cost: int) -> None:
        """A call given up at *cost* is settled after all: it is in flight until that counts."""
        self.by_cause[Cause.IN_FLIGHT] -= cost
        self.by_cause[Cause.ESTIMATE] += cost

    def _changed_refill(self, rest: int, known: Envelope, new: Envelope, ticks: int) -> int:
        """The part that a new rate or a new token-flow reduction explains."""
        if known.lump == new.lump and known.capacity == new.capacity:
            return 0
        change = round(ticks * (new.lump - known.lump))
        part = min(rest, change) if change > 0 else max(rest, change)
        if (part > 0) != (change > 0):
            return 0
        same_rate = known.refill_rate == new.refill_rate
        self.by_cause[Cause.FLOW_REDUCTION if same_rate else Cause.REFILL] += part
        return part

    def _shown_at_last(self, rest: int) -> int:
        """The part that calls explain which the count before included, but did not show."""
        part = -min(max(0, -rest), self._unshown_tokens)
        self._unshown_tokens += part
        self.by_cause[Cause.REFILL] += part
        return part

    def _in_flight(self, rest: int, in_flight: int) -> int:
        """The part that calls in flight explain, or give back."""
        shown = self.shown_in_flight
        part = min(rest, shown) if rest > 0 else -min(-rest, max(0, in_flight - shown))
        self.by_cause[Cause.IN_FLIGHT] += part
        return part

    def _own_overrun(self, rest: int, overrun: int) -> int:
        """Our own call cost more than its hold and was taken for a stranger's."""
        part = max(0, min(rest, overrun, self.foreign_tokens))
        self.foreign_tokens -= part
        self.by_cause[Cause.FOREIGN] += part
        return part

    def _refill(self, rest: int, known: Envelope, new: Envelope, ticks: int, cost: int) -> int:
        """The part that the exact moment of a tick explains."""
        if rest < 0:
            straddles = ticks > 0 and _last_tick_ms(known, new, ticks) >= new.server_time_ms
            part = max(rest, -int(new.lump)) if straddles else 0
        else:
            # Spent before the tick instead of after it: less was lost at capacity.
            spent_first = min(known.tokens_left - cost + int(ticks * known.lump), known.capacity)
            saved = spent_first - (known.refilled(ticks) - cost)
            part = min(rest, max(self._owed_tokens, saved, 0))
        self.by_cause[Cause.REFILL] += part
        self._owed_tokens = max(0, self._owed_tokens - part)
        return part

    def _claim_stranded(self, in_flight: int) -> None:
        """What was put down to calls in flight, but none is left, was foreign."""
        stranded = self.shown_in_flight - in_flight
        if stranded > 0:
            self.by_cause[Cause.IN_FLIGHT] += stranded
            self.by_cause[Cause.FOREIGN] -= stranded
            self.foreign_tokens += stranded
            self.last_unexplained_tokens -= stranded


def _last_tick_ms(known: Envelope, new: Envelope, ticks: int) -> float:
    """When the last tick landed; during processing, tokensLeft may not show it yet."""
    return new.next_tick_ms - (new.next_tick_ms - known.next_tick_ms) / ticks
