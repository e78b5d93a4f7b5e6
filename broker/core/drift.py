"""Why Keepa's count differs from what the ledger expected.

Every observation is compared with the projection of the one before it. The
difference is split among causes, in an order that names the certain ones
first; what no cause explains was spent by another program with the same key.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from broker.core.bucket import Envelope
from broker.core.evidence import same_plan
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


# Before Python 3.12 every look at a member through its class is a call in Python.
IN_FLIGHT: Final = Cause.IN_FLIGHT
ESTIMATE: Final = Cause.ESTIMATE
REFILL: Final = Cause.REFILL
FLOW_REDUCTION: Final = Cause.FLOW_REDUCTION
FOREIGN: Final = Cause.FOREIGN


class Included(Struct):
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


class Split(Struct, frozen=True):
    """How a difference divides among its causes, in tokens; see `Cause`.

    `tokens` is observed minus predicted. `changed` is what a new rate, or at the `same_rate`
    a new token-flow reduction, explains; `unshown` what calls explain which the count before
    included, but did not show; `rest` what no cause explains.
    """

    tokens: int
    estimate: int
    changed: int = 0
    same_rate: bool = True
    unshown: int = 0
    in_flight: int = 0
    overrun: int = 0
    refill: int = 0
    rest: int = 0


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
        return -self.by_cause[IN_FLIGHT]

    @property
    def rests_on_reports(self) -> bool:
        """Whether reports have moved the count by what only a probe can confirm.

        A call in flight may have been charged or not, a lump may have landed or not.
        """
        return (
            -self.by_cause[IN_FLIGHT] > ROUNDING_TOKENS
            or self._owed_tokens > ROUNDING_TOKENS
            or abs(self.rounded_tokens) > ROUNDING_TOKENS
        )

    def contradicts(self, in_flight: int) -> bool:
        """Whether some report must have been wrong, whichever it was.

        Args:
            in_flight: Tokens held for calls that the count may include or not. It must
                not show more of them spent; and what it includes for certain must show.
        """
        stranded = -self.by_cause[IN_FLIGHT] - in_flight
        return stranded > ROUNDING_TOKENS or self._unshown_tokens > ROUNDING_TOKENS

    def split(
        self,
        known: Envelope,
        new: Envelope,
        *,
        ticks: int,
        included: Included,
        in_flight: int,
        held: Callable[[], Iterable[int]],
    ) -> Split:
        """Splits the difference between *new* and what *known* let expect; changes nothing.

        Args:
            known: The observation before.
            new: The observation now.
            ticks: Refills between the two.
            included: Calls that only *new* includes.
            in_flight: Tokens held for calls that *new* may include or not.
            held: Returns them call by call; asked for only where the plan has changed.
        """
        estimate = included.held - included.cost
        more = rest = new.tokens_left - known.refilled(ticks) + included.cost
        if not rest and same_plan(known, new):
            # As expected: there is nothing to explain.
            return Split(estimate, estimate)
        changed = 0
        if not same_plan(known, new):
            changes = _changes(known, new, ticks, included.cost)
            changed = self._likeliest(changes, rest, in_flight, held())
            rest -= changed
        unshown = -min(max(0, -rest), self._unshown_tokens)
        rest -= unshown
        shown = self._in_flight(rest, in_flight)
        rest -= shown
        overrun = self._own_overrun(rest, included.overrun)
        rest -= overrun
        refill = self._refill(rest, known, new, ticks, included.cost)
        rest -= refill
        same_rate = known.refill_rate == new.refill_rate
        return Split(
            more + estimate,
            estimate,
            changed,
            same_rate,
            unshown,
            shown,
            overrun,
            refill,
            rest,
        )

    def take(self, split: Split, in_flight: int, *, probed: bool) -> None:
        """Counts the parts of *split*: its observation is taken for Keepa's count.

        Args:
            split: As `split` has found.
            in_flight: Tokens held for calls that the observation may include or not.
            probed: It is a probe's answer, on which alone spending counts as foreign.
        """
        by_cause, rest = self.by_cause, split.rest
        self.last_tokens, self.last_unexplained_tokens = split.tokens, rest
        by_cause[ESTIMATE] += split.estimate
        by_cause[FLOW_REDUCTION if split.same_rate else REFILL] += split.changed
        self._unshown_tokens += split.unshown
        by_cause[IN_FLIGHT] += split.in_flight
        if split.overrun:
            self._count_overrun(split.overrun)
        by_cause[REFILL] += split.unshown + split.refill
        self._owed_tokens = max(0, self._owed_tokens - split.refill)
        if not probed:
            # Rounding, or the ledger would not have taken the report.
            by_cause[REFILL] += rest
            self.rounded_tokens += rest
        else:
            self.rounded_tokens = self._unshown_tokens = 0
            # What was owed before has landed, or never will.
            self._owed_tokens = max(0, -split.refill)
            by_cause[FOREIGN] += rest
            self.foreign_tokens = max(0, self.foreign_tokens - rest)
            self._claim_stranded(in_flight)

    def settled_late(self, held: int, cost: int, in_flight: int) -> None:
        """A call that the current observation already includes has become known."""
        self.by_cause[ESTIMATE] += held - cost
        shown = self._in_flight(cost, in_flight)
        self.by_cause[IN_FLIGHT] += shown
        overrun = self._own_overrun(cost - shown, max(0, cost - held))
        self._count_overrun(overrun)
        rest = cost - shown - overrun
        self.by_cause[REFILL] += rest
        landed = min(rest, self._owed_tokens)
        self._owed_tokens -= landed
        self._unshown_tokens += rest - landed

    def written_off(self, held: int) -> int:
        """A lost call is given up; returns what it had evidently cost."""
        cost = min(held, self.shown_in_flight)
        self.by_cause[IN_FLIGHT] += cost
        self.by_cause[ESTIMATE] -= cost
        return cost

    def written_on(self, cost: int) -> None:
        """A call given up at *cost* is settled after all: it is in flight until that counts."""
        self.by_cause[IN_FLIGHT] -= cost
        self.by_cause[ESTIMATE] += cost

    def _likeliest(
        self, changes: Sequence[int], rest: int, in_flight: int, held: Iterable[int]
    ) -> int:
        """The part of *rest* that a new rate or a new token-flow reduction explains.

        What calls in flight then leave unexplained is least for the true one of *changes*. Among
        equals, whole ticks come first, then what leaves a charge shown that some of the calls
        add up to, then the least that they move: one that has shown is seldom taken back.
        """
        # A refill of fractions may round.
        most = changes[0]
        part = max(rest, most) if most < 0 else min(rest, most)
        sums = _sums(held, in_flight)

        def unlikely(change: int) -> tuple[int, bool, bool, int]:
            left = rest - change
            moved = self._in_flight(left, in_flight)
            shown = self.shown_in_flight - moved
            unexplained = abs(left - moved) + max(0, shown - in_flight)
            adds_up = shown >= 0 and bool(sums >> shown & 1)
            return unexplained, change not in changes, not adds_up, abs(moved)

        return min([*changes, part], key=unlikely)

    def _in_flight(self, rest: int, in_flight: int) -> int:
        """The part that calls in flight explain, or give back."""
        shown = self.shown_in_flight
        return min(rest, shown) if rest > 0 else -min(-rest, max(0, in_flight - shown))

    def _own_overrun(self, rest: int, overrun: int) -> int:
        """Our own call cost more than its hold and was taken for a stranger's."""
        return max(0, min(rest, overrun, self.foreign_tokens))

    def _count_overrun(self, tokens: int) -> None:
        self.foreign_tokens -= tokens
        self.by_cause[FOREIGN] += tokens

    def _refill(self, rest: int, known: Envelope, new: Envelope, ticks: int, cost: int) -> int:
        """The part that the exact moment of a tick explains."""
        if rest < 0:
            straddles = ticks > 0 and _last_tick_ms(known, new, ticks) >= new.server_time_ms
            return max(rest, -int(new.lump)) if straddles else 0
        if rest == 0:
            return 0
        # Spent before the tick instead of after it: less was lost at capacity.
        spent_first = min(known.tokens_left - cost + int(ticks * known.lump), known.capacity)
        saved = spent_first - (known.refilled(ticks) - cost)
        return min(rest, max(self._owed_tokens, saved, 0))

    def _claim_stranded(self, in_flight: int) -> None:
        """What was put down to calls in flight, but none is left, was foreign."""
        stranded = self.shown_in_flight - in_flight
        if stranded > 0:
            self.by_cause[IN_FLIGHT] += stranded
            self.by_cause[FOREIGN] -= stranded
            self.foreign_tokens += stranded
            self.last_unexplained_tokens -= stranded


