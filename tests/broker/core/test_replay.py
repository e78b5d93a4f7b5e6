"""The records of any history lead back to the same books."""

import contextlib
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core import records
from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.bucket import Envelope
from broker.core.budgets import Budget
from broker.core.errors import BrokerError, LeaseConflictError
from broker.core.leases import Ended, Outcome, Renewal
from broker.core.ledger import CALL_MS_MAX, Ledger
from broker.core.recovery import PastCharge, PastCost, Recovered
from broker.core.replay import Gap, Replay
from tests.broker.builders import EPOCH, SERVER_MS, envelope, request, settlement, synced

HOLDERS = ("ann", "bob")
OPERATIONS = ("deal", "product")


def books(ledger: Ledger) -> dict[str, Any]:
    """All that the ledger counts."""
    bucket = ledger.bucket
    return {
        "observed": bucket.observed,
        "period_ms": bucket.period.ms,
        "reserved": ledger.reserved,
        "totals": asdict(ledger.totals),
        "drift": dict(ledger.drift.by_cause),
        "foreign": ledger.drift.foreign_tokens,
        "holds": [
            (hold.lease_id, hold.holder, hold.state, hold.held, hold.expires_ms, hold.cost)
            for hold in ledger
        ],
    }


def replayed(*histories: list[records.Record]) -> Replay:
    """The replay of all records."""
    replay = Replay()
    for record in (record for history in histories for record in history):
        replay.take(record)
    return replay


class History:
    """Drives an allocator with arbitrary events, honest and false ones."""

    def __init__(self) -> None:
        config = AllocatorConfig(recovery_grace_ms=0, budgets=(Budget("all", share=1.0),))
        self.allocator = Allocator(config, epoch=EPOCH, started_ms=0)
        self.now_ms = 0
        self.spent: dict[str, int] = {}

    def step(self, kind: int, number: int, amount: int) -> None:
        """One event; errors are the caller's."""
        self.now_ms += amount * 97 % 40_000
        lease_id, holder = f"lease-{number % 12}", HOLDERS[number % 2]
        operation = OPERATIONS[number % 3 % 2]
        steps = (self._acquire, self._settle, self._renew, self._operate, self._probe)
        with contextlib.suppress(BrokerError):
            steps[kind % len(steps)](lease_id, holder, operation, amount)
        if self.allocator.probe_wanted(self.now_ms):
            self.allocator.probe_started(self.now_ms)

    def _acquire(self, lease_id: str, holder: str, operation: str, amount: int) -> None:
        prior = 1 + amount % 9
        deadline_ms = self.now_ms + 5_000 if amount % 4 == 0 else None
        wanted = request(
            lease_id, holder=holder, operation=operation, prior=prior, deadline_ms=deadline_ms
        )
        self.allocator.acquire(wanted, self.now_ms)

    def _settle(self, lease_id: str, holder: str, operation: str, amount: int) -> None:
        outcome = list(Outcome)[amount % 4]
        said = None
        if outcome in {Outcome.REPLIED, Outcome.REFUSED}:
            said = self._envelope(amount, consumed=amount % 11)
        epoch = EPOCH - amount % 2
        ended = settlement(
            lease_id, outcome, said, holder=holder, operation=operation, epoch=epoch
        )
        settled = self.allocator.settle(ended, self.now_ms)
        self.spent[holder] = self.spent.get(holder, 0) + (settled.cost_tokens or 0)

    def _renew(self, lease_id: str, holder: str, operation: str, amount: int) -> None:
        tokens, epoch = 1 + amount % 5, EPOCH - amount % 2
        renewal = Renewal(lease_id, epoch, holder, operation, 1, tokens, 10_000)
        self.allocator.renew(renewal, self.now_ms)

    def _operate(self, lease_id: str, holder: str, operation: str, amount: int) -> None:
        del holder, operation
        acts = (
            self.allocator.pause,
            self.allocator.resume,
            self.allocator.resume,
            self.allocator.advance,
            lambda now_ms: self.allocator.cancel(lease_id, now_ms),
            lambda now_ms: self.allocator.detach(lease_id, now_ms),
        )
        acts[amount % len(acts)](self.now_ms)

    def _probe(self, lease_id: str, holder: str, operation: str, amount: int) -> None:
        del lease_id, holder, operation
        if not self.allocator.probing.in_flight:
            self.allocator.probe_started(self.now_ms)
        asked_ms = self.now_ms - amount % 500
        self.allocator.probe_answered(self._envelope(amount), asked_ms, self.now_ms)

    def _envelope(self, amount: int, consumed: int = 0) -> Envelope:
        tick_ms = 60_000 - self.now_ms % 60_000
        left = 300 - amount % 60
        return envelope(left, at=self.now_ms, consumed=consumed, refill_in=tick_ms)


events = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 50), st.integers(0, 10_000)), max_size=80
)


@given(events)
@settings(max_examples=150)
def test_the_replay_of_any_history_ends_at_the_same_books(
    steps: list[tuple[int, int, int]],
) -> None:
    """Balance, holds, totals, drift, and the spend of each holder."""
    history = History()
    history.step(4, 0, 0)
    for step in steps:
        history.step(*step)
    allocator = history.allocator
    replay = replayed(allocator.take_records())

    assert books(replay.ledger) == books(allocator.ledger)
    assert not [gap for gap in replay.differences if gap.gap is not Gap.UNEXPLAINED]
    spent: dict[str, int] = {}
    for (holder, _), spend in replay.spend.items():
        spent[holder] = spent.get(holder, 0) + spend.tokens
    written_off = allocator.ledger.totals.written_off_tokens
    assert sum(spent.values()) == sum(history.spent.values()) + written_off


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.REFUSED])
def test_an_old_lease_can_not_take_the_id_of_a_waiting_request(outcome: Outcome) -> None:
    """Neither its settle nor its heartbeat: the request is granted later."""
    allocator = synced(0)
    allocator.acquire(request("a"), 10)
    with pytest.raises(LeaseConflictError):
        allocator.settle(settlement("a", outcome, epoch=EPOCH - 1), 20)
    with pytest.raises(LeaseConflictError):
        allocator.renew(Renewal("a", EPOCH - 1, "h", "deal", 1, 5, 1_000), 30)
    allocator.probe_started(40)
    allocator.probe_answered(envelope(5, at=41), 40, 42)

    assert allocator.ledger.open_leases == 1


def test_a_missing_settle_shows_as_unexplained_tokens() -> None:
    """Keepa's count is the witness: what the journal lacks is named, to the token."""
    allocator = synced(100)
    allocator.acquire(request("a"), 10)
    allocator.settle(settlement("a", said=envelope(95, at=20, consumed=5)), 30)
    allocator.acquire(request("b"), 40)
    allocator.settle(settlement("b", said=envelope(90, at=50, consumed=5)), 60)
    allocator.probe_started(70)
    allocator.probe_answered(envelope(90, at=75), 70, 80)
    history = allocator.take_records()
    complete = replayed(history)
    lease_b = [r for r in history if isinstance(r, records.Settled | records.Granted)][2:]
    cut = replayed([record for record in history if record not in lease_b])

    assert complete.sums.unexplained_tokens == 0
    assert [(d.gap, d.tokens) for d in cut.differences] == [(Gap.UNEXPLAINED, 5)]


def test_tokens_too_many_show_as_unexplained_too() -> None:
    """A count above the books is a difference below zero; the books' sum stays exact."""
    allocator = synced(50)
    allocator.probe_started(70)
    allocator.probe_answered(envelope(53, at=75), 70, 80)
    replay = replayed(allocator.take_records())

    assert replay.sums.unexplained_tokens == -3
    assert [(d.gap, d.tokens) for d in replay.differences] == [(Gap.UNEXPLAINED, -3)]


