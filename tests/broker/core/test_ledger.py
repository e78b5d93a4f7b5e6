"""The ledger: what is held, when it is released, and what each observation proves."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.core.bucket import TICK_GUARD_MS, Envelope, Observation, Source
from broker.core.errors import LeaseConflictError, LeaseEndedError, LeaseNotFoundError
from broker.core.holds import Overruns
from broker.core.leases import Lease, LeaseState, Outcome, Renewal
from broker.core.ledger import CALL_MS_MAX, Ledger
from tests.broker.builders import EPOCH, SERVER_MS, envelope, probe, request, settlement


def ledger_with(tokens: int, at: int = 0) -> Ledger:
    """A ledger that has seen *tokens* in a probe."""
    ledger = Ledger(EPOCH)
    ledger.observe(probe(tokens, at=at))
    return ledger


def grant(ledger: Ledger, lease_id: str = "a", tokens: int = 5, now_ms: int = 0) -> Lease:
    """A hold of *tokens*."""
    return ledger.reserve(request(lease_id), 1, tokens, now_ms)


def test_a_settle_replaces_the_hold_by_the_true_cost() -> None:
    """The call's own envelope is the new balance, and nothing stays reserved."""
    ledger = ledger_with(50)
    grant(ledger)
    said = envelope(42, at=100, consumed=8)
    settled = ledger.settle(settlement(said=said), now_ms=200)

    assert settled.cost_tokens == 8
    assert ledger.headroom(200, projected=False) == 42
    assert ledger.totals.spent_tokens == 8


def test_an_older_reply_counts_for_cost_but_not_for_balance() -> None:
    """Replies that overtake each other do not move the count back."""
    ledger = ledger_with(50)
    grant(ledger, "a")
    grant(ledger, "b")
    ledger.settle(settlement("b", said=envelope(40, at=200, consumed=5)), now_ms=210)
    ledger.settle(settlement("a", said=envelope(45, at=100, consumed=5)), now_ms=220)

    assert ledger.bucket.observed == 40
    assert ledger.reserved == 0
    assert ledger.totals.spent_tokens == 10
    assert ledger.totals.stale_observations == 1


def test_a_call_in_flight_stays_reserved_across_observations() -> None:
    """A reply to one worker does not erase what another one still holds."""
    ledger = ledger_with(50)
    grant(ledger, "a")
    grant(ledger, "b")
    ledger.settle(settlement("a", said=envelope(45, at=100, consumed=5)), now_ms=110)

    assert ledger.reserved == 5
    assert ledger.headroom(110, projected=False) == 40


def test_a_call_that_overlaps_a_later_one_is_reserved_until_it_is_certain() -> None:
    """A long call's reply may speak for a moment before a short call was charged."""
    ledger = ledger_with(50)
    grant(ledger, "long")
    grant(ledger, "short")
    ledger.settle(settlement("short", said=envelope(45, at=500, took=10, consumed=5)), 520)
    assert ledger.reserved == 5
    ledger.settle(settlement("long", said=envelope(45, at=100, took=900, consumed=5)), 1_010)

    assert ledger.headroom(1_010, projected=False) == 40
    assert [lease.state for lease in ledger] == [LeaseState.SETTLED]

    ledger.observe(probe(40, at=2_000))

    assert ledger.reserved == 0
    assert ledger.headroom(2_000, projected=False) == 40
    assert ledger.drift.foreign_tokens == 0


def test_expiry_is_not_a_refund() -> None:
    """A silent client's call may still be running at Keepa: its tokens stay held."""
    ledger = ledger_with(50)
    grant(ledger)
    ledger.expire(20_000)
    ledger.observe(probe(50, at=30_000))

    assert ledger.totals.expiries == 1
    assert ledger.reserved == 5

    ledger.observe(probe(50, at=CALL_MS_MAX))

    assert ledger.reserved == 0


def test_a_lost_call_that_shows_in_a_probe_is_taken_as_its_own() -> None:
    """When the only call in flight was lost and the count fell, the hold is done with."""
    ledger = ledger_with(50)
    grant(ledger)
    ledger.settle(settlement(outcome=Outcome.UNKNOWN), now_ms=1_000)
    assert ledger.reserved == 5
    ledger.observe(probe(45, at=2_000))

    assert ledger.headroom(2_000, projected=False) == 45
    assert ledger.totals.written_off_tokens == 5
    assert ledger.drift.foreign_tokens == 0


