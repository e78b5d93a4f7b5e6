"""Reports of a hostile holder among others with calls in flight.

A call in flight may have been charged or not, so a report that is wrong by no more than
that fits the model. It is found out once that call has ended, by the time at the latest
after which a count that rests on reports is probed.
"""

from dataclasses import dataclass
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.core.allocator import Allocator
from broker.core.bucket import PROBE, Envelope
from broker.core.costs import CALM_CALLS
from broker.core.evidence import CLOCK_SLACK_MS, UNPROBED_TICKS_MOVED_MAX
from broker.core.leases import Granted, Lease, Outcome
from broker.core.ledger import CALL_MS_MAX
from tests.broker.builders import SERVER_MS, envelope, request, settlement
from tests.broker.core.test_evidence import PERIOD_MS, in_step

LUMP = 5
PAGE = 30


@dataclass
class HonestCall:
    """A call of an honest holder; `reply` once Keepa has charged it."""

    lease: Lease
    reply: Envelope | None = None


class World:
    """Keepa, one broker, honest holders with calls in flight, and a hostile one."""

    def __init__(self) -> None:
        self.now_ms, self.balance, self.ticks, self.number = 0, 250, 0, 0
        self.allocator = in_step(self.balance)
        for _ in range(CALM_CALLS):
            self.allocator.costs.learn("page", 1, PAGE, 0)
            self.allocator.costs.learn("tiny", 1, 1, 0)
        self.calls: list[HonestCall] = []
        # What the hostile holder's own calls since the last probe may have spent.
        self.own_tokens = 0

    def passes(self, gap_ms: int) -> None:
        """Time goes on, and lumps land; no honest call takes longer than one may."""
        for call in list(self.calls):
            if call.lease.granted_ms + CALL_MS_MAX <= self.now_ms + gap_ms:
                self.calls.remove(call)
                report = settlement(call.lease.lease_id, said=call.reply, holder=call.lease.holder)
                outcome = Outcome.REPLIED if call.reply else Outcome.NOT_SENT
                self.allocator.settle(replace(report, outcome=outcome), self.now_ms)
        self.now_ms += gap_ms
        while self.next_tick_ms <= self.now_ms:
            self.ticks += 1
            self.balance = max(self.balance, min(300, self.balance + LUMP))
        self.allocator.advance(self.now_ms)

    @property
    def next_tick_ms(self) -> int:
        """When the next lump lands."""
        return 30_000 + self.ticks * PERIOD_MS

    def said(self, consumed: int = 0) -> Envelope:
        """Keepa's true words now."""
        refill_in = self.next_tick_ms - self.now_ms
        return envelope(self.balance, at=self.now_ms, consumed=consumed, refill_in=refill_in)

    def granted(self, holder: str, operation: str, prior: int) -> Lease | None:
        """Asks for a lease; a request that has to wait gives up."""
        self.number += 1
        lease_id = str(self.number)
        asked = request(lease_id, holder=holder, operation=operation, prior=prior)
        self.allocator.acquire(asked, self.now_ms)
        self.probes()
        for outcome in self.allocator.take_outcomes():
            if isinstance(outcome, Granted) and outcome.lease.lease_id == lease_id:
                return outcome.lease
        self.allocator.cancel(lease_id, self.now_ms)
        return None

    def opens(self) -> None:
        """An honest holder starts a call."""
        lease = self.granted(f"h{self.number % 3}", "page", PAGE)
        if lease is not None:
            self.calls.append(HonestCall(lease))

    def charges(self, which: int) -> None:
        """Keepa charges a call; its reply is on the way."""
        pending = [call for call in self.calls if call.reply is None]
        if pending and self.balance > 0:
            call = pending[which % len(pending)]
            self.balance -= PAGE
            call.reply = self.said(PAGE)

    def settles(self, which: int) -> None:
        """A reply has arrived, and the honest holder reports it."""
        replied = [call for call in self.calls if call.reply is not None]
        if replied:
            call = replied[which % len(replied)]
            self.calls.remove(call)
            lease, reply = call.lease, call.reply
            report = settlement(lease.lease_id, said=reply, holder=lease.holder, operation="page")
            self.allocator.settle(report, self.now_ms)

    def lies(self, left: int, consumed: int, ahead_ms: int, outcome: Outcome) -> None:
        """The hostile holder makes no call, and reports one."""
        lease = self.granted("hostile", "tiny", 1)
        if lease is None:
            return
        self.own_tokens += lease.tokens + lease.overrun
        # Near a tick, a later moment is beyond it: keep the next tick where it is.
        at_ms = min(self.now_ms + ahead_ms, self.next_tick_ms - 1)
        lie = replace(
            self.said(consumed),
            tokens_left=self.allocator.ledger.bucket.observed + left,
            server_time_ms=SERVER_MS + at_ms,
            refill_in_ms=self.next_tick_ms - at_ms,
        )
        report = settlement(lease.lease_id, outcome, lie, holder="hostile", operation="tiny")
        self.allocator.settle(report, self.now_ms)

    def probes(self) -> None:
        """Keepa is asked and answers at once, whenever the broker wants it."""
        allocator = self.allocator
        # The gap between probes for doubts is tested elsewhere.
        while allocator.probe_wanted(self.now_ms) or allocator.doubts.pending:
            allocator.probe_started(self.now_ms)
            self.now_ms += 1
            if self.now_ms >= self.next_tick_ms:
                self.passes(0)
            allocator.probe_answered(self.said(), self.now_ms - 1, self.now_ms)
            self.own_tokens = 0

    def check(self) -> None:
        """Others see the truth, but for the liar's own holds and what is in flight."""
        ledger = self.allocator.ledger
        assert ledger.bucket.probed is not None
        uncharged = sum(call.lease.tokens for call in self.calls if call.reply is None)
        true = self.balance - uncharged
        seen = ledger.headroom(self.now_ms, projected=False)
        rounding = 2 + self.ticks_since_probe
        assert seen <= true + self.own_tokens + rounding
        lumps = LUMP * (ledger.bucket.ticks_landed(self.now_ms) + 1)
        assert seen >= true - self.own_tokens - rounding - lumps - 2 * ledger.reserved
        known = ledger.bucket.observation
        assert known is not None
        # A probe's own answer rests on no report, whatever it shows of calls in flight.
        if known.source is not PROBE and ledger.drift.rests_on_reports:
            probed_ms = ledger.bucket.probed.arrived_ms
            assert self.now_ms - probed_ms <= UNPROBED_TICKS_MOVED_MAX * PERIOD_MS + 2_000

    @property
    def ticks_since_probe(self) -> int:
        """Ticks that the last probe could not include."""
        bucket = self.allocator.ledger.bucket
        assert bucket.probed is not None
        return 1 + int((self.now_ms - bucket.probed.arrived_ms) // bucket.period.ms)


LEFT = st.one_of(st.integers(-120, 120), st.sampled_from([-60, -31, -30, -1, 0, 1, 29, 30, 60]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("opens")),
        st.tuples(st.sampled_from(["charges", "settles"]), st.integers(0, 4)),
        st.tuples(st.just("passes"), st.sampled_from([1, 40, 1_100, 20_000, 61_000])),
        st.tuples(
            st.just("lies"),
            LEFT,
            st.sampled_from([0, 1, 2, 30]),
            st.sampled_from([0, 1, CLOCK_SLACK_MS - 10]),
            st.sampled_from([Outcome.REPLIED, Outcome.REFUSED]),
        ),
    ),
    max_size=30,
)


