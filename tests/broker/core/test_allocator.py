"""The allocator: sync before wait, exact wake-ups, denials, and idempotent requests."""

import pytest

from broker.core.allocator import ABSENCE_MS, DEBT_HORIZON_MS, Allocator, AllocatorConfig
from broker.core.bucket import DEFAULT_PERIOD_MS, TICK_GUARD_MS
from broker.core.budgets import Budget
from broker.core.costs import SAMPLES_MIN
from broker.core.errors import LeaseConflictError, LeaseEndedError
from broker.core.leases import (
    BucketState,
    DenialReason,
    Denied,
    Granted,
    Lease,
    Outcome,
    Priority,
    Renewal,
)
from broker.core.ledger import CALL_MS_MAX
from broker.core.probing import FRESH_MS, PATIENCE_MS, Reason
from broker.core.snapshot import snapshot, waiting_view
from tests.broker.builders import EPOCH, envelope, request, settlement, synced

READY = AllocatorConfig(recovery_grace_ms=0)


def granted(allocator: Allocator) -> list[Lease]:
    """The leases granted since the last look; fails on denials."""
    outcomes = allocator.take_outcomes()
    assert all(isinstance(outcome, Granted) for outcome in outcomes)
    return [outcome.lease for outcome in outcomes if isinstance(outcome, Granted)]


def denied(allocator: Allocator) -> Denied:
    """The one denial since the last look."""
    (outcome,) = allocator.take_outcomes()
    assert isinstance(outcome, Denied)
    return outcome


def answer(allocator: Allocator, tokens: int, now_ms: int, refill_in: int | None = None) -> None:
    """A probe is wanted, asked and answered within a millisecond."""
    assert allocator.probe_wanted(now_ms)
    allocator.probe_started(now_ms)
    assert not allocator.probe_wanted(now_ms)
    said = envelope(tokens, at=now_ms, refill_in=refill_in)
    allocator.probe_answered(said, now_ms, now_ms)


def test_what_is_there_is_granted_at_once() -> None:
    """With tokens in hand no request waits, and Keepa is not asked."""
    allocator = synced(20)
    allocator.acquire(request(), 10)
    (lease,) = granted(allocator)

    assert (lease.tokens, lease.units, lease.epoch) == (5, 1, EPOCH)
    assert not allocator.probing.wanted
    assert allocator.available(10, projected=False) == 15


def test_nothing_is_granted_before_the_first_observation() -> None:
    """A broker without a count asks Keepa, and grants once it has one."""
    allocator = Allocator(READY, epoch=EPOCH, started_ms=0)
    allocator.acquire(request(), 5)
    assert granted(allocator) == []
    assert allocator.state(5) is BucketState.SYNCING
    answer(allocator, 20, 10)

    assert len(granted(allocator)) == 1


def test_after_a_start_living_clients_are_awaited() -> None:
    """Without a journal, grants begin when every living client has had time to renew."""
    allocator = Allocator(AllocatorConfig(recovery_grace_ms=3_000), epoch=EPOCH, started_ms=0)
    answer(allocator, 20, 10)
    allocator.acquire(request(), 20)
    renewal = Renewal("old", EPOCH - 1, "h2", "deal", 1, 18, ttl_ms=15_000)
    allocator.renew(renewal, 500)
    assert allocator.next_wake_ms(20) == 3_000
    allocator.advance(3_000)

    assert granted(allocator) == []
    assert allocator.available(3_000, projected=False) == 2


def test_keepa_is_asked_before_anybody_waits() -> None:
    """A count that has drifted low does not make a worker sleep with tokens in hand."""
    allocator = synced(3)
    allocator.acquire(request(), 5_000)
    assert granted(allocator) == []
    answer(allocator, 38, 5_010)

    assert len(granted(allocator)) == 1
    assert allocator.ledger.bucket.observed == 38


def test_a_confirmed_wait_is_not_confirmed_again_before_the_tick() -> None:
    """While starved Keepa is asked at most once a tick, however many arrive."""
    allocator = synced(3, refill_in=30_000)
    allocator.acquire(request("a"), 5_000)
    answer(allocator, 3, 5_000, refill_in=25_000)
    for number in range(20):
        allocator.acquire(request(f"b{number}", holder=f"h{number}"), 6_000 + 900 * number)

    assert granted(allocator) == []
    assert not allocator.probing.wanted


