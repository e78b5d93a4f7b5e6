"""Keepa's token bucket, as far as Keepa's replies describe it.

Rule 1: Keepa's count is the truth. An observation replaces the balance; nothing
        but a newer observation lowers it, and only whole ticks raise it.
Rule 2: no clock. `now_ms` is the broker's monotonic clock, in milliseconds;
        Keepa's own clock appears only inside envelopes and is never compared
        with it.

Facts: keepa-api.md, section 1 (one lump a tick, 60 ticks deep, next tick at
timestamp + processingTimeInMs + refillIn).
"""

from dataclasses import dataclass, field
from enum import Enum
from math import ceil, floor
from typing import Final

from msgspec import Struct

# Measured on 109 recorded envelopes; the true period is learned from replies.
DEFAULT_PERIOD_MS: Final = 60_200
# A token lives for 60 ticks.
CAPACITY_TICKS: Final = 60
# Recorded ticks lie within 6 ms of their place; ours must not come early.
TICK_GUARD_MS: Final = 20
# Two estimates this close speak of the same tick; more for long gaps.
SAME_TICK_MS: Final = 100
# Ticks ahead for which a place still holds; clocks drift apart beyond.
CARRIED_TICKS_MAX: Final = 2
# How fast the learned period follows a drifting one.
PERIOD_GAIN: Final = 0.2
# A tick where none should be, this often in a row: the period has changed.
MISFITS_MAX: Final = 2


class Source(Enum):
    """Where an observation came from."""

    PROBE = "probe"
    SETTLE = "settle"


# Before Python 3.12 every look at a member through its class is a call in Python.
PROBE: Final = Source.PROBE
SETTLE: Final = Source.SETTLE


class Envelope(Struct, frozen=True):
    """The description of the bucket in every reply of Keepa.

    Times in milliseconds; `server_time_ms` is Keepa's Unix clock when it began
    processing, `refill_in_ms` counts from the end of processing.
    """

    server_time_ms: int
    processing_ms: int
    tokens_left: int
    tokens_consumed: int
    refill_in_ms: int
    refill_rate: int
    token_flow_reduction: float = 0.0

    @property
    def end_ms(self) -> int:
        """The end of processing on Keepa's clock."""
        return self.server_time_ms + self.processing_ms

    @property
    def next_tick_ms(self) -> int:
        """The next tick on Keepa's clock."""
        return self.server_time_ms + self.processing_ms + self.refill_in_ms

    @property
    def is_observation(self) -> bool:
        """Whether it holds a balance: an invalid key yields zeros only."""
        return self.refill_rate > 0 and self.server_time_ms > 0

    @property
    def capacity(self) -> int:
        """Most tokens the bucket holds by refill."""
        return CAPACITY_TICKS * self.refill_rate

    @property
    def lump(self) -> float:
        """Tokens one tick brings, after token-flow reduction."""
        return max(0.0, self.refill_rate - self.token_flow_reduction)

    def refilled(self, ticks: int, plan: "Envelope | None" = None) -> int:
        """The balance after *ticks* more ticks of *plan*, by default its own, and no spending."""
        if ticks <= 0:
            return self.tokens_left
        plan = plan or self
        raised = floor(self.tokens_left + ticks * plan.lump)
        # After a downgrade the balance may stand above capacity: it stays there.
        return max(self.tokens_left, min(raised, plan.capacity))


@dataclass(slots=True)
class Observation:
    """An envelope and when it reached us, in ms of the broker's clock; never changed.

    `requested_ms` is the earliest moment at which the call may have been sent.
    `next_tick_ms` and `end_ms` are those of the envelope, on Keepa's clock: every comparison
    of two counts asks for them.
    """

    envelope: Envelope
    arrived_ms: int
    requested_ms: int
    source: Source
    next_tick_ms: int = field(init=False)
    end_ms: int = field(init=False)

    def __post_init__(self) -> None:
        self.next_tick_ms, self.end_ms = self.envelope.next_tick_ms, self.envelope.end_ms


