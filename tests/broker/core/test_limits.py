"""What one caller may hold: for how long, how much, and how often."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.allocator import AllocatorConfig
from broker.core.costs import SAMPLES_MIN
from broker.core.errors import BrokerError, LeaseTooOldError, LimitReachedError
from broker.core.leases import Granted, LeaseState, Outcome, Renewal
from broker.core.limits import Limits
from tests.broker.builders import EPOCH, envelope, request, settlement, synced
from tests.broker.core.work import calls_of

AGE_MS = 600_000


def heartbeat(lease_id: str = "a", ttl_ms: int = 15_000) -> Renewal:
    """A renewal of a lease for one deal page."""
    return Renewal(lease_id, EPOCH, "h", "deal", 1, 5, ttl_ms)


def test_a_lease_has_a_greatest_age() -> None:
    """A hung thread with a living heartbeat does not hold its tokens for ever."""
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
    allocator = synced(100)
    assert allocator.ledger.oldest_open_ms(5) is None
    for lease_id, now_ms in (("a", 10), ("b", 20)):
        allocator.acquire(request(lease_id), now_ms)
    assert [isinstance(o, Granted) for o in allocator.take_outcomes()] == [True, True]

    assert allocator.ledger.oldest_open_ms(110) == 100


def limited(**most: float) -> AllocatorConfig:
    """A configuration for identities with these limits."""
    return AllocatorConfig(recovery_grace_ms=0, limits=Limits(signed=True, **most))  # type: ignore[arg-type]  # by name


def test_a_caller_has_a_greatest_number_of_waits() -> None:
    """Beyond it the reason is named; other callers, and repeats, are not concerned."""
    allocator = synced(2, limited(waits=2))
    for name in ("a", "b"):
        allocator.acquire(request(name, holder=f"team/{name}"), 10)
    with pytest.raises(LimitReachedError, match=r"team has 2 requests.*BROKER_CALLER_WAITS_MAX"):
        allocator.acquire(request("c", holder="team/c"), 10)
    allocator.acquire(request("a", holder="team/a"), 10)
    allocator.acquire(request("d", holder="other/d"), 10)

    assert len(allocator.waitlist) == 3


def test_a_caller_has_a_greatest_number_of_open_leases() -> None:
    """Adopted ones count as well."""
    allocator = synced(100, limited(leases=2))
    allocator.acquire(request("a", holder="team/a"), 10)
    allocator.renew(Renewal("old", EPOCH - 1, "team/b", "deal", 1, 5, 9_000), 10)
    with pytest.raises(LimitReachedError, match="BROKER_CALLER_LEASES_MAX"):
        allocator.acquire(request("c", holder="team/c"), 10)
    with pytest.raises(LimitReachedError):
        allocator.renew(Renewal("older", EPOCH - 1, "team/b", "deal", 1, 5, 9_000), 10)
    allocator.settle(settlement("a", Outcome.NOT_SENT, holder="team/a"), 20)
    allocator.acquire(request("c", holder="team/c"), 30)

    assert allocator.ledger.open_leases == 2


def test_a_caller_holds_no_more_than_its_share() -> None:
    """Half of a full bucket of 300 is 150, and a caller without leases gets any one."""
    allocator = synced(290, limited(reserved_share=0.5))
    allocator.acquire(request("a", holder="team/a", prior=200), 10)
    with pytest.raises(LimitReachedError, match="holds 200 tokens and may hold 150"):
        allocator.acquire(request("b", holder="team/b"), 10)
    allocator.acquire(request("c", holder="other/c"), 10)

    # It waits only because a call of unknown cost is in flight.
    assert [waiting.request.lease_id for waiting in allocator.waitlist] == ["c"]


def test_requests_that_wait_are_held_to_the_share_as_well() -> None:
    """When tokens come, they go to others once a caller holds its share."""
    allocator = synced(1, limited(reserved_share=0.1))
    for _ in range(SAMPLES_MIN):
        allocator.costs.learn("deal", 1, 5, 0)
    for number in range(9):
        allocator.acquire(request(f"a{number}", holder=f"team/{number}"), 10)
    allocator.acquire(request("other", holder="other/1"), 10)
    allocator.take_outcomes()
    allocator.probe_started(2_000) if not allocator.probing.in_flight else None
    allocator.probe_answered(envelope(290, at=2_000), 2_000, 2_000)
    granted = [o.lease.holder for o in allocator.take_outcomes() if isinstance(o, Granted)]

    assert sum(holder.startswith("team/") for holder in granted) == 6
    assert "other/1" in granted


def test_a_fleet_under_one_identity_is_not_limited_by_default() -> None:
    """Sixty-four fetchers wait for, and hold, a whole bucket."""
    allocator = synced(300, AllocatorConfig(recovery_grace_ms=0, limits=Limits(signed=True)))
    for number in range(64):
        allocator.acquire(request(f"a{number}", holder=f"fleet/{number}", prior=4.6), 10)

    # Calls of unknown cost leave room for one that overruns.
    assert allocator.ledger.open_leases + len(allocator.waitlist) == 64


def test_by_default_a_lost_call_refuses_nothing_to_its_caller() -> None:
    """Its hold and the next request exceed a full bucket of 300: the request waits."""
    allocator = synced(290, AllocatorConfig(recovery_grace_ms=0))
    allocator.acquire(request("lost", prior=200), 10)
    allocator.advance(allocator.ledger.lease_age_ms_max)
    allocator.acquire(request("next", prior=150), allocator.ledger.lease_age_ms_max + 1)

    assert "next" in allocator.waitlist


def test_the_limits_cost_no_look_at_what_others_hold() -> None:
    """An acquire looks at counters, however many requests wait and leases are open."""
    allocator = synced(300, limited(waits=10**6, leases=10**6))
    for number in range(100):
        allocator.acquire(request(f"a{number}", holder=f"team/{number}"), 10)
    few = calls_of(lambda: allocator.acquire(request("few", holder="team/few"), 10))
    for number in range(2_000):
        allocator.acquire(request(f"b{number}", holder=f"team/{number}"), 10)
    many = calls_of(lambda: allocator.acquire(request("many", holder="team/many"), 10))

    assert many < 2 * few


@given(
    st.lists(
        st.tuples(st.sampled_from(["acquire", "detach", "cancel", "tick"]), st.integers(0, 9)),
        max_size=60,
    )
)
@settings(max_examples=60)
def test_counts_of_waits_follow_every_change(steps: list[tuple[str, int]]) -> None:
    """However requests come, leave, come back and are served."""
    allocator, now_ms = synced(5, limited()), 10
    for step, number in steps:
        now_ms += 10
        if step == "acquire":
            with suppress(BrokerError):
                allocator.acquire(request(str(number), holder=f"{'ab'[number % 2]}/h"), now_ms)
        elif step == "detach":
            allocator.detach(str(number), now_ms)
        elif step == "cancel":
            allocator.cancel(str(number), now_ms)
        else:
            allocator.probe_started(now_ms) if not allocator.probing.in_flight else None
            allocator.probe_answered(envelope(20, at=now_ms), now_ms, now_ms)
        allocator.take_outcomes()
        waits = [waiting.request.holder[0] for waiting in allocator.waitlist]
        assert [allocator.waitlist.waits_of(f"{c}/h") for c in "ab"] == [
            waits.count("a"),
            waits.count("b"),
        ]
