"""A Keepa, its network and worker processes in virtual time; what happened there is measured.

A worker is a generator: it yields what it does next, and gets the outcome sent back. All
policies meet the same model of Keepa, the same delays and the same endless demand.
"""

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import quantiles
from typing import Final, Protocol

from tests.simulation.demand import DEALS, OFFERS_OF_15, Demand
from tests.simulation.dice import Fate
from tests.simulation.keepa_model import KeepaModel, Moment, Reading, RunningCall
from tests.simulation.timeline import Timeline

PERIOD_MS: Final = 60_200
WAY_MS: Final = (5, 40)
# Between a worker and the broker, or the shared counter.
NEAR_MS: Final = (0, 2)
PROCESSING_MS: Final = 400
# Rows of a full deal page (keepa-api.md).
PAGE_ROWS: Final = 150
# Deals appear at this share of what the whole plan could read, spread over all workers.
DEALS_OF_SUPPLY: Final = 0.5
PAGE_TOKENS: Final = 5

PAGES: Final = replace(DEALS, units_max=1)
OFFERS: Final = replace(OFFERS_OF_15, whole=True)
WORKLOADS: Final = {"deals": (PAGES,), "mixed": (PAGES, OFFERS)}
# What a call costs on average; offers: one page each, a second one at 15 %, a third at 3 %.
LIKELY_TOKENS: Final = {PAGES.operation: 5.0, OFFERS.operation: 15 * (6 + 0.9 + 0.18)}


@dataclass(frozen=True, slots=True)
class Sleep:
    """Waits for so many milliseconds; nothing comes back."""

    ms: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Fetches /token; its reading comes back."""


@dataclass(frozen=True, slots=True)
class Call:
    """Makes a call; a `Reply` comes back."""

    demand: Demand
    # What the policy believes is left before the call.
    believed_tokens: float


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended."""

    reading: Reading
    refused: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """Waits for a lease; the believed count comes back."""

    broker: "Broker"
    demand: Demand


@dataclass(frozen=True, slots=True)
class Settle:
    """Reports how the leased call ended; nothing comes back."""

    broker: "Broker"
    reply: Reply


class Broker(Protocol):
    """Where leases come from."""

    def acquire(self, number: int, demand: Demand, go_on: Callable[[float], None]) -> None:
        """Calls *go_on* with the believed count once worker *number* may make its call."""

    def settle(self, number: int, reply: Reply, go_on: Callable[[None], None]) -> None:
        """Takes the end of the call of worker *number*."""


Act = Sleep | Ask | Call | Lease | Settle
Outcome = Reading | Reply | float | None
Worker = Generator[Act, Outcome, None]


@dataclass(slots=True)
class Tally:
    """What one run has shown; tokens, milliseconds, counts."""

    calls: int = 0
    refusals: int = 0
    probes: int = 0
    stalled_ms: int = 0
    differences: list[float] = field(default_factory=list)
    deals: float = 0.0
    # Products of which details were read.
    products: int = 0
    # Sum over all deals of their age when they are written.
    age_ms: float = 0.0
    spent_by_worker: Counter[int] = field(default_factory=Counter)

    def difference(self, percentile: int) -> float:
        """The difference between believed and true count that *percentile* % stay below."""
        if len(self.differences) < 2:
            return max(self.differences, default=0.0)
        return quantiles(self.differences, n=100, method="inclusive")[percentile - 1]


class DealFeed:
    """The deals that appear for one worker's query, and how old they are when they are read."""

    def __init__(self, deals_per_ms: float) -> None:
        self._deals_per_ms = deals_per_ms
        self._read_to_ms = 0.0

    def read(self, now_ms: int) -> tuple[float, float]:
        """Reads one page, newest first; returns the deals on it and the sum of their ages.

        What a page can't hold is lost to this policy: the next page starts anew.
        """
        since_ms = now_ms - self._read_to_ms
        self._read_to_ms = float(now_ms)
        span_ms = min(since_ms, PAGE_ROWS / self._deals_per_ms)
        deals = span_ms * self._deals_per_ms
        return deals, deals * span_ms / 2


