"""The sums of what is held: kept in step, and a wrong change is noticed."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.core.holds import RECOUNT_CHANGES_MIN, UNCERTAIN_MS_MAX, Holds, Risky, Share
from broker.core.leases import Lease, LeaseState
from broker.core.ledger import Ledger
from tests.broker.builders import EPOCH, envelope, probe, request, settlement


def lease(lease_id: str = "a", tokens: int = 5, holder: str = "team/h", overrun: int = 0) -> Lease:
    """An open lease that no one has entered yet."""
    asked = request(lease_id, holder=holder)
    return Lease(
        lease_id, holder, "deal", 1, tokens, EPOCH, 0, 15_000, 0, asked, overrun=overrun
    )  # fmt: skip


def team(holder: str) -> str:
    """The caller is what stands before the slash."""
    return holder.partition("/")[0]


def entered(*leases: Lease) -> Holds:
    """These leases, open."""
    holds = Holds(team)
    for each in leases:
        holds.add(each)
    return holds


def more_tokens(held: Lease) -> None:
    """The hold grows, past the sums."""
    held.tokens += 1


def lapsed(held: Lease) -> None:
    """The lease lapses, past the sums."""
    held.state = LeaseState.LAPSED


def settled(held: Lease) -> None:
    """The lease is settled for free, past the sums."""
    held.state = LeaseState.SETTLED


@pytest.mark.parametrize("change", [more_tokens, lapsed, settled])
def test_a_change_behind_the_sums_is_noticed_with_the_next_of_the_lease(
    change: Callable[[Lease], None],
) -> None:
    """The step that meets it fails; it does not go on with a wrong sum."""
    held = lease()
    holds = entered(held, lease("b"))
    change(held)
    with pytest.raises((AssertionError, KeyError)):
        holds.remove(held)

    assert holds.reserved == 10


def test_a_change_behind_the_sums_is_noticed_before_long_by_others() -> None:
    """Once in as many changes as there are holds, everything is added up anew."""
    held, other = lease(), lease("b")
    holds = entered(held, other)
    held.tokens += 1
    for _ in range(RECOUNT_CHANGES_MIN):
        holds.resize(other, 7)
    with pytest.raises(AssertionError):
        holds.resize(other, 7)


@pytest.mark.parametrize(
    "sum_name",
    ["_tokens", "reserved", "unsettled_tokens", "_shares", "_risky", "adopted_tokens"],
)
def test_a_wrong_sum_is_noticed(sum_name: str) -> None:
    """Each of the sums and counts is compared with the holds."""
    holds = entered(lease(), lease("b", overrun=2))
    holds.recount()
    wrong = {
        "_tokens": dict.fromkeys(LeaseState, 11),
        "_shares": {"team": Share(2, 2, 11)},
        "reserved": 11,
        "_risky": Risky(),
        "unsettled_tokens": 11,
        "adopted_tokens": 1,
    }
    setattr(holds, sum_name, wrong[sum_name])
    with pytest.raises(AssertionError):
        holds.recount()


def test_a_lease_is_held_once() -> None:
    """Nor can it be dropped twice."""
    held = lease()
    holds = entered(held)
    with pytest.raises(AssertionError):
        holds.add(lease())
    holds.remove(held)
    with pytest.raises((AssertionError, KeyError)):
        holds.remove(held)

    assert (holds.reserved, len(holds), list(holds)) == (0, 0, [])


def test_a_caller_s_share_is_counted_over_all_its_holders() -> None:
    """Open leases as such; tokens of lapsed leases and uncertain calls as well."""
    held = lease()
    holds = entered(held, lease("b", holder="team/other"), lease("c", holder="else/h"))
    holds.lapse(held)
    uncertain = lease("d", holder="team/third")
    uncertain.state, uncertain.cost = LeaseState.SETTLED, 3
    holds.keep(uncertain)

    assert holds.share("team/anyone") == Share(holds=3, leases=1, tokens=13)
    assert holds.share("nobody/h") == Share()


def test_calls_settled_long_ago_are_forgotten() -> None:
    """What is remembered of settled calls does not grow for ever."""
    holds = Holds()
    for number in range(1_000):
        call = lease(f"a{number}")
        call.state, call.cost, call.settled_ms = LeaseState.SETTLED, 1, number * 1_000
        holds.remember(call)

    assert holds.cost_since(-1) == UNCERTAIN_MS_MAX // 1_000 + 1


def test_the_ledger_refuses_to_go_on_with_wrong_books() -> None:
    """A mutation behind the sums ends the settle that meets it."""
    ledger = Ledger(EPOCH)
    ledger.observe(probe(50, at=0))
    held = ledger.reserve(request(), 1, 5, 0)
    held.tokens = 4
    with pytest.raises(AssertionError, match="behind the sums"):
        ledger.settle(settlement(said=envelope(45, at=10, consumed=5)), 20)


class HoldsMachine(RuleBasedStateMachine):
    """Every sequence of changes leaves the sums equal to the holds."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = Holds(team)
        self.number = 0

    @rule(tokens=st.integers(0, 50), team=st.sampled_from("ab"), overrun=st.integers(0, 2))
    def add(self, tokens: int, team: str, overrun: int) -> None:
        """A lease is opened."""
        self.number += 1
        self.holds.add(lease(str(self.number), tokens, f"{team}/{self.number}", overrun))

    @precondition(lambda self: self.holds.holds_leases)
    @rule(
        data=st.data(), tokens=st.integers(0, 50), way=st.sampled_from(["turn", "resize", "end"])
    )
    def change(self, data: st.DataObject, tokens: int, way: str) -> None:
        """A lease lapses or revives, is cut, or settled with its cost held on."""
        unsettled = [held for held in self.holds if held.state is not LeaseState.SETTLED]
        held = data.draw(st.sampled_from(unsettled))
        if way == "resize":
            self.holds.resize(held, tokens)
        elif way == "end":
            self.holds.remove(held)
            held.state, held.cost = LeaseState.SETTLED, tokens
            self.holds.keep(held)
        elif held.state is LeaseState.OPEN:
            self.holds.lapse(held)
        else:
            self.holds.revive(held)

    @precondition(lambda self: self.holds.leases(LeaseState.SETTLED))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """An observation includes a settled call."""
        self.holds.release(data.draw(st.sampled_from(self.holds.leases(LeaseState.SETTLED))))

    @invariant()
    def sums_agree(self) -> None:
        """As the holds add up."""
        self.holds.recount()
        assert self.holds.reserved == sum(held.held for held in self.holds)


TestHoldsMachine = HoldsMachine.TestCase
TestHoldsMachine.settings = settings(max_examples=60, stateful_step_count=30)
