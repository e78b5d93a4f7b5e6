"""The bucket believes Keepa, and projects whole ticks only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.core.bucket import (
    DEFAULT_PERIOD_MS,
    TICK_GUARD_MS,
    Bucket,
    Envelope,
    Observation,
    Source,
    TickPeriod,
)
from tests.broker.builders import envelope, probe


def bucket_with(observation: Observation) -> Bucket:
    """A bucket with *observation*."""
    bucket = Bucket()
    bucket.adopt(observation)
    return bucket


def test_refill_comes_in_lumps_at_the_announced_tick() -> None:
    """Nothing drips between ticks; a whole lump is there just after one."""
    bucket = bucket_with(probe(7, at=0, refill_in=30_000))

    assert bucket.balance(29_999) == 7
    assert bucket.balance(30_000 + TICK_GUARD_MS) == 12
    assert bucket.balance(30_000 + TICK_GUARD_MS + DEFAULT_PERIOD_MS) == 17


def test_the_recorded_night_is_reproduced_exactly() -> None:
    """-249 tokens, then 104 ticks of 5 and a 5-token call leave 266 (keepa-api.md)."""
    first = Envelope(1_758_036_697_230, 0, -249, 0, 45_592, 5)
    ticks = 1 + (1_758_042_993_375 - first.next_tick_ms) // DEFAULT_PERIOD_MS

    assert ticks == 104
    assert first.refilled(ticks) - 5 == 266


@pytest.mark.parametrize(
    ("refill_in", "straddles"),
    [(DEFAULT_PERIOD_MS - 40, True), (DEFAULT_PERIOD_MS // 2, False), (3_600_000, False)],
)
def test_only_a_tick_during_the_call_is_straddled(refill_in: int, *, straddles: bool) -> None:
    """Not one long gone, nor one that a period not yet learned puts ahead of now."""
    bucket = bucket_with(probe(7, at=0, refill_in=refill_in, took=80))

    assert bucket.straddles_tick is straddles


def test_lumps_stop_at_capacity() -> None:
    """A token lives for sixty ticks, so no more than sixty lumps gather."""
    bucket = bucket_with(probe(295, at=0, refill_in=0, rate=5))

    assert bucket.balance(10 * DEFAULT_PERIOD_MS) == 300


def test_a_balance_above_capacity_stays_after_a_downgrade() -> None:
    """Keepa's word is never lowered by our arithmetic."""
    bucket = bucket_with(probe(250, at=0, refill_in=0, rate=2))

    assert bucket.balance(5 * DEFAULT_PERIOD_MS) == 250


def test_a_debt_is_kept_and_worked_off() -> None:
    """A negative balance is not clamped to zero."""
    bucket = bucket_with(probe(-42, at=0, refill_in=0))

    assert bucket.balance(10) == -42
    assert bucket.balance(TICK_GUARD_MS) == -37


def test_token_flow_reduction_shrinks_the_lumps() -> None:
    """Refill that Keepa gives to tracked products does not arrive."""
    said = envelope(0, rate=5, reduction=1.5)

    assert [said.refilled(ticks) for ticks in (1, 2, 3)] == [3, 7, 10]


def test_an_envelope_without_a_rate_is_no_observation() -> None:
    """An invalid key is answered with zeros that describe no bucket."""
    assert not envelope(0, rate=0).is_observation
    assert not Envelope(0, 0, 42, 1, 0, 60).is_observation


def test_the_later_of_two_replies_wins_whatever_their_order_of_arrival() -> None:
    """Observations are ordered by the end of processing on Keepa's clock."""
    early, late = envelope(50, at=1_000), envelope(45, at=1_200)
    bucket = bucket_with(Observation(late, 2_000, 0, Source.SETTLE))

    assert not bucket.supersedes(Observation(early, 2_100, 0, Source.SETTLE))
    assert bucket.supersedes(Observation(envelope(40, at=1_300), 2_100, 0, Source.SETTLE))