def overlapping(
    tokens: int, *, left: tuple[int, int], running: int = 0, foreign: int = 0
) -> Allocator:
    """Two calls of 5 tokens overlapped: the one that ended first is settled first.

    Their replies showed *left*. So many calls are *running* still, and others have spent
    *foreign* tokens before.
    """
    allocator = synced(tokens + foreign)
    if foreign:
        allocator.probe_started(5)
        allocator.probe_answered(envelope(tokens, at=5), 5, 5)
    for _ in range(SAMPLES_MIN):
        allocator.costs.learn("deal", 1, 5, 0)
    for lease_id in ("a", "b", "c", "d")[: 2 + running]:
        allocator.acquire(request(lease_id, holder=lease_id), 10)
    said = envelope(left[0], at=18, took=60, consumed=5)
    allocator.settle(settlement("b", said=said, holder="b"), 90)
    said = envelope(left[1], at=28, took=100, consumed=5)
    allocator.settle(settlement("a", said=said, holder="a"), 140)
    assert len(granted(allocator)) == 2 + running
    return allocator


def test_calls_that_overlapped_do_not_hide_tokens_from_the_next() -> None:
    """The reply that came last may lack the other call; the books since the probe do not."""
    allocator = overlapping(15, left=(10, 5))
    allocator.acquire(request("next", holder="e"), 141)

    assert [lease.lease_id for lease in granted(allocator)] == ["next"]


def test_tokens_that_the_books_do_not_explain_are_a_probe_s_to_find() -> None:
    """Four are gone: the last reply is not believed before Keepa has been asked."""
    allocator = overlapping(19, left=(10, 5))
    allocator.acquire(request("next", holder="e"), 141)

    assert granted(allocator) == []
    assert allocator.probing.wanted is Reason.REPORT


def test_a_fresh_count_that_leaves_a_doubt_confirms_no_wait() -> None:
    """Others spend, so that the books are not enough: Keepa is asked, and only once."""
    allocator = overlapping(15, left=(10, 5), foreign=4)
    allocator.acquire(request("next", holder="e"), 141)
    assert granted(allocator) == []
    assert allocator.probing.wanted is Reason.DOUBT
    answer(allocator, 5, 145)
    allocator.acquire(request("last", holder="f"), 150)

    assert [lease.lease_id for lease in granted(allocator)] == ["next"]
    assert not allocator.probing.wanted


def test_a_doubt_awaits_the_replies_of_running_calls_but_not_for_long() -> None:
    """A call's reply may settle the matter; when freshness ends, Keepa is asked."""
    allocator = overlapping(29, left=(19, 14), running=1, foreign=4)
    allocator.acquire(request("next", holder="e"), 141)
    assert not allocator.probing.wanted
    assert allocator.next_wake_ms(141) == 140 + FRESH_MS + 1
    allocator.advance(141 + FRESH_MS)

    assert granted(allocator) == []
    assert allocator.probing.wanted is Reason.DOUBT


def test_what_no_answer_could_bring_is_not_asked_for() -> None:
    """All is spent: that a reply may lack a call does not make more of it."""
    allocator = overlapping(10, left=(5, 5))
    allocator.acquire(request("next", holder="e"), 141)

    assert granted(allocator) == []
    assert not allocator.probing.wanted


def test_a_lost_call_that_must_be_over_is_asked_about() -> None:
    """Its hold can end 120 s after the grant, by a probe: the wait ends then, not at the tick."""
    allocator = synced(5)
    allocator.acquire(request("lost"), 10)
    allocator.settle(settlement("lost", Outcome.UNKNOWN), 500)
    allocator.acquire(request("next"), 600)
    assert allocator.next_wake_ms(600) == 10 + CALL_MS_MAX
    allocator.advance(10 + CALL_MS_MAX)
    granted(allocator)
    answer(allocator, 5, 10 + CALL_MS_MAX)

    assert [lease.lease_id for lease in granted(allocator)] == ["next"]


