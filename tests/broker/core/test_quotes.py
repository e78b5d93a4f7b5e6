"""Calls of unsure cost are not sent where an overrun would get others refused."""

from broker.core.allocator import Allocator
from broker.core.costs import SAMPLES_MIN, UNLEARNED_WORST
from broker.core.holds import Overruns
from broker.core.leases import Granted
from broker.core.quotes import Quote
from tests.broker.builders import envelope, request, settlement, synced


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
