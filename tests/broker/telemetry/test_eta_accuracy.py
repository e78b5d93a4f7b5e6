"""The error of ETAs is measured as documented."""

from broker.core.bucket import TICK_GUARD_MS
from broker.telemetry.eta_accuracy import Promises
from tests.broker.builders import envelope, request, synced

TICK_MS = 10_000 + TICK_GUARD_MS


def test_errors_are_told_when_the_request_is_served() -> None:
    """First and last ETA count apart; a served request leaves the sample."""
    kept: list[tuple[int, int]] = []
    promises = Promises([lambda first_ms, last_ms: kept.append((first_ms, last_ms))])
    allocator = synced(4, refill_in=10_000)
    allocator.acquire(request("a"), 0)
    promises.renew(allocator, 0)
    early = envelope(3, at=100, refill_in=5_000)
    allocator.probe_started(90)
    allocator.probe_answered(early, 90, 100)
    promises.renew(allocator, 100)
    allocator.probe_started(5_200)
    allocator.probe_answered(envelope(8, at=5_200, refill_in=60_000), 5_200, 5_210)
    promises.keep_score(allocator, 5_210)

    assert kept == [(TICK_MS - 5_210, abs(5_100 + TICK_GUARD_MS - 5_210))]
    assert len(promises) == 0


def test_who_gives_up_proves_nothing() -> None:
    """A cancelled wait does not count."""
    kept: list[tuple[int, int]] = []
    promises = Promises([lambda first_ms, last_ms: kept.append((first_ms, last_ms))])
    allocator = synced(2, refill_in=10_000)
    allocator.acquire(request("a"), 0)
    promises.renew(allocator, 0)
    allocator.cancel("a", 50)
    promises.keep_score(allocator, 60)

    assert (kept, len(promises)) == ([], 0)


def test_a_sample_is_watched_to_its_end_before_the_next() -> None:
    """A sample takes no newcomers."""
    promises = Promises([])
    allocator = synced(2, refill_in=10_000)
    allocator.acquire(request("a"), 0)
    promises.renew(allocator, 0)
    allocator.acquire(request("b"), 10)
    promises.renew(allocator, 20)

    assert len(promises) == 1
