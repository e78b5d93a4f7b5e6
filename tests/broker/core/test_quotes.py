"""Calls of unsure cost are not sent where an overrun would get others refused."""

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.allocator import Allocator
from broker.core.budgets import Budget, BudgetBook
from broker.core.costs import SAMPLES_MIN, UNLEARNED_WORST, CostBook
from broker.core.holds import Overruns
from broker.core.leases import Granted
from broker.core.ledger import Ledger
from broker.core.quotes import Quote, Quotes
from tests.broker.builders import envelope, probe, request, settlement, synced


def granted(allocator: Allocator) -> dict[str, int]:
    """Tokens granted since the last look, by lease_id."""
    outcomes = allocator.take_outcomes()
    return {o.lease.lease_id: o.lease.tokens for o in outcomes if isinstance(o, Granted)}


def test_a_sure_price_may_use_every_token() -> None:
    """What always costs the same can't overrun, in flight beside others or not."""
    assert Quote(1, 5, 5).usable(5, Overruns()) == 5


def test_the_dearest_overrun_must_be_covered() -> None:
    """Of proven costs one overrun must fit: the own, or that of another call."""
    quote = Quote(1, 10, 10, worst=2.0)

    assert quote.overrun(10) == 10
    assert quote.usable(30, Overruns(proven=4)) == 15
    assert quote.usable(30, Overruns(proven=25)) == 5


def test_overruns_of_unproven_costs_must_be_covered_together() -> None:
    """A wrong prior is wrong for all calls that rest on it."""
    proven, unproven = Quote(1, 5, 5, worst=2.0), Quote(1, 5, 5, worst=2.0, proven=False)

    assert proven.usable(50, Overruns(unproven=20, proven=4)) == 15
    assert unproven.usable(50, Overruns(unproven=20, proven=4)) == 13


def test_two_calls_of_unknown_cost_leave_room_for_both_overruns() -> None:
    """The third of three first calls waits, although one overrun alone would do no harm."""
    allocator = synced(149)
    for name in ("a", "b", "c"):
        allocator.acquire(request(name, holder=name), 10)

    assert granted(allocator) == {"a": 5, "b": 5}
    assert UNLEARNED_WORST * 5 > 149 - 10 - 2 * 45


def test_calls_of_unknown_cost_go_one_by_one() -> None:
    """Until calls are known, the next one waits unless an overrun would do no harm."""
    allocator = synced(20)
    for name in ("a", "b"):
        allocator.acquire(request(name, holder=name), 10)
    assert granted(allocator) == {"a": 5}
    said = envelope(0, at=50, consumed=20)
    allocator.settle(settlement("a", said=said, holder="a"), 100)

    assert granted(allocator) == {}
    assert UNLEARNED_WORST * 5 >= 20


def test_calls_of_known_cost_go_together() -> None:
    """Once the price is sure, every token is granted at once."""
    allocator = synced(20)
    for _ in range(SAMPLES_MIN):
        allocator.costs.learn("deal", 1, 5, 0)
    for name in ("a", "b", "c", "d"):
        allocator.acquire(request(name, holder=name), 10)

    assert granted(allocator) == {"a": 5, "b": 5, "c": 5, "d": 5}


def test_a_lone_call_needs_no_more_than_its_price() -> None:
    """No call is in flight that an overrun could hurt, so none waits for margins."""
    allocator = synced(5)
    allocator.acquire(request("a"), 10)

    assert granted(allocator) == {"a": 5}


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["deal", "product"]),
            st.integers(1, 20),
            st.integers(0, 60),
            st.sampled_from([1, 70]),
            st.integers(0, 200),
        ),
        max_size=12,
    )
)
def test_an_offer_is_remembered_only_while_it_is_true(
    calls: list[tuple[str, int, int, int, int]],
) -> None:
    """Whatever is learned, and whatever the count, no offer differs from one made anew."""
    ledger, costs = Ledger(1), CostBook()
    budgets = BudgetBook([Budget("b", holder="limited", tokens_per_hour=50)])

    def quotes() -> Quotes:
        return Quotes(ledger, costs, budgets, floor_tokens=0, horizon_ms=60_000)

    remembering = quotes()
    for number, (operation, units, tokens, calls_alike, balance) in enumerate(calls):
        ledger.observe(probe(balance, at=number, rate=1 + balance % 7))
        for _ in range(calls_alike):
            costs.learn(operation, units, tokens, number)
        for holder in ("free", "limited"):
            asked = request(holder=holder, operation=operation, units=units, min_units=1)

            assert remembering.offer(asked) == quotes().offer(asked)
