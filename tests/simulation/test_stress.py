"""Hostile values: overlapping calls of any length, ticks every second, clocks that stand."""

from dataclasses import replace

import pytest

from tests.simulation.demand import DEALS, LOW_OFFERS, OFFERS, PAGES, RATED
from tests.simulation.dice import Fate
from tests.simulation.keepa_model import Moment
from tests.simulation.scenario import Scenario
from tests.simulation.simulation import Simulation

EVENTS = 3_000
HOSTILE = Scenario(
    rate=25,
    period_ms=1_000,
    tick_jitter_ms=15,
    workers=12,
    demands=(DEALS, PAGES, OFFERS, RATED, LOW_OFFERS),
    slow_message=0.05,
    clock_stop_every_ms=60_000,
    clock_ppm=100,
)


@pytest.mark.slow
@pytest.mark.parametrize("charge", Moment)
@pytest.mark.parametrize("snapshot", Moment)
@pytest.mark.parametrize("processing_ms", [0, 700, 20_000])
@pytest.mark.parametrize("rate", [5, 25])
def test_every_check_holds_under_hostile_values(
    rate: int, processing_ms: int, snapshot: Moment, charge: Moment
) -> None:
    """However calls overlap, and whenever Keepa charges and counts them."""
    scenario = replace(
        HOSTILE, rate=rate, processing_ms=processing_ms, snapshot=snapshot, charge=charge
    )
    simulation = Simulation(scenario, Fate(rate + processing_ms))
    simulation.run(EVENTS)

    assert simulation.measures.calls > 0
