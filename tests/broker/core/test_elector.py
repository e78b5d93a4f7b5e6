"""The election: laws over every interleaving, and the rules one by one."""

import os
from collections.abc import Callable
from functools import partial

import pytest

from broker.core import elector as product
from broker.core.elector import FREE, Action, Attempt, Elector, Row, Term
from tests.broker.core.elector_model import (
    TTL,
    EpochReusedError,
    NobodyLeadsError,
    Statement,
    TwoLeadersError,
    World,
    explore,
)

TTL_MS = 4_000
# ELECTOR_DEPTH looks further.
DEEPER = int(os.environ.get("ELECTOR_DEPTH", "0"))

LOOK = ("begins", "statement runs", "is answered")
TO_LEAD = [f"a: {step}" for step in (*LOOK, *LOOK)]
B_LOOKS = [f"b: {step}" for step in LOOK]
# The leader has begun to renew, and the standby has seen its row twice.
RENEWING = [*TO_LEAD, *B_LOOKS, "time passes", "a: begins", *B_LOOKS]
# The leader has fallen silent; the standby is about to take the row.
SILENT = [*RENEWING, *(["time passes", *B_LOOKS] * 3)]
# The renewal has run at once, but its answer came an interval later.
LATE_ANSWER = [
    *RENEWING[:-3],
    "a: statement runs",
    *B_LOOKS,
    "time passes",
    "a: is answered",
    *B_LOOKS,
    *(["time passes", *B_LOOKS] * 2),
]
STARTS = {"fresh": [], "renewing": RENEWING, "silent": SILENT}
FAULTS: dict[str, dict[str, int]] = {
    "none": {},
    "a failing database": {"failures": 2},
    "a kill": {"kills": 1},
    "a clock that jumps": {"jumps": 1},
    "a handover": {"handovers": 1, "failures": 1},
}


def world(moves: list[str], start: World | None = None) -> World:
    """The world after *moves*."""
    now = start or World.fresh()
    for name in moves:
        now = dict(now.moves())[name]
    return now


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("start", STARTS)
def test_two_never_lead_and_one_does_in_the_end(start: str, fault: str) -> None:
    """In every interleaving up to a depth: one leader at most, a new epoch each, and one comes."""
    begun = world(STARTS[start], World.fresh(faults=FAULTS[fault]))

    states = explore(begun, 8 + DEEPER, calm_every=9)

    assert states > 100


class Hasty(Elector):
    """Takes another's row after two looks."""

    @property
    def _may_take(self) -> bool:
        return self._is_open or self._quiet >= 2


class Trusting(Elector):
    """Counts its trust from the answer, not from the start of the attempt."""

    def _trust(self, attempt: Attempt, row: Row, now_ms: int) -> None:
        super()._trust(attempt, row, now_ms)
        self._trusted_until_ms = now_ms + self._ttl_ms


class Thrifty(Elector):
    """Takes its own row again without a new epoch."""

    def begin(self, now_ms: int) -> Attempt | None:
        """Keeps the epoch of a row of its own."""
        attempt = super().begin(now_ms)
        seen = None if attempt is None else attempt.seen
        if attempt is not None and seen is not None and seen.holder == self.holder:
            attempt = self._attempt = Attempt(
                attempt.action, now_ms, attempt.timeout_ms, seen, seen.epoch
            )
        return attempt


class Credulous(Elector):
    """Takes a row of its name for its own doing, whichever attempt wrote it."""

    def answered(self, attempt: Attempt, row: Row | None, now_ms: int, *, done: bool) -> None:
        """Compares the holder only."""
        mine = row is not None and row.holder == self.holder
        super().answered(attempt, row, now_ms, done=done or mine)


class Shy(Elector):
    """Never takes another's row."""

    @property
    def _may_take(self) -> bool:
        return self._is_open


class Blind(World):
    """Its database runs a take without comparing the row."""

    def run(self, statement: Statement, holder: str) -> None:
        """Ignores what the standby has seen."""
        if statement.attempt.action is Action.TAKE:
            epoch = max(statement.attempt.epoch, 0 if self.row is None else self.row.epoch + 1)
            self.row, statement.done = Row(epoch, holder, 0), True
            statement.ran, statement.row = True, self.row
            return
        super().run(statement, holder)


@pytest.mark.parametrize(
    ("mutant", "moves", "faults", "error"),
    [
        (Hasty, RENEWING, {}, TwoLeadersError),
        (Trusting, LATE_ANSWER, {"jumps": 1}, TwoLeadersError),
        (Thrifty, RENEWING, {"failures": 1}, EpochReusedError),
        (Credulous, TO_LEAD, {"failures": 2}, EpochReusedError),
        (Shy, RENEWING, {"kills": 1}, NobodyLeadsError),
    ],
)
def test_a_broken_elector_is_found_out(
    mutant: Callable[..., Elector],
    moves: list[str],
    faults: dict[str, int],
    error: type[AssertionError],
) -> None:
    """The laws are worth something: each of these mistakes breaks one."""
    begun = world(moves, World.fresh(partial(mutant, ttl_ms=TTL, looks=TTL), faults))

    with pytest.raises(error):
        explore(begun, 12, calm_every=1)


