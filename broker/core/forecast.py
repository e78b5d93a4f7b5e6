"""When the requests that wait will be served, if no further ones come."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Final, NamedTuple

from broker.core.costs import EPSILON, CostBook, tokens_at
from broker.core.leases import Lease, LeaseState
from broker.core.ledger import Ledger
from broker.core.waitlist import Waiting

# Weight of the newest call in the usual duration.
NEWEST: Final = 1 / 16
# An ETA beyond it is "unknown": a bucket fills in an hour, and no plan lasts that long.
HORIZON_MS: Final = 7 * 86_400_000


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


@dataclass(frozen=True, slots=True)
class Ticks:
    """The coming refills, as delays in ms from now: the first, then one a period."""

    first_ms: float
    period_ms: float

    def delay_ms(self, number: int) -> float:
        """The delay until the *number*-th coming tick (from 1)."""
        return self.first_ms + ceil((number - 1) * self.period_ms)

    def before(self, delay_ms: float) -> int:
        """How many ticks land sooner than *delay_ms* from now."""
        if delay_ms <= self.first_ms:
            return 0
        return ceil((delay_ms - self.first_ms) / self.period_ms)


class Forecast:
    """The near future of the bucket, served from in turn.

    Every request gets what is there once it is enough for the least that is useful,
    makes a call of usual length and likely cost, and gives the rest of its hold
    back. Times are ms from now. The work grows with the requests and the open calls,
    never with tokens or time: ticks are skipped by arithmetic, not walked.
    """

    def __init__(
        self,
        *,
        available: int,
        lump: float,
        ticks: Ticks,
        returns: Iterable[Return],
        call_ms: float,
    ) -> None:
        """Starts from now.

        Args:
            available: Tokens that could be granted now; may be negative.
            lump: Tokens one tick brings; with none, only open calls bring tokens.
            ticks: When they land.
            returns: What the open calls will give back.
            call_ms: How long a call usually takes.
        """
        self._available, self._lump, self._ticks, self._call_ms = available, lump, ticks, call_ms
        self._returns = list(returns)
        heapify(self._returns)

    def etas_ms(self, order: Iterable[Waiting]) -> dict[str, int | None]:
        """Expected delay until service, by lease_id; None if it is not known.

        One loop without helpers: it runs for every request that waits, at every denial.

        Args:
            order: The requests that wait, first served first.
        """
        etas: dict[str, int | None] = {}
        lump, ticks, returns, call_ms = self._lump, self._ticks, self._returns, self._call_ms
        now_ms, landed, given = 0.0, 0, float(self._available)
        # What open calls will still give back, and all that comes by the horizon.
        due = sum(tokens for _, tokens in returns)
        horizon_tokens = ticks.before(HORIZON_MS) * lump if lump > 0 else 0.0
        for waiting in order:
            _, tokens, least, likely, worst, _ = waiting.quote
            eta_ms: int | None = None
            # Else it will be denied, or waits longer than can be foreseen: nothing is set
            # aside for it, so that those behind it keep their ETAs.
            while least <= given + due + horizon_tokens and now_ms <= HORIZON_MS:
                left = given + landed * lump
                # Beside calls in flight the worst price counts.
                usable = left / worst if returns and left > 0 else left
                if usable >= least - EPSILON:
                    hold = max(least, min(tokens, usable))
                    given -= hold
                    due += (back := hold * (1 - likely))
                    heappush(returns, Return(now_ms + call_ms, back))
                    eta_ms = round(now_ms)
                    break
                missing = least * worst - left if returns else least - left
                tick_ms, tick = inf, landed
                if lump > 0:
                    tick += max(1, ceil(missing / lump - EPSILON))
                    tick_ms = ticks.delay_ms(tick)
                if returns and returns[0].due_ms <= tick_ms:
                    due_ms, back = heappop(returns)
                    now_ms = max(now_ms, due_ms)
                    landed = max(landed, ticks.before(now_ms)) if lump > 0 else 0
                    given += back
                    due -= back
                elif tick_ms < inf:
                    landed, now_ms = tick, max(now_ms, tick_ms)
                else:
                    break
            etas[waiting.request.lease_id] = eta_ms
        return etas


def foresee(
    ledger: Ledger, costs: CostBook, call_times: CallTimes, available: int, now_ms: int
) -> Forecast:
    """The forecast from what is probable; only a grant needs certainty.

    Args:
        ledger: The books, with a first count from Keepa.
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
        ticks=Ticks(bucket.tick_ms(landed + 1) - now_ms, bucket.period.ms),
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
