"""Every defect of the museum is noticed, and the suite that notices it is sound."""

import pytest

from tests.simulation.museum.exhibit import Exhibit
from tests.simulation.museum.visit import EXHIBITS, fails, suite, visit


def test_the_suite_passes_on_the_real_code() -> None:
    """A test that always fails would kill anything."""
    tests = list(suite())

    assert len(tests) > 80
    assert [test.__name__ for test in tests if fails(test)] == []


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_a_defect_is_killed(exhibit: Exhibit) -> None:
    """With the defect brought back, at least one test fails."""
    killers = visit(exhibit).killers

    assert killers, exhibit.story


def test_the_code_is_whole_again_after_a_visit() -> None:
    """No mutation outlives its exhibit."""
    for exhibit in EXHIBITS:
        with exhibit.mutate():
            pass

    assert [test.__name__ for test in suite() if fails(test)] == []
