"""When the bucket runs dry or full at the present pace."""

from broker.core.leases import Outcome
from broker.core.pace import WINDOW_MS, Outlook, Pace
from broker.core.snapshot import snapshot
from tests.broker.builders import envelope, request, settlement, synced

MINUTE_MS = 60_000
# Five tokens a minute.
REFILL = 5 / MINUTE_MS


def outlook(
    pace: Pace, spent: int, now_ms: int, balance: int = 100, available: int | None = None
) -> Outlook | None:
    """The outlook of a bucket of 300 tokens."""
    return pace.outlook(
        spent,
        now_ms,
        balance=balance,
        available=balance if available is None else available,
        capacity=300,
        refill_per_ms=REFILL,
    )


def spending(tokens_a_minute: int, minutes: int) -> tuple[Pace, int]:
    """A pace kept up for so long, noted every five seconds, and its sum."""
    pace, spent = Pace(), 0
    for step in range(12 * minutes + 1):
        spent = step * tokens_a_minute // 12
        pace.note(spent, step * 5_000)
    return pace, spent


def test_a_bucket_that_loses_runs_dry() -> None:
    """Seven tokens a minute of five refilled: 100 tokens last for 50 minutes."""
    pace, spent = spending(7, 20)
    seen = outlook(pace, spent, 20 * MINUTE_MS)

    assert seen is not None
    assert (seen.window_ms, round(seen.spent_per_hour), round(seen.refilled_per_hour)) == (
        WINDOW_MS, 420, 300,
    )  # fmt: skip
    assert seen.dry_ms is not None
    assert abs(seen.dry_ms - 50 * MINUTE_MS) < 2 * MINUTE_MS
    assert seen.full_ms is None


def test_a_bucket_that_gains_runs_full() -> None:
    """Without spending, 200 missing tokens take 40 minutes."""
    pace, spent = spending(0, 20)
    seen = outlook(pace, spent, 20 * MINUTE_MS)

    assert seen is not None
    assert (seen.dry_ms, seen.full_ms) == (None, 40 * MINUTE_MS)


def test_empty_and_full_are_now() -> None:
    """What has already happened is due at once, whatever the pace."""
    pace, spent = spending(0, 5)
    empty = outlook(pace, spent, 5 * MINUTE_MS, balance=3, available=0)
    full = outlook(pace, spent, 5 * MINUTE_MS, balance=300)

    assert empty is not None
    assert full is not None
    assert (empty.dry_ms, full.full_ms, full.dry_ms) == (0, 0, None)


def test_the_first_minute_shows_no_pace() -> None:
    """One batch at the start is no habit."""
    pace = Pace()
    pace.note(0, 0)

    assert outlook(pace, 500, 59_000) is None
    assert outlook(pace, 500, 60_000) is not None
    assert outlook(Pace(), 0, 10**9) is None


def test_an_idle_hour_is_no_pace() -> None:
    """What was spent before the window does not count, also where nothing was noted since."""
    pace, spent = spending(12, 10)
    seen = outlook(pace, spent, 10 * MINUTE_MS + 4 * WINDOW_MS)

    assert seen is not None
    assert seen.spent_per_hour == 0


def test_samples_are_few() -> None:
    """However often something happens."""
    pace, _ = spending(60, 24 * 60)

    assert len(pace._samples) <= 62


def test_the_snapshot_shows_what_calls_have_spent() -> None:
    """A settled call of 60 tokens in two minutes is a pace of 1,800 an hour."""
    allocator = synced(200)
    allocator.acquire(request(prior=60), 0)
    allocator.settle(
        settlement(said=envelope(140, at=1, consumed=60), tokens=60, outcome=Outcome.REPLIED),
        60_000,
    )
    allocator.advance(120_000)
    seen = snapshot(allocator, 120_000).outlook

    assert seen is not None
    assert (seen.window_ms, seen.spent_per_hour) == (120_000, 1_800)
    assert seen.dry_ms is not None
