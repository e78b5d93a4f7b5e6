"""Averages follow the price minute by minute."""

from hypothesis import given
from hypothesis import strategies as st

from deploy.keepa_simulator.history import averages
from deploy.keepa_simulator.listing import percent, sums_of

END = 1_000


@given(
    st.dictionaries(st.integers(-400, END), st.integers(-1, 500), min_size=1, max_size=12),
    st.lists(st.integers(1, 1_200), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_average_is_weighted_by_time(prices: dict[int, int], windows: list[int]) -> None:
    """Each mean equals that of a minute-by-minute list without the minutes out of stock."""
    history = sorted(prices.items())
    held: dict[int, int] = {}
    for minute in range(END - 1_200, END):
        known = [value for since, value in history if since <= minute]
        if known and known[-1] >= 0:
            held[minute] = known[-1]
    expected = []
    for window in windows:
        values = [held[minute] for minute in range(END - window, END) if minute in held]
        expected.append(round(sum(values) / len(values)) if values else -1)

    assert averages(history, END, tuple(windows)) == tuple(expected)


def test_no_history_is_no_data() -> None:
    """The average is -2 without data, -1 without an offer."""
    assert averages([], END, (10, 20)) == (-2, -2)
    assert averages([(0, -1)], END, (10, 20)) == (-1, -1)


def test_delta_is_the_drop_below_the_average() -> None:
    """A positive delta is a drop, its percentage is of the average."""
    day = 24 * 60
    sums = sums_of([(0, 2_000), (100 * day, 1_000)], 100 * day)

    assert sums.average[3] == 2_000
    assert sums.delta[3] == 1_000
    assert sums.delta_percent[3] == 50


def test_percent_rounds_halves_up() -> None:
    """As in the recordings: -2 of 11 is -18 percent, 6215 of 8664 is 72."""
    assert [percent(-2, 11), percent(6_215, 8_664), percent(1, 8), percent(-1, 8)] == [
        -18,
        72,
        13,
        -12,
    ]
