"""A slice of chaos: a minute of faults, and everything that must be true afterwards."""

import logging
import tempfile
from pathlib import Path

import pytest

from tests.chaos.run import Plan, run

log = logging.getLogger(__name__)


@pytest.mark.slow
def test_nothing_is_lost_whatever_dies() -> None:
    """Deals, tokens and processes are all accounted for after a dozen faults."""
    # Postgres, which does not run as root, must reach it: pytest's own folders are closed.
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        outcome = run(Plan(seconds=60, seed=3), folder, log.info)

    assert len(outcome.struck) > 2
    assert outcome.problems == []
