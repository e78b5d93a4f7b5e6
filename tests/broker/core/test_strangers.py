"""Leases that this epoch did not grant: what a client may claim of them."""

import pytest

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.errors import LeaseNotFoundError
from broker.core.leases import LeaseState, Outcome, Renewal
from broker.core.ledger import Ledger
from tests.broker.builders import EPOCH, envelope, probe, settlement, synced


def renewal(lease_id: str = "old", tokens: int = 5, ttl_ms: int = 15_000) -> Renewal:
    """A heartbeat of a lease that an earlier broker has granted."""
    return Renewal(lease_id, EPOCH - 1, "h", "deal", 1, tokens, ttl_ms)


def test_a_lease_beyond_a_full_bucket_is_not_adopted() -> None:
    """No broker has granted more than the bucket can hold."""
    allocator = synced(50)
    with pytest.raises(LeaseNotFoundError):
        allocator.renew(renewal(tokens=10**9), 10)

    assert allocator.ledger.reserved == 0


def test_adopted_leases_hold_a_full_bucket_together() -> None:
    """Nor have all its leases together."""
    allocator = synced(50)
    allocator.renew(renewal("a", tokens=200), 10)
    allocator.renew(renewal("b", tokens=100), 10)
    with pytest.raises(LeaseNotFoundError):
        allocator.renew(renewal("c", tokens=1), 10)

    assert allocator.ledger.reserved == 300


def test_what_was_adopted_before_the_first_count_is_cut_to_a_bucket() -> None:
    """While Keepa has not answered, living clients are adopted; then capacity is known."""
    allocator = Allocator(AllocatorConfig(recovery_grace_ms=0), epoch=EPOCH, started_ms=0)
    allocator.renew(renewal("a", tokens=100), 10)
    allocator.renew(renewal("b", tokens=900_000), 10)
    allocator.probe_started(20)
    allocator.probe_answered(envelope(250, at=30), 20, 30)

    assert [lease.tokens for lease in allocator.ledger] == [100, 200]
    assert allocator.ledger.reserved == 300


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.REPLIED])
def test_a_stranger_s_settle_claims_no_more_than_a_bucket(outcome: Outcome) -> None:
    """A made-up lease can't be settled at 10^9 tokens, nor many at 100 each."""
    ledger = Ledger(EPOCH)
    ledger.observe(probe(50, at=0))
    said = envelope(50, at=5, consumed=100)
    for number in range(3):
        ledger.settle(settlement(f"s{number}", outcome, said, epoch=1, tokens=100), 10)
    with pytest.raises(LeaseNotFoundError):
        ledger.settle(settlement("more", outcome, said, epoch=1, tokens=100), 10)

    assert ledger.reserved <= 300
    assert ledger.bucket.observed == 50


def test_lapsed_strangers_free_their_room_once_written_off() -> None:
    """What was claimed is not lost for good: a late enough probe ends it."""
    ledger = Ledger(EPOCH)
    ledger.observe(probe(50, at=0))
    ledger.renew(renewal(tokens=300), 10)
    ledger.expire(20_000)
    assert [lease.state for lease in ledger] == [LeaseState.LAPSED]
    ledger.observe(probe(50, at=121_000))
    ledger.renew(renewal("b", tokens=300), 121_010)

    assert ledger.reserved == 300


def test_heartbeats_leave_one_timer() -> None:
    """Renewals pile nothing up that one later step would have to clear away."""
    ledger = Ledger(EPOCH)
    ledger.observe(probe(50, at=0))
    ledger.renew(renewal(), 10)
    for number in range(1_000):
        ledger.renew(renewal(ttl_ms=300_000 - number), 20)

    assert len(ledger._expiries) <= 2
    assert ledger.next_expiry_ms() == 20 + 300_000 - 999
