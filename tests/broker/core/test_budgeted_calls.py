"""Budgets in the allocator: what is granted, what waits, until when and why."""

import pytest

from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.budgets import Budget, Mode, Period, Span
from broker.core.leases import DenialReason, Denied, Granted, Outcome, Renewal
from broker.core.snapshot import snapshot, waiting_view
from tests.broker.builders import EPOCH, TICK_AT_MS, envelope, request, settlement, synced

HOUR_MS = 3_600_000
DAY_ENDS_MS = 5 * HOUR_MS
DAYS = {
    ("UTC", Span.DAY): (
        Period("2026-11-25", 0, DAY_ENDS_MS),
        Period("2026-11-26", DAY_ENDS_MS, DAY_ENDS_MS + 24 * HOUR_MS),
    )
}


def budgeted(*budgets: Budget, tokens: int = 1_000, rate: int = 100) -> Allocator:
    """An allocator with these budgets, and more tokens than they allow."""
    allocator = synced(tokens, AllocatorConfig(recovery_grace_ms=0, budgets=budgets), rate=rate)
    allocator.set_periods(DAYS, 0)
    return allocator


def outcomes(allocator: Allocator) -> tuple[list[str], list[Denied]]:
    """The ids that were granted, and the denials."""
    taken = allocator.take_outcomes()
    granted = [outcome.lease.lease_id for outcome in taken if isinstance(outcome, Granted)]
    return granted, [outcome for outcome in taken if isinstance(outcome, Denied)]


def pay(allocator: Allocator, lease_id: str, cost: int, now_ms: int) -> None:
    """The call of a lease cost *cost*."""
    left = allocator.ledger.bucket.observed - cost
    said = envelope(left, at=now_ms, consumed=cost, rate=100)
    allocator.settle(settlement(lease_id, said=said), now_ms)


@pytest.mark.parametrize(
    "budget", [Budget("b", tokens_per_hour=100), Budget("b", tokens_per_day=100)]
)
def test_a_lone_caller_reaches_all_of_its_budget(budget: Budget) -> None:
    """Twenty calls of five tokens of a budget of 100, one after the other or all at once."""
    for pipelined in (False, True):
        allocator = budgeted(budget)
        for number in range(25):
            allocator.acquire(request(f"{number}", deadline_ms=number), number)
            if not pipelined and number < 20:
                pay(allocator, f"{number}", 5, number)
        granted, denied = outcomes(allocator)

        assert granted == [f"{number}" for number in range(20)]
        assert [denial.reason for denial in denied] == [DenialReason.BUDGET_EXHAUSTED] * 5
        assert snapshot(allocator, 30).budgets[0].used == 100


def test_a_batch_is_cut_to_what_the_budget_leaves() -> None:
    """So that the last tokens of the day are not left over."""
    allocator = budgeted(Budget("b", tokens_per_day=100))
    for lease_id in "ab":
        allocator.acquire(request(lease_id, units=70, min_units=1, prior=1), 1)
    first, second = (outcome.lease for outcome in allocator.take_outcomes())  # type: ignore[union-attr]

    assert (first.units, second.units) == (70, 30)


@pytest.mark.parametrize("end", ["cancelled", "never sent", "refused", "cheaper"])
def test_what_a_call_did_not_cost_is_given_back(end: str) -> None:
    """A cancelled or refused call leaves the budget as it was; a cheap one the rest."""
    allocator = budgeted(Budget("b", tokens_per_day=5))
    allocator.acquire(request("a"), 1)
    used = snapshot(allocator, 1).budgets[0].used
    match end:
        case "cancelled":
            allocator.cancel("a", 2)
        case "never sent":
            allocator.settle(settlement("a", Outcome.NOT_SENT), 2)
        case "refused":
            allocator.settle(settlement("a", Outcome.REFUSED), 2)
        case _:
            pay(allocator, "a", 0, 2)
    left = snapshot(allocator, 2).budgets[0].left
    allocator.acquire(request("b"), 3)

    assert (used, left) == (5, 5)
    assert outcomes(allocator)[0] == ["a", "b"]


def test_behind_a_daily_budget_the_reset_is_the_eta() -> None:
    """The denial carries the time to come back, and what is in the way; then there is room."""
    allocator = budgeted(Budget("partners", tokens_per_day=8))
    allocator.acquire(request("a"), 1)
    allocator.acquire(request("b", deadline_ms=2), 2)
    allocator.acquire(request("c"), 3)
    _, (denied,) = outcomes(allocator)
    (waits,) = waiting_view(allocator, 1_000)
    wake_ms = allocator.next_wake_ms(TICK_AT_MS + 1)
    allocator.advance(DAY_ENDS_MS - 1)
    early, _ = outcomes(allocator)
    allocator.probe_started(DAY_ENDS_MS)
    allocator.probe_answered(
        envelope(900, at=DAY_ENDS_MS, rate=100, refill_in=60_000), DAY_ENDS_MS, DAY_ENDS_MS
    )

    assert denied.retry_delay_ms == DAY_ENDS_MS - 2
    assert denied.message == (
        "budget partners allows 8 tokens a day, and 5 are used; 5 tokens are needed"
    )
    assert (waits.eta_ms, waits.reason) == (DAY_ENDS_MS - 1_000, DenialReason.BUDGET_EXHAUSTED)
    assert waits.obstacle is not None
    assert waits.obstacle.shortly == "5 of 8 tokens a day used"
    assert wake_ms is not None
    assert wake_ms <= DAY_ENDS_MS
    assert early == []
    assert outcomes(allocator)[0] == ["c"]
    assert snapshot(allocator, DAY_ENDS_MS).budgets[0].denied == 1


