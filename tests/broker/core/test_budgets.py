"""Budgets limit a group of callers by the hour, the day and the month."""

import pytest

from broker.core.budgets import (
    UNLIMITED,
    Budget,
    BudgetBook,
    Mode,
    Obstacle,
    Period,
    Room,
    Span,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
CAPACITY = 300
# Two days and two months, as a calendar would pass them on at 1,000,000 ms.
PERIODS = {
    ("UTC", Span.DAY): (
        Period("2026-11-25", 0, 2_000_000),
        Period("2026-11-26", 2_000_000, 2_000_000 + DAY_MS),
    ),
    ("UTC", Span.MONTH): (
        Period("2026-11", 0, 5_000_000),
        Period("2026-12", 5_000_000, 5_000_000 + 31 * DAY_MS),
    ),
}


def spend(book: BudgetBook, tokens: int, now_ms: int, holder: str = "h", op: str = "deal") -> None:
    """A call that is over."""
    book.settle(f"{holder}/{op}/{now_ms}", holder, op, tokens, now_ms)


def left(book: BudgetBook, now_ms: int, holder: str = "h", op: str = "deal") -> int:
    """What the likely cost of a call may be."""
    return book.room(holder, op, CAPACITY, now_ms).likely


def obstacle(book: BudgetBook, tokens: int, now_ms: int) -> Obstacle:
    """The worst obstacle for a call."""
    return book.obstacles("h", "deal", tokens, CAPACITY, now_ms)[0]


def test_the_smaller_limit_counts() -> None:
    """With tokens per hour and a share of the bucket, the tighter one holds."""
    tight = Budget("b", tokens_per_hour=100, share=0.5)

    assert tight.limits(capacity=300) == {Span.HOUR: 100}
    assert tight.limits(capacity=100) == {Span.HOUR: 50}
    assert Budget("b", tokens_per_day=7, tokens_per_month=50).limits(300) == {
        Span.DAY: 7,
        Span.MONTH: 50,
    }


def test_patterns_choose_holders_and_operations() -> None:
    """A pot is shared by all that match both patterns, and by no others."""
    book = BudgetBook([Budget("b", holder="team-a/*", operation="product*", tokens_per_hour=10)])
    spend(book, 4, 0, "team-a/1", "product?offers=20")
    spend(book, 100, 0, "team-b/1", "product")

    assert left(book, 0, "team-a/2", "product") == 6
    assert left(book, 0, "team-a/2", "deal") == UNLIMITED


def test_spend_leaves_the_window_after_an_hour() -> None:
    """Tokens are free again an hour after they were spent, to the minute."""
    book = BudgetBook([Budget("b", tokens_per_hour=10)])
    spend(book, 10, 90_000)
    found = obstacle(book, 5, 100_000)

    assert found.free_ms == found.changes_ms == 60_000 + HOUR_MS
    assert left(book, found.free_ms - 1) == 0
    assert left(book, found.free_ms) == 10


def test_a_day_ends_at_once() -> None:
    """All of a day's use is gone with the first millisecond of the next, without any word."""
    book = BudgetBook([Budget("b", tokens_per_day=10)])
    book.set_periods(PERIODS)
    spend(book, 9, 1_000_000)
    found = obstacle(book, 5, 1_900_000)

    assert (found.span, found.limit, found.used, found.free_ms) == (Span.DAY, 10, 9, 2_000_000)
    assert left(book, 1_999_999) == 1
    assert left(book, 2_000_000) == 10


def test_the_tightest_of_several_limits_holds() -> None:
    """A month's limit holds on the days when the day's would not."""
    book = BudgetBook([Budget("b", tokens_per_day=10, tokens_per_month=12)])
    book.set_periods(PERIODS)
    spend(book, 9, 1_000_000)

    assert [left(book, ms) for ms in (1_000_000, 2_000_000, 5_000_000)] == [1, 3, 10]
    assert obstacle(book, 5, 2_000_000).free_ms == 5_000_000


def test_a_call_counts_on_the_day_of_its_grant() -> None:
    """Settled after midnight it corrects the day before, and costs the new day nothing."""
    book = BudgetBook([Budget("b", tokens_per_day=10)])
    book.set_periods(PERIODS)
    book.hold("a", "h", "deal", 8, 0, 1_999_999)
    book.settle("a", "h", "deal", 5, 2_000_001)

    assert left(book, 2_000_001) == 10
    assert left(book, 1_999_999) == 5


def test_a_clock_that_is_set_back_gives_no_second_day() -> None:
    """The day's name comes back, and its use with it; so does the next day's later."""
    book = BudgetBook([Budget("b", tokens_per_day=10)])
    book.set_periods(PERIODS)
    spend(book, 10, 1_000_000)
    spend(book, 7, 2_500_000)
    back = {("UTC", Span.DAY): (Period("2026-11-25", 0, 3_000_000), PERIODS["UTC", Span.DAY][1])}
    book.set_periods(back)

    assert left(book, 2_500_000) == 0
    assert left(book, 3_000_000) == 3


def test_past_the_last_known_day_nothing_is_given_away() -> None:
    """If the calendar is not renewed, the last day goes on, with no promise of an end."""
    book = BudgetBook([Budget("b", tokens_per_day=10)])
    book.set_periods(PERIODS)
    last_ms = 2_000_000 + DAY_MS
    spend(book, 10, last_ms - 1)

    assert left(book, last_ms + 5 * DAY_MS) == 0
    assert obstacle(book, 5, last_ms + 5 * DAY_MS).free_ms is None


def test_a_nested_budget_covers_only_what_the_outer_one_covers() -> None:
    """Identity, holder, operation: a call must fit all three, and counts in all three."""
    outer = Budget("team", holder="team/*", tokens_per_hour=20)
    middle = Budget("laptops", holder="*/laptop-*", tokens_per_hour=15, within=outer)
    inner = Budget("offers", operation="*offers*", tokens_per_hour=5, within=middle)
    book = BudgetBook([outer, middle, inner])
    spend(book, 3, 0, "team/laptop-1", "product?offers=20")

    assert left(book, 0, "team/laptop-2", "product?offers=20") == 2
    assert left(book, 0, "team/laptop-2") == 12
    assert left(book, 0, "team/server") == 17
    assert left(book, 0, "other/laptop-1", "product?offers=20") == UNLIMITED


def test_a_correction_counts_at_the_time_of_the_grant() -> None:
    """A call cheaper than its hold gives the difference back; a refused one gives back all."""
    book = BudgetBook([Budget("b", tokens_per_hour=20)])
    for lease_id in "abc":
        book.hold(lease_id, "h", "deal", 5, 0, 0)
    book.settle("a", "h", "deal", 2, 10)
    book.settle("b", "h", "deal", 0, 10)
    book.give_back("c")
    book.give_back("c")

    assert left(book, 1_000) == 18


def test_a_repeated_hold_counts_once() -> None:
    """A lease that is adopted again and again by its heartbeats is one call."""
    book = BudgetBook([Budget("b", tokens_per_hour=20)])
    for now_ms in range(3):
        book.hold("a", "h", "deal", 5, 0, now_ms)

    assert book.standings(CAPACITY, 0)[0].used == 5


def test_beside_others_there_is_room_for_all_their_overruns() -> None:
    """So that only one call, the last, can exceed the budget."""
    book = BudgetBook([Budget("b", tokens_per_hour=100)])
    alone = book.room("h", "deal", CAPACITY, 0)
    book.hold("a", "h", "deal", 10, 30, 0)
    book.hold("b", "h", "deal", 10, 30, 0)
    beside = book.room("h", "deal", CAPACITY, 0)
    waits = obstacle(book, 25, 0)
    book.settle("a", "h", "deal", 10, 1)

    assert alone == Room(100, UNLIMITED)
    assert beside == Room(20, 20)
    assert waits.free_ms is None
    # The overruns may fit once older use is forgotten, though no call has ended.
    assert waits.changes_ms == 3_600_000
    assert book.room("h", "deal", CAPACITY, 1) == Room(50, 50)


def test_a_lost_call_counts_until_its_late_settle() -> None:
    """It is written off at its hold, stands in no call's way, and is corrected once."""
    book = BudgetBook([Budget("b", tokens_per_hour=100)])
    book.hold("a", "h", "deal", 10, 50, 0)
    book.write_off("a", 10)
    written_off = book.room("h", "deal", CAPACITY, 0)
    book.settle("a", "h", "deal", 4, 200_000)

    assert written_off == Room(90, UNLIMITED)
    assert left(book, 200_000) == 96


def test_a_holder_has_so_many_calls_in_flight() -> None:
    """Each holder for itself; a call that lapsed is in flight no more, but still counts."""
    opened = {"a", "b", "c"}
    budget = Budget("b", in_flight_max=2, tokens_per_hour=50)
    book = BudgetBook([budget], is_open=opened.__contains__)
    for lease_id, holder in (("a", "h"), ("b", "h"), ("c", "other")):
        book.hold(lease_id, holder, "deal", 5, 0, 0)
    full, other = book.room("h", "deal", CAPACITY, 0), left(book, 0, "other")
    waits = obstacle(book, 5, 0)
    opened.remove("a")

    assert (full, other) == (Room(0, 0), 35)
    assert (waits.span, waits.limit, waits.used) == (None, 2, 2)
    assert "2 calls at a time" in waits.words
    assert left(book, 0) == 35


def test_a_shadow_limits_nothing() -> None:
    """It shows what it would leave, and is in no call's way."""
    shadow = Budget("s", tokens_per_hour=5, mode=Mode.SHADOW)
    book = BudgetBook([shadow])
    spend(book, 9, 0)
    ((pot, room),) = book.shadows("h", "deal", CAPACITY, 0)

    assert (pot.budget, room.likely) == (shadow, -4)
    assert left(book, 0) == UNLIMITED
    assert book.limit("h", "deal", CAPACITY) == UNLIMITED
    assert book.obstacles("h", "deal", 5, CAPACITY, 0) == []
    assert book.standings(CAPACITY, 0)[0].left == 0


def test_reloaded_budgets_keep_what_was_spent() -> None:
    """A new limit, or a new span, under the same name does not wipe the use."""
    book = BudgetBook([Budget("b", tokens_per_hour=10)])
    book.set_periods(PERIODS)
    spend(book, 8, 1_000_000)
    book.replace([Budget("b", tokens_per_hour=20, tokens_per_day=9)])

    assert left(book, 1_000_000) == 1


def test_a_budget_made_while_a_call_runs_does_not_count_it() -> None:
    """Nor does its settle charge a budget that did not cover the grant."""
    book = BudgetBook()
    book.hold("a", "h", "deal", 8, 0, 0)
    book.replace([Budget("b", tokens_per_hour=10)])
    book.settle("a", "h", "deal", 5, 1)

    assert left(book, 1) == 10


def test_what_never_fits_has_no_time() -> None:
    """More than the whole budget is not promised for any hour."""
    book = BudgetBook([Budget("b", tokens_per_hour=10)])

    assert obstacle(book, 11, 0).free_ms is None
    assert book.limit("h", "deal", CAPACITY) == 10


def test_use_survives_a_restart() -> None:
    """Exported as plain data and read by a broker with another clock, minutes later."""
    budgets = [Budget("b", tokens_per_hour=100, tokens_per_day=100), Budget("c", share=1)]
    book = BudgetBook(budgets)
    book.set_periods(PERIODS)
    spend(book, 30, 1_000_000)
    spend(book, 7, 1_800_000)
    book.hold("open", "h", "deal", 5, 0, 1_900_000)
    book.denied("b")
    uses = book.export_use(1_900_000)

    after, shift_ms = BudgetBook(budgets[:1]), 5_000_000
    after.set_periods(
        {
            key: tuple(
                Period(name, starts_ms + shift_ms, ends_ms + shift_ms)
                for name, starts_ms, ends_ms in coming
            )
            for key, coming in PERIODS.items()
        }
    )
    now_ms = shift_ms + 1_960_000
    after.import_use(uses, age_ms=60_000, now_ms=now_ms)
    hour, day = after.standings(CAPACITY, now_ms)
    # The budget that came back later finds its use, too.
    after.replace(budgets)

    assert (hour.used, day.used, hour.denied, day.resets_ms) == (37, 37, 1, 40_000)
    assert after.standings(CAPACITY, now_ms)[2].used == 37
    assert after.standings(CAPACITY, now_ms + 45 * 60_000)[0].used == 7
    assert after.standings(CAPACITY, shift_ms + 2_000_000)[1].used == 0


@pytest.mark.parametrize(
    "use",
    [
        {},
        {"budget": "b", "span": "year", "slots": {}},
        {"budget": "b", "span": "hour", "slots": {"x": 1}},
        {"budget": "b", "span": "day", "slots": {"2026-11-25": None}},
        {"budget": "b", "span": "day", "slots": 3},
    ],
)
def test_unusable_data_is_refused_whole(use: dict[str, object]) -> None:
    """The message names the entry, and nothing has been added."""
    book = BudgetBook([Budget("b", tokens_per_hour=100)])
    good = {"budget": "b", "span": "hour", "slots": {"0": 5}}

    with pytest.raises(ValueError, match="no use of a budget"):
        book.import_use([good, use], age_ms=0, now_ms=0)
    assert left(book, 0) == 100


def test_past_charges_count_in_their_own_slots() -> None:
    """From a journal: of this hour, of this month, or of no span that still counts."""
    book = BudgetBook([Budget("b", tokens_per_hour=100, tokens_per_day=100, tokens_per_month=100)])
    book.set_periods(PERIODS)
    for tokens, at_ms in ((1, 1_900_000), (10, -HOUR_MS), (20, 2_100_000)):
        book.charge("h", "deal", tokens, at_ms)
    used = {standing.span: standing.used for standing in book.standings(CAPACITY, 2_200_000)}

    assert used == {Span.HOUR: 21, Span.DAY: 20, Span.MONTH: 21}