def test_a_count_just_after_the_tick_is_not_asked_for_again() -> None:
    """A probe asked after the lump had landed shows it, however little later."""
    allocator = synced(0, refill_in=1_000)
    for number in range(4):
        allocator.acquire(request(f"w{number}", holder=f"h{number}"), 10)
    tick_ms = 1_000 + TICK_GUARD_MS
    allocator.advance(tick_ms)
    allocator.probe_started(tick_ms)
    said = envelope(5, at=tick_ms, took=1, refill_in=60_180)
    allocator.probe_answered(said, tick_ms, tick_ms + 2)
    assert len(granted(allocator)) == 1
    assert not allocator.probing.wanted
    said = envelope(0, at=tick_ms + 3, took=30, consumed=5, refill_in=60_147)
    allocator.settle(settlement("w0", said=said, holder="h0"), tick_ms + 35)

    assert not allocator.probing.wanted


def test_the_head_is_woken_exactly_at_the_tick() -> None:
    """The lump is confirmed by one probe and granted from at once."""
    allocator = synced(3, refill_in=30_000)
    allocator.acquire(request(), 500)
    tick_ms = 30_000 + TICK_GUARD_MS
    allocator.advance(15_500)
    assert allocator.next_wake_ms(15_500) == tick_ms
    allocator.advance(tick_ms)
    assert granted(allocator) == []
    answer(allocator, 8, tick_ms, refill_in=60_200)

    assert [lease.tokens for lease in granted(allocator)] == [5]


def test_when_keepa_does_not_answer_the_projection_serves() -> None:
    """A probe without an answer for two seconds delays no request any longer."""
    allocator = synced(3, refill_in=30_000)
    allocator.acquire(request(), 500)
    allocator.advance(30_020)
    allocator.probe_started(30_020)
    assert allocator.next_wake_ms(30_020) == 30_020 + PATIENCE_MS
    allocator.advance(30_020 + PATIENCE_MS)

    assert [lease.tokens for lease in granted(allocator)] == [5]


def test_when_asking_fails_the_projection_serves_and_asking_goes_on() -> None:
    """While its status call is down, Keepa is asked again ever more rarely."""
    allocator = synced(3, refill_in=30_000)
    allocator.acquire(request("a"), 500)
    allocator.acquire(request("b"), 500)
    allocator.advance(30_020)
    allocator.probe_started(30_020)
    allocator.probe_failed(30_100)
    assert [lease.lease_id for lease in granted(allocator)] == ["a"]
    assert not allocator.probe_wanted(30_200)
    assert allocator.next_wake_ms(30_200) == 31_100

    assert allocator.probe_wanted(31_100)


def test_an_ample_but_old_count_is_checked_before_it_is_granted_from() -> None:
    """Others may have spent it since."""
    allocator = synced(200, refill_in=30_000)
    allocator.acquire(request(), 200_000)
    assert granted(allocator) == []
    answer(allocator, 190, 200_005)

    assert len(granted(allocator)) == 1


def test_two_workers_do_not_both_see_the_last_five() -> None:
    """Tokens are reserved before the call, so they are granted once."""
    allocator = synced(5)
    allocator.acquire(request("a", holder="A"), 10)
    allocator.acquire(request("b", holder="B"), 10)

    assert [lease.holder for lease in granted(allocator)] == ["A"]


def test_a_batch_is_cut_to_what_is_affordable() -> None:
    """A request that accepts fewer units gets what the tokens cover now."""
    allocator = synced(30)
    allocator.acquire(request(operation="p", units=100, min_units=10, prior=2), 10)
    (lease,) = granted(allocator)

    assert (lease.units, lease.tokens) == (15, 30)


def test_all_or_nothing_waits_for_all() -> None:
    """Without min_units a batch is not cut by what is there now."""
    allocator = synced(30)
    allocator.acquire(request(operation="p", units=20, prior=2), 10)

    assert granted(allocator) == []


def test_what_can_never_fit_is_denied_with_what_could() -> None:
    """450 tokens of a bucket of 300 are not waited for."""
    allocator = synced(30)
    allocator.acquire(request(operation="p", units=90, prior=5), 10)
    denial = denied(allocator)

    assert denial.reason is DenialReason.TOO_LARGE
    assert denial.largest_units == 60
    assert "300" in denial.message