def test_a_database_that_does_not_compare_is_found_out() -> None:
    """Without compare and swap, a slow take hits a row that has been renewed since."""
    begun = world(SILENT[:-4], Blind.fresh())

    with pytest.raises(TwoLeadersError):
        explore(begun, 12)


# --- the rules one by one -----------------------------------------------------


def leader(*, sole: bool = False) -> Elector:
    """Leads in epoch 1 since 0 ms."""
    elector = Elector("a", ttl_ms=TTL_MS, sole=sole)
    answer(elector, None, at_ms=0)
    answer(elector, Row(1, "a", 0), at_ms=0)
    assert elector.leading(0) == 1
    return elector


def answer(elector: Elector, row: Row | None, *, at_ms: int, done: bool = True) -> Attempt:
    """Lets the attempt that is due at *at_ms* find *row*."""
    attempt = elector.begin(at_ms)
    assert attempt is not None
    elector.answered(attempt, row, at_ms, done=done)
    return attempt


def test_the_first_broker_leads_at_once() -> None:
    """There is no row: nothing to wait for."""
    assert leader().term == Term(1, continues=False)


def test_it_renews_after_a_third_of_the_time() -> None:
    """Two further tries fit in before the trust ends."""
    elector = leader()

    assert elector.next_ms() == TTL_MS // 3
    assert elector.begin(TTL_MS // 3 - 1) is None
    attempt = elector.begin(TTL_MS // 3)
    assert attempt is not None
    assert attempt.action is Action.RENEW


def test_the_trust_counts_from_the_start_of_the_attempt() -> None:
    """An answer that took long is worth less."""
    elector = leader()
    attempt = elector.begin(1_500)
    assert attempt is not None
    elector.answered(attempt, Row(1, "a", 1), 3_900, done=True)

    assert elector.leading(5_499) == 1
    assert elector.leading(5_500) is None


@pytest.mark.parametrize("late", [False, True])
def test_a_failed_or_late_renewal_concedes_at_once(late: bool) -> None:  # noqa: FBT001
    """And the row is taken again under a new epoch, which continues the old one."""
    elector = leader()
    attempt = elector.begin(1_500)
    assert attempt is not None
    if late:
        elector.answered(attempt, Row(1, "a", 1), 4_000, done=True)
    else:
        elector.failed(attempt, 1_600)
    conceded = elector.leading(1_600 if not late else 4_000)
    now = elector.next_ms() or 0
    if not late:
        answer(elector, Row(1, "a", 1), at_ms=now)
    again = elector.begin(now)
    assert again is not None
    elector.answered(again, Row(2, "a", 0), now, done=True)

    assert conceded is None
    assert (again.action, again.epoch) == (Action.TAKE, 2)
    assert elector.term == Term(2, continues=True)


def test_a_row_that_was_handed_over_is_taken_at_once() -> None:
    """No broker leads by it."""
    elector = Elector("b", ttl_ms=TTL_MS)
    answer(elector, Row(7, FREE, 3), at_ms=0)
    attempt = elector.begin(0)

    assert attempt is not None
    assert (attempt.action, attempt.epoch) == (Action.TAKE, 8)


def test_anothers_row_is_taken_once_it_has_stood_still_for_the_whole_time() -> None:
    """One interval more than a TTL has, for a clock that jumps."""
    elector = Elector("b", ttl_ms=TTL_MS)
    looks = 0
    while True:
        attempt = answer(elector, Row(7, "a", 3, "a:1"), at_ms=elector.next_ms() or 0)
        if attempt.action is Action.TAKE:
            break
        looks += 1

    assert looks == product.LOOKS_PER_TTL + 2
    assert attempt.started_ms >= TTL_MS
    assert attempt.started_ms < 1.4 * TTL_MS
    assert attempt.seen == Row(7, "a", 3, "a:1")


def test_a_standby_names_the_leader() -> None:
    """Its address is what clients are shown."""
    elector = Elector("b", ttl_ms=TTL_MS)
    answer(elector, Row(7, "a", 3, "a.example:50051"), at_ms=0)

    assert elector.leader_address == "a.example:50051"


def test_leaving_hands_the_row_over_and_never_leads_again() -> None:
    """From the first moment on, before the row is given up."""
    elector = leader()
    attempt = elector.leave(1_000)

    assert attempt is not None
    assert (attempt.action, attempt.epoch) == (Action.RELEASE, 1)
    assert elector.leading(1_000) is None
    assert elector.next_ms() is None


def test_the_only_broker_takes_at_once_and_outlasts_the_database() -> None:
    """It waits for no other, and concedes only to a higher epoch."""
    elector = Elector("a", ttl_ms=TTL_MS, sole=True)
    answer(elector, Row(7, "killed", 3), at_ms=0)
    answer(elector, Row(8, "a", 0), at_ms=0)
    attempt = elector.begin(1_500)
    assert attempt is not None
    elector.failed(attempt, 60_000)
    outlasts = elector.leading(60_000)
    answer(elector, Row(9, "b", 0), at_ms=elector.next_ms() or 0, done=False)

    assert outlasts == 8
    assert elector.leading(60_001) is None
    assert elector.sole is False