def test_a_late_settle_counts_once() -> None:
    """After the lease lapsed the true cost still counts, and a replay changes nothing."""
    ledger = ledger_with(50)
    grant(ledger)
    ledger.expire(20_000)
    said = settlement(said=envelope(45, at=19_000, consumed=5))
    first = ledger.settle(said, now_ms=21_000)
    again = ledger.settle(said, now_ms=22_000)

    assert (first.late, first.cost_tokens) == (True, 5)
    assert (again.late, again.cost_tokens) == (True, None)
    assert ledger.totals.spent_tokens == 5


def test_a_settle_after_the_write_off_still_counts_once() -> None:
    """The report of a call given up long ago replaces the guess of its cost."""
    ledger = ledger_with(50)
    grant(ledger)
    ledger.expire(20_000)
    ledger.observe(probe(45, at=CALL_MS_MAX))
    assert ledger.totals.written_off_tokens == 5
    said = settlement(said=envelope(45, at=1_000, consumed=5))
    settled = ledger.settle(said, now_ms=CALL_MS_MAX + 1)

    assert settled.cost_tokens == 5
    assert ledger.settle(said, now_ms=CALL_MS_MAX + 2).cost_tokens is None
    assert (ledger.totals.spent_tokens, ledger.totals.written_off_tokens) == (5, 0)
    assert ledger.bucket.observed == 45


def test_a_lease_has_a_holder_while_its_cost_can_still_be_told() -> None:
    """Also after a write-off, which its own late settle corrects; a settled one has no holder."""
    ledger = ledger_with(20)
    grant(ledger, "lost")
    grant(ledger, "settled")
    ledger.settle(settlement("settled", Outcome.NOT_SENT), now_ms=10)
    ledger.expire(20_000)
    lapsed = ledger.holder("lost")
    ledger.observe(probe(20, at=CALL_MS_MAX + 20_000))

    assert ledger.lease("lost") is None
    assert (lapsed, ledger.holder("lost")) == ("h", "h")
    assert (ledger.holder("settled"), ledger.holder("unheard-of")) == (None, None)


def test_an_unknown_outcome_stays_reserved_until_it_is_known() -> None:
    """No usable answer does not mean that nothing was spent."""
    ledger = ledger_with(50)
    grant(ledger)
    ledger.settle(settlement(outcome=Outcome.UNKNOWN), now_ms=500)

    assert ledger.reserved == 5
    assert ledger.open_leases == 0

    known = ledger.settle(settlement(said=envelope(45, at=400, consumed=5)), now_ms=900)

    assert known.cost_tokens == 5
    assert ledger.reserved == 0


def test_a_refusal_costs_nothing_and_is_an_observation() -> None:
    """HTTP 429 spends no token and shows the balance."""
    ledger = ledger_with(2)
    grant(ledger)
    grant(ledger, "b")
    ledger.settle(settlement(outcome=Outcome.REFUSED, said=envelope(-3, at=100)), now_ms=110)

    assert ledger.totals.spent_tokens == 0
    assert ledger.totals.refusals == 1
    assert ledger.bucket.observed == -3


def test_a_call_never_sent_gives_its_hold_back() -> None:
    """The hold of a call that was not made is free at once."""
    ledger = ledger_with(50)
    grant(ledger)
    ledger.settle(settlement(outcome=Outcome.NOT_SENT), now_ms=100)

    assert ledger.reserved == 0


def test_a_revived_call_may_still_overrun() -> None:
    """The margin for a call of unsure cost lapses with its lease, and comes back with it."""
    ledger = ledger_with(50)
    ledger.reserve(request("a"), 1, 5, 0, overrun=15)
    assert ledger.holds.overruns == Overruns(proven=15)
    ledger.expire(15_000)
    assert ledger.holds.overruns == Overruns()
    ledger.renew(Renewal("a", EPOCH, "h", "deal", 1, 5, ttl_ms=15_000), now_ms=16_000)

    assert ledger.holds.overruns == Overruns(proven=15)