def test_an_oversize_batch_is_cut_to_a_full_bucket_if_that_is_useful() -> None:
    """With min_units the request shrinks to what a bucket can ever hold."""
    allocator = synced(300)
    allocator.acquire(request(operation="p", units=90, min_units=1, prior=5), 10)
    (lease,) = granted(allocator)

    assert (lease.units, lease.tokens) == (60, 300)


def test_no_estimate_locks_an_operation_out() -> None:
    """One unit fits a full bucket, however dear it is believed to be."""
    allocator = synced(300)
    allocator.acquire(request(prior=5_000), 10)
    (lease,) = granted(allocator)

    assert lease.tokens == 300


def test_learned_costs_replace_the_prior() -> None:
    """After a few calls the reservation is what such calls really cost."""
    allocator = synced(300)
    left, now_ms = 300, 0
    for number in range(6):
        now_ms += 100
        allocator.acquire(request(f"p{number}", operation="p", prior=2), now_ms)
        left -= 7
        said = envelope(left, at=now_ms + 10, consumed=7)
        allocator.settle(settlement(f"p{number}", said=said, operation="p"), now_ms + 20)
    allocator.take_outcomes()
    allocator.acquire(request("next", operation="p", prior=1), now_ms + 30)

    assert [lease.tokens for lease in granted(allocator)] == [7]


def test_the_floor_is_never_granted() -> None:
    """Tokens below the floor stay for others, and the ETA takes that into account."""
    allocator = synced(22, AllocatorConfig(floor_tokens=20, recovery_grace_ms=0), refill_in=9_000)
    allocator.acquire(request(), 10)

    assert granted(allocator) == []
    assert allocator.etas_ms(10) == {"a": 9_000 + TICK_GUARD_MS - 10}


def scattering(tokens: int, debt_horizon_ms: int = DEBT_HORIZON_MS) -> Allocator:
    """Calls of an operation "q" mostly cost 6 tokens, and seldom 10."""
    config = AllocatorConfig(debt_horizon_ms=debt_horizon_ms, recovery_grace_ms=0)
    allocator = synced(tokens, config)
    for cost in (6, 6, 6, 6, 6, 6, 10):
        allocator.costs.learn("q", 1, cost, 0)
    return allocator


def test_only_a_lone_lease_reaches_into_debt() -> None:
    """Its likely cost is there, and refills pay the rest of its price back in time."""
    allocator = scattering(6)
    allocator.acquire(request("a", operation="q"), 10)
    allocator.acquire(request("b", operation="q", holder="B"), 10)
    assert [lease.tokens for lease in granted(allocator)] == [10]
    said = envelope(-4, at=100, consumed=10)
    allocator.settle(settlement("a", said=said, operation="q"), 120)

    assert granted(allocator) == []


@pytest.mark.parametrize(
    ("tokens", "horizon_ms"),
    [(5, DEBT_HORIZON_MS), (6, 0), (6, 30_000)],
)
def test_debt_is_a_horizon_in_time(tokens: int, horizon_ms: int) -> None:
    """Neither less than the likely cost will do, nor refill that comes too late."""
    allocator = scattering(tokens, horizon_ms)
    allocator.acquire(request("a", operation="q"), 10)

    assert granted(allocator) == []


def test_a_batch_in_debt_is_as_large_as_its_likely_cost_allows() -> None:
    """Twelve tokens are two likely costs; their price of 20 needs eight of debt."""
    allocator = scattering(12, debt_horizon_ms=2 * DEFAULT_PERIOD_MS)
    allocator.costs.learn("q", 2, 12, 0)
    allocator.acquire(request("a", operation="q", units=9, min_units=1), 10)

    assert [lease.units for lease in granted(allocator)] == [2]


def test_what_even_debt_can_never_cover_is_denied() -> None:
    """A likely cost above a full bucket would be waited for in vain; with the debt too."""
    allocator = synced(300)
    allocator.acquire(request(operation="p", units=61, prior=5), 10)

    assert denied(allocator).reason is DenialReason.TOO_LARGE


