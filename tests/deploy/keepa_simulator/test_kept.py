"""What a restarted simulator finds of its catalogues."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.keepa_simulator import kept
from deploy.keepa_simulator.kept import Kept
from deploy.keepa_simulator.options import Options
from deploy.keepa_simulator.simulator import Simulator

START_MS = 1_700_000_000_000
FIVE_S, TEN_S = START_MS + 5_000, START_MS + 10_000
OPTIONS = Options(products=1_000, deals=300, seed=3, deal_speed=600.0)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a simulator that has ended after five seconds: an hour's events."""
    monkeypatch.setattr(kept, "EVENTS_PER_COPY", 50)
    path = tmp_path / "state.json"
    simulator = Simulator(OPTIONS, START_MS, kept=Kept(path))
    simulator.catch_up(FIVE_S)
    simulator.keep()
    return path


def deals_of(simulator: Simulator) -> set[tuple[str, int]]:
    """The deals with their last updates."""
    return {(deal.facts.asin, deal.last_update) for deal in simulator.catalogue(1).deals}


def test_a_restart_goes_on_from_the_last_copy(path: Path) -> None:
    """It need not run again what the process before it has run, and ends at the same deals."""
    restarted, whole = Simulator(OPTIONS, TEN_S, kept=Kept(path)), Simulator(OPTIONS, START_MS)
    found = restarted.catalogue(1).events - whole.catalogue(1).events
    for simulator in (restarted, whole):
        simulator.catch_up(TEN_S)

    assert found > 50
    assert deals_of(restarted) == deals_of(whole)
    assert deals_of(whole) != deals_of(Simulator(OPTIONS, START_MS))


@pytest.mark.parametrize("what", ["damaged", "cut", "of another seed", "gone"])
def test_a_copy_that_does_not_fit_is_not_used(path: Path, what: str) -> None:
    """The events are run again instead."""
    (copy,) = path.parent.glob("*.catalogue-1")
    stored = copy.read_bytes()
    options = replace(OPTIONS, seed=4) if what == "of another seed" else OPTIONS
    if what == "gone":
        copy.unlink()
    elif what == "damaged":
        copy.write_bytes(stored[:-9] + b"?" + stored[-8:])
    elif what == "cut":
        copy.write_bytes(stored[:20])
    restarted, fresh = Simulator(options, TEN_S, kept=Kept(path)), Simulator(options, START_MS)

    assert deals_of(restarted) == deals_of(fresh)