class World:
    """One account and what calls it."""

    def __init__(self, *, rate: int, workers: int, workload: str, seed: int) -> None:
        self.timeline = Timeline()
        self.model = KeepaModel(
            rate=rate, period_ms=PERIOD_MS, opening=rate, charge=Moment.START, snapshot=Moment.END
        )
        self.tally = Tally()
        self.demands = WORKLOADS[workload]
        pages_per_ms = rate / PAGE_TOKENS / PERIOD_MS
        self.feeds = [
            DealFeed(DEALS_OF_SUPPLY * pages_per_ms * PAGE_ROWS / workers) for _ in range(workers)
        ]
        fate = Fate(seed)
        self._network = fate.dice("network")
        self._dice = [fate.dice(f"worker {number}") for number in range(workers)]
        # True costs of the calls that are decided on and not charged yet, by worker.
        self._uncharged: dict[int, int] = {}
        self._in_flight = 0
        # What a policy with a queue serves next.
        self.head: Demand | None = None
        self._wanted: dict[int, Demand] = {}
        self._tick()

    def want(self, number: int) -> Demand:
        """Draws what worker *number* wants next."""
        chosen = int(self._dice[number].random() * len(self.demands))
        self._wanted[number] = demand = self.demands[chosen]
        return demand

    def start(self, number: int, worker: Worker) -> None:
        """Lets *worker* begin within the first second."""
        delay_ms = self._network.between(0, 1_000)
        self.timeline.after(delay_ms, partial(self._go_on, number, worker, None))

    def run(self, until_ms: int) -> None:
        """Lets things happen until *until_ms*, and measures stalls between them."""
        timeline = self.timeline
        # The last moment is an event, too: nothing later is run.
        timeline.at(until_ms, lambda: None)
        while timeline.now_ms < until_ms:
            before_ms, stalled = timeline.now_ms, self.is_stalled()
            timeline.step()
            self.tally.stalled_ms += stalled * (timeline.now_ms - before_ms)

    def is_stalled(self) -> bool:
        """Whether Keepa's balance covers the next call's likely cost, and no call runs.

        The next call is the head of a policy's queue; without a queue, the cheapest wanted.
        """
        if self._in_flight or self.model.balance <= 0 or not self._wanted:
            return False
        return self.model.balance >= self._next_tokens()

    def unspendable(self) -> int:
        """Tokens that are left and can't pay for the next call."""
        left = self.model.balance
        return left if 0 < left < self._next_tokens() else 0

    def _next_tokens(self) -> float:
        demands = [self.head] if self.head is not None else list(self._wanted.values())
        return min(LIKELY_TOKENS[demand.operation] for demand in demands)

    def later(self, action: Callable[[], None]) -> None:
        """Runs *action* after the way between a worker and a process beside it."""
        self.timeline.after(self._network.between(*NEAR_MS), action)

    def decide(self, number: int, demand: Demand, believed_tokens: float) -> None:
        """Worker *number* will call: what is believed to be left is held against the truth.

        The truth is Keepa's balance less what the calls decided on before will cost.
        """
        true_tokens = self.model.balance - sum(self._uncharged.values())
        self.tally.differences.append(abs(believed_tokens - true_tokens))
        self._uncharged[number] = demand.cost(demand.units_max, self._dice[number])

    # --- calls -----------------------------------------------------------------

    def _go_on(self, number: int, worker: Worker, outcome: Outcome) -> None:
        act = worker.send(outcome)
        go_on = partial(self._go_on, number, worker)
        if isinstance(act, Sleep):
            self.timeline.after(max(0, act.ms), partial(go_on, None))
        elif isinstance(act, Ask):
            self.ask(go_on)
        elif isinstance(act, Lease):
            act.broker.acquire(number, act.demand, go_on)
        elif isinstance(act, Settle):
            act.broker.settle(number, act.reply, go_on)
        else:
            if number not in self._uncharged:
                self.decide(number, act.demand, act.believed_tokens)
            self._in_flight += 1
            arrive = partial(self._arrive, number, act.demand, go_on)
            self.timeline.after(self._way_ms(), arrive)

    def ask(self, done: Callable[[Reading], None]) -> None:
        """Fetches /token."""
        self.tally.probes += 1
        self.timeline.after(self._way_ms(), partial(self._asked, done))

    def _asked(self, done: Callable[[Reading], None]) -> None:
        reading = self.model.read(self.timeline.now_ms)
        self.timeline.after(self._way_ms(), partial(done, reading))

    def _arrive(self, number: int, demand: Demand, go_on: partial[None]) -> None:
        cost = self._uncharged.pop(number)
        running = self.model.admit(cost, self.timeline.now_ms)
        if running is None:
            self.tally.refusals += 1
            reply = Reply(self.model.read(self.timeline.now_ms), refused=True)
            self.timeline.after(self._way_ms(), partial(self._return, go_on, reply))
            return
        self.tally.calls += 1
        self.tally.spent_by_worker[number] += cost
        if demand is PAGES:
            deals, age_ms = self.feeds[number].read(self.timeline.now_ms)
            self.tally.deals += deals
            self.tally.age_ms += age_ms
        else:
            self.tally.products += demand.units_max
        work_ms = 1 + int(PROCESSING_MS * (0.5 + self._network.random()))
        self.timeline.after(work_ms, partial(self._finish, running, go_on))

    def _finish(self, running: RunningCall, go_on: partial[None]) -> None:
        reply = Reply(self.model.finish(running, self.timeline.now_ms), refused=False)
        self.timeline.after(self._way_ms(), partial(self._return, go_on, reply))

    def _return(self, go_on: partial[None], reply: Reply) -> None:
        self._in_flight -= 1
        go_on(reply)

    def _tick(self) -> None:
        if self.timeline.now_ms:
            self.model.tick()
        self.timeline.at(self.model.next_tick_ms, self._tick)

    def _way_ms(self) -> int:
        return self._network.between(*WAY_MS)
