"""A short slice of the simulation; `make simulate` runs millions of events."""

import pytest

from broker.core.ledger import Ledger
from tests.simulation.campaign import run_random, shrink
from tests.simulation.figures import Figures, measure
from tests.simulation.museum.counting import refund
from tests.simulation.starving import PROBES_A_TICK_MAX, starve

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
    """A run that wastes, is refused, drifts or misjudges ETAs does not pass."""
    figures = Figures("known costs", 1, calls=5, refusals=1, spent=9, generated=10)
    figures.unexplained[7] += 1
    figures.eta_proved(9_000, 3_000)

    assert len(list(figures.broken())) == 4


def test_a_failure_shrinks_to_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a defect in the core a seed fails, and the trace tells which check and how."""
    monkeypatch.setattr(Ledger, "_lapse", refund)
    outcomes = (run_random(seed, 3_000) for seed in range(1, 60))
    failing = next(outcome for outcome in outcomes if outcome.failure)
    trace = list(shrink(failing.seed, failing))

    assert failing.check is not None
    assert failing.check in trace[1]
