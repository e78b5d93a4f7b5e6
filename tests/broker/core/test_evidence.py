"""Reports of clients: what is believed, what a probe decides, and what can do no harm."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.core.allocator import Allocator
from broker.core.bucket import Envelope
from broker.core.drift import Cause
from broker.core.evidence import CHECK_GAP_MS_MIN, UNPROBED_TICKS_MAX, Doubt, Doubts
from broker.core.leases import Granted, Outcome, Settled
from broker.core.probing import PATIENCE_MS
from tests.broker.builders import SERVER_MS, envelope, request, settlement, synced

PERIOD_MS = 60_200
YEARS_MS = 10 * 365 * 86_400_000


def probed(allocator: Allocator, said: Envelope, now_ms: int) -> None:
    """Keepa answers a probe at once."""
    allocator.probe_started(now_ms)
    allocator.probe_answered(said, now_ms, now_ms)


def in_step(tokens: int = 50) -> Allocator:
    """An allocator with a learned period; it is 0 ms, and the next tick lands at 30,000 ms."""
    allocator = synced(tokens - 10, at=-91_400, refill_in=1_000)
    probed(allocator, envelope(tokens - 5, at=-89_400, refill_in=PERIOD_MS - 1_000), -89_400)
    probed(allocator, envelope(tokens, at=0, refill_in=30_000), 0)
    return allocator


def reported(allocator: Allocator, said: Envelope, now_ms: int, lease_id: str = "a") -> Settled:
    """A lease is granted, and settled 100 ms later with an envelope."""
    allocator.acquire(request(lease_id), now_ms - 100)
    return allocator.settle(settlement(lease_id, said=said), now_ms)


def fair(at: int = 950, left: int = 45, **changes: int) -> Envelope:
    """Keepa's envelope after one call for five tokens."""
    fields = {"consumed": 5, "refill_in": 30_000 - at, **changes}
    return envelope(left, at=at, **fields)


def test_a_report_that_fits_is_an_observation() -> None:
    """While calls flow, their envelopes are the sync."""
    allocator = in_step()
    settled = reported(allocator, fair(), 1_000)

    assert settled.doubt is None
    assert allocator.ledger.bucket.observed == 45
    assert allocator.ledger.reserved == 0
    assert not allocator.probe_wanted(1_000)


@pytest.mark.parametrize(
    ("said", "doubt"),
    [
        (fair(rate=900), Doubt.PLAN),
        (replace(fair(), token_flow_reduction=1.0), Doubt.PLAN),
        (replace(fair(), server_time_ms=SERVER_MS + YEARS_MS), Doubt.CLOCK),
        (replace(fair(), server_time_ms=SERVER_MS - 90_000, processing_ms=91_000), Doubt.CLOCK),
        (fair(refill_in=10_000), Doubt.TICK),
        (fair(refill_in=29_050 + 1_000 * PERIOD_MS), Doubt.TICK),
        (fair(consumed=400), Doubt.COST),
        (fair(left=29, consumed=21), Doubt.COST),
        (fair(left=100_000_000), Doubt.MORE),
        (fair(left=51), Doubt.MORE),
        (fair(left=-100_000_000), Doubt.FEWER),
        (fair(left=30), Doubt.FEWER),
    ],
)
def test_a_report_that_does_not_fit_moves_nothing(said: Envelope, doubt: Doubt) -> None:
    """Counts, plan, capacity, tick and foreign spending stay; a probe is wanted."""
    allocator = in_step()
    bucket, drift = allocator.ledger.bucket, allocator.ledger.drift
    before = (bucket.observation, bucket.capacity, bucket.period.ms, bucket.next_tick_ms(1_000))
    settled = reported(allocator, said, 1_000)
    after = (bucket.observation, bucket.capacity, bucket.period.ms, bucket.next_tick_ms(1_000))

    assert settled.doubt is doubt
    assert after == before
    assert drift.foreign_tokens == drift.by_cause[Cause.FOREIGN] == 0
    assert allocator.ledger.totals.implausible_reports == 1
    assert allocator.ledger.reserved == min(said.tokens_consumed, 300)
    assert allocator.probe_wanted(1_000)


def test_a_probe_decides_at_once() -> None:
    """A true report that did not fit costs one probe: the next count is Keepa's."""
    allocator = in_step()
    reported(allocator, fair(left=30), 1_000)
    probed(allocator, fair(at=1_100, left=30, consumed=0), 1_100)

    assert allocator.ledger.bucket.observed == 30
    assert allocator.ledger.reserved == 0
    assert allocator.ledger.drift.foreign_tokens == 15
    assert not allocator.probe_wanted(1_100)


