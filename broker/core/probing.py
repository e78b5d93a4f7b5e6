"""When to ask Keepa for its count, why, and how long to be patient with it.

One probe at a time. A probe that is not answered in time, or fails, delays
no request that the projection can serve.
"""

from typing import Final

from msgspec import Struct

from broker.core.kinds import Kind

PATIENCE_MS: Final = 2_000
RETRY_MS_MIN: Final = 1_000
RETRY_MS_MAX: Final = 30_000
# An observation younger than this confirms a wait by itself, if it leaves no doubt.
FRESH_MS: Final = 1_000
# Ticks after which even an ample balance is checked before it is granted from.
STALE_TICKS: Final = 2


class Reason(Kind):
    """Why Keepa is asked; the label of the probes' metric."""

    START = "start"
    PERIOD = "period"
    STALE = "stale"
    TICK = "tick"
    DOUBT = "doubt"
    WAIT = "wait"
    REPORT = "report"
    OPERATOR = "operator"


class Prospect(Struct, frozen=True):
    """What the present count offers the head of the waitlist; times in ms.

    `short`: it gets less than it wants. `waits`: it gets nothing. `disputed`: a client
    has reported a count that does not fit. `ticks` have passed since the count, which is
    `age_ms` old. `doubt`: a probe's answer could serve a head that waits. `doubt_ripe`:
    no reply on its way will settle that first. `confirmed`: Keepa has confirmed a wait
    since the last tick.
    """

    short: bool
    waits: bool
    ticks: int
    age_ms: int
    period_ms: float
    disputed: bool
    doubt: bool
    doubt_ripe: bool
    confirmed: bool


def reason_to_ask(at: Prospect) -> Reason | None:
    """The first reason to ask Keepa before deciding on the head; None: decide now."""
    # A client's word is no authority: a probe decides (evidence.py).
    if at.disputed:
        return Reason.REPORT
    # Others may have spent an ample balance meanwhile, or the plan may have changed.
    if at.age_ms > STALE_TICKS * at.period_ms:
        return Reason.STALE
    # A lump that has only been computed is not granted from (ARCHITECTURE, decision 1).
    if at.short and at.ticks > 0:
        return Reason.TICK
    # The count errs low by calls that it may lack: a probe asked now lacks none of them.
    if at.doubt and at.doubt_ripe:
        return Reason.DOUBT
    # Only what Keepa confirms makes a caller wait; once a tick, for all that come after.
    if at.waits and at.age_ms > FRESH_MS and not at.confirmed:
        return Reason.WAIT
    return None


class Probing:
    """State of the one probe; times in ms of the broker's clock."""

    def __init__(self) -> None:
        # Set while a decision rests on an answer.
        self.wanted: Reason | None = None
        self.by_reason: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.failures = 0
        self._since_ms: int | None = None
        self._failed_ms = 0
        self._retry_ms: int | None = None
        self._failures_in_a_row = 0

    @property
    def probes(self) -> int:
        """Probes since the start."""
        return sum(self.by_reason.values())

    @property
    def in_flight(self) -> bool:
        """Whether an answer is awaited."""
        return self._since_ms is not None

    def may_start(self, now_ms: int) -> bool:
        """Whether Keepa may be asked now."""
        return self._since_ms is None and (self._retry_ms is None or now_ms >= self._retry_ms)

    def is_worth_waiting_for(self, now_ms: int) -> bool:
        """Whether a decision should wait for the answer."""
        if self._since_ms is None:
            return self.may_start(now_ms)
        return now_ms - self._since_ms < PATIENCE_MS

    def retry_delay_ms(self, now_ms: int) -> int:
        """When to come back for a decision that awaited an answer in vain."""
        ends_ms = self._retry_ms
        if self._since_ms is not None:
            ends_ms = self._since_ms + PATIENCE_MS
        # Later than that, a client that comes back too soon only asks once more.
        return max(RETRY_MS_MIN, (ends_ms or 0) - now_ms)

    def started(self, reason: Reason, now_ms: int) -> None:
        """A probe is on its way."""
        assert self._since_ms is None
        self._since_ms, self.wanted = now_ms, None
        self.by_reason[reason] += 1

    def answered(self) -> None:
        """Keepa's count has arrived."""
        self._since_ms = self._retry_ms = None
        self._failures_in_a_row = 0

    def failed(self, now_ms: int) -> None:
        """No count came; try again later, ever more rarely."""
        self._since_ms = None
        self._failed_ms = now_ms
        self.failures += 1
        backoff_ms = RETRY_MS_MIN << min(self._failures_in_a_row, 10)
        self._failures_in_a_row += 1
        self._retry_ms = now_ms + min(backoff_ms, RETRY_MS_MAX)

    def seen_alive(self, at_ms: int) -> None:
        """A client got a reply of Keepa's at this time: a failure before it is over.

        An invented one makes the broker ask once a second while its status call fails.
        """
        if self._retry_ms is not None and at_ms > self._failed_ms:
            self._retry_ms = min(self._retry_ms, self._failed_ms + RETRY_MS_MIN)
            self._failures_in_a_row = 0

    def next_wake_ms(self, now_ms: int) -> int | None:
        """When patience ends, or when Keepa may be asked again."""
        due_ms = self._retry_ms
        if self._since_ms is not None:
            due_ms = self._since_ms + PATIENCE_MS
        return due_ms if due_ms is not None and due_ms > now_ms else None