def test_a_denial_comes_with_an_eta() -> None:
    """A request without a wait is answered after Keepa was asked, with a time to come back."""
    allocator = synced(3, refill_in=30_000)
    allocator.acquire(request(deadline_ms=5_000), 5_000)
    assert allocator.take_outcomes() == []
    answer(allocator, 3, 5_040, refill_in=24_960)
    denial = denied(allocator)

    assert denial.reason is DenialReason.INSUFFICIENT_TOKENS
    assert denial.retry_delay_ms == pytest.approx(24_960, abs=100)
    assert len(allocator.waitlist) == 0


def test_a_deadline_ends_a_wait() -> None:
    """A request that waited as long as it wanted is denied, and leaves no hold."""
    allocator = synced(3, refill_in=30_000)
    allocator.acquire(request(deadline_ms=9_000), 500)
    assert allocator.next_wake_ms(500) == 9_000
    allocator.advance(9_000)

    assert denied(allocator).reason is DenialReason.INSUFFICIENT_TOKENS
    assert allocator.ledger.reserved == 0


def test_a_repeat_returns_the_open_grant() -> None:
    """A client that lost the answer gets the same lease, which runs on."""
    allocator = synced(20)
    allocator.acquire(request(), 10)
    allocator.acquire(request(), 5_000)
    first, again = granted(allocator)

    assert first is again
    assert again.expires_ms == 15_010
    assert allocator.ledger.reserved == 5


def test_a_repeat_joins_the_wait() -> None:
    """Asking again with the same id keeps the place and adds no second request."""
    allocator = synced(0)
    allocator.acquire(request(), 10)
    allocator.acquire(request(), 500)

    assert [view.waited_ms for view in waiting_view(allocator, 600)] == [590]


def test_an_id_is_not_used_twice() -> None:
    """Other arguments under an id in use, or an id that has ended, are refused."""
    allocator = synced(20)
    allocator.acquire(request("open"), 10)
    with pytest.raises(LeaseConflictError):
        allocator.acquire(request("open", units=2), 20)
    allocator.settle(settlement("open", said=envelope(15, at=30, consumed=5)), 40)
    with pytest.raises(LeaseEndedError):
        allocator.acquire(request("open"), 50)

    assert allocator.ledger.totals.grants == 1


def test_an_abandoned_id_is_refused_later() -> None:
    """A settle as NOT_SENT for a grant that was never received stops a late acquire."""
    allocator = synced(20)
    allocator.settle(settlement("ghost", outcome=Outcome.NOT_SENT, epoch=0), 10)
    with pytest.raises(LeaseEndedError):
        allocator.acquire(request("ghost"), 20)

    assert allocator.ledger.reserved == 0


def test_a_cancelled_wait_leaves_nothing_and_moves_the_next_up() -> None:
    """A head that gives up does not stop the others."""
    allocator = synced(5)
    allocator.acquire(request("big", holder="A", units=3), 10)
    allocator.acquire(request("small", holder="B"), 10)
    assert granted(allocator) == []
    allocator.cancel("big", 20)

    assert [lease.lease_id for lease in granted(allocator)] == ["small"]


def test_a_grant_nobody_received_is_taken_back() -> None:
    """When the client left while the grant was made, the tokens are free again."""
    allocator = synced(5)
    allocator.acquire(request("gone", holder="A"), 10)
    allocator.acquire(request("next", holder="B"), 10)
    allocator.take_outcomes()
    allocator.cancel("gone", 20)

    assert [lease.lease_id for lease in granted(allocator)] == ["next"]


def test_operators_pause_and_resume() -> None:
    """While paused all requests wait, and are denied for that reason when time is up."""
    allocator = synced(20)
    allocator.pause(10)
    allocator.acquire(request("a", deadline_ms=100), 20)
    allocator.acquire(request("b"), 20)
    allocator.advance(100)
    assert denied(allocator).reason is DenialReason.PAUSED
    allocator.resume(200)

    assert [lease.lease_id for lease in granted(allocator)] == ["b"]


