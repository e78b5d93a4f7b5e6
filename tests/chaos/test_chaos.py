"""A slice of `make chaos`: one fault of each sort, and all checks of the long run."""

from pathlib import Path
from typing import Final

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.run import Plan, run

# A broker's death with a lease open, an orderly end, a reply that vanishes, the deaths of
# the others. Together they take half a minute.
SLICE: Final = (
    "leader: SIGKILL with an open lease",
    "fetchers-Keepa: half-open",
    "Postgres: crash",
    "fetcher: SIGKILL",
    "Keepa: SIGKILL",
    "leader: SIGTERM",
)


@pytest.mark.slow
def test_nothing_is_lost_whatever_dies(tmp_path: Path) -> None:
    """Deals, pages, refusals, books and processes after each of some faults."""
    outcome = run(Plan(3_600, seed=1, names=SLICE), tmp_path, print)

    assert outcome.problems == []
    assert tuple(outcome.struck) == SLICE
    assert set(SLICE) <= set(FAULTS)
    # Promised are 10 s, on a machine that has time for it.
    assert max(outcome.leads_s["leader: SIGKILL with an open lease"]) < 30