def test_nothing_is_granted_from_a_count_in_doubt() -> None:
    """Others wait for the probe's answer, and not for longer than it takes."""
    allocator = in_step()
    reported(allocator, fair(left=-3), 1_000)
    allocator.take_outcomes()
    allocator.acquire(request("next"), 1_001)
    assert allocator.take_outcomes() == []
    probed(allocator, fair(at=1_100, left=45, consumed=0), 1_100)

    assert [type(outcome) for outcome in allocator.take_outcomes()] == [Granted]


@pytest.mark.parametrize(("age_ms", "asked_ms"), [(0, 5_500), (1_200, 8_300)])
def test_a_doubt_does_not_wait_out_the_pauses_of_an_outage_that_is_over(
    age_ms: int, asked_ms: int
) -> None:
    """Others have emptied the bucket: until Keepa is asked, every call is refused.

    A reply from before the last failure shows nothing.
    """
    allocator = in_step()
    for started_ms in (1_000, 2_100, 4_200):
        allocator.probe_started(started_ms)
        allocator.probe_failed(started_ms + 100)
    allocator.acquire(request(), 5_400)
    refused = settlement(outcome=Outcome.REFUSED, said=fair(at=5_450, left=-3, consumed=0))
    allocator.settle(replace(refused, age_ms=age_ms), 5_500)
    asked = next(ms for ms in range(5_500, 9_000, 100) if allocator.probe_wanted(ms))

    assert asked == asked_ms


def refused_twice() -> Allocator:
    """Keepa refuses holder h once more while the gap before the next question lasts."""
    allocator = in_step()
    for at in (1_000, 1_500):
        allocator.acquire(request(f"r{at}"), at - 100)
        said = fair(at=at - 50, left=-3, consumed=0)
        allocator.settle(settlement(f"r{at}", outcome=Outcome.REFUSED, said=said), at)
        if allocator.probe_wanted(at):
            probed(allocator, fair(at=at + 100, left=45, consumed=0), at + 100)
    allocator.take_outcomes()
    allocator.acquire(request("again"), 1_510)
    return allocator


def test_a_refused_holder_is_not_granted_again_until_keepa_is_asked() -> None:
    """By its report it would be refused; others may trust the count, and go on."""
    allocator = refused_twice()
    allocator.acquire(request("other", holder="o"), 1_520)
    granted = [outcome.lease.lease_id for outcome in grants(allocator)]
    asked = next(ms for ms in range(1_520, 9_000, 10) if allocator.probe_wanted(ms))
    due_ms = allocator.next_wake_ms(1_520)
    allocator.settle(settlement("other", holder="o", said=fair(at=1_600, left=40)), 1_700)
    assert grants(allocator) == []
    probed(allocator, fair(at=asked, left=40, consumed=0), asked)

    assert granted == ["other"]
    assert asked == due_ms == 1_100 + CHECK_GAP_MS_MIN
    assert [outcome.lease.lease_id for outcome in grants(allocator)] == ["again"]


def test_a_refused_holder_is_granted_when_keepa_can_t_be_asked() -> None:
    """A failed probe, or one without an answer, leaves the count as the best there is."""
    failed, silent = refused_twice(), refused_twice()
    for allocator in (failed, silent):
        allocator.probe_started(2_110)
    failed.probe_failed(2_120)
    silent.advance(2_110 + PATIENCE_MS - 1)
    assert grants(silent) == []
    silent.advance(2_110 + PATIENCE_MS)

    for allocator in (failed, silent):
        assert [outcome.lease.lease_id for outcome in grants(allocator)] == ["again"]


def grants(allocator: Allocator) -> list[Granted]:
    """The grants since the last call."""
    return [outcome for outcome in allocator.take_outcomes() if isinstance(outcome, Granted)]


def test_the_first_count_is_a_probe_s() -> None:
    """Before Keepa has answered the broker itself, no report sets balance or plan."""
    allocator = synced(50)
    fresh = Allocator(allocator.config, epoch=9, started_ms=0)
    fresh.settle(settlement("old", said=fair(rate=900), epoch=3), 10)

    assert fresh.ledger.bucket.observation is None
    assert fresh.ledger.bucket.capacity == 0


