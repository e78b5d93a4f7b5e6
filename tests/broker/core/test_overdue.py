"""Requests out of time while Keepa is silent are answered, with a time to come back."""

import pytest

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.leases import DenialReason, Denied
from broker.core.probing import PATIENCE_MS
from tests.broker.builders import EPOCH, envelope, request, synced


def overdue(allocator: Allocator, at_ms: int) -> Denied:
    """The one denial made at *at_ms*, but not a moment sooner."""
    allocator.advance(at_ms - 1)
    early = allocator.take_outcomes()
    wake_ms = allocator.next_wake_ms(at_ms - 1)
    allocator.advance(at_ms)
    (denial,) = allocator.take_outcomes()

    assert (early, wake_ms) == ([], at_ms)
    assert isinstance(denial, Denied)
    return denial


def test_nobody_awaits_keepa_beyond_the_end_of_the_call() -> None:
    """The answer leaves while the client still listens, though the probe hangs."""
    allocator = synced(3, refill_in=30_000)
    allocator.acquire(request(deadline_ms=5_000, answer_by_ms=5_750), 5_000)
    allocator.probe_started(5_000)

    denial = overdue(allocator, 5_750)

    assert denial.reason is DenialReason.INSUFFICIENT_TOKENS
    assert denial.retry_delay_ms == pytest.approx(24_250, abs=100)
    assert "Keepa has been asked, and has not answered yet" in denial.message


def test_without_an_end_of_the_call_patience_ends_the_wait() -> None:
    """A request without a wait gets Keepa's answer if that comes in time."""
    allocator = synced(3, refill_in=30_000)
    allocator.acquire(request(deadline_ms=5_000, answer_by_ms=60_000), 5_000)
    allocator.probe_started(5_000)

    denial = overdue(allocator, 5_000 + PATIENCE_MS)

    assert denial.reason is DenialReason.INSUFFICIENT_TOKENS


def test_tokens_that_want_confirming_are_worth_coming_back_for() -> None:
    """Ample but old: the delay is what is left of the patience with Keepa, and never nothing."""
    allocator = synced(100, refill_in=30_000)
    allocator.acquire(request(deadline_ms=200_000, answer_by_ms=200_100), 200_000)
    allocator.probe_started(200_000)

    denial = overdue(allocator, 200_100)
    allocator.acquire(request("b"), 200_100 + (denial.retry_delay_ms or 0))
    (granted,) = allocator.take_outcomes()

    assert denial.retry_delay_ms == PATIENCE_MS - 100
    assert not isinstance(granted, Denied)


def test_before_the_first_word_too() -> None:
    """A broker without a count yet answers in time, with a time to ask again."""
    config = AllocatorConfig(recovery_grace_ms=3_000)
    allocator = Allocator(config, epoch=EPOCH, started_ms=0)
    allocator.probe_started(0)
    allocator.acquire(request(deadline_ms=500, answer_by_ms=500), 0)

    denial = overdue(allocator, 500)

    assert denial.reason is DenialReason.NOT_SYNCED
    assert denial.retry_delay_ms == 2_500


def test_while_clients_renew_nobody_is_sent_into_a_loop() -> None:
    """The tokens may be there: it is the time of grace that must pass."""
    allocator = Allocator(AllocatorConfig(recovery_grace_ms=9_000), epoch=EPOCH, started_ms=0)
    allocator.probe_started(0)
    allocator.probe_answered(envelope(100), 0, 0)
    allocator.acquire(request(deadline_ms=500), 500)
    (denial,) = allocator.take_outcomes()

    assert isinstance(denial, Denied)
    assert denial.retry_delay_ms == 8_500


def test_a_pause_has_no_end_to_tell() -> None:
    """An operator ends it, not a clock."""
    allocator = synced(100)
    allocator.pause(100)
    allocator.acquire(request(deadline_ms=500), 500)
    (denial,) = allocator.take_outcomes()

    assert isinstance(denial, Denied)
    assert denial.reason is DenialReason.PAUSED
    assert denial.retry_delay_ms is None


def test_repeated_acquires_leave_few_deadlines_behind() -> None:
    """A client that asks again each second, with a new deadline, piles nothing up."""
    allocator = synced(0)
    for number in range(5_000):
        now_ms = 10 + number
        allocator.acquire(request("a", deadline_ms=now_ms + 60_000), now_ms)
        allocator.acquire(request(f"b{number}", deadline_ms=now_ms + 60_000), now_ms)
        allocator.cancel(f"b{number}", now_ms)

    assert len(allocator._deadlines._soonest) < 100


def test_a_repeat_moves_the_deadline_of_a_request_that_is_overdue() -> None:
    """While Keepa is asked, the answer may be put off by a new deadline."""
    allocator = synced(0)
    allocator.advance(2_000)
    allocator.acquire(request("a", deadline_ms=2_000), 2_000)
    assert allocator.probing.wanted is not None
    allocator.acquire(request("a", deadline_ms=9_000), 2_001)
    allocator.probe_started(2_001)
    allocator.probe_answered(envelope(0, at=2_010), 2_001, 2_010)
    assert allocator.take_outcomes() == []
    allocator.advance(9_000)

    assert len(allocator.take_outcomes()) == 1
