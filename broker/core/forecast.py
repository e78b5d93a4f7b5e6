"""When everybody who waits will be served, if nobody else comes."""

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from broker.core.costs import CostBook, tokens_at
from broker.core.leases import Lease, LeaseState
from broker.core.ledger import Ledger
from broker.core.waitlist import Waiting

# Weight of the newest call in the usual duration.
NEWEST: Final = 1 / 16


class Return(NamedTuple):
    """Tokens that an open call will give back when it is settled."""

    due_ms: float
    tokens: float


class CallTimes:
    """How long calls take, from grant to settle: an average that forgets."""

    def __init__(self) -> None:
        self.usual_ms = 0.0
        self._known = False

    def learn(self, took_ms: int) -> None:
        """Remember a call that was settled *took_ms* after its grant."""
        weight = NEWEST if self._known else 1.0
        self.usual_ms += weight * (took_ms - self.usual_ms)
        self._known = True


class Forecast:
    """The near future of the bucket, served from in turn.

    Everybody gets what is there once it is enough for the least that is useful,
    makes a call of usual length and likely cost, and gives the rest of its hold
    back. Times are ms from now.
    """

    def __init__(
        self,
        *,
        available: int,
        lump: float,
        tick_delay_ms: Callable[[int], int],
        returns: Iterable[Return],
        call_ms: float,
    ) -> None:
        """Start from now.

        Args:
            available: Tokens that could be granted now; may be negative.
            lump: Tokens one tick brings; with none, nobody can tell.
            tick_delay_ms: The delay from now until the n-th coming tick (from 1).
            returns: What the open calls will give back.
            call_ms: How long a call usually takes.
        """
        self._left: float = available
        self._lump, self._tick_delay_ms, self._call_ms = lump, tick_delay_ms, call_ms
        self._returns = list(returns)
        heapify(self._returns)
        self._now_ms, self._ticks = 0.0, 0

    def etas_ms(self, order: Iterable[Waiting]) -> dict[str, int | None]:
        """Expected delay until service, by lease_id; None if nobody can tell.

        Args:
            order: Who waits, first served first.
        """
        return {waiting.request.lease_id: self._serve(waiting) for waiting in order}

    def _serve(self, waiting: Waiting) -> int | None:
        quote = waiting.quote
        while (usable := self._usable(waiting)) < quote.least_tokens:
            if not self._advance():
                return None
        hold = max(quote.least_tokens, min(quote.tokens, usable))
        self._left -= hold
        heappush(self._returns, Return(self._now_ms + self._call_ms, hold * (1 - quote.likely)))
        return round(self._now_ms)

    def _usable(self, waiting: Waiting) -> float:
        if not self._returns:
            return self._left
        return min(self._left, self._left / waiting.quote.worst)

    def _advance(self) -> bool:
        """Go on to whatever comes next; False if nothing more comes."""
        tick_ms = self._tick_delay_ms(self._ticks + 1) if self._lump > 0 else None
        if self._returns and (tick_ms is None or self._returns[0].due_ms <= tick_ms):
            due_ms, tokens = heappop(self._returns)
            self._now_ms = max(self._now_ms, due_ms)
            self._left += tokens
        elif tick_ms is not None:
            self._now_ms = max(self._now_ms, tick_ms)
            self._ticks += 1
            self._left += self._lump
        else:
            return False
        return True


def foresee(
    ledger: Ledger, costs: CostBook, call_times: CallTimes, available: int, now_ms: int
) -> Forecast:
    """The forecast from what is probable; only a grant needs certainty.

    Args:
        ledger: The books; Keepa must have been heard.
        costs: What calls have cost.
        call_times: How long they take.
        available: Tokens that could be granted now, with lumps that should have landed.
        now_ms: The broker's clock.
    """
    bucket, call_ms = ledger.bucket, call_times.usual_ms
    assert bucket.observation is not None
    landed = bucket.ticks_landed(now_ms)
    return Forecast(
        available=available + ledger.uncertain_tokens,
        lump=bucket.observation.envelope.lump,
        tick_delay_ms=lambda ticks: bucket.tick_ms(landed + ticks) - now_ms,
        returns=_returns(ledger, costs, call_ms, now_ms),
        call_ms=call_ms,
    )


def _returns(
    leases: Iterable[Lease], costs: CostBook, call_ms: float, now_ms: int
) -> Iterator[Return]:
    """What the calls in flight will probably give back, and when."""
    for lease in leases:
        if lease.state is LeaseState.OPEN and lease.request is not None:
            prior = lease.request.tokens_per_unit
            price = costs.price(lease.operation, lease.units, prior)
            likely = tokens_at(price.ratio * price.likely, lease.units)
            left_ms = max(0.0, lease.granted_ms + call_ms - now_ms)
            yield Return(left_ms, lease.tokens - min(likely, lease.tokens))