def test_a_heartbeat_prolongs_and_revives() -> None:
    """A renewal moves the expiry, and brings a lapsed lease back."""
    ledger = ledger_with(50)
    grant(ledger)
    renewal = Renewal("a", EPOCH, "h", "deal", 1, 5, ttl_ms=15_000)
    ledger.renew(renewal, now_ms=10_000)
    ledger.expire(20_000)
    assert ledger.totals.expiries == 0
    ledger.expire(25_000)
    assert ledger.totals.expiries == 1
    lease = ledger.renew(renewal, now_ms=26_000)

    assert lease.state is LeaseState.OPEN
    assert ledger.reserved == 5


def test_a_restarted_broker_adopts_a_lease_from_its_heartbeat() -> None:
    """A lease of an older epoch is held again; its call may have been sent long ago."""
    ledger = ledger_with(50, at=100)
    ledger.renew(Renewal("old", EPOCH - 1, "h", "deal", 1, 7, ttl_ms=15_000), now_ms=200)
    assert ledger.reserved == 7
    said = envelope(43, at=50, consumed=7)
    ledger.settle(settlement("old", said=said, epoch=EPOCH - 1), now_ms=300)

    assert ledger.totals.spent_tokens == 7
    assert ledger.bucket.observed == 50


def test_a_settle_from_an_older_epoch_is_taken_once() -> None:
    """The call was paid before the restart, and the probe at the start includes it."""
    ledger = ledger_with(50, at=1_000)
    said = settlement("old", said=envelope(50, at=500, consumed=5), epoch=EPOCH - 1)
    first, again = ledger.settle(said, 1_100), ledger.settle(said, 1_200)

    assert (first.cost_tokens, again.cost_tokens) == (5, None)
    assert ledger.reserved == 0


def test_misuse_is_named() -> None:
    """Unknown, ended and foreign leases have errors of their own."""
    ledger = ledger_with(50)
    grant(ledger)
    with pytest.raises(LeaseNotFoundError):
        ledger.settle(settlement("nobody", outcome=Outcome.NOT_SENT), 0)
    with pytest.raises(LeaseConflictError):
        ledger.settle(settlement(holder="thief", outcome=Outcome.NOT_SENT), 0)
    with pytest.raises(LeaseConflictError):
        ledger.renew(Renewal("a", EPOCH, "thief", "deal", 1, 5, 1_000), 0)
    ledger.settle(settlement(outcome=Outcome.NOT_SENT), 0)
    with pytest.raises(LeaseEndedError):
        ledger.renew(Renewal("a", EPOCH, "h", "deal", 1, 5, 1_000), 0)
    with pytest.raises(LeaseNotFoundError):
        ledger.renew(Renewal("b", EPOCH, "h", "deal", 1, 5, 1_000), 0)

    assert ledger.reserved == 0


def test_foreign_spending_is_found_and_counted() -> None:
    """When Keepa has less than the books explain, another program uses the key."""
    ledger = ledger_with(50)
    ledger.observe(probe(30, at=5_000))

    assert ledger.drift.foreign_tokens == 20
    assert ledger.drift.last_tokens == -20


def test_an_envelope_without_rate_changes_nothing() -> None:
    """An answer to an invalid key is not a balance of zero."""
    ledger = ledger_with(50)
    taken = ledger.observe(Observation(envelope(0, at=9, rate=0), 9, 9, Source.PROBE))

    assert not taken
    assert ledger.bucket.observed == 50


