"""The chart of the broker's page after a restart."""

import asyncio
import time

from pydantic import SecretStr

from broker.console.series import TokenSeries
from broker.core.allocator import Allocator, AllocatorConfig
from broker.journal.journal import Journal
from broker.journal.writer import JournalWriter
from broker.keepa_status import KeepaSync
from broker.runtime import BrokerRuntime
from tests.broker.journal.test_audit import two_calls, write
from tests.fix_journal import ACCOUNT, EPOCH, now_ms
from tests.waiting import DEADLINE_S


async def recalled(database_url: str) -> str:
    """The chart of a broker that has just started with this journal."""
    allocator = Allocator(AllocatorConfig(), epoch=EPOCH + 1, started_ms=now_ms())
    journal = Journal(database_url, ACCOUNT, now_ms, signed=True, months_kept=12)
    keepa = KeepaSync("http://127.0.0.1:9", SecretStr("x" * 64))
    series = TokenSeries(BrokerRuntime(allocator, keepa, None, journal))
    following = asyncio.create_task(series.follow())
    await asyncio.wait_for(series.recalled.wait(), DEADLINE_S)
    following.cancel()
    return str(series.chart(time.time()))


async def test_the_journal_fills_the_chart(writer: JournalWriter, journal_url: str) -> None:
    """Keepa's counts of probes and replies from before the restart are there."""
    await asyncio.to_thread(write, writer, two_calls())
    chart = await recalled(journal_url)

    assert "Balance 90 to 100, now 90." in chart
    assert "4 counts by Keepa" in chart


async def test_a_journal_that_is_away_leaves_the_chart_empty() -> None:
    """The page works without its past."""
    chart = await recalled("postgresql://nobody@127.0.0.1:1/none")

    assert "Nothing to draw yet" in chart
