"""Budgets limit a group of callers by the hour."""

from broker.core.budgets import Budget, BudgetBook

HOUR_MS = 3_600_000


def test_the_smaller_limit_counts() -> None:
    """With tokens per hour and a share of the bucket, the tighter one holds."""
    assert Budget("b", tokens_per_hour=100, share=0.5).limit(capacity=300) == 100
    assert Budget("b", tokens_per_hour=200, share=0.5).limit(capacity=300) == 150


def test_patterns_choose_holders_and_operations() -> None:
    """A pot is shared by all that match both patterns, and by no others."""
    book = BudgetBook([Budget("b", holder="team-a/*", operation="product*", tokens_per_hour=10)])
    book.charge("team-a/1", "product?offers=20", 4, at_ms=0)
    book.charge("team-b/1", "product", 100, at_ms=0)

    assert book.room("team-a/2", "product", 300, 0) == 6
    assert book.room("team-a/2", "deal", 300, 0) is None


def test_spend_leaves_the_window_after_an_hour() -> None:
    """Tokens are free again an hour after they were spent, to the minute."""
    book = BudgetBook([Budget("b", tokens_per_hour=10)])
    book.charge("h", "deal", 10, at_ms=90_000)
    free_ms = book.free_at_ms("h", "deal", 5, 300, 100_000)

    assert free_ms == 60_000 + HOUR_MS
    assert book.room("h", "deal", 300, free_ms - 1) == 0
    assert book.room("h", "deal", 300, free_ms) == 10


def test_a_correction_counts_at_the_time_of_the_grant() -> None:
    """A call cheaper than its hold gives the difference back to its budget."""
    book = BudgetBook([Budget("b", tokens_per_hour=10)])
    book.charge("h", "deal", 8, at_ms=0)
    book.charge("h", "deal", -3, at_ms=0)

    assert book.room("h", "deal", 300, 1_000) == 5


def test_reloaded_budgets_keep_what_was_spent() -> None:
    """A new limit under the same name does not wipe the hour."""
    book = BudgetBook([Budget("b", tokens_per_hour=10)])
    book.charge("h", "deal", 8, at_ms=0)
    book.replace([Budget("b", tokens_per_hour=20)])

    assert book.room("h", "deal", 300, 1_000) == 12


def test_what_never_fits_has_no_time() -> None:
    """More than the whole budget is not promised for any hour."""
    book = BudgetBook([Budget("b", tokens_per_hour=10)])

    assert book.free_at_ms("h", "deal", 11, 300, 0) is None
    assert book.limit("h", "deal", 300) == 10