def test_a_call_dearer_than_its_hold_takes_back_what_seemed_unexplained() -> None:
    """What the count showed above the hold is the call's own, as its settle shows later."""
    allocator = synced(100)
    allocator.acquire(request("a"), 10)
    allocator.probe_started(20)
    allocator.probe_answered(envelope(85, at=25), 20, 30)
    allocator.settle(settlement("a", said=envelope(85, at=20, consumed=15)), 40)
    replay = replayed(allocator.take_records())

    assert replay.sums.unexplained_tokens == 0
    assert [d.tokens for d in replay.differences] == [10, -10]


def test_one_ledger_goes_on_across_a_restart() -> None:
    """A lease settled in the next epoch is explained; its cost counts once."""
    first = synced(100)
    first.acquire(request("a"), 10)
    before = first.take_records()
    second = Allocator(AllocatorConfig(), epoch=EPOCH + 1, started_ms=1_000)
    second.restore(carried_from(first, 1_000), 1_000)
    second.probe_started(1_000)
    second.probe_answered(envelope(95, at=1_001), 1_000, 1_002)
    second.settle(settlement("a", said=envelope(95, at=20, consumed=5)), 1_010)
    second.probe_started(1_020)
    second.probe_answered(envelope(95, at=1_021), 1_020, 1_022)
    replay = replayed(before, second.take_records())

    assert replay.differences == []
    assert {key: spend.tokens for key, spend in replay.spend.items()} == {("h", "deal"): 5}
    assert replay.sums.epochs == 2


def test_ticks_of_an_outage_are_explained_before_their_period_is_known() -> None:
    """A broker dies after its first count; two lumps that land meanwhile are no gift."""
    first = synced(100, rate=16, refill_in=1_000)
    first.acquire(request("a"), 10)
    before = first.take_records()
    second = Allocator(AllocatorConfig(), epoch=EPOCH + 1, started_ms=4_000)
    second.restore(carried_from(first, 4_000), 4_000)
    second.probe_started(4_000)
    second.probe_answered(envelope(122, at=4_001, rate=16, refill_in=999), 4_000, 4_002)
    replay = replayed(before, second.take_records())

    # 100 and two lumps of 16, less the open lease and what no record explains.
    assert replay.ledger.drift.shown_in_flight == 5
    assert replay.sums.unexplained_tokens == 5


def test_a_lease_that_the_next_epoch_lacks_is_named() -> None:
    """Its tokens are not counted, but the lease is named as forgotten."""
    first = synced(100)
    first.acquire(request("a"), 10)
    second = Allocator(AllocatorConfig(), epoch=EPOCH + 1, started_ms=1_000)
    second.probe_started(1_000)
    second.probe_answered(envelope(100, at=1_001), 1_000, 1_002)
    replay = replayed(first.take_records(), second.take_records())

    assert [(d.gap, d.lease_id) for d in replay.differences] == [(Gap.FORGOTTEN, "a")]


def carried_from(allocator: Allocator, now_ms: int) -> Recovered:
    """The holds of *allocator*, as the journal would give them back."""
    return Recovered(
        leases=tuple(
            records.Carried(
                now_ms,
                lease.lease_id,
                lease.holder,
                lease.operation,
                lease.units,
                lease.tokens,
                lease.overrun,
                lease.granted_ms,
                lease.expires_ms,
                lapsed=lease.expires_ms <= now_ms,
                request=lease.request,
            )
            for lease in allocator.ledger
        )
    )


def restarted(allocator: Allocator, now_ms: int) -> Allocator:
    """The next epoch, with the holds of *allocator* and a probe's answer."""
    config = AllocatorConfig(recovery_grace_ms=3_000)
    after = Allocator(config, epoch=EPOCH + 1, started_ms=now_ms)
    after.restore(carried_from(allocator, now_ms), now_ms)
    after.probe_started(now_ms)
    after.probe_answered(envelope(100, at=now_ms), now_ms, now_ms)
    return after


