"""Figures of fault-free runs: how well the tokens are used, and how fairly.

Every scenario is saturated: requests always wait, so every token of refill
that is not spent was wasted. Where shares are compared, every holder always
waits: an idle one saves up no credit, and falls behind.

A figure of a short run is uncertain. It breaks a promise only by more than that:
tokens may be in hand at the end, a count of rare events scatters (a run breaks the
promise if chance alone would do so less than once in a hundred runs), and classes
differ by up to two of the largest requests at any moment.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import exp, sqrt
from statistics import median
from typing import Final

from broker.core.leases import Priority
from broker.telemetry.eta_accuracy import Promises
from tests.simulation.demand import BULK, DEALS, OFFERS, PAGES, PRODUCTS, RATED
from tests.simulation.dice import Fate
from tests.simulation.scenario import Scenario
from tests.simulation.simulation import Simulation

SAMPLE_EVERY: Final = 20
# What is promised: tokens spent of those generated, calls a refusal, unexplained
# tokens an observation at the 99th percentile, and the median error of ETAs.
UTILISATION_MIN: Final = {"unknown costs": 0.98}
UTILISATION_MIN_KNOWN: Final = 0.995
CALLS_A_REFUSAL: Final = {"unknown costs": 10_000}
UNEXPLAINED_MAX: Final = 1
ETA_ERROR_MS_MAX: Final = 2_000
CLASS_ERROR_MAX: Final = 0.02
# All callers wait all the time: one status call confirms the lump of a tick, and now and
# then one ends a doubt. A start takes its first count, and places two ticks.
PROBES_A_TICK_MAX: Final = 1.3
PROBES_A_START: Final = 3
# What chance alone does less often than this is no chance; the same for a median.
BY_CHANCE: Final = 0.01
MEDIAN_SIGMAS: Final = 2.33
EQUAL: Final = (
    replace(PAGES, operation="equal-5"),
    replace(PRODUCTS, operation="equal-batch", units_max=40),
)

EQUAL_HOLDERS: Final = "equal holders"
THREE_CLASSES: Final = "three classes"
SCENARIOS: Final = {
    "known costs": Scenario(rate=20, workers=20, demands=(DEALS, PAGES, PRODUCTS, BULK)),
    "unknown costs": Scenario(rate=60, workers=20, demands=(DEALS, OFFERS, RATED)),
    EQUAL_HOLDERS: Scenario(
        rate=20, workers=24, workers_per_holder=6, demands=EQUAL, loyal=True, processing_ms=50
    ),
    THREE_CLASSES: Scenario(
        rate=20,
        workers=18,
        demands=tuple(replace(PAGES, priority=priority) for priority in Priority),
        loyal=True,
        processing_ms=50,
    ),
}


def chance_of(count: int, expected: float) -> float:
    """The chance that at least *count* rare events happen where *expected* is the mean."""
    if count == 0:
        return 1.0
    if expected <= 0:
        return 0.0
    # The terms of Poisson's law up to count, each from the one before.
    below = term = exp(-expected)
    for number in range(1, count):
        term *= expected / number
        below += term
    return 1 - below


@dataclass(slots=True)
class Figures:
    """What one fault-free run has shown; tokens and milliseconds."""

    scenario: str
    seed: int
    calls: int = 0
    refusals: int = 0
    spent: int = 0
    generated: int = 0
    unexplained: Counter[int] = field(default_factory=Counter)
    # |ETA - real| for a sample of waits: of the first ETA, and of the last corrected one.
    eta_errors_ms: list[int] = field(default_factory=list)
    eta_last_errors_ms: list[int] = field(default_factory=list)
    by_holder: Counter[str] = field(default_factory=Counter)
    by_class: Counter[Priority] = field(default_factory=Counter)
    largest: int = 0
    probes: int = 0
    ticks: int = 0
    runs: int = 1

    def eta_proved(self, first_ms: int, last_ms: int) -> None:
        """Takes the errors of the first and the last ETA of a served request."""
        self.eta_errors_ms.append(first_ms)
        self.eta_last_errors_ms.append(last_ms)

    @property
    def utilisation(self) -> float:
        """Spent by generated."""
        return self.spent / self.generated

    @property
    def utilisation_error(self) -> float:
        """Part of the tokens that may be in hand at the end: one lump, and one request's."""
        in_hand = self.runs * (self.largest + SCENARIOS[self.scenario].rate)
        return in_hand / self.generated

    @property
    def probes_a_tick(self) -> float:
        """Status calls a tick, less those that every start takes."""
        return max(0, self.probes - PROBES_A_START * self.runs) / max(1, self.ticks)

    @property
    def unexplained_p99(self) -> int:
        """Unexplained drift at the 99th percentile of observations, in tokens."""
        left = sum(self.unexplained.values()) // 100
        for tokens in sorted(self.unexplained, reverse=True):
            left -= self.unexplained[tokens]
            if left < 0:
                return tokens
        return 0

    @property
    def eta_median_ms(self) -> float:
        """Median error of ETAs as corrected last."""
        return median(self.eta_last_errors_ms) if self.eta_last_errors_ms else 0.0

    @property
    def eta_first_median_ms(self) -> float:
        """Median error of first ETAs, newcomers included."""
        return median(self.eta_errors_ms) if self.eta_errors_ms else 0.0

    @property
    def spread(self) -> int:
        """Tokens between the holder served most and the one served least."""
        return max(self.by_holder.values()) - min(self.by_holder.values())

    def add(self, other: "Figures") -> None:
        """Takes in another run of the same scenario."""
        assert other.scenario == self.scenario
        self.calls += other.calls
        self.refusals += other.refusals
        self.spent += other.spent
        self.generated += other.generated
        self.unexplained += other.unexplained
        self.eta_errors_ms += other.eta_errors_ms
        self.eta_last_errors_ms += other.eta_last_errors_ms
        self.by_holder += other.by_holder
        self.by_class += other.by_class
        self.largest = max(self.largest, other.largest)
        self.probes += other.probes
        self.ticks += other.ticks
        self.runs += other.runs

    def broken(self) -> Iterator[str]:
        """What was promised and is not so, whatever is uncertain."""
        least = UTILISATION_MIN.get(self.scenario, UTILISATION_MIN_KNOWN)
        if self.utilisation < min(least, 1 - self.utilisation_error):
            yield f"only {self.utilisation:.2%} of the tokens were spent"
        calls_a_refusal = CALLS_A_REFUSAL.get(self.scenario)
        allowed = self.calls / calls_a_refusal if calls_a_refusal else 0.0
        if chance_of(self.refusals, allowed) < BY_CHANCE:
            yield f"{self.refusals} of {self.calls} calls were refused"
        seen = sum(self.unexplained.values())
        strange = sum(n for tokens, n in self.unexplained.items() if tokens > UNEXPLAINED_MAX)
        if chance_of(strange, seen / 100) < BY_CHANCE:
            yield f"drift is unexplained by {self.unexplained_p99} tokens"
        if self.probes_a_tick > PROBES_A_TICK_MAX:
            yield f"Keepa was asked {self.probes_a_tick:.2f} times a tick"
        if self.eta_least_ms > ETA_ERROR_MS_MAX:
            yield f"ETAs are {self.eta_median_ms / 1000:.1f} s off"
        if self.scenario == EQUAL_HOLDERS and self.spread > self.largest:
            yield f"equal holders are {self.spread} tokens apart"
        if self.scenario == THREE_CLASSES:
            off = self.class_error()
            if off > max(CLASS_ERROR_MAX, self.class_uncertainty):
                yield f"classes are {off:.2%} off their weights"

    @property
    def eta_least_ms(self) -> float:
        """The least that the median error of all ETAs may be, judged by this sample."""
        errors = sorted(self.eta_last_errors_ms)
        rank = len(errors) / 2 - MEDIAN_SIGMAS * sqrt(len(errors)) / 2
        return errors[int(rank)] if rank >= 0 and errors else 0.0

    @property
    def class_uncertainty(self) -> float:
        """Two of the largest requests, as a part of the smallest class.

        And its part of the opening balance, which goes before every class waits.
        """
        low_tokens = 2 * self.largest + SCENARIOS[self.scenario].opening / 13
        return self.runs * low_tokens / (sum(self.by_class.values()) / 13)

    def class_error(self) -> float:
        """Largest deviation of a class from its share by weight 8 : 4 : 1."""
        weights = {Priority.HIGH: 8, Priority.NORMAL: 4, Priority.LOW: 1}
        total = sum(self.by_class.values())
        return max(
            abs(self.by_class[priority] / total / (weight / 13) - 1)
            for priority, weight in weights.items()
        )


