"""A full bucket hides charges: what a lost call has cost then is an estimate, and marked."""

import pytest

from broker.core import records
from broker.core.leases import Outcome
from broker.core.ledger import CALL_MS_MAX, Ledger
from broker.core.records import Carried, Observed, WrittenOff
from broker.core.replay import Replay
from tests.broker.builders import EPOCH, envelope, probe, request, settlement
from tests.broker.core.test_recovery import Successor

# Of a plan of 5 tokens per tick.
FULL = 300
# A tick of the plan lands in each of these intervals.
TICK_MS = 60_200
LATE_MS = CALL_MS_MAX + 10_000


def counted(ledger: Ledger, tokens: int, at: int, rate: int = 5) -> None:
    """Keepa's count at a time; ticks land at whole periods."""
    ledger.observe(probe(tokens, at=at, refill_in=TICK_MS - at % TICK_MS, rate=rate))


def lost_call(tokens: int, then: int, last: int) -> Ledger:
    """A call of 5 tokens that loses its reply, beside Keepa's counts before and after it."""
    ledger = Ledger(EPOCH)
    counted(ledger, tokens, 0)
    ledger.reserve(request("a"), 1, 5, 10)
    ledger.settle(settlement(outcome=Outcome.UNKNOWN), 1_000)
    # Another call is under way, so that no count can be put down to the lost one alone.
    ledger.reserve(request("b", ttl_ms=600_000), 1, 5, 1_000)
    counted(ledger, then, TICK_MS + 10)
    counted(ledger, last, LATE_MS)
    return ledger


def write_offs(ledger: Ledger) -> list[tuple[int, int]]:
    """Cost and unwitnessed part of each call given up."""
    return [
        (made.cost, made.unwitnessed) for made in ledger.records if isinstance(made, WrittenOff)
    ]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((100, 100, 105), (5, 0)), ((100, 105, 110), (0, 0)), ((FULL, FULL, FULL), (5, 5))],
    ids=["charged", "not charged", "hidden"],
)
def test_a_lost_call_costs_what_shows_or_what_was_held_if_nothing_can(
    counts: tuple[int, int, int], expected: tuple[int, int]
) -> None:
    """Refill that would have lapsed makes up for the charge: no count shows whether it was."""
    ledger = lost_call(*counts)

    assert write_offs(ledger) == [expected]
    assert ledger.totals.written_off_tokens == expected[0]


def test_a_late_settle_replaces_the_estimate() -> None:
    """The call counts at its cost, once, and the estimate leaves nothing behind."""
    ledger = lost_call(FULL, FULL, FULL)
    said = envelope(FULL - 3, at=100, consumed=3)
    ledger.settle(settlement(said=said, tokens=5), LATE_MS + 10)

    assert (ledger.totals.spent_tokens, ledger.totals.written_off_tokens) == (3, 0)
    assert ledger.drift.shown_in_flight == 0


def test_a_late_settle_takes_the_estimate_out_of_the_audit() -> None:
    """The replay counts the unwitnessed tokens, until the call is settled after all."""
    made = list(lost_call(FULL, FULL, FULL).records)
    replay = Replay()
    replay.take(records.Started(0, EPOCH, 600_000))
    for record in made:
        if isinstance(record, WrittenOff):
            replay.take(record)
    assert replay.sums.unwitnessed_tokens == 5
    replay.take(records.Corrected(LATE_MS + 10, "a", "h", "deal", -5))

    assert replay.sums.unwitnessed_tokens == 0
    assert replay.spend["h", "deal"].tokens == 0


@pytest.mark.parametrize(("tokens", "expected"), [(100, (0, 0)), (FULL, (5, 5))])
def test_a_new_epoch_takes_over_since_when_counts_show_every_call(
    tokens: int, expected: tuple[int, int]
) -> None:
    """The old books show whether the bucket was full; the new ledger's first count does not."""
    kept: list[records.Record] = []
    for count, at_ms in ((tokens, 0), (min(FULL, tokens + 5), TICK_MS + 10)):
        said = envelope(count, at=at_ms, refill_in=TICK_MS - at_ms % TICK_MS)
        kept.append(Observed(at_ms, at_ms, said, taken=True))
    held = Carried(20, "a", "h", "deal", 1, 5, 0, 10, 30, lapsed=True, request=request("a"))
    after = Successor([kept[0], held, kept[1]], held, at_ms=TICK_MS + 20)
    for at_ms in (TICK_MS + 30, LATE_MS):
        ticks = at_ms // TICK_MS
        after.allocator.probe_started(at_ms)
        said = envelope(
            min(FULL, tokens + 5 * ticks), at=at_ms, refill_in=TICK_MS - at_ms % TICK_MS
        )
        after.allocator.probe_answered(said, at_ms, at_ms)
    made = [record for record in after.recorded() if isinstance(record, WrittenOff)]

    assert [(record.cost, record.unwitnessed) for record in made] == [expected]


def test_a_lower_plan_explains_that_a_bucket_above_its_capacity_gets_nothing() -> None:
    """Found by chaos: the plan was cut back while the bucket stood above the old capacity."""
    ledger = Ledger(EPOCH)
    counted(ledger, 320, 0, rate=10)
    counted(ledger, 320, TICK_MS + 10, rate=5)

    assert ledger.drift.foreign_tokens == 0


