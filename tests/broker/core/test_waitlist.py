"""Which request is next: weights between classes, equal shares between holders, no bypassing."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.core.leases import Priority
from broker.core.quotes import Quote
from broker.core.waitlist import RETURN_MS, TAG_PER_TOKEN, YIELD_MS, Waiting, Waitlist
from tests.broker.builders import request


def waiting(
    lease_id: str, holder: str, tokens: int = 5, priority: Priority = Priority.NORMAL
) -> Waiting:
    """A request of *holder* that would be charged *tokens*."""
    asked = request(lease_id, holder=holder, priority=priority)
    return Waiting(asked, 0, Quote(1, tokens, tokens))


def drain(waitlist: Waitlist, count: int) -> list[str]:
    """Serves *count* heads at their quote; their holders in order."""
    holders = []
    for _ in range(count):
        head = waitlist.head()
        assert head is not None
        waitlist.serve(head, head.quote.tokens, 0)
        holders.append(head.request.holder)
    return holders


def test_inside_a_holder_it_is_first_come_first_served() -> None:
    """Requests of one holder keep their order."""
    waitlist = Waitlist()
    for number in range(3):
        waitlist.add(waiting(f"a{number}", "A"))

    assert [w.request.lease_id for w in waitlist.order()] == ["a0", "a1", "a2"]


def test_holders_take_turns_by_tokens_not_by_requests() -> None:
    """A holder of dear calls is served as many tokens as one of cheap calls."""
    waitlist = Waitlist()
    for number in range(20):
        waitlist.add(waiting(f"a{number}", "A", tokens=10))
    for number in range(20):
        waitlist.add(waiting(f"b{number}", "B", tokens=5))
    served = Counter(drain(waitlist, 15))

    assert served == {"A": 5, "B": 10}


def test_classes_share_by_weight() -> None:
    """High, normal and low get eight, four and one part of the tokens."""
    waitlist = Waitlist()
    for priority in Priority:
        for number in range(200):
            waitlist.add(waiting(f"{priority}{number}", priority.name, 5, priority))
    served = Counter(drain(waitlist, 130))

    assert served == {"HIGH": 80, "NORMAL": 40, "LOW": 10}


def weighted(counts: dict[str, int], weights: dict[str, float]) -> Waitlist:
    """So many holders of each identity, all with more requests than are served."""
    waitlist = Waitlist()
    waitlist.set_weights(weights)
    for identity, holders in counts.items():
        for holder in range(holders):
            for number in range(100):
                name = f"{identity}/{holder}"
                waitlist.add(waiting(f"{name}/{number}", name, 5 + holder))
    return waitlist


def tokens_by_identity(waitlist: Waitlist, count: int) -> Counter[str]:
    """Serves so many requests; returns the tokens of each identity."""
    served: Counter[str] = Counter()
    for _ in range(count):
        head = waitlist.head()
        assert head is not None
        waitlist.serve(head, head.quote.tokens, 0)
        served[head.request.holder.partition("/")[0]] += head.quote.tokens
    return served


def test_identities_share_by_weight_however_many_holders_they_have() -> None:
    """Three to one, within one largest request at every moment; no weight is a weight of one."""
    waitlist = weighted({"partners": 5, "fetchers": 1}, {"fetchers": 3})
    served: Counter[str] = Counter()
    for _ in range(80):
        served += tokens_by_identity(waitlist, 1)

        assert abs(served["fetchers"] / 3 - served["partners"]) <= 9


def test_holders_of_one_identity_share_equally() -> None:
    """Its weight is shared out among them, by tokens."""
    waitlist = weighted({"a": 2, "b": 1}, {"a": 2})
    served: Counter[str] = Counter()
    for _ in range(60):
        head = waitlist.head()
        assert head is not None
        waitlist.serve(head, head.quote.tokens, 0)
        served[head.request.holder] += head.quote.tokens

    assert abs(served["a/0"] - served["a/1"]) <= 6
    assert abs(served["a/0"] + served["a/1"] - 2 * served["b/0"]) <= 12


def test_weights_count_inside_each_class() -> None:
    """Classes share eight to one first, whatever the identities in them weigh."""
    waitlist = Waitlist()
    waitlist.set_weights({"heavy": 10.0})
    for number in range(200):
        waitlist.add(waiting(f"l{number}", "heavy/1", 5, Priority.LOW))
        waitlist.add(waiting(f"h{number}", "light/1", 5, Priority.HIGH))
    served = tokens_by_identity(waitlist, 90)

    assert served == {"light": 400, "heavy": 50}


def test_an_identity_that_idled_has_saved_up_nothing() -> None:
    """It begins at the present virtual time, with all its weight."""
    waitlist = weighted({"a": 1}, {"a": 1, "b": 1})
    tokens_by_identity(waitlist, 50)
    for number in range(50):
        waitlist.add(waiting(f"b{number}", "b/1"))
    served = tokens_by_identity(waitlist, 40)

    assert served == {"a": 100, "b": 100}


def test_weights_that_change_keep_those_that_wait() -> None:
    """Each request is served once, by the new weights; the forecast is the order of service."""
    waitlist = weighted({"a": 2, "b": 2}, {})
    tokens_by_identity(waitlist, 10)
    waitlist.set_weights({"a": 4.0})
    foreseen = [each.request.lease_id for each in waitlist.order()]
    served = []
    while (head := waitlist.head()) is not None:
        waitlist.serve(head, head.quote.tokens, 0)
        served.append(head.request.lease_id)

    assert served == foreseen
    assert len(set(served)) == 390


def test_a_parked_request_of_a_weighted_identity_comes_back() -> None:
    """Also if the weights have changed meanwhile."""
    waitlist = weighted({"a": 1}, {"a": 2})
    waitlist.park("a/0/0", 1_000)
    waitlist.set_weights({})
    restored = waitlist.restore("a/0/0")

    assert restored is not None
    assert len(waitlist) == 100
    assert waitlist.head() is restored


def test_an_urgent_request_passes_a_big_low_one_that_still_saves_up() -> None:
    """The head is computed anew when a request with a better claim arrives."""
    waitlist = Waitlist()
    waitlist.add(waiting("x", "L", 5, Priority.LOW))
    drain(waitlist, 1)
    waitlist.add(waiting("big", "L", 200, Priority.LOW))
    waitlist.add(waiting("urgent", "H", 5, Priority.HIGH))

    assert drain(waitlist, 1) == ["H"]


def test_a_big_request_is_not_bypassed_by_small_ones_of_its_equals() -> None:
    """Small requests that come later do not starve a big one."""
    waitlist = Waitlist()
    waitlist.add(waiting("big", "A", 100))
    for number in range(50):
        waitlist.add(waiting(f"s{number}", f"B{number}"))
        head = waitlist.head()
        assert head is not None
        assert head.request.lease_id == "big"


def test_idling_saves_up_no_credit() -> None:
    """A holder that comes back after an hour shares from now on, without arrears."""
    waitlist = Waitlist()
    for number in range(100):
        waitlist.add(waiting(f"a{number}", "A"))
    drain(waitlist, 50)
    for number in range(50):
        waitlist.add(waiting(f"b{number}", "B"))
    served = Counter(drain(waitlist, 20))

    assert served == {"A": 10, "B": 10}


def test_tokens_taken_ahead_are_remembered_while_idle() -> None:
    """Going away for a moment after a big call does not wash it away."""
    waitlist = Waitlist()
    waitlist.add(waiting("a0", "A", 50))
    waitlist.add(waiting("b0", "B"))
    drain(waitlist, 1)
    waitlist.add(waiting("a1", "A"))
    for number in range(1, 12):
        waitlist.add(waiting(f"b{number}", "B"))

    assert drain(waitlist, 10) == ["B"] * 10


def test_a_holder_with_a_call_under_way_keeps_its_turn() -> None:
    """One call at a time is no reason to lose what others are served meanwhile."""
    waitlist = Waitlist()
    for holder in "AB":
        waitlist.add(waiting(f"{holder}0", holder))
    assert drain(waitlist, 2) == ["A", "B"]
    for number in range(1, 4):
        waitlist.add(waiting(f"a{number}", "A"))
    assert drain(waitlist, 2) == ["A", "A"]
    for number in range(1, 4):
        waitlist.add(waiting(f"b{number}", "B"))

    assert drain(waitlist, 4) == ["B", "B", "A", "B"]


def test_what_it_keeps_is_no_more_than_two_calls() -> None:
    """A holder saves up nothing in times of plenty, however short its calls are."""
    waitlist = Waitlist()
    for holder in "AB":
        waitlist.add(waiting(f"{holder}0", holder))
    drain(waitlist, 2)
    for number in range(1, 40):
        waitlist.add(waiting(f"a{number}", "A"))
    drain(waitlist, 30)
    for number in range(1, 40):
        waitlist.add(waiting(f"b{number}", "B"))
    served = Counter(drain(waitlist, 8))

    assert served == {"B": 5, "A": 3}


def test_the_last_tokens_are_kept_for_the_holder_whose_turn_it_is() -> None:
    """They are not kept for ever, and enough for both keeps no request waiting."""
    waitlist = Waitlist()
    for holder in "AB":
        waitlist.add(waiting(f"{holder}0", holder))
    drain(waitlist, 2)
    waitlist.settled(Priority.NORMAL, "A", 5, 10)
    ahead = waiting("a1", "A")
    waitlist.add(ahead)

    assert waitlist.yields_until(ahead, 0, 20) == YIELD_MS
    assert waitlist.yields_until(ahead, 5, 20) is None
    assert waitlist.yields_until(ahead, 0, YIELD_MS) is None


def test_a_worker_that_asks_no_more_delays_others_for_a_moment_only() -> None:
    """Its call is over, and a loop would have asked again by then."""
    waitlist = Waitlist()
    for holder in "AB":
        waitlist.add(waiting(f"{holder}0", holder))
    drain(waitlist, 2)
    waitlist.settled(Priority.NORMAL, "A", 5, 10)
    waitlist.settled(Priority.NORMAL, "B", 0, 100)
    ahead = waiting("a1", "A")
    waitlist.add(ahead)

    assert waitlist.yields_until(ahead, 0, 120) == 100 + RETURN_MS


def test_a_settle_corrects_the_share() -> None:
    """A call that cost four times its charge makes its holder wait for the others."""
    waitlist = Waitlist()
    for holder in "AB":
        for number in range(10):
            waitlist.add(waiting(f"{holder}{number}", holder))
    drain(waitlist, 1)
    waitlist.settled(Priority.NORMAL, "A", 15, 0)

    assert drain(waitlist, 5) == ["B", "B", "B", "B", "A"]


def test_the_order_foretold_is_the_order_served() -> None:
    """What operators see of the queue is what then happens."""
    waitlist = Waitlist()
    for number in range(30):
        priority = list(Priority)[number % 3]
        waitlist.add(waiting(f"w{number}", f"h{number % 7}", 1 + number % 5, priority))
    foretold = [w.request.holder for w in waitlist.order()]

    assert drain(waitlist, 30) == foretold


class WaitlistMachine(RuleBasedStateMachine):
    """Whatever comes and goes, no request is lost and no backlogged holder falls behind."""

    def __init__(self) -> None:
        super().__init__()
        self.waitlist = Waitlist()
        self.queued: dict[tuple[Priority, str], list[str]] = {}
        self.largest = 1
        # Tokens served to each flow since it and its class last had a common start.
        self.number = 0

    @rule(
        holder=st.sampled_from("ABCDE"),
        priority=st.sampled_from(Priority),
        tokens=st.integers(1, 100),
    )
    def join(self, holder: str, priority: Priority, tokens: int) -> None:
        """A request comes."""
        self.number += 1
        self.largest = max(self.largest, tokens)
        lease_id = str(self.number)
        self.waitlist.add(waiting(lease_id, holder, tokens, priority))
        self.queued.setdefault((priority, holder), []).append(lease_id)

    @precondition(lambda self: any(self.queued.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A request leaves."""
        lease_id = data.draw(st.sampled_from([i for q in self.queued.values() for i in q]))
        assert self.waitlist.remove(lease_id) is not None
        for queue in self.queued.values():
            if lease_id in queue:
                queue.remove(lease_id)

    @precondition(lambda self: any(self.queued.values()))
    @rule()
    def serve(self) -> None:
        """The head is served: the oldest request of its holder."""
        head = self.waitlist.head()
        assert head is not None
        flow = (head.request.priority, head.request.holder)
        assert self.queued[flow].pop(0) == head.request.lease_id
        self.waitlist.serve(head, head.quote.tokens, 0)

    @rule(
        holder=st.sampled_from("ABCDE"),
        priority=st.sampled_from(Priority),
        tokens=st.integers(-20, 20),
    )
    def correct(self, holder: str, priority: Priority, tokens: int) -> None:
        """A settle comes in at another cost than was charged."""
        self.waitlist.settled(priority, holder, tokens, 0)

    @invariant()
    def nobody_is_lost(self) -> None:
        """All that wait are in the order exactly once, and the first is the head."""
        order = [w.request.lease_id for w in self.waitlist.order()]
        assert sorted(order) == sorted(i for q in self.queued.values() for i in q)
        assert len(self.waitlist) == len(order)
        head = self.waitlist.head()
        assert (head.request.lease_id if head else None) == (order[0] if order else None)

    @invariant()
    def memory_is_bounded(self) -> None:
        """Idle holders are forgotten once the others have caught up."""
        for weighted_class in self.waitlist._classes.values():
            klass = weighted_class.group("h").holders
            # All five holders were served just now: no time passes here.
            assert len(klass.places) <= 5
            assert len(klass._heap) <= 4 * len(klass.flows) + 65


