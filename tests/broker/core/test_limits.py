"""What one caller may hold: for how long, how much, and how often."""

import pytest

from broker.core.answers import Granted
from broker.core.errors import LeaseTooOldError
from broker.core.leases import LeaseState, Renewal
from tests.broker.builders import EPOCH, envelope, request, synced

AGE_MS = 600_000


def heartbeat(lease_id: str = "a", ttl_ms: int = 15_000) -> Renewal:
    """A renewal of a lease for one deal page."""
    return Renewal(lease_id, EPOCH, "h", "deal", 1, 5, ttl_ms)


def test_a_lease_has_a_greatest_age() -> None:
    """A hung thread whose heart still beats does not hold its tokens for ever."""
    allocator = synced(50)
    allocator.acquire(request(), 0)
    for now_ms in range(10_000, AGE_MS, 10_000):
        lease = allocator.renew(heartbeat(), now_ms)
    assert lease.expires_ms == AGE_MS
    with pytest.raises(LeaseTooOldError, match="BROKER_LEASE_AGE_MAX"):
        allocator.renew(heartbeat(), AGE_MS)

    assert [held.state for held in allocator.ledger] == [LeaseState.LAPSED]


def test_a_lease_that_lapsed_of_age_is_not_refunded() -> None:
    """Its hold stays until Keepa's count must show what its call cost."""
    allocator = synced(50)
    allocator.acquire(request(ttl_ms=AGE_MS * 2), 0)
    allocator.advance(AGE_MS)
    assert allocator.ledger.reserved == 5
    allocator.probe_started(AGE_MS + 1)
    allocator.probe_answered(envelope(50, at=AGE_MS + 1), AGE_MS + 1, AGE_MS + 2)

    assert allocator.ledger.reserved == 0
    assert allocator.ledger.totals.expiries == 1


def test_an_adopted_lease_ages_as_well() -> None:
    """Its age counts from the moment this broker learned of it."""
    allocator = synced(50)
    old = Renewal("old", EPOCH - 1, "h", "deal", 1, 5, 3 * AGE_MS)
    lease = allocator.renew(old, 1_000)

    assert lease.expires_ms == 1_000 + AGE_MS


def test_the_oldest_open_lease_is_known() -> None:
    """Operators see a lease that hangs long before its age ends it."""
    allocator = synced(50)
    assert allocator.ledger.oldest_open_ms(5) is None
    for lease_id, now_ms in (("a", 10), ("b", 20)):
        allocator.acquire(request(lease_id), now_ms)
    assert [isinstance(o, Granted) for o in allocator.take_outcomes()] == [True, True]

    assert allocator.ledger.oldest_open_ms(110) == 100