def test_a_higher_plan_explains_all_that_a_full_bucket_gets() -> None:
    """Under the old plan it would have got nothing."""
    ledger = Ledger(EPOCH)
    counted(ledger, FULL, 0)
    counted(ledger, FULL + 10, TICK_MS + 10, rate=10)

    assert ledger.drift.last_unexplained_tokens == 0


def test_a_plan_that_ends_before_the_tick_explains_all_its_lack() -> None:
    """Found by chaos: a charge that an earlier count had shown was counted again as foreign."""
    ledger = Ledger(EPOCH)
    counted(ledger, 72, 0, rate=32)
    ledger.reserve(request("a"), 1, 5, 10)
    counted(ledger, 67, 100, rate=32)
    ledger.settle(settlement(said=envelope(67, at=50, consumed=5)), 200)
    counted(ledger, 83, TICK_MS + 10, rate=16)

    assert ledger.drift.foreign_tokens == 0
    assert ledger.drift.last_unexplained_tokens == 0


def test_a_call_without_a_record_takes_nothing_from_a_lost_one() -> None:
    """Found by chaos: both were part of the first count, and the lost one was booked at less."""
    kept: list[records.Record] = [Observed(0, 0, envelope(100), taken=True)]
    held = Carried(20, "a", "h", "deal", 1, 5, 0, 10, 30, lapsed=True, request=request("a"))
    after = Successor([*kept, held], held, at_ms=900)
    after.allocator.probe_started(1_000)
    after.allocator.probe_answered(envelope(75, at=1_000), 1_000, 1_000)
    booked = sum(after.unrecorded())
    # 25 went: 5 for the lost call, and 20 for one that the old leader did not record.
    assert booked == 20
    after.allocator.settle(settlement("b", said=envelope(75, at=500, consumed=20)), 1_100)
    booked += sum(after.unrecorded())
    assert booked == 0
    after.allocator.probe_started(LATE_MS)
    after.allocator.probe_answered(
        envelope(75, at=LATE_MS, refill_in=10_000_000 - LATE_MS), LATE_MS, LATE_MS
    )
    costs = [made.cost for made in after.recorded() if isinstance(made, WrittenOff)]

    assert costs == [5]


def test_a_replay_from_the_middle_begins_with_what_the_counts_had_shown() -> None:
    """Found by chaos: the books of a new leader held for calls given up before they began."""
    ledger = Ledger(EPOCH)
    counted(ledger, 100, 0)
    ledger.reserve(request("a"), 1, 5, 10)
    ledger.reserve(request("b", ttl_ms=600_000), 1, 5, 10)
    ledger.settle(settlement(outcome=Outcome.UNKNOWN), 1_000)
    counted(ledger, 95, 2_000)
    counted(ledger, 95, 3_000)
    *_, middle = ledger.records
    assert isinstance(middle, Observed)
    counted(ledger, 100, TICK_MS + 10)
    counted(ledger, 105, LATE_MS)
    replay = Replay()
    for lease_id, ttl_ms in (("a", 20), ("b", 600_000)):
        replay.take(
            Carried(
                2_500, lease_id, "h", "deal", 1, 5, 0, 10, 10 + ttl_ms,
                lapsed=lease_id == "a", request=request(lease_id, ttl_ms=ttl_ms),
            )
        )  # fmt: skip
    start = list(ledger.records).index(middle)
    for record in list(ledger.records)[start:]:
        replay.take(record)

    assert write_offs(ledger) == [(5, 0)]
    assert replay.ledger.drift.shown_in_flight == ledger.drift.shown_in_flight == 0
    assert replay.ledger.shows_since_ms == ledger.shows_since_ms == 0
    assert replay.ledger.reserved == ledger.reserved == 5


def test_a_replay_gives_up_what_was_given_up() -> None:
    """A hold with which it began ends as the record has it, whatever its own counts show."""
    replay = Replay()
    replay.take(Carried(0, "a", "h", "deal", 1, 5, 0, 10, 30, lapsed=True, request=request("a")))
    replay.take(Observed(10, 10, envelope(95, at=10), taken=True))
    replay.take(WrittenOff(20, "a", "h", "deal", 1, 5, 5, 10))

    assert replay.ledger.reserved == 0
    assert replay.spend["h", "deal"].tokens == 5


def test_a_lost_call_is_not_given_up_while_others_may_have_been_charged() -> None:
    """Found by chaos: what calls without a record had cost was booked to the lost one."""
    kept: list[records.Record] = [Observed(0, 0, envelope(100), taken=True)]
    held = Carried(20, "a", "h", "deal", 1, 5, 0, 10, 30, lapsed=True, request=request("a"))
    after = Successor([*kept, held], held, at_ms=900)
    for at_ms in (1_000, 2_000):
        after.allocator.probe_started(at_ms)
        after.allocator.probe_answered(envelope(95, at=at_ms), at_ms, at_ms)
    # The five tokens were those of another call, and the lost one was never sent.
    after.allocator.settle(settlement("b", said=envelope(95, at=500, consumed=5)), 3_000)
    after.allocator.probe_started(LATE_MS)
    after.allocator.probe_answered(
        envelope(95, at=LATE_MS, refill_in=10_000_000 - LATE_MS), LATE_MS, LATE_MS
    )
    costs = [made.cost for made in after.recorded() if isinstance(made, WrittenOff)]

    assert costs == [0]
    assert after.allocator.ledger.totals.spent_tokens == 5
