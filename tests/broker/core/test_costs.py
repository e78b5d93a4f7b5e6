"""Costs are learned from whole calls and forgotten when prices change."""

import random

from hypothesis import given
from hypothesis import strategies as st

from broker.core.costs import (
    CALM_CALLS,
    OPERATIONS_MAX,
    PRICE_CHANGE_CALLS,
    SAMPLE_AGE_MS_MAX,
    SAMPLES_MAX,
    SAMPLES_MIN,
    UNLEARNED_WORST,
    CostBook,
    Price,
)

PRIOR = 2.0


def learned(operation: str, calls: list[tuple[int, int]], now_ms: int = 0) -> CostBook:
    """A book that has seen *calls* of (units, tokens)."""
    book = CostBook()
    for units, tokens in calls:
        book.learn(operation, units, tokens, now_ms)
    return book


def test_the_prior_serves_until_calls_are_known() -> None:
    """An operation never seen costs what its caller believes."""
    assert CostBook().estimate("deal", 3, 5) == 15


def test_a_constant_cost_is_learned_exactly() -> None:
    """Five tokens a page stay five tokens, for any number of pages in the band."""
    book = learned("deal", [(1, 5)] * SAMPLES_MIN)

    assert book.estimate("deal", 1, 99) == 5


def test_a_surprise_counts_from_the_first_call() -> None:
    """50 ASINs reserved at 2 tokens each that cost 386 are not believed to cost 100 again."""
    book = learned("product?offers=20", [(50, 386)])

    assert book.estimate("product?offers=20", 50, PRIOR) == 386


def test_a_high_quantile_of_whole_calls_is_reserved() -> None:
    """The dear tail of a batch size is covered, not 100 times the dearest unit."""
    spread = random.Random(1)
    calls = [(100, sum(spread.choice((1, 1, 1, 9)) for _ in range(100))) for _ in range(200)]
    book = learned("product", calls)
    costs = sorted(tokens for _, tokens in calls)

    assert costs[-2] <= book.estimate("product", 100, 1) <= costs[-1]


def test_batch_sizes_learn_apart() -> None:
    """The cost of single ASINs proves little for batches of fifty."""
    book = learned("p", [(1, 20)] * SAMPLES_MIN + [(50, 100)] * SAMPLES_MIN)

    assert book.estimate("p", 1, PRIOR) == 20
    assert book.estimate("p", 50, PRIOR) == 100


def test_a_fallen_price_is_learned_within_a_few_calls() -> None:
    """When every new call is cheaper than all before, the old ones are forgotten."""
    book = learned("p", [(1, 5)] * 100 + [(1, 3)] * 2 * PRICE_CHANGE_CALLS)

    assert book.estimate("p", 1, PRIOR) == 3


def test_a_risen_price_counts_at_once() -> None:
    """One dearer call in the window is enough to be careful."""
    book = learned("p", [(1, 5)] * 100 + [(1, 8)])

    assert book.estimate("p", 1, PRIOR) == 8


def test_old_calls_are_forgotten() -> None:
    """A tail of last week does not hold tokens back today."""
    book = learned("p", [(1, 50)] + [(1, 5)] * SAMPLES_MIN)
    book.learn("p", 1, 5, SAMPLE_AGE_MS_MAX + 1)

    assert book.estimate("p", 1, PRIOR) == 5


def test_memory_is_bounded() -> None:
    """However many calls come, a band keeps its newest ones."""
    book = learned("p", [(1, 5 + i % 7) for i in range(3 * SAMPLES_MAX)])

    assert book.estimate("p", 1, PRIOR) == 11


def test_a_constant_cost_has_no_scatter() -> None:
    """What always costs the same can be relied on to the token."""
    book = learned("deal", [(1, 5)] * SAMPLES_MIN)

    assert book.price("deal", 1, PRIOR) == Price(5.0, likely=1.0, worst=1.0)


def test_an_unknown_cost_may_be_a_multiple_of_the_prior() -> None:
    """A prior is a belief: a batch reserved at 100 tokens has cost 386."""
    book = learned("p", [(50, 100)] * (SAMPLES_MIN - 1))

    assert CostBook().price("p", 50, PRIOR) == Price(2.0, worst=UNLEARNED_WORST, proven=False)
    assert book.price("p", 50, PRIOR).worst == UNLEARNED_WORST