class TickPeriod:
    """Learns the time between ticks from where envelopes place the next one.

    Works on Keepa's clock alone, so network delays do not blur it.
    """

    def __init__(self) -> None:
        self.ms = float(DEFAULT_PERIOD_MS)
        self.placed = False
        # Where the last tick was placed, less where it was predicted.
        self.error_ms = 0.0
        self._last_tick_ms: int | None = None
        self._misfits = 0

    def count(self, gap_ms: int) -> int | None:
        """Whole ticks in *gap_ms*; None if they do not fit."""
        if abs(gap_ms) <= SAME_TICK_MS:
            return 0
        ticks = round(gap_ms / self.ms)
        slack_ms = min(SAME_TICK_MS + 0.02 * abs(gap_ms), self.ms / 4)
        if ticks < 1 or abs(gap_ms - ticks * self.ms) > slack_ms:
            return None
        return ticks

    def place(self, envelope: Envelope) -> None:
        """Takes in where *envelope* puts the next tick."""
        next_ms = envelope.next_tick_ms
        last_ms, self._last_tick_ms = self._last_tick_ms, next_ms
        if last_ms is None:
            return
        gap_ms = next_ms - last_ms
        ticks = self.count(gap_ms)
        if self.placed and ticks is None:
            self._misfits += 1
            self.placed = self._misfits < MISFITS_MAX
        elif self.placed and ticks:
            self._misfits = 0
            self.error_ms = gap_ms - ticks * self.ms
            self.ms += PERIOD_GAIN * (gap_ms / ticks - self.ms)
        # refillIn never exceeds the period, so less than two of it is one tick.
        elif not self.placed and SAME_TICK_MS < gap_ms < 2 * envelope.refill_in_ms:
            self.ms, self.placed, self._misfits = float(gap_ms), True, 0