# A probe that a lie has caused shows a call in flight, and time goes on.
PROBED_IN_FLIGHT = [
    ("opens",),
    ("charges", 0),
    ("lies", 0, 2, 0, Outcome.REPLIED),
    ("passes", 61_000),
    ("passes", 40_000),
]


@settings(max_examples=150)
@given(STEPS)
@example(PROBED_IN_FLIGHT)
def test_a_lie_among_calls_in_flight_is_bounded(steps: list[tuple[Any, ...]]) -> None:
    """By the liar's own holds, and by what others hold while it is in flight."""
    world = World()
    for name, *arguments in steps:
        world.passes(1)
        getattr(world, name)(*arguments)
        world.probes()
        world.check()
    while world.calls:
        world.passes(50)
        world.charges(0)
        world.settles(0)
        world.probes()
    world.check()


def lied_while_one_is_in_flight(left: int, *, charged: bool) -> World:
    """An honest call is in flight; Keepa may have charged it; then comes a lie."""
    world = World()
    world.opens()
    world.passes(10)
    if charged:
        world.charges(0)
        # The true reply to another call shows that charge.
        lease = world.granted("other", "tiny", 1)
        assert lease is not None
        world.balance -= 1
        said = world.said(1)
        report = settlement(lease.lease_id, said=said, holder="other", operation="tiny")
        world.allocator.settle(report, world.now_ms)
    world.passes(10)
    world.lies(left, 0, 500, Outcome.REPLIED)
    return world


