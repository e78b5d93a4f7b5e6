"""What a client reports of Keepa's count: evidence, checked against the model.

Only the broker's own probe is authority. A reported envelope becomes an observation
where it fits the model; where it does not, a probe decides. A true
envelope that does not fit (a plan has changed, others have spent) costs that probe
and nothing else.
"""

from enum import Enum
from typing import Final

from broker.core.bucket import Bucket, Envelope, Observation

# Replies to probes take this long at most before the broker takes no notice of them;
# by as much may a probe's reply have aged when it set the two clocks side by side.
CLOCK_SLACK_MS: Final = 2_000
# Doubts are looked into at once, then ever more rarely: whatever clients report, it
# makes the broker ask Keepa a few times in the first tick, and once a tick after that.
CHECK_GAP_MS_MIN: Final = 1_000
# Reports confirm each other, but not for ever: so many ticks after the last probe the
# next report is checked by one.
UNPROBED_TICKS_MAX: Final = 10
# Or so many, where they have moved the count by what a lie could look like as well: a call
# in flight that shows, a lump that does not. More than one, so that the probe which a
# starving fleet causes each tick comes first.
UNPROBED_TICKS_MOVED_MAX: Final = 1.5
# A report of a higher multiple of the grant is checked by a probe. Room is kept for more
# while costs are unlearned, but room is no reason to believe.
BELIEVED_WORST: Final = 4


class Doubt(Enum):
    """Why a reported envelope is not taken for an observation."""

    # The refill rate or the token-flow reduction is another: a probe's to find out.
    PLAN = "plan"
    # Keepa's clock can't show that time yet, or showed it before the call was granted.
    CLOCK = "clock"
    # The next tick is not a whole number of periods away from the last one known.
    TICK = "tick"
    # The call cost more than its grant allowed for.
    COST = "cost"
    # More tokens than refills and known calls leave.
    MORE = "more"
    # Fewer tokens than known calls can have left.
    FEWER = "fewer"


def doubt_of(bucket: Bucket, reported: Observation) -> Doubt | None:
    """Whether plan, clock and tick of *reported* contradict what probes have shown.

    The clocks are compared with the last probe, not with later reports: small steps
    must not add up.
    """
    known, probed = bucket.observation, bucket.probed
    assert known is not None
    assert probed is not None
    new = reported.envelope
    if not same_plan(new, known.envelope):
        return Doubt.PLAN
    # A reply takes its time on the way, so that Keepa's clock seems late, never early.
    behind_ms = probed.arrived_ms - probed.end_ms
    ahead_ms = reported.end_ms - reported.arrived_ms + behind_ms
    early_ms = reported.requested_ms - new.server_time_ms - behind_ms
    if ahead_ms > CLOCK_SLACK_MS or early_ms > CLOCK_SLACK_MS:
        return Doubt.CLOCK
    return None if bucket.fits_tick(reported) else Doubt.TICK


def same_plan(one: Envelope, other: Envelope) -> bool:
    """Whether both describe the same refill."""
    return (
        one.refill_rate == other.refill_rate
        and one.token_flow_reduction == other.token_flow_reduction
    )


class Doubts:
    """Reports that a probe has yet to decide on; times in ms of the broker's clock."""

    def __init__(self) -> None:
        self.pending = False
        # Holders that Keepa has refused, as they report, though the count covers their calls.
        self.refused: set[str] = set()
        self._next_ms: int | None = None
        self._gap_ms = CHECK_GAP_MS_MIN

    def raised(self, *, refused: str | None = None) -> None:
        """A report did not fit; by it, Keepa has *refused* a call of this holder."""
        self.pending = True
        if refused is not None:
            self.refused.add(refused)

    def due(self, now_ms: int) -> bool:
        """Whether to ask Keepa because of it now."""
        return self.pending and (self._next_ms is None or now_ms >= self._next_ms)

    def asked(self, now_ms: int, period_ms: float) -> None:
        """A probe is on its way; the gap doubles up to a tick, and shrinks in quiet times."""
        if not self.pending:
            return
        if self._next_ms is None or now_ms >= self._next_ms + period_ms:
            self._gap_ms = CHECK_GAP_MS_MIN
        else:
            self._gap_ms = min(2 * self._gap_ms, max(CHECK_GAP_MS_MIN, round(period_ms)))
        self._next_ms = now_ms + self._gap_ms

    def decided(self) -> None:
        """Keepa's count has arrived."""
        self.pending = False
        self.refused.clear()

    def next_wake_ms(self, now_ms: int) -> int | None:
        """When Keepa may be asked because of a doubt."""
        due_later = self.pending and self._next_ms is not None and self._next_ms > now_ms
        return self._next_ms if due_later else None
