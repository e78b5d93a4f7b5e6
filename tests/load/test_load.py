"""Short slices of `make load`: a crowd that waits, and arbitrary calls."""

from pathlib import Path

import pytest

from tests.load.arbitrary_calls import fuzz
from tests.load.waiting_crowd import measure

CONNECTIONS = 60
# Promised are 5 s, on a machine that has time for it.
ENDED_S = 45.0


@pytest.mark.slow
def test_a_crowd_waits_unharmed(tmp_path: Path) -> None:
    """Memory and descriptors stay flat; bogus requests end no wait, and grants go on."""
    crowd = measure(CONNECTIONS, 5.0, tmp_path)
    before, during, after = crowd.descriptors

    assert crowd.bogus > crowd.oversized > 0
    assert crowd.flood_per_s > 10 * crowd.flood_answered / 5.0
    assert crowd.grants > 0
    assert crowd.early == 0
    assert crowd.rss_end_mib - crowd.rss_begin_mib < 10
    # The bothersome client's own connection may still be open.
    assert after <= during + 2
    assert during >= before
    assert crowd.unavailable == CONNECTIONS
    assert crowd.ended_s < ENDED_S


async def test_arbitrary_calls_break_nothing() -> None:
    """Any field values, in any order: each call is served, or refused with a reason."""
    codes = await fuzz(600, seed=1)

    assert sum(codes.values()) >= 600
    assert codes["SettleLease OK"] > 0
    assert codes["RenewLease OK"] > 0
    assert codes["AcquireLease INVALID_ARGUMENT"] > 0
