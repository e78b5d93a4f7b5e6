"""Every difference between Keepa's count and ours gets a cause."""

import pytest

from broker.core.bucket import Observation, Source
from broker.core.drift import Cause, Drift
from broker.core.leases import Outcome
from broker.core.ledger import Ledger
from tests.broker.builders import EPOCH, envelope, probe, request, settlement


def ledger_with(tokens: int, **said: int) -> Ledger:
    """A ledger that has seen *tokens*."""
    ledger = Ledger(EPOCH)
    ledger.observe(probe(tokens, at=0, **said))
    return ledger


def causes(ledger: Ledger) -> dict[str, int]:
    """The causes that count for something."""
    return {c.value: tokens for c, tokens in ledger.drift.by_cause.items() if tokens}


def test_a_charge_seen_before_its_settle_is_in_flight() -> None:
    """It is not foreign, and it is taken back when the settle comes."""
    ledger = ledger_with(50)
    ledger.reserve(request(), 1, 5, 10)
    ledger.observe(probe(45, at=100))
    assert causes(ledger) == {"in_flight": -5}
    ledger.settle(settlement(said=envelope(45, at=90, took=20, consumed=5)), 200)

    assert causes(ledger) == {}
    assert ledger.drift.foreign_tokens == 0


def test_a_call_dearer_than_its_hold_is_an_estimate_error() -> None:
    """What the hold missed is booked as such, not as a stranger's."""
    ledger = ledger_with(50)
    ledger.reserve(request(), 1, 5, 10, overrun=5)
    ledger.settle(settlement(said=envelope(42, at=100, consumed=8)), 110)

    assert causes(ledger) == {"estimate": -3}
    assert ledger.drift.last_tokens == -3


def test_an_overrun_seen_early_is_not_left_with_strangers() -> None:
    """A charge above the hold looks foreign until the settle explains it."""
    ledger = ledger_with(50)
    ledger.reserve(request(), 1, 5, 10, overrun=15)
    ledger.observe(probe(30, at=100))
    assert ledger.drift.foreign_tokens == 15
    ledger.settle(settlement(said=envelope(30, at=150, consumed=20)), 200)

    assert ledger.drift.foreign_tokens == 0
    assert causes(ledger) == {"estimate": -15}


def test_foreign_spend_behind_a_hold_comes_out_when_the_hold_ends() -> None:
    """Tokens that a call in flight seemed to explain were foreign after all."""
    ledger = ledger_with(50)
    ledger.reserve(request(), 1, 5, 10)
    ledger.observe(probe(45, at=100))
    ledger.settle(settlement(outcome=Outcome.NOT_SENT), 200)
    ledger.observe(probe(45, at=300))

    assert ledger.drift.foreign_tokens == 5
    assert causes(ledger) == {"foreign": -5}


def test_less_refill_through_flow_reduction_has_its_own_name() -> None:
    """Tokens that Keepa diverted from the refill are not foreign spend."""
    ledger = ledger_with(50, refill_in=1_000)
    said = envelope(53, at=2_000, refill_in=59_200, reduction=2.0)
    ledger.observe(Observation(said, 2_000, 2_000, Source.PROBE))

    assert causes(ledger) == {"flow_reduction": -2}


def test_an_upgraded_plan_is_refill_not_a_gift() -> None:
    """More refill than predicted, at a new rate, is put down to the refill."""
    ledger = ledger_with(50, refill_in=1_000)
    ledger.observe(probe(70, at=2_000, refill_in=59_200, rate=20))

    assert causes(ledger) == {"refill": 15}
    assert ledger.bucket.capacity == 1_200


def test_a_plan_that_ends_takes_no_shown_charge_back() -> None:
    """A tick of the old plan explains the count as it is: no call in flight has to move."""
    ledger = ledger_with(50, rate=20, refill_in=1_000)
    ledger.reserve(request(), 1, 20, 10)
    ledger.observe(probe(30, at=100, rate=20, refill_in=900))
    ledger.observe(probe(50, at=2_000, rate=5, refill_in=59_000))

    assert causes(ledger) == {"in_flight": -20}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # A tick of 32 and two more calls; with one of 16, 6 of the 15 would have come back.
        (85 + 32 - 10, {"in_flight": -25, "refill": 16}),
        # A tick of 16, and one call has not been charged after all; with one of 32, 11 more had.
        (85 + 16 + 5, {"in_flight": -10}),
    ],
)
def test_what_a_changed_plan_leaves_shown_is_a_sum_of_calls(
    tokens: int, expected: dict[str, int]
) -> None:
    """Calls are charged whole: of two explanations, the one with a part of a call is wrong."""
    ledger = ledger_with(100, rate=16, refill_in=1_000)
    for name in "abcdef":
        ledger.reserve(request(name), 1, 5, 10)
    ledger.observe(probe(85, at=100, rate=16, refill_in=900))
    ledger.observe(probe(tokens, at=2_000, rate=32, refill_in=59_000))

    assert causes(ledger) == expected


def test_a_call_before_the_tick_of_a_smaller_plan_lapses_nothing() -> None:
    """The new capacity cuts what was left after the call, and calls in flight stay unshown."""
    ledger = ledger_with(298, rate=20, refill_in=1_000)
    ledger.reserve(request("a"), 1, 5, 10)
    ledger.reserve(request("b"), 1, 40, 10)
    ledger.settle(settlement("a", said=envelope(293, at=90, rate=20, consumed=5)), 100)
    ledger.observe(probe(298, at=2_000, rate=5, refill_in=59_000))

    assert causes(ledger) == {"refill": -15}


def in_step(tokens: int) -> Ledger:
    """A ledger that has seen *tokens* and two ticks; the next one lands at 1,000 ms."""
    ledger = Ledger(EPOCH)
    ledger.observe(probe(tokens, at=-120_200, refill_in=800))
    ledger.observe(probe(tokens, at=-119_200, refill_in=60_000))
    ledger.observe(probe(tokens, at=0, refill_in=1_000))
    ledger.drift = Drift()
    return ledger


def test_spending_before_the_tick_loses_less_at_capacity() -> None:
    """The order of a charge and a tick at a full bucket explains a small surplus."""
    ledger = in_step(298)
    ledger.reserve(request(), 1, 5, 10)
    ledger.settle(settlement(said=envelope(298, at=2_000, consumed=5, refill_in=59_200)), 2_010)

    assert causes(ledger) == {"refill": 3}


def test_a_tick_during_processing_is_a_matter_of_phase() -> None:
    """RefillIn may already count a tick that tokensLeft does not show yet."""
    ledger = in_step(50)
    ledger.reserve(request(), 1, 5, 10)
    said = envelope(45, at=900, took=200, consumed=5, refill_in=60_100)
    ledger.settle(settlement(said=said), 1_110)
    assert causes(ledger) == {"refill": -5}
    ledger.observe(probe(50, at=2_000, refill_in=59_200))

    assert causes(ledger) == {}
    assert ledger.drift.by_cause[Cause.FOREIGN] == 0