def test_a_lie_that_hides_behind_a_call_ends_with_that_call() -> None:
    """The count is 30 too low; the reply that should have shown it has nothing left to show."""
    world = lied_while_one_is_in_flight(-PAGE, charged=False)
    assert world.allocator.ledger.bucket.observed == 250 - PAGE
    assert not world.allocator.probe_wanted(world.now_ms)
    call = world.calls.pop()
    not_sent = settlement(call.lease.lease_id, Outcome.NOT_SENT, holder=call.lease.holder)
    world.allocator.settle(not_sent, world.now_ms)

    assert world.allocator.ledger.contradicts_itself
    assert world.allocator.probe_wanted(world.now_ms)
    world.probes()
    assert world.allocator.ledger.headroom(world.now_ms, projected=False) == 250
    assert not world.allocator.ledger.contradicts_itself


def test_a_lie_that_denies_a_charge_ends_with_that_call() -> None:
    """The count is 30 too high; the call that it must include does not show in it."""
    world = lied_while_one_is_in_flight(PAGE, charged=True)
    assert world.allocator.ledger.bucket.observed == 249
    world.settles(0)

    assert world.allocator.probe_wanted(world.now_ms)
    world.probes()
    assert world.allocator.ledger.headroom(world.now_ms, projected=False) == 219


def test_a_lie_behind_a_call_that_does_not_end_is_found_out_by_the_next_probe() -> None:
    """A hung call hides it for a tick and a half, not longer; an idle broker wakes for that."""
    world = lied_while_one_is_in_flight(-PAGE, charged=False)
    allocator, wakes = world.allocator, 0
    while not allocator.probe_wanted(world.now_ms):
        wake_ms = allocator.next_wake_ms(world.now_ms)
        assert wake_ms is not None
        world.passes(wake_ms - world.now_ms)
        wakes += 1

    assert world.now_ms <= UNPROBED_TICKS_MOVED_MAX * PERIOD_MS + 2
    assert wakes < 10
    world.probes()
    assert allocator.ledger.bucket.observed == world.balance


def test_a_lie_does_not_free_the_hold_of_a_lost_call() -> None:
    """A report that is one token low is no proof that the lapsed lease beside it is over."""
    world = World()
    world.opens()
    world.passes(20_000)
    world.lies(-1, 0, 0, Outcome.REPLIED)

    assert world.allocator.ledger.lease(world.calls[0].lease.lease_id) is not None
    assert world.allocator.ledger.reserved == PAGE


def test_what_a_lie_leaves_behind_does_not_free_the_hold_of_a_lost_call() -> None:
    """A report one token too high makes the next probe look like a charge of one."""
    world = World()
    world.opens()
    world.passes(20_000)
    for _ in range(2):
        world.passes(1)
        world.lies(1, 0, 0, Outcome.REPLIED)
    world.probes()

    assert world.allocator.ledger.reserved == PAGE
    assert world.allocator.ledger.headroom(world.now_ms, projected=False) == 250 - PAGE


def test_small_steps_do_not_add_up() -> None:
    """A token too many in each report, hundreds of times, is not taken for rounding."""
    world, told = World(), 0
    for _ in range(20):
        world.passes(10)
        world.lies(1, 0, 0, Outcome.REPLIED)
        told = max(told, world.allocator.ledger.bucket.observed)
        world.allocator.doubts.decided()

    assert told <= 251


def lumps_hidden(allocator: Allocator) -> int:
    """Tokens of lumps that reports have hidden."""
    return allocator.ledger.drift._owed_tokens


def test_what_was_missing_before_a_probe_explains_nothing_after_it() -> None:
    """A lump that a reply lacked long ago is no room for a count that is too high."""
    world = World()
    world.passes(29_000)
    lease = world.granted("h", "tiny", 1)
    assert lease is not None
    world.passes(2_000)
    world.balance -= 1
    straddling = replace(
        world.said(1),
        server_time_ms=SERVER_MS + 29_500,
        processing_ms=1_500,
        tokens_left=249,
    )
    report = settlement(lease.lease_id, said=straddling, operation="tiny")
    assert world.allocator.settle(report, world.now_ms).doubt is None
    assert lumps_hidden(world.allocator) == LUMP
    world.allocator.doubts.raised()
    world.probes()

    assert world.allocator.ledger.bucket.observed == world.balance
    assert lumps_hidden(world.allocator) == 0
