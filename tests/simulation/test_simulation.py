"""A short slice of the simulation; `make simulate` runs millions of events."""

import pytest

from broker.core.holds import Holds
from broker.core.leases import Priority
from tests.simulation.campaign import run_random, shrink
from tests.simulation.figures import (
    BY_CHANCE,
    CLASS_ERROR_MAX,
    PROBES_A_TICK_MAX,
    Figures,
    chance_of,
    measure,
)
from tests.simulation.museum.counting import refund
from tests.simulation.starving import starve

# 20 scenarios of 10,000 events, three of 15,000 and one of 60,000: 300,000 and more.
RANDOM_EVENTS = 10_000
FIGURE_EVENTS = 15_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_no_check_fails_whatever_happens(seed: int) -> None:
    """Losses, deaths, restarts, foreign spending: every event is checked against the model."""
    outcome = run_random(seed, RANDOM_EVENTS)

    assert outcome.failure is None
    assert outcome.events >= RANDOM_EVENTS


def test_the_same_seed_gives_the_same_run() -> None:
    """A failure found once can be looked at again."""
    assert run_random(3, 3_000) == run_random(3, 3_000)


def test_known_costs_waste_nothing_and_are_never_refused() -> None:
    """Every token generated is spent, and Keepa admits every call."""
    figures = measure("known costs", 1, FIGURE_EVENTS)

    assert (figures.refusals, list(figures.broken())) == (0, [])


def test_unknown_costs_waste_little() -> None:
    """Heavy-tailed costs keep tokens reserved for a while, but hardly any idle."""
    figures = measure("unknown costs", 1, FIGURE_EVENTS)

    assert figures.calls > 1_000
    assert list(figures.broken()) == []


def test_equal_holders_get_equal_shares() -> None:
    """However different their requests, at most one largest request lies between them."""
    figures = measure("equal holders", 1, FIGURE_EVENTS)

    assert (figures.spread <= figures.largest, list(figures.broken())) == (True, [])


def test_classes_share_by_weight() -> None:
    """Eight, four and one part of the tokens, within two per cent in a long run."""
    figures = measure("three classes", 1, 4 * FIGURE_EVENTS)

    assert (figures.class_error() <= 0.02, list(figures.broken())) == (True, [])


@pytest.mark.parametrize(
    ("latency_ms", "workers", "rate"), [(1, 4, 5), (1, 16, 25), (80, 4, 25), (400, 16, 5)]
)
def test_keepa_is_asked_once_a_tick(latency_ms: int, workers: int, rate: int) -> None:
    """However short the way to Keepa and however many wait; and nothing is wasted."""
    run = starve(latency_ms, workers, rate, ticks=20)

    assert run.probes_a_tick <= PROBES_A_TICK_MAX
    assert run.utilisation > 0.95
    assert run.refusals == 0


def test_a_broken_promise_is_told() -> None:
    """A run that wastes, is refused, drifts, misjudges ETAs or asks too often does not pass."""
    figures = Figures("known costs", 1, calls=5, refusals=1, spent=900, generated=1_000)
    figures.probes, figures.ticks = 20, 10
    figures.unexplained[7] += 1
    for _ in range(9):
        figures.eta_proved(9_000, 3_000)

    assert len(list(figures.broken())) == 5


def test_a_short_run_breaks_no_promise_by_chance() -> None:
    """What is in hand at its end, one odd wait, a call more or less of a class: all is noise."""
    wasting = Figures("known costs", 1, calls=50, spent=900, generated=1_000, largest=100)
    wasting.eta_proved(9_000, 3_000)
    unfair = Figures("three classes", 1, calls=13, spent=65, generated=65, largest=5)
    unfair.by_class.update({Priority.HIGH: 45, Priority.NORMAL: 15, Priority.LOW: 5})

    assert list(wasting.broken()) == []
    assert list(unfair.broken()) == []
    assert unfair.class_error() > CLASS_ERROR_MAX


def test_a_long_run_breaks_a_promise_by_the_same_figures() -> None:
    """Where it carries them, they are judged as they are."""
    wasting = Figures("known costs", 1, spent=90_000, generated=100_000, largest=100)
    unfair = Figures("three classes", 1, spent=65_000, generated=65_000, largest=5)
    unfair.by_class.update({Priority.HIGH: 45_000, Priority.NORMAL: 15_000, Priority.LOW: 5_000})

    assert len([*wasting.broken(), *unfair.broken()]) == 2


def test_rare_events_are_judged_by_their_chance() -> None:
    """One refusal of 2,000 calls may be chance where 10,000 calls a refusal are promised."""
    assert chance_of(1, 0.2) > BY_CHANCE
    assert chance_of(3, 0.2) < BY_CHANCE
    assert chance_of(0, 0) == 1
    assert chance_of(1, 0) == 0


def test_a_failure_shrinks_to_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a defect in the core a seed fails, and the trace names the check."""
    monkeypatch.setattr(Holds, "lapse", refund)
    outcomes = (run_random(seed, 3_000) for seed in range(1, 60))
    failing = next(outcome for outcome in outcomes if outcome.failure)
    trace = list(shrink(failing.seed, failing))

    assert failing.check is not None
    assert failing.check in trace[1]
