"""The token bucket of one Keepa key, modelled on Keepa's observed behaviour.

Rule 1: every change of the balance lives in this file.
Rule 2: no clock; callers pass now_ms, and moments never run backwards.
Rule 3: opening + refilled - lapsed - spent - foreign = balance, always.

The broker has a model of the same bucket. This one shares no code with it, so that a
mistake in either shows as a difference.
"""

from dataclasses import dataclass, field

# A token lives for an hour, so the capacity is the sum of this many ticks.
CAPACITY_TICKS = 60
# Measured: the tick drifts against the wall clock by 0.2 s a minute.
KEEPA_TICK_MS = 60_200


@dataclass(slots=True)
class Account:
    """The bucket behind one key.

    Args:
        rate: Tokens that one tick brings, before any token-flow reduction.
        tick_ms: Time from one tick to the next, in milliseconds.
        next_tick_ms: When the next lump lands, on the clock of the callers' now_ms.
        balance: Tokens left; negative is debt.
        flow_reduction: Tokens per tick withheld for tracked products; may be fractional.
    """

    rate: int
    tick_ms: int
    next_tick_ms: int
    balance: int
    flow_reduction: float = 0.0
    opening: int = field(init=False)
    refilled: int = field(init=False, default=0)
    lapsed: int = field(init=False, default=0)
    spent: int = field(init=False, default=0)
    foreign: int = field(init=False, default=0)
    refused_calls: int = field(init=False, default=0)
    _fraction: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        assert self.rate > 0
        assert self.tick_ms > 0
        self.opening = self.balance

    @property
    def capacity(self) -> int:
        """Tokens above which a lump lapses."""
        return CAPACITY_TICKS * self.rate

    def advance(self, now_ms: int) -> None:
        """Adds the lumps that are due by *now_ms*."""
        if now_ms < self.next_tick_ms:
            return
        ticks = (now_ms - self.next_tick_ms) // self.tick_ms + 1
        self.next_tick_ms += ticks * self.tick_ms
        brought = self._fraction + ticks * max(0.0, self.rate - self.flow_reduction)
        lump = int(brought)
        self._fraction = brought - lump
        # After a downgrade the balance may stand above the capacity: it stays there.
        landed = min(lump, max(0, self.capacity - self.balance))
        self.refilled += lump
        self.lapsed += lump - landed
        self.balance += landed

    def refill_in_ms(self, now_ms: int) -> int:
        """Milliseconds from *now_ms* to the next lump; positive."""
        self.advance(now_ms)
        return self.next_tick_ms - now_ms

    def admit(self, now_ms: int) -> bool:
        """Whether a call that costs tokens may run: the balance is above zero.

        Keepa does not ask what the call will cost, so the balance may then turn negative.
        """
        self.advance(now_ms)
        if self.balance > 0:
            return True
        self.refused_calls += 1
        return False

    def charge(self, tokens: int, now_ms: int) -> None:
        """Deducts the cost of a call."""
        assert tokens >= 0
        self.advance(now_ms)
        self.balance -= tokens
        self.spent += tokens

    def spend_elsewhere(self, tokens: int, now_ms: int) -> None:
        """Deducts tokens that another user of the key spent; negative *tokens* add some."""
        self.advance(now_ms)
        self.balance -= tokens
        self.foreign += tokens

    def change_plan(self, rate: int, now_ms: int) -> None:
        """Sets the refill to *rate* tokens per tick from the next tick on; the balance stays."""
        assert rate > 0
        self.advance(now_ms)
        self.rate = rate

    def reduce_flow(self, tokens: float, now_ms: int) -> None:
        """Withhold *tokens* from each lump from the next tick on."""
        self.advance(now_ms)
        self.flow_reduction = tokens
