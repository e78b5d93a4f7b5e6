"""An independent model of Keepa's token bucket: what is true, not what is believed.

It shares nothing with the broker. Facts: keepa-api.md, section 1. A lump lands
every tick; sixty lumps are the most that refill brings; a call runs if the
balance is above zero, whatever it costs; a refused one costs nothing. Where the
facts leave a choice open (a long call is charged, and its balance read, at its
start or at its end) the scenario chooses.
"""

from dataclasses import dataclass
from enum import Enum

CAPACITY_TICKS = 60


class Moment(Enum):
    """When something happens in a call."""

    START = "start"
    END = "end"


@dataclass(frozen=True, slots=True)
class Reading:
    """The token fields of a reply; times in ms, the server's clock."""

    server_time_ms: int
    processing_ms: int
    tokens_left: int
    tokens_consumed: int
    refill_in_ms: int
    refill_rate: int
    token_flow_reduction: float


@dataclass(slots=True)
class Books:
    """Where every token came from and went, since the start."""

    opening: int
    refilled: int = 0
    # Refill that found the bucket full.
    lapsed: int = 0
    spent: int = 0
    foreign: int = 0

    @property
    def balance(self) -> int:
        """What must be left."""
        return self.opening + self.refilled - self.lapsed - self.spent - self.foreign


@dataclass(slots=True)
class RunningCall:
    """A call that Keepa has admitted."""

    started_ms: int
    cost: int
    left_at_start: int


class KeepaModel:
    """The bucket of one account; the caller passes the time."""

    def __init__(
        self, *, rate: int, period_ms: int, opening: int, charge: Moment, snapshot: Moment
    ) -> None:
        self.rate = rate
        self.period_ms = period_ms
        self.balance = opening
        self.books = Books(opening)
        self.charge = charge
        self.snapshot = snapshot
        # Tokens a tick that go to other uses of the account, in thousandths.
        self.reduction_milli = 0
        self.next_tick_ms = period_ms
        self.ticks = 0
        # Keepa's clock, less ours.
        self.server_offset_ms = 1_758_000_000_000
        self._carry_milli = 0

    @property
    def capacity(self) -> int:
        """Most that refill brings the balance to."""
        return CAPACITY_TICKS * self.rate

    @property
    def lump_milli(self) -> int:
        """What one tick brings, in thousandths of a token."""
        return max(0, self.rate * 1000 - self.reduction_milli)

    def tick(self) -> None:
        """One lump lands; the next one comes a period later."""
        lump, self._carry_milli = divmod(self.lump_milli + self._carry_milli, 1000)
        raised = max(self.balance, min(self.balance + lump, self.capacity))
        self.books.refilled += lump
        self.books.lapsed += lump - (raised - self.balance)
        self.balance = raised
        self.ticks += 1
        self.next_tick_ms += self.period_ms

    def admit(self, cost: int, now_ms: int) -> RunningCall | None:
        """Begins a call that will cost *cost*; None if it is refused."""
        if self.balance <= 0:
            return None
        if self.charge is Moment.START:
            self._take(cost)
            return RunningCall(now_ms, cost, self.balance)
        return RunningCall(now_ms, cost, self.balance - cost)

    def finish(self, call: RunningCall, now_ms: int) -> Reading:
        """Ends an admitted call; returns its reply."""
        if self.charge is Moment.END:
            self._take(call.cost)
        left = call.left_at_start if self.snapshot is Moment.START else self.balance
        return self._reading(left, call.cost, call.started_ms, now_ms)

    def read(self, now_ms: int) -> Reading:
        """The reply to /token, or to a refused call."""
        return self._reading(self.balance, 0, now_ms, now_ms)

    def spend_foreign(self, cost: int) -> bool:
        """Another program calls with the same key; False if refused."""
        if self.balance <= 0:
            return False
        self.balance -= cost
        self.books.foreign += cost
        return True

    def _take(self, cost: int) -> None:
        self.balance -= cost
        self.books.spent += cost

    def _reading(self, left: int, consumed: int, started_ms: int, now_ms: int) -> Reading:
        return Reading(
            server_time_ms=self.server_offset_ms + started_ms,
            processing_ms=now_ms - started_ms,
            tokens_left=left,
            tokens_consumed=consumed,
            refill_in_ms=max(0, self.next_tick_ms - now_ms),
            refill_rate=self.rate,
            token_flow_reduction=self.reduction_milli / 1000,
        )