def test_an_operation_behind_a_used_up_one_is_served() -> None:
    """The same process asks for details first, and for a page behind them."""
    allocator = budgeted(Budget("details", operation="product*", tokens_per_day=5))
    for lease_id, operation in (("a", "product"), ("b", "product"), ("c", "deal"), ("d", "deal")):
        allocator.acquire(request(lease_id, operation=operation), 1)

    assert outcomes(allocator)[0] == ["a", "c", "d"]
    assert len(allocator.waitlist) == 1


def test_calls_in_flight_are_limited_by_holder() -> None:
    """The third call waits for one of the first two, not for tokens; other holders do not."""
    allocator = budgeted(Budget("b", in_flight_max=2))
    for lease_id in "abc":
        allocator.acquire(request(lease_id), 1)
    allocator.acquire(request("z", holder="other"), 1)
    before, _ = outcomes(allocator)
    (waits,) = waiting_view(allocator, 2)
    pay(allocator, "a", 5, 1_000)

    assert before == ["a", "b", "z"]
    assert (waits.reason, waits.eta_ms) == (DenialReason.BUDGET_EXHAUSTED, 0)
    assert outcomes(allocator)[0] == ["c"]


def test_a_silent_client_blocks_no_call_of_its_holder() -> None:
    """A lapsed lease is in flight no more, though its tokens stay counted."""
    allocator = budgeted(Budget("b", in_flight_max=1, tokens_per_hour=100))
    allocator.acquire(request("a"), 1)
    allocator.acquire(request("b"), 2)
    allocator.advance(15_001)

    assert outcomes(allocator)[0] == ["a", "b"]
    assert snapshot(allocator, 15_001).budgets[0].used == 10


def test_a_shadow_denies_nothing_and_counts() -> None:
    """Three calls of a shadow budget for one: two would have been denied."""
    allocator = budgeted(
        Budget("s", tokens_per_day=9, mode=Mode.SHADOW),
        Budget("t", in_flight_max=1, mode=Mode.SHADOW),
        Budget("all", tokens_per_hour=500),
    )
    for lease_id in "abc":
        allocator.acquire(request(lease_id), 1)
    shadow, flights, enforced = snapshot(allocator, 1).budgets

    assert outcomes(allocator)[0] == ["a", "b", "c"]
    assert (shadow.used, shadow.left, shadow.would_deny, shadow.denied) == (15, 0, 2, 0)
    assert (flights.span, flights.would_deny) == (None, 2)
    assert enforced.would_deny == 0


def test_scattering_costs_exceed_a_budget_by_one_call() -> None:
    """Once calls have cost up to twenty, only the last of them may go beyond the limit."""
    allocator = budgeted(Budget("b", tokens_per_day=100))
    for number in range(100):
        allocator.costs.learn("deal", 1, 20 if number % 4 == 0 else 4, number)
    for number in range(40):
        allocator.acquire(request(f"{number}"), 101)
    # Each call that is granted costs the most that was ever seen.
    open_calls = []
    while granted := outcomes(allocator)[0]:
        open_calls.append(len(granted))
        for lease_id in granted:
            pay(allocator, lease_id, 20, 102 + len(open_calls))
    used = snapshot(allocator, 200).budgets[0].used

    assert 100 <= used <= 120
    assert len(allocator.waitlist) > 30


def test_a_lease_of_an_earlier_epoch_counts() -> None:
    """From its adoption on, once, and at its cost in the end."""
    allocator = budgeted(Budget("b", tokens_per_hour=100))
    renewal = Renewal("old", EPOCH - 1, "h", "deal", 1, 5, 15_000)
    for now_ms in (1, 2):
        allocator.renew(renewal, now_ms)
    held = snapshot(allocator, 2).budgets[0].used
    pay(allocator, "old", 7, 3)

    assert (held, snapshot(allocator, 3).budgets[0].used) == (5, 7)


def test_a_lost_call_counts_at_what_it_is_taken_to_have_cost() -> None:
    """And at its real cost, should its settle come late after all."""
    allocator = budgeted(Budget("b", tokens_per_day=100))
    allocator.acquire(request("a"), 1)
    allocator.settle(settlement("a", Outcome.UNKNOWN), 2)
    lost_ms = 130_000
    allocator.probe_started(lost_ms)
    allocator.probe_answered(envelope(995, at=lost_ms, rate=100), lost_ms, lost_ms)
    written_off = snapshot(allocator, lost_ms).budgets[0].used
    pay(allocator, "a", 9, lost_ms + 1)

    assert not allocator.budgets._calls
    assert written_off == 5
    assert snapshot(allocator, lost_ms + 1).budgets[0].used == 9