TestWaitlistMachine = WaitlistMachine.TestCase
TestWaitlistMachine.settings = settings(max_examples=60, stateful_step_count=40)


def test_weights_are_eight_four_one() -> None:
    """The advance per token is the inverse of the weight."""
    weights = [8 / TAG_PER_TOKEN[p] for p in (Priority.HIGH, Priority.NORMAL, Priority.LOW)]

    assert weights == [8, 4, 1]


@given(
    st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(Priority)), min_size=1, max_size=9),
    st.integers(0, 8),
    st.data(),
)
def test_an_absence_costs_no_place(
    arrivals: list[tuple[str, Priority]], served: int, data: st.DataObject
) -> None:
    """A request that goes and comes back while none is served stands where it stood."""
    waitlist = Waitlist()
    for number, (holder, priority) in enumerate(arrivals):
        entry = waiting(str(number), holder, priority=priority)
        entry.since_ms = number
        waitlist.add(entry)
    drain(waitlist, min(served, len(arrivals) - 1))
    before = [w.request.lease_id for w in waitlist.order()]
    gone = data.draw(st.lists(st.sampled_from(before), unique=True))
    for lease_id in gone:
        waitlist.park(lease_id, until_ms=100)
    meanwhile = {w.request.lease_id for w in waitlist.order()}
    for lease_id in data.draw(st.permutations(gone)):
        waitlist.restore(lease_id)

    assert meanwhile == set(before) - set(gone)
    assert [w.request.lease_id for w in waitlist.order()] == before


def test_an_absent_request_is_neither_head_nor_counted() -> None:
    """Tokens go past a client that is away, to the next."""
    waitlist = Waitlist()
    waitlist.add(waiting("a", "A"))
    waitlist.add(waiting("b", "B"))
    waitlist.park("a", until_ms=100)

    assert len(waitlist) == 1
    assert drain(waitlist, 1) == ["B"]
    assert waitlist.head() is None


def test_a_place_is_kept_for_so_long() -> None:
    """Then the request is a new one."""
    waitlist = Waitlist()
    waitlist.add(waiting("a", "A"))
    waitlist.park("a", until_ms=100)
    waitlist.forget_absent(99)
    assert waitlist.absent("a") is not None
    waitlist.forget_absent(100)

    assert waitlist.absent("a") is None
    assert waitlist.restore("a") is None