def test_of_two_replies_in_the_same_millisecond_the_lower_counts() -> None:
    """Their order is not known, so the careful reading is kept."""
    bucket = bucket_with(Observation(envelope(45, at=1_000), 1_100, 0, Source.SETTLE))

    assert not bucket.supersedes(Observation(envelope(50, at=1_000), 1_200, 0, Source.SETTLE))
    assert bucket.supersedes(Observation(envelope(40, at=1_000), 1_200, 0, Source.SETTLE))


def test_a_probe_asked_later_wins_even_if_keepas_clock_went_back() -> None:
    """A server clock step must not freeze the count."""
    bucket = bucket_with(probe(50, at=10_000))
    stepped = Observation(envelope(45, at=-5_000), 12_000, 11_000, Source.PROBE)

    assert bucket.supersedes(stepped)


def test_the_period_is_learned_from_two_ticks() -> None:
    """A test set-up that ticks every two seconds is understood after its second tick."""
    period = TickPeriod()
    period.place(envelope(0, at=0, refill_in=700))
    assert not period.placed
    period.place(envelope(5, at=800, refill_in=1_900))

    assert period.placed
    assert period.ms == 2_000


def test_a_long_call_places_the_same_tick_as_a_short_one() -> None:
    """RefillIn counts from the end of processing, however long that took."""
    quick = envelope(0, at=0, took=5, refill_in=10_000)
    slow = envelope(0, at=1_000, took=4_000, refill_in=5_005)

    assert quick.next_tick_ms == slow.next_tick_ms


def test_an_ambiguous_gap_teaches_nothing() -> None:
    """When several ticks may lie between two replies, no period is guessed."""
    period = TickPeriod()
    period.place(envelope(0, at=0, refill_in=700))
    period.place(envelope(5, at=90_000, refill_in=100))

    assert not period.placed
    assert period.ms == DEFAULT_PERIOD_MS


@pytest.mark.parametrize(
    ("left", "spent", "ticks"),
    [
        (16, 0, 1),
        (22, 0, 2),
        (22, 10, 2),
        # Of calls that have not been reported, or of others.
        (2, 0, 1),
        # No more than fit: refillIn has been 1,900 ms.
        (99, 0, 3),
    ],
)
def test_ticks_of_an_unknown_period_are_those_that_the_balance_shows(
    left: int, spent: int, ticks: int
) -> None:
    """What a balance has more is refill; a tick that is missed would look like a gift."""
    bucket = bucket_with(probe(0, at=0, refill_in=1_900, rate=16))
    later = probe(left, at=7_000, refill_in=900, rate=16)

    assert bucket.ticks_between(later, spent) == ticks


def test_a_changed_period_is_learned_anew() -> None:
    """Two ticks that do not fit end the trust in the learned period."""
    period = TickPeriod()
    at = 0
    for _ in range(4):
        period.place(envelope(0, at=at, refill_in=60_000))
        at += 60_000
    for _ in range(5):
        at += 10_000
        period.place(envelope(0, at=at, refill_in=9_000))

    assert period.ms == pytest.approx(10_000, abs=200)


def test_the_earliest_sight_of_a_tick_is_kept() -> None:
    """A slow reply makes a tick look later than it is, never earlier."""
    bucket = bucket_with(probe(0, at=0, refill_in=10_000))
    slow = Observation(envelope(0, at=1_000, refill_in=9_000), 2_500, 900, Source.PROBE)
    bucket.adopt(slow)

    assert bucket.next_tick_ms(2_500) == 10_000 + TICK_GUARD_MS


@given(
    tokens=st.integers(-500, 400),
    rate=st.integers(1, 60),
    refill_in=st.integers(0, 60_200),
    times=st.lists(st.integers(0, 8_000_000), min_size=2, max_size=20),
)
def test_projection_never_falls_and_never_passes_capacity(
    tokens: int, rate: int, refill_in: int, times: list[int]
) -> None:
    """Without an observation the balance only rises, by whole lumps, up to capacity."""
    bucket = bucket_with(probe(tokens, at=0, refill_in=refill_in, rate=rate))
    balances = [bucket.balance(now_ms) for now_ms in sorted(times)]

    assert balances == sorted(balances)
    assert balances[-1] <= max(tokens, 60 * rate)
    assert all((b - tokens) % rate == 0 or b == 60 * rate for b in balances)


