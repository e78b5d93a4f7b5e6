"""Every defect of the museum is noticed, and the suite that notices it is sound."""

import pytest

from tests.fix_simulator import RunningSimulator
from tests.simulation.museum import edge, edge_visit
from tests.simulation.museum.exhibit import Exhibit
from tests.simulation.museum.visit import EXHIBITS, fails, suite, visit

# Each has happened where workers shared a metered account.
NAMED = {
    "local estimate believed over the server",
    "tokensLeft overwriting in-flight reservations",
    "refill only as a side effect of another call",
    "wait target above capacity",
    "recovery threshold that a small task keeps draining",
    "rescue sync throttled away",
    "expiry refunded",
    "unknown outcome counted as zero",
    "refusal that still charged",
    "settle by counter instead of by identity",
    "check-then-reserve with an await between",
    "clamp at zero that forgets debt",
    "late settle counted twice",
    "TTL restarted by a restart",
    "a cancelled waiter that stops the loop",
    "small requests starving a big one",
    "idle flow rejoining with saved-up credit",
    "envelope with refillRate 0 adopted",
    "older envelope adopted",
    "wall clock used for refillIn",
}


def test_every_named_defect_is_on_show() -> None:
    """None of them is lost, and no two exhibits share a name."""
    names = [exhibit.name for exhibit in (*EXHIBITS, *edge.EXHIBITS)]

    assert set(names) >= NAMED
    assert len(set(names)) == len(names)


def test_the_suite_is_large() -> None:
    """Each of its tests passes on the real code, as the last test of the visits shows."""
    assert len(list(suite())) > 80


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_a_defect_is_killed(exhibit: Exhibit) -> None:
    """With the defect brought back, at least one test fails."""
    killers = visit(exhibit, killers_max=1).killers

    assert killers, exhibit.story


def test_the_code_is_whole_again_after_a_visit() -> None:
    """No mutation outlives its exhibit."""
    for exhibit in EXHIBITS:
        with exhibit.mutate():
            pass

    assert [test.__name__ for test in suite() if fails(test)] == []


@pytest.mark.parametrize("exhibit", edge.AT_ONCE, ids=lambda exhibit: exhibit.name)
async def test_a_defect_of_the_edge_is_killed(
    exhibit: Exhibit, slow_keepa: RunningSimulator, quick_keepa: RunningSimulator
) -> None:
    """By a test of the service that passes without it; `make museum` shows the slow ones too."""
    seen = await edge_visit.visit(exhibit, edge_visit.Keepas(slow_keepa, quick_keepa))

    assert seen.killers, exhibit.story
