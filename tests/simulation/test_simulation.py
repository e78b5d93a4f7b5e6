"""A short slice of the simulation; `make simulate` runs millions of events."""

from dataclasses import replace

import pytest

from broker.core.budgets import Budget, Mode
from broker.core.holds import Holds
from broker.core.leases import Priority
from tests.simulation.campaign import run_random, shrink
from tests.simulation.demand import DEALS, OFFERS_OF_15, PAGES, PRODUCTS, RATED, Demand
from tests.simulation.dice import Fate
from tests.simulation.figures import (
    BY_CHANCE,
    CLASS_ERROR_MAX,
    PROBES_A_TICK_MAX,
    Figures,
    chance_of,
    measure,
)
from tests.simulation.museum.counting import refund
from tests.simulation.scenario import Scenario
from tests.simulation.simulation import Simulation
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


@pytest.mark.parametrize("rate", [5, 25])
@pytest.mark.parametrize(
    "demands", [(PAGES,), (PAGES, PAGES, PAGES, replace(OFFERS_OF_15, whole=True))]
)
def test_loops_of_one_call_each_share_equally(demands: tuple[Demand, ...], rate: int) -> None:
    """A holder with a call under way is not idle: it keeps its turn, and the last tokens."""
    scenario = Scenario(rate=rate, workers=4, demands=demands, processing_ms=400, opening=0)
    simulation = Simulation(scenario, Fate(2))
    while simulation.timeline.events < 6_000:
        simulation.timeline.step()
        simulation.audit.check()
    spent, measures = simulation.measures.spent_by_holder, simulation.measures

    assert len(spent) == 4
    # Calls under way are not charged yet.
    assert max(spent.values()) - min(spent.values()) <= 2 * measures.largest


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


MINUTE_MS = 60_000
TEAM = Budget("team", holder="partners/*", tokens_per_day=200)
BUDGETED = Scenario(
    rate=20,
    workers=12,
    workers_per_holder=2,
    demands=(DEALS, PRODUCTS, RATED),
    identities=("partners", "fetchers"),
    weights=(("fetchers", 3.0),),
    max_wait=0.3,
    give_up=0.05,
    day_ms=60 * MINUTE_MS,
    budgets=(
        TEAM,
        Budget("rated", operation="product?*", tokens_per_day=60, within=TEAM),
        Budget("single", holder="fetchers/*", in_flight_max=1),
        Budget("shade", tokens_per_day=10, mode=Mode.SHADOW),
    ),
)


@pytest.mark.parametrize("seed", [1, 2])
def test_budgets_hold_by_the_auditors_own_books(seed: int) -> None:
    """A day's budget, one in it, a cap of calls in flight, a shadow and weights, with losses."""
    simulation = Simulation(BUDGETED, Fate(seed))
    simulation.run(RANDOM_EVENTS)
    used: dict[str, int] = {}
    for (name, _), day in simulation.audit.budgets.days.items():
        used[name] = max(used.get(name, 0), day.used)

    # The tight ones were really tight: they were spent almost whole on some day.
    assert used["team"] >= 180
    assert used["rated"] >= 50
    assert used["shade"] > 600


def test_identities_get_tokens_by_weight() -> None:
    """Three to one, within one largest request a holder, however many workers each has."""
    scenario = Scenario(
        rate=20, opening=1, workers=12, demands=(PAGES,), processing_ms=50,
        identities=("partners", "partners", "fetchers", "fetchers"),
        weights=(("fetchers", 3.0),),
    )  # fmt: skip
    simulation = Simulation(scenario, Fate(1))
    while simulation.timeline.events < RANDOM_EVENTS:
        simulation.timeline.step()
        simulation.audit.check()
    served = simulation.audit.budgets.served

    assert served["partners"] > 500
    assert abs(served["fetchers"] / 3 - served["partners"]) <= 2 * simulation.measures.largest
