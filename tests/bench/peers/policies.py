"""The ways to share an account, each as a worker's loop; all configured as well as they can be.

Sources: the collectors that this project replaces (a count per process); the counter with
atomic decrements is the usual pattern for a shared Redis; the loop of the PyPI client `keepa`
1.6.0 follows its `wait_for_tokens`, `time_to_refill` and `_request`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from tests.bench.peers.ours import OurBroker
from tests.bench.peers.world import (
    LIKELY_TOKENS,
    PAGES,
    PERIOD_MS,
    Ask,
    Call,
    Lease,
    Reply,
    Settle,
    Sleep,
    Worker,
    World,
)
from tests.simulation.demand import Demand
from tests.simulation.keepa_model import Reading

MINUTE_MS: Final = 60_000
SHORT_MS: Final = 50
REMEMBERED: Final = 20


class Count:
    """A count that its owner keeps: refilled by the owner's clock, corrected by replies."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self._refill_rate = 0
        self._next_ms = 0
        self._costs: dict[str, deque[int]] = {}

    def synced(self, reading: Reading, now_ms: int) -> None:
        """Takes Keepa's count as the own one."""
        self.tokens, self._refill_rate = float(reading.tokens_left), reading.refill_rate
        self._next_ms = now_ms + reading.refill_in_ms

    def refill(self, now_ms: int) -> None:
        """Adds what a minute brings, every minute by the own clock."""
        while self._next_ms <= now_ms:
            self.tokens = min(self.tokens + self._refill_rate, 60.0 * self._refill_rate)
            self._next_ms += MINUTE_MS

    def estimate(self, demand: Demand) -> float:
        """The dearest of the last calls of this kind, or the usual price."""
        return max(self._costs.get(demand.operation, ()), default=LIKELY_TOKENS[demand.operation])

    def learn(self, demand: Demand, cost: int) -> None:
        """Remembers what a call has cost."""
        self._costs.setdefault(demand.operation, deque(maxlen=REMEMBERED)).append(cost)

    def wait_ms(self, needed: float, now_ms: int) -> int:
        """Time until the own clock has brought *needed* tokens."""
        refills = max(1, -(-(needed - self.tokens) // max(1, self._refill_rate)))
        return max(SHORT_MS, self._next_ms + int(refills - 1) * MINUTE_MS - now_ms)


def count_per_process(world: World, number: int, *, asks: bool) -> Worker:
    """A count in every process; with *asks*, /token corrects it before each wait."""
    count, timeline = Count(), world.timeline
    count.synced(reading((yield Ask())), timeline.now_ms)
    while True:
        demand = world.want(number)
        while True:
            count.refill(timeline.now_ms)
            needed = count.estimate(demand)
            if count.tokens < needed and asks:
                count.synced(reading((yield Ask())), timeline.now_ms)
            if count.tokens < needed:
                yield Sleep(count.wait_ms(needed, timeline.now_ms))
                continue
            reply = ended((yield Call(demand, count.tokens)))
            count.synced(reply.reading, timeline.now_ms)
            if not reply.refused:
                count.learn(demand, reply.reading.tokens_consumed)
                break
            yield Sleep(reply.reading.refill_in_ms)


def shared_counter(world: World, number: int, count: Count) -> Worker:
    """One counter for all with atomic decrements; a refusal sets it to Keepa's count."""
    timeline = world.timeline
    if number == 0:
        count.synced(reading((yield Ask())), timeline.now_ms)
    else:
        yield Sleep(1_000)
    while True:
        demand = world.want(number)
        while True:
            count.refill(timeline.now_ms)
            needed = count.estimate(demand)
            if count.tokens < needed:
                yield Sleep(count.wait_ms(needed, timeline.now_ms))
                continue
            believed = count.tokens
            count.tokens -= needed
            reply = ended((yield Call(demand, believed)))
            if not reply.refused:
                cost = reply.reading.tokens_consumed
                count.tokens += needed - cost
                count.learn(demand, cost)
                break
            count.synced(reply.reading, timeline.now_ms)
            yield Sleep(reply.reading.refill_in_ms)


def keepa_client(world: World, number: int) -> Worker:
    """The PyPI client with wait=True: product calls ask /token first and wait at or below 0."""
    left = float(reading((yield Ask())).tokens_left)
    while True:
        demand = world.want(number)
        if demand is not PAGES:
            status = reading((yield Ask()))
            left = float(status.tokens_left)
            if left <= 0:
                yield Sleep(refill_ms(status))
                left = float(reading((yield Ask())).tokens_left)
        while (reply := ended((yield Call(demand, left)))).refused:
            left = float(reply.reading.tokens_left)
            yield Sleep(refill_ms(reply.reading))
        left = float(reply.reading.tokens_left)


def refill_ms(status: Reading) -> int:
    """The client's `time_to_refill`: a second more, and a minute for each refill owed."""
    owed = max(0, -status.tokens_left) / max(1, status.refill_rate)
    return status.refill_in_ms + 1_000 + int(owed * MINUTE_MS)


def sleep_on_refusal(world: World, number: int) -> Worker:
    """No count: every 429 sleeps until the next refill."""
    left = 0.0
    while True:
        demand = world.want(number)
        while (reply := ended((yield Call(demand, left)))).refused:
            left = float(reply.reading.tokens_left)
            yield Sleep(reply.reading.refill_in_ms)
        left = float(reply.reading.tokens_left)


def leased(world: World, number: int, broker: OurBroker) -> Worker:
    """The broker: a lease before every call, its true cost after."""
    while True:
        demand = world.want(number)
        believed = yield Lease(broker, demand)
        assert isinstance(believed, float)
        reply = ended((yield Call(demand, believed)))
        yield Settle(broker, reply)


def reading(outcome: object) -> Reading:
    """The answer to /token."""
    assert isinstance(outcome, Reading)
    return outcome


def ended(outcome: object) -> Reply:
    """The reply to a call."""
    assert isinstance(outcome, Reply)
    return outcome


Workers = Callable[[World, int], Iterator[Worker]]


def _each(loop: Callable[[World, int], Worker]) -> Workers:
    return lambda world, workers: (loop(world, number) for number in range(workers))


def _shared(world: World, workers: int) -> Iterator[Worker]:
    count = Count()
    return (shared_counter(world, number, count) for number in range(workers))


def _leased(world: World, workers: int) -> Iterator[Worker]:
    broker = OurBroker(world)
    return (leased(world, number, broker) for number in range(workers))


POLICIES: Final[dict[str, Workers]] = {
    "token broker": _leased,
    "count per process": _each(lambda w, n: count_per_process(w, n, asks=False)),
    "same, asks before it waits": _each(lambda w, n: count_per_process(w, n, asks=True)),
    "shared counter": _shared,
    "PyPI keepa, wait=True": _each(keepa_client),
    "sleep on every 429": _each(sleep_on_refusal),
}

assert PERIOD_MS > MINUTE_MS