def test_before_two_ticks_only_probes_place_them() -> None:
    """No report teaches the broker a period of a tenth of a second, or of a year."""
    allocator = synced(50, refill_in=30_000)
    for number, refill_in in enumerate((300, YEARS_MS)):
        lease_id, now_ms = f"a{number}", 1_000 * (number + 1)
        said = fair(at=now_ms - 50, left=45, refill_in=refill_in)
        assert reported(allocator, said, now_ms, lease_id).doubt is Doubt.TICK
        allocator.doubts.decided()

    assert not allocator.ledger.bucket.period.placed
    assert allocator.ledger.bucket.next_tick_ms(2_000) < 31_000


def test_a_late_reply_does_not_put_the_tick_off() -> None:
    """A reply that was long on its way places the tick where Keepa's clock has it."""
    allocator = in_step()
    allocator.acquire(request(), 50_000)
    said = envelope(50, at=50_100, consumed=5, refill_in=40_100)
    allocator.settle(settlement(said=said), 85_000)

    assert allocator.ledger.bucket.observed == 50
    assert allocator.ledger.bucket.next_tick_ms(85_000) < 90_200 + 200


def test_small_steps_of_the_clock_do_not_add_up() -> None:
    """However many reports there are, Keepa's clock stays near where a probe saw it."""
    allocator = in_step(300)
    doubts = []
    for number in range(10):
        now_ms = 1_000 + 10 * number
        ahead_ms = 1_500 * (number + 1)
        left = allocator.ledger.bucket.observed
        said = fair(at=now_ms + ahead_ms, left=left - 5, refill_in=29_000 - ahead_ms)
        doubts.append(reported(allocator, said, now_ms, f"a{number}").doubt)
        allocator.doubts.decided()

    assert set(doubts[1:]) == {Doubt.CLOCK}


def test_reports_alone_are_checked_now_and_then() -> None:
    """A chain of reports that fit each other ends in a probe after some ticks."""
    allocator, asked = in_step(), []
    for tick in range(1, UNPROBED_TICKS_MAX + 2):
        now_ms = tick * PERIOD_MS
        said = envelope(50, at=now_ms - 50, consumed=5, refill_in=30_050)
        assert reported(allocator, said, now_ms, f"a{tick}").doubt is None
        asked.append(allocator.probe_wanted(now_ms))

    assert asked == [False] * UNPROBED_TICKS_MAX + [True]


def test_doubts_do_not_make_the_broker_poll() -> None:
    """A holder that reports nonsense all the time causes a probe a tick, and a few at first."""
    doubts, probes = Doubts(), 0
    for now_ms in range(0, 10 * PERIOD_MS, 50):
        doubts.raised()
        if doubts.due(now_ms):
            probes += 1
            doubts.asked(now_ms, PERIOD_MS)
            doubts.decided()

    assert probes <= 10 + 7


def test_a_true_report_after_quiet_times_is_checked_at_once() -> None:
    """The gap between checks shrinks again."""
    doubts = Doubts()
    for now_ms in (0, 5_000, 500_000):
        doubts.raised()
        assert doubts.due(now_ms)
        doubts.asked(now_ms, PERIOD_MS)
        doubts.decided()
    doubts.raised()

    assert doubts.next_wake_ms(500_001) == 500_000 + CHECK_GAP_MS_MIN


def test_an_invented_price_is_not_learned() -> None:
    """A report of 300 tokens for a page prices no other request out."""
    allocator = in_step(300)
    for number in range(4):
        now_ms = 1_000 * (number + 1)
        reported(allocator, fair(at=now_ms - 50, left=0, consumed=300), now_ms, f"a{number}")
        probed(allocator, fair(at=now_ms, left=300, consumed=0), now_ms)

    assert allocator.costs.estimate("deal", 1, 5) == 5


def test_a_dear_price_is_learned_once_keepa_s_count_shows_it() -> None:
    """A caller with a prior far too low is believed after a probe."""
    allocator = in_step(300)
    reported(allocator, fair(left=200, consumed=100), 1_000)
    assert allocator.costs.estimate("deal", 1, 5) == 5
    probed(allocator, fair(at=1_100, left=200, consumed=0), 1_100)

    assert allocator.costs.estimate("deal", 1, 5) == 100