class Call:
    """A call on its way, in the state machine below."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.cost = lease.tokens
        self.begin_ms: int | None = None
        self.reply: Envelope | None = None


class LedgerMachine(RuleBasedStateMachine):
    """Whatever the order of calls, replies and probes: never oversold, nothing lost.

    Keepa here has no ticks, charges at the start of a call and reports the
    balance as of some moment of it, so replies are old news at times.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 10
        self.true_balance = 200
        self.ledger = ledger_with(200)
        self.calls: dict[str, Call] = {}
        self.spent = 0
        self.number = 0

    @rule(elapsed_ms=st.integers(1, 5_000))
    def time_passes(self, elapsed_ms: int) -> None:
        """The clock moves on."""
        self.now_ms += elapsed_ms

    @rule(tokens=st.integers(1, 30))
    def grant(self, tokens: int) -> None:
        """A grant, if it fits the headroom."""
        if 0 < tokens <= self.ledger.headroom(self.now_ms, projected=False):
            self.number += 1
            lease = grant(self.ledger, str(self.number), tokens, self.now_ms)
            self.calls[lease.lease_id] = Call(lease)

    @precondition(lambda self: any(c.begin_ms is None for c in self.calls.values()))
    @rule(data=st.data(), cheaper=st.integers(0, 10))
    def send(self, data: st.DataObject, cheaper: int) -> None:
        """A call reaches Keepa, which must admit it and charges at once."""
        call = self._pick(data, sent=False)
        assert self.true_balance > 0
        call.begin_ms = self.now_ms
        call.cost = max(0, call.lease.tokens - cheaper)
        self.true_balance -= call.cost
        call.reply = self._says(call.cost, took=0)

    @precondition(lambda self: any(c.begin_ms is not None for c in self.calls.values()))
    @rule(data=st.data(), stale=st.booleans(), delay_ms=st.integers(0, 2_000))
    def settle(self, data: st.DataObject, stale: bool, delay_ms: int) -> None:  # noqa: FBT001
        """A call ends and is settled; its balance may be that of its beginning."""
        call = self._pick(data, sent=True)
        assert call.begin_ms is not None
        assert call.reply is not None
        took = self.now_ms - call.begin_ms
        tokens_left = call.reply.tokens_left if stale else self.true_balance
        said = envelope(tokens_left, at=call.begin_ms, took=took, consumed=call.cost)
        self.now_ms += delay_ms
        del self.calls[call.lease.lease_id]
        self.ledger.settle(settlement(call.lease.lease_id, said=said), self.now_ms)
        self.spent += call.cost

    @rule()
    def probe(self) -> None:
        """Keepa is asked."""
        self.now_ms += 1
        said = self._says(0, took=0)
        self.ledger.observe(Observation(said, self.now_ms, self.now_ms, Source.PROBE))

    def _says(self, cost: int, took: int) -> Envelope:
        return envelope(self.true_balance, at=self.now_ms, took=took, consumed=cost)

    def _pick(self, data: st.DataObject, *, sent: bool) -> Call:
        fitting = [i for i, c in self.calls.items() if (c.begin_ms is not None) is sent]
        return self.calls[data.draw(st.sampled_from(fitting))]

    @invariant()
    def never_oversold(self) -> None:
        """What could be granted is really there once all open calls have been charged."""
        to_come = sum(c.lease.tokens for c in self.calls.values() if c.begin_ms is None)
        free = self.ledger.headroom(self.now_ms, projected=False)
        assert free <= self.true_balance - to_come

    @invariant()
    def books_agree(self) -> None:
        """Reserved is the sum of all holds, and spent what was really charged."""
        assert self.ledger.reserved == sum(lease.held for lease in self.ledger)
        assert self.ledger.totals.spent_tokens == self.spent
        assert self.ledger.open_leases == len(self.calls)

    def teardown(self) -> None:
        """Once everything is settled and asked, the count is exact and nothing is foreign."""
        for lease_id, call in list(self.calls.items()):
            outcome = Outcome.NOT_SENT if call.begin_ms is None else Outcome.REPLIED
            at_ms = call.begin_ms or self.now_ms
            said = envelope(self.true_balance, at=at_ms, consumed=call.cost)
            paid = said if outcome is Outcome.REPLIED else None
            self.ledger.settle(settlement(lease_id, outcome, paid), self.now_ms)
        self.probe()
        assert self.ledger.headroom(self.now_ms, projected=False) == self.true_balance
        assert self.ledger.drift.foreign_tokens == 0
        assert self.ledger.drift.shown_in_flight == 0


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=150, stateful_step_count=40)


def test_server_and_broker_clock_are_never_compared() -> None:
    """A Keepa clock that stands years away changes nothing."""
    ledger = Ledger(EPOCH)
    far = Envelope(SERVER_MS * 2, 0, 50, 0, 30_000, 5)
    ledger.observe(Observation(far, 100, 90, Source.PROBE))

    assert ledger.bucket.next_tick_ms(100) == 100 + 30_000 + TICK_GUARD_MS