@given(now_ms=st.integers(0, 10_000_000), refill_in=st.integers(0, 60_200))
def test_the_next_tick_is_when_the_balance_rises(now_ms: int, refill_in: int) -> None:
    """Waking at the announced tick finds exactly one more lump, a moment earlier none."""
    bucket = bucket_with(probe(-10_000, at=0, refill_in=refill_in))
    tick_ms = bucket.next_tick_ms(now_ms)

    assert tick_ms > now_ms
    assert bucket.balance(tick_ms - 1) == bucket.balance(now_ms)
    assert bucket.balance(tick_ms) == bucket.balance(now_ms) + 5


class BucketMachine(RuleBasedStateMachine):
    """Against a Keepa that really ticks, with replies that are slow and out of order.

    Keepa's clock runs beside the broker's at a fixed distance. Only the
    `spend` rule spends; the next reply that arrives shows it.
    """

    SERVER_AHEAD_MS = 1_600_000_000_000

    @initialize(
        period_ms=st.sampled_from([1_000, 2_000, 60_200]),
        rate=st.integers(1, 60),
        balance=st.integers(-300, 300),
    )
    def start(self, period_ms: int, rate: int, balance: int) -> None:
        """An account, and the first probe of it."""
        self.now_ms, self.period_ms, self.rate = 0, period_ms, rate
        self.true_balance, self.next_tick_ms = balance, period_ms // 3
        self.bucket = Bucket()
        self.late_replies: list[Observation] = []
        self.spending: list[tuple[int, int]] = []
        self.probe(latency_ms=0)

    @rule(elapsed_ms=st.integers(1, 200_000))
    def time_passes(self, elapsed_ms: int) -> None:
        """Ticks land as they do at Keepa."""
        self.now_ms += elapsed_ms
        while self.next_tick_ms <= self.now_ms:
            raised = min(self.true_balance + self.rate, 60 * self.rate)
            self.true_balance = max(self.true_balance, raised)
            self.next_tick_ms += self.period_ms

    @rule(tokens=st.integers(1, 50))
    def spend(self, tokens: int) -> None:
        """A call is charged."""
        self.true_balance -= tokens
        self.spending.append((self.now_ms, tokens))

    @rule(latency_ms=st.integers(0, 500))
    def probe(self, latency_ms: int) -> None:
        """Keepa is asked and the answer takes its time."""
        said = self._says()
        asked_ms = self.now_ms
        self.time_passes(latency_ms + 1)
        self._see(Observation(said, self.now_ms, asked_ms, Source.PROBE))

    @rule()
    def a_reply_is_delayed(self) -> None:
        """A call's reply is on its way for long."""
        self.late_replies.append(Observation(self._says(), self.now_ms, 0, Source.SETTLE))

    @rule()
    def a_delayed_reply_arrives(self) -> None:
        """It arrives, perhaps after newer ones; its age is known to its client."""
        if self.late_replies:
            self._see(self.late_replies.pop())

    def _says(self) -> Envelope:
        at_ms = self.now_ms + self.SERVER_AHEAD_MS
        refill_in_ms = self.next_tick_ms - self.now_ms
        return Envelope(at_ms, 0, self.true_balance, 0, refill_in_ms, self.rate)

    def _see(self, observation: Observation) -> None:
        if self.bucket.supersedes(observation):
            self.bucket.adopt(observation)

    @invariant()
    def never_more_than_keepa_has(self) -> None:
        """What is projected is there, but for what was spent since it was observed."""
        if not self.bucket.period.placed:
            return
        assert self.bucket.observation is not None
        observed_ms = self.bucket.observation.envelope.end_ms - self.SERVER_AHEAD_MS
        spent_since = sum(tokens for at_ms, tokens in self.spending if at_ms >= observed_ms)
        assert self.bucket.balance(self.now_ms) <= self.true_balance + spent_since

    @invariant()
    def a_learned_period_is_the_true_one(self) -> None:
        """Whatever is learned, it is the time between two ticks."""
        if self.bucket.period.placed:
            assert self.bucket.period.ms == pytest.approx(self.period_ms, abs=2)


TestBucketMachine = BucketMachine.TestCase
TestBucketMachine.settings = settings(max_examples=100, stateful_step_count=40)