counts = st.one_of(st.integers(-400, 400), st.sampled_from([-(10**9), -(10**8), 10**8, 10**9]))
HOSTILE = st.fixed_dictionaries(
    {
        "gap_ms": st.integers(1, 40_000),
        "left": counts,
        "relative": st.booleans(),
        "consumed": st.one_of(st.integers(0, 30), st.sampled_from([300, 10**9])),
        "ahead_ms": st.one_of(
            st.integers(-100, 100), st.integers(-3_000, 3_000), st.just(YEARS_MS)
        ),
        "took": st.one_of(st.just(0), st.integers(0, 5_000), st.just(10**9)),
        "tick_off_ms": st.one_of(st.just(0), st.just(0), st.integers(-5_000, 5_000)),
        "rate": st.sampled_from([5, 5, 5, 5, 1, 900, 10**6]),
        "reduction": st.sampled_from([0.0, 0.0, 0.0, 1.0, 1e9]),
        "age_ms": st.sampled_from([0, 0, 50, 10_000, YEARS_MS]),
        "outcome": st.sampled_from([Outcome.REPLIED, Outcome.REPLIED, Outcome.REFUSED]),
        "probe": st.booleans(),
    }
)


@settings(max_examples=60)
@given(st.lists(HOSTILE, min_size=1, max_size=12))
def test_no_hostile_holder_moves_the_count_of_others(steps: list[dict[str, Any]]) -> None:
    """Off by its own holds at their worst at most, and by nothing after a probe."""
    allocator, now_ms = in_step(150), 0
    own_tokens, truth = 0, 150
    for number, step in enumerate(steps):
        now_ms += step["gap_ms"]
        # An operation each, so that prices, which a holder can raise, stay out of it.
        work = f"work{number}"
        allocator.acquire(request(f"a{number}", holder="hostile", operation=work), now_ms)
        grants = [g for g in allocator.take_outcomes() if isinstance(g, Granted)]
        if not grants:
            probed(allocator, at_moment(truth, now_ms), now_ms)
            own_tokens = 0
            grants = [g for g in allocator.take_outcomes() if isinstance(g, Granted)]
        lease = grants[-1].lease
        own_tokens += lease.tokens + lease.overrun
        now_ms += 100
        said = hostile_envelope(step, allocator.ledger.bucket.observed, now_ms)
        report = replace(
            settlement(
                lease.lease_id,
                step["outcome"],
                said,
                holder="hostile",
                operation=work,
            ),
            age_ms=step["age_ms"],
        )
        allocator.settle(report, now_ms)
        check(allocator, truth, own_tokens, now_ms)
        if step["probe"] or allocator.ledger.reserved:
            probed(allocator, at_moment(truth, now_ms), now_ms)
            own_tokens = 0
            assert (
                allocator.ledger.headroom(now_ms, projected=False)
                == at_moment(truth, now_ms).tokens_left
            )


def at_moment(truth: int, now_ms: int) -> Envelope:
    """Keepa's count without spending: *truth* at first, and five a tick."""
    ticks = 0 if now_ms < 30_000 else 1 + (now_ms - 30_000) // PERIOD_MS
    next_tick_ms = 30_000 + ticks * PERIOD_MS
    return envelope(truth + 5 * ticks, at=now_ms, refill_in=next_tick_ms - now_ms)


def hostile_envelope(step: dict[str, Any], observed: int, now_ms: int) -> Envelope:
    """An envelope that lies, by much or by little."""
    true = at_moment(0, now_ms)
    left = step["left"] + (observed if step["relative"] else 0)
    begin_ms = true.server_time_ms + step["ahead_ms"] - 50
    next_tick_ms = true.next_tick_ms + step["tick_off_ms"]
    refill_in_ms = max(0, next_tick_ms - begin_ms - step["took"])
    return Envelope(
        begin_ms,
        step["took"],
        left,
        step["consumed"],
        refill_in_ms,
        step["rate"],
        step["reduction"],
    )


def check(allocator: Allocator, truth: int, own_tokens: int, now_ms: int) -> None:
    """What others see, less what the hostile holder's own calls may have spent."""
    ledger = allocator.ledger
    seen = ledger.bucket.observation
    assert seen is not None
    assert ledger.bucket.capacity == 300
    assert ledger.drift.foreign_tokens == 0
    assert abs(ledger.bucket.period.ms - PERIOD_MS) < 2
    true = at_moment(truth, now_ms)
    # A lump that the observation lacks by right is no lie.
    lumps = 5 * (allocator.ledger.bucket.ticks_landed(now_ms) + 1)
    rounding = 2 * allocator.ledger.totals.settles
    most = own_tokens + lumps + rounding
    assert true.tokens_left - most - 300 <= ledger.bucket.observed - ledger.reserved
    assert abs(ledger.bucket.observed - true.tokens_left) <= most