def measure(name: str, seed: int, events: int) -> Figures:
    """Runs one scenario for *events* events.

    Raises:
        CheckFailedError: something happened that must not.
    """
    simulation = Simulation(SCENARIOS[name], Fate(seed))
    figures = Figures(name, seed)
    promises, sampled = Promises([figures.eta_proved]), 0
    allocator = simulation.broker.allocator
    ledger, waitlist = allocator.ledger, allocator.waitlist
    while simulation.timeline.events < events:
        seen, waiting = ledger.totals.observations, len(waitlist)
        simulation.timeline.step()
        simulation.audit.check()
        observed = ledger.totals.observations != seen
        if observed:
            figures.unexplained[abs(ledger.drift.last_unexplained_tokens)] += 1
        now_ms = simulation.broker.now_ms()
        promises.keep_score(allocator, now_ms)
        if promises and (observed or len(waitlist) != waiting):
            promises.renew(allocator, now_ms)
        elif not promises and ledger.totals.grants >= sampled + SAMPLE_EVERY:
            sampled = ledger.totals.grants
            promises.renew(allocator, now_ms)
    books, measures = simulation.model.books, simulation.measures
    figures.calls, figures.refusals = measures.calls, measures.refusals
    figures.spent, figures.generated = books.spent, books.opening + books.refilled
    figures.by_holder, figures.by_class = measures.spent_by_holder, measures.spent_by_class
    figures.largest = measures.largest
    figures.probes, figures.ticks = measures.probes.total(), simulation.model.ticks
    return figures