def test_a_budget_lets_others_pass() -> None:
    """A holder with a used-up budget waits for the window; the others are served."""
    budget = Budget("enrichment", operation="product*", tokens_per_hour=10)
    allocator = synced(200, AllocatorConfig(recovery_grace_ms=0, budgets=(budget,)))
    for number in range(3):
        allocator.acquire(request(f"p{number}", operation="product"), 10)
    allocator.acquire(request("d", holder="D"), 20)
    leases = granted(allocator)

    assert [lease.lease_id for lease in leases] == ["p0", "p1", "d"]
    assert waiting_view(allocator, 30)[0].reason is DenialReason.BUDGET_EXHAUSTED
    assert waiting_view(allocator, 30)[0].eta_ms == 3_600_000 - 30


def test_a_budget_can_be_lifted_while_somebody_waits() -> None:
    """Reloaded limits count at once."""
    budget = Budget("all", tokens_per_hour=5)
    allocator = synced(100, AllocatorConfig(recovery_grace_ms=0, budgets=(budget,)))
    for number in range(2):
        allocator.acquire(request(f"a{number}"), 10)
    assert len(granted(allocator)) == 1
    allocator.set_budgets([Budget("all", tokens_per_hour=10)], 20)

    assert len(granted(allocator)) == 1


def test_classes_and_reasons_show_in_the_views() -> None:
    """Operators see the balance, the waiting requests, their classes, and the reasons."""
    allocator = synced(2)
    allocator.acquire(request("low", priority=Priority.LOW), 10)
    view = snapshot(allocator, 20)
    (waiting,) = waiting_view(allocator, 20)

    assert (view.balance, view.reserved, view.available, view.waiting) == (2, 0, 2, 1)
    assert waiting.reason is DenialReason.INSUFFICIENT_TOKENS
    assert waiting.request.priority is Priority.LOW


def cut_off() -> Allocator:
    """`first` waits from 10 ms on and `second` from 20; the connection of `first` breaks at 30."""
    allocator = synced(3)
    allocator.acquire(request("first", holder="A"), 10)
    allocator.acquire(request("second", holder="B"), 20)
    allocator.detach("first", 30)
    return allocator


def test_a_wait_that_was_cut_off_comes_back_to_its_place() -> None:
    """A broken connection does not show what its client wants."""
    allocator = cut_off()
    allocator.acquire(request("first", holder="A"), 30 + ABSENCE_MS - 1)
    views = waiting_view(allocator, 30 + ABSENCE_MS)

    assert [view.request.lease_id for view in views] == ["first", "second"]
    assert views[0].waited_ms == ABSENCE_MS + 20


def test_a_client_that_is_away_is_granted_nothing_and_delays_nobody() -> None:
    """Tokens without a client would lie idle until the lease lapses."""
    allocator = cut_off()
    allocator.probe_started(40)
    allocator.probe_answered(envelope(5, at=50), 40, 50)

    assert [lease.lease_id for lease in granted(allocator)] == ["second"]


def test_a_place_is_lost_after_a_while() -> None:
    """A client that comes back later is a newcomer."""
    allocator = cut_off()
    allocator.acquire(request("first", holder="A"), 30 + ABSENCE_MS)
    views = waiting_view(allocator, 40_000)

    assert [view.request.lease_id for view in views] == ["second", "first"]


def test_a_wait_that_was_called_off_is_given_up_at_once() -> None:
    """NOT_SENT for its id ends it, so that a late copy of the request can't revive it."""
    allocator = cut_off()
    allocator.settle(settlement("first", Outcome.NOT_SENT, holder="A", epoch=0), 40)

    with pytest.raises(LeaseEndedError):
        allocator.acquire(request("first", holder="A"), 50)


def test_the_place_of_another_is_not_taken_up() -> None:
    """An id belongs to the request that it was first used for, also while its client is away."""
    allocator = cut_off()

    with pytest.raises(LeaseConflictError):
        allocator.acquire(request("first", holder="B"), 40)


def test_an_absent_client_is_denied_nothing() -> None:
    """Its deadline passes unheard; the next one that it sends counts."""
    allocator = synced(3)
    allocator.acquire(request("a", deadline_ms=100), 10)
    allocator.detach("a", 20)
    allocator.advance(200)
    assert allocator.take_outcomes() == []
    allocator.acquire(request("a", deadline_ms=5_000), 300)
    allocator.probe_failed(400)
    allocator.advance(5_000)

    assert denied(allocator).lease_id == "a"
