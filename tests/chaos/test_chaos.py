"""A slice of chaos: half a minute of faults, and everything that must be true afterwards."""

import logging
from pathlib import Path

import pytest

from tests.chaos.run import Plan, run

log = logging.getLogger(__name__)


@pytest.mark.slow
def test_nothing_is_lost_whatever_dies(tmp_path: Path) -> None:
    """Deals, tokens and processes are all accounted for after a handful of faults."""
    outcome = run(Plan(seconds=25, seed=3), tmp_path.resolve(), log.info)

    assert outcome.struck
    assert outcome.problems == []
