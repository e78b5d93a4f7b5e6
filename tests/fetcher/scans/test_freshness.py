"""How old deals are when they are written, by the simulator's own events."""

import pytest

from tests.bench.bench_freshness import ALONE, WITHIN, freshness, queries
from tests.bench.virtual_reader import HOUR_MS, VirtualReader

pytestmark = pytest.mark.slow

MINUTE_MS = 60_000


def test_deals_are_written_almost_as_fresh_as_the_tokens_allow(database_url: str) -> None:
    """Polled by the budget, deals are on average no older than 1.25 times the bound."""
    asked = queries(ALONE)
    with VirtualReader(
        database_url, asked, rate=3, deals=500, warm_up_ms=20 * MINUTE_MS
    ) as reader:
        reader.read_for(2 * HOUR_MS)
    found = freshness(reader.ages_ms, rate=3)

    assert found.deals > 50
    assert found.ratio <= WITHIN