class Bucket:
    """The balance projected from the last observation."""

    def __init__(self) -> None:
        self.observation: Observation | None = None
        # The last one that is a probe's answer: authority on plan, clock and period.
        self.probed: Observation | None = None
        self.period = TickPeriod()
        # Lumps that landed while the observed call ran: its balance may lack them.
        self.straddled_ticks = 0
        self._tick_ms = 0
        # When a reply first placed the present next tick: the one before had landed.
        self._placed_ms = 0
        # The balance that Keepa last confirmed, the most that it reaches by refill, and
        # what a tick brings; 0 before the first observation.
        self.observed = 0
        self.capacity = 0
        self.lump = 0.0

    def supersedes(self, observation: Observation) -> bool:
        """Whether *observation* is news: later by Keepa's clock, or asked later.

        Of two that end in the same millisecond the lower balance is kept: the
        call behind the other one stays reserved until a later observation.
        """
        known = self.observation
        if known is None:
            return True
        if observation.source is PROBE and observation.requested_ms >= known.arrived_ms:
            return True
        if observation.end_ms != known.end_ms:
            return observation.end_ms > known.end_ms
        return observation.envelope.tokens_left < known.envelope.tokens_left

    def ticks_between(self, observation: Observation, spent: int = 0) -> int:
        """Ticks that landed from the known observation to *observation*.

        Args:
            observation: Newer than any before.
            spent: Tokens of calls that only *observation* includes.
        """
        known = self.observation
        assert known is not None
        gap_ms = observation.next_tick_ms - known.next_tick_ms
        ticks = self.period.count(gap_ms)
        if ticks is not None:
            return ticks
        if 0 < gap_ms < 2 * observation.envelope.refill_in_ms:
            return 1
        landed = self.ticks_landed(observation.arrived_ms)
        if self.period.placed or gap_ms <= 0:
            return landed
        # Only Keepa adds tokens: what the balance has more can only be refill.
        raised = observation.envelope.tokens_left + spent - known.envelope.tokens_left
        lump = known.envelope.lump
        shown = ceil(raised / lump) if lump else 1
        # refillIn never exceeds the period.
        refill_in_ms = max(known.envelope.refill_in_ms, observation.envelope.refill_in_ms)
        most = (gap_ms + SAME_TICK_MS) // max(refill_in_ms, SAME_TICK_MS)
        return max(1, min(most, max(landed, shown)))

    def lapses_before(self, observation: Observation, ticks: int) -> bool:
        """Whether refill may have lapsed from the known observation to *observation*.

        Args:
            observation: Newer than any before.
            ticks: Ticks that landed between the two.
        """
        known = self.observation
        ticks += self.straddled_ticks
        if known is None or ticks <= 0:
            return False
        raised = known.envelope.tokens_left + ticks * known.envelope.lump
        return raised > min(known.envelope.capacity, observation.envelope.capacity)

    def fits_tick(self, observation: Observation) -> bool:
        """Whether *observation* places the next tick where the known period puts one."""
        known = self.observation
        assert known is not None
        gap_ms = observation.next_tick_ms - known.next_tick_ms
        if not self.period.placed:
            return abs(gap_ms) <= SAME_TICK_MS
        in_period = observation.envelope.refill_in_ms <= self.period.ms + SAME_TICK_MS
        return in_period and self.period.count(gap_ms) is not None

    def adopt(self, observation: Observation) -> None:
        """Takes *observation* as the truth; what a client reported must fit the model."""
        known, envelope = self.observation, observation.envelope
        # When the last tick before the observation had surely landed.
        landed_ms: int | None = None
        # A reply's way back only makes a tick look later: the earliest is right. But
        # the call cannot have been answered before it was sent.
        tick_ms = observation.arrived_ms + envelope.refill_in_ms + TICK_GUARD_MS
        least_ms = observation.requested_ms + envelope.refill_in_ms + TICK_GUARD_MS
        if known is not None and self.same_tick(known, observation):
            landed_ms = self._placed_ms
            tick_ms = max(min(tick_ms, self._tick_ms), least_ms)
        else:
            if known is not None and (ticks := self.ticks_between(observation)) > 0:
                landed_ms = self.tick_ms(ticks)
                if self.period.placed and ticks <= CARRIED_TICKS_MAX:
                    carried_ms = self.tick_ms(ticks + 1) + SAME_TICK_MS
                    tick_ms = max(min(tick_ms, carried_ms), least_ms)
            self._placed_ms = observation.arrived_ms
        asked_late = landed_ms is not None and observation.requested_ms >= landed_ms
        if observation.source is PROBE:
            self.period.place(envelope)
            self.probed = observation
        self.observation, self._tick_ms = observation, tick_ms
        self.observed = envelope.tokens_left
        self.capacity, self.lump = envelope.capacity, envelope.lump
        self.straddled_ticks = 0 if asked_late else self._ticks_run_over(envelope)

    @staticmethod
    def same_tick(one: Observation, other: Observation) -> bool:
        """Whether no tick landed between the ends of two observations."""
        return abs(one.next_tick_ms - other.next_tick_ms) <= SAME_TICK_MS

    def ticks_apart(self, earlier: Observation, later: Observation) -> int:
        """Whole ticks between two observations, as their envelopes place them; 0 if none fit."""
        return self.period.count(later.next_tick_ms - earlier.next_tick_ms) or 0

    def ticks_landed(self, now_ms: int) -> int:
        """Ticks since the observation, by the learned period."""
        if now_ms < self._tick_ms:
            return 0
        return 1 + int((now_ms - self._tick_ms) / self.period.ms)

    def tick_ms(self, number: int) -> int:
        """When the *number*-th tick after the observation lands (from 1)."""
        return self._tick_ms + ceil((number - 1) * self.period.ms)

    def next_tick_ms(self, now_ms: int) -> int:
        """When the next tick lands, after *now_ms*."""
        return self.tick_ms(self.ticks_landed(now_ms) + 1)

    def balance(self, now_ms: int) -> int:
        """The observed balance and the lumps that have landed since; may be negative."""
        if self.observation is None:
            return 0
        return self.observation.envelope.refilled(self.ticks_landed(now_ms))

    def unconfirmed_tokens(self, now_ms: int) -> int:
        """What lumps that should have landed since the observation bring."""
        if self.observation is None or now_ms < self._tick_ms:
            return 0
        return self.balance(now_ms) - self.observed

    @property
    def straddles_tick(self) -> bool:
        """Whether the observed balance may lack a lump."""
        return self.straddled_ticks > 0

    @property
    def lacking_tokens(self) -> int:
        """What the observed balance may lack by lumps that landed meanwhile."""
        return ceil(self.straddled_ticks * self.lump) if self.straddled_ticks else 0

    def _ticks_run_over(self, envelope: Envelope) -> int:
        # An instant has no before and after: its count and its next tick agree.
        if not envelope.processing_ms:
            return 0
        last_tick_ms = envelope.next_tick_ms - self.period.ms
        # With a period that is not learned yet it may lie ahead: then it is no tick.
        ran_ms = (envelope.server_time_ms - SAME_TICK_MS, envelope.end_ms + SAME_TICK_MS)
        if not ran_ms[0] <= last_tick_ms <= ran_ms[1]:
            return 0
        return 1 + int((last_tick_ms - ran_ms[0]) / self.period.ms)