def test_a_restored_lease_keeps_its_end() -> None:
    """Its time to live goes on, and does not start anew."""
    first = synced(100)
    first.acquire(request("a", ttl_ms=15_000), 10)
    after = restarted(first, 9_000)

    lease = after.ledger.lease("a")
    assert lease is not None
    assert (lease.expires_ms, lease.granted_ms, lease.epoch) == (15_010, 10, EPOCH + 1)
    after.advance(15_010)
    assert after.ledger.open_leases == 0
    assert after.ledger.reserved == 5


def test_a_lease_that_ran_out_meanwhile_is_lapsed_and_can_be_renewed() -> None:
    """A living client's heartbeat opens it again."""
    first = synced(100)
    first.acquire(request("a", ttl_ms=1_000), 10)
    after = restarted(first, 9_000)

    assert (after.ledger.open_leases, after.ledger.reserved) == (0, 5)
    after.renew(Renewal("a", EPOCH, "h", "deal", 1, 5, 1_000), 9_100)
    assert (after.ledger.open_leases, after.ledger.reserved) == (1, 5)


def test_a_restored_allocator_grants_without_a_grace() -> None:
    """The first step after Keepa's answer grants."""
    after = restarted(synced(100), 9_000)
    after.take_outcomes()
    after.acquire(request("b"), 9_001)

    (granted,) = after.take_outcomes()
    assert granted.lease.lease_id == "b"  # type: ignore[union-attr]  # a denial has none


def test_a_repeated_request_gets_its_restored_grant() -> None:
    """The answer was lost with the old broker; the tokens are not held twice."""
    first = synced(100)
    first.acquire(request("a"), 10)
    after = restarted(first, 1_000)
    after.acquire(request("a"), 1_001)

    assert after.ledger.reserved == 5
    assert after.ledger.open_leases == 1
    assert len(after.take_outcomes()) == 1


def test_a_lease_settled_before_the_restart_does_not_count_again() -> None:
    """Its client repeats the settle, because the answer was lost."""
    after = Allocator(AllocatorConfig(), epoch=EPOCH + 1, started_ms=1_000)
    after.restore(Recovered(ended=(("a", Ended(late=False)),)), 1_000)
    settled = after.settle(settlement("a", said=envelope(95, at=20, consumed=5)), 1_001)

    assert (settled.lease, settled.cost_tokens) == (None, None)
    assert after.ledger.totals.spent_tokens == 0


def test_learned_costs_and_budgets_survive() -> None:
    """A budget's use goes on from the charges, and prices from the calls."""
    budget = Budget("all", tokens_per_hour=100)
    config = AllocatorConfig(budgets=(budget,))
    after = Allocator(config, epoch=EPOCH + 1, started_ms=1_000)
    costs = tuple(PastCost("h", "deal", 1, 7, -60_000 + i) for i in range(10))
    charges = (PastCharge("h", "deal", 40, -1_800_000), PastCharge("h", "deal", 9, -4_000_000))
    after.restore(Recovered(costs=costs, charges=charges), 1_000)

    assert after.costs.estimate("deal", 1, 5.0) == 7
    (standing,) = after.budgets.standings(300, 1_000)
    assert standing.used == 40


def test_a_pause_survives() -> None:
    """An operator's pause is not undone by a crash."""
    after = Allocator(AllocatorConfig(), epoch=EPOCH + 1, started_ms=1_000)
    after.restore(Recovered(paused=True), 1_000)

    assert after.paused


def test_moments_move_to_another_clock() -> None:
    """Every moment of a record, and nothing else."""
    seen = envelope(5)
    observed = records.Observed(100, 90, seen, taken=True)

    assert records.shifted(observed, 1_000) == records.Observed(1_100, 1_090, seen, taken=True)
    assert seen.server_time_ms == SERVER_MS
    assert CALL_MS_MAX > 0