def test_the_more_calls_are_known_the_closer_is_the_worst() -> None:
    """Few calls hardly show their tail; many do, and the middle is the likely cost."""
    few, many = ([(1, 4), (1, 4), (1, 10)] * calls for calls in (SAMPLES_MIN, 100))
    early, later = (learned("p", calls).price("p", 1, PRIOR) for calls in (few, many))

    assert (early.likely, later.likely) == (0.4, 0.4)
    assert early.worst > later.worst > 1.0


def test_next_to_no_cost_is_affordable() -> None:
    """A prior so small that no division by it is finite is still a prior."""
    assert CostBook().affordable("p", 7, 1, 1, 1e-309) == 7


@given(
    calls=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 2_000)), max_size=60),
    most=st.integers(1, 100),
    tokens=st.integers(1, 3_000),
    prior=st.floats(0, 50),
    data=st.data(),
)
def test_what_is_called_affordable_is_affordable(
    calls: list[tuple[int, int]], most: int, tokens: int, prior: float, data: st.DataObject
) -> None:
    """The batch found fits the tokens, and if none is found the least does not fit."""
    least = data.draw(st.integers(1, most))
    book = learned("p", calls)
    units = book.affordable("p", most, least, tokens, prior)

    if units is None:
        assert book.estimate("p", least, prior) > tokens
    else:
        assert least <= units <= most
        assert book.estimate("p", units, prior) <= tokens


def test_few_equal_costs_prove_little_where_other_sizes_scatter() -> None:
    """A size with equal first costs may still scatter like the others; many calls prove it."""
    book = CostBook()
    for cost in (6, 6, 6, 9, 12):
        book.learn("offers", 2, cost, 0)
    for _ in range(SAMPLES_MIN):
        book.learn("offers", 1, 6, 0)
        book.learn("deal", 1, 5, 0)
    few = book.price("offers", 1, 6).worst
    for _ in range(CALM_CALLS):
        book.learn("offers", 1, 6, 0)

    assert (few, book.price("offers", 1, 6).worst) == (UNLEARNED_WORST, 1)
    assert book.price("deal", 1, 5).worst == 1


def test_made_up_operations_push_out_no_costs_of_others() -> None:
    """A caller with a thousand names loses its own; what others learned stays."""
    book = CostBook()
    for number in range(20):
        book.learn(f"work{number}", 1, 9, 0, caller="fleet")
    for number in range(3 * OPERATIONS_MAX):
        book.learn(f"made-up{number}", 1, 1, number, caller="hostile")

    assert len(book) == OPERATIONS_MAX
    assert all(book.estimate(f"work{number}", 1, 1) == 9 for number in range(20))


def test_operations_in_use_stay() -> None:
    """Among a caller's own operations the one learned of longest ago goes first."""
    book = CostBook()
    for number in range(3 * OPERATIONS_MAX):
        book.learn("in use", 1, 9, number)
        book.learn(f"once{number}", 1, 1, number)

    assert len(book) == OPERATIONS_MAX
    assert book.estimate("in use", 1, 1) == 9


def test_many_names_of_callers_do_not_matter_to_a_price_in_use() -> None:
    """Even where each made-up operation comes from another caller."""
    book = CostBook()
    for number in range(3 * OPERATIONS_MAX):
        book.learn("in use", 1, 9, number, caller="fleet")
        book.learn(f"once{number}", 1, 1, number, caller=f"hostile{number}")

    assert len(book) == OPERATIONS_MAX
    assert book.estimate("in use", 1, 1) == 9


def test_few_calls_leave_room_for_ten_pages_of_offers() -> None:
    """A call without offers of many pages among the first predicts little of the next one."""
    few = learned("offers", [(1, 6), (1, 6), (1, 12), (1, 6), (1, 12)]).price("offers", 1, 6)

    assert few.worst * few.ratio >= 60


def test_a_batch_cut_down_may_scatter_more_than_the_largest_and_the_least() -> None:
    """The worst of a request is that of any batch that it may get."""
    costs = learned("offers", [(4, cost) for cost in (24, 24, 24, 24, 96)])
    for _ in range(CALM_CALLS):
        costs.learn("offers", 1, 6, 0)
        costs.learn("offers", 16, 96, 0)
    worst = costs.risk("offers", 16, 1, 6).worst

    assert costs.price("offers", 1, 6).worst == costs.price("offers", 16, 6).worst == 1
    assert worst == costs.price("offers", 4, 6).worst > 1