def _changes(known: Envelope, new: Envelope, ticks: int, cost: int) -> list[int]:
    """What the plan of *new* may have changed of the refill: the most first.

    Any number of the *ticks* may have been under it, and have come before or after the calls of
    *cost* tokens.
    """
    before = known.refilled(ticks)
    return [
        _refilled(known, new, ticks, under, spent) - before
        for spent in (0, max(0, cost))
        for under in range(ticks, -1, -1)
    ]


def _sums(charges: Iterable[int], most: int) -> int:
    """The sums of any of *charges*, up to *most*: bit n is set for a sum of n."""
    sums, kept = 1, (1 << max(0, most) + 1) - 1
    for charge in charges:
        sums |= (sums << max(0, charge)) & kept
    return sums


def _refilled(known: Envelope, new: Envelope, ticks: int, under: int, spent: int) -> int:
    """The balance after *ticks* ticks, the last *under* of them under the plan of *new*.

    Of *spent* tokens, gone before the first tick, none can lapse; they are given back.
    """
    left = replace(known, tokens_left=known.tokens_left - spent)
    return replace(left, tokens_left=left.refilled(ticks - under)).refilled(under, new) + spent


def _last_tick_ms(known: Envelope, new: Envelope, ticks: int) -> float:
    """When the last tick landed; during processing, tokensLeft may not show it yet."""
    return new.next_tick_ms - (new.next_tick_ms - known.next_tick_ms) / ticks
