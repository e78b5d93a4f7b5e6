"""Days and months of time zones as instants on the broker's clock."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest

from broker.calendar import alike, periods
from broker.core.budgets import Span

HOUR_MS = 3_600_000
NOW_MS = 7_000_000


def bounds(zone: str, wall: datetime, span: Span = Span.DAY) -> list[tuple[str, float, float]]:
    """The periods, with start and end in hours from now."""
    found = periods([zone], wall=wall, now_ms=NOW_MS)[zone, span]
    return [
        (name, (starts_ms - NOW_MS) / HOUR_MS, (ends_ms - NOW_MS) / HOUR_MS)
        for name, starts_ms, ends_ms in found
    ]


def test_a_day_ends_at_midnight_of_its_zone() -> None:
    """Half past eleven at night in UTC is past midnight in Berlin."""
    wall = datetime(2026, 11, 25, 23, 30, tzinfo=UTC)

    assert bounds("UTC", wall) == [("2026-11-25", -23.5, 0.5), ("2026-11-26", 0.5, 24.5)]
    assert bounds("Europe/Berlin", wall) == [
        ("2026-11-26", -0.5, 23.5),
        ("2026-11-27", 23.5, 47.5),
    ]


@pytest.mark.parametrize(
    ("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 7, 1), 24)]
)
def test_a_day_is_shorter_or_longer_where_the_clocks_change(
    day: tuple[int, int, int], hours: int
) -> None:
    """In spring Berlin's day has 23 hours, in autumn 25; the moment of the look is no matter."""
    start = datetime(*day, tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)
    for hour in (0, 2, 12, 22):
        name, starts, ends = bounds("Europe/Berlin", start + timedelta(hours=hour))[0]

        assert name == f"{day[0]}-{day[1]:02}-{day[2]:02}"
        assert (starts, ends) == (-hour, hours - hour)


def test_a_skipped_midnight_is_the_moment_of_the_change() -> None:
    """Beirut's clocks went from midnight to one: the day began at one, after 24 hours."""
    before = datetime(2022, 3, 26, 20, 0, tzinfo=UTC)
    today, tomorrow = bounds("Asia/Beirut", before)

    assert today == ("2022-03-26", -22, 2)
    assert tomorrow == ("2022-03-27", 2, 25)


@pytest.mark.parametrize(
    ("wall", "name", "days"),
    [
        (datetime(2026, 2, 10, tzinfo=UTC), "2026-02", 28),
        (datetime(2028, 2, 29, 23, tzinfo=UTC), "2028-02", 29),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01", 31),
        (datetime(2026, 12, 31, 23, 59, tzinfo=UTC), "2026-12", 31),
        (datetime(2026, 4, 1, tzinfo=UTC), "2026-04", 30),
    ],
)
def test_a_month_has_as_many_days_as_it_has(wall: datetime, name: str, days: int) -> None:
    """Also in a leap year, and from the last of January on."""
    this, following = bounds("UTC", wall, Span.MONTH)

    assert this[0] == name
    assert this[2] - this[1] == pytest.approx(24 * days)
    assert following[1] == this[2]
    assert following[0] > name


def test_a_clock_that_is_set_moves_the_ends() -> None:
    """An hour is noticed; the drift of two clocks is not."""
    wall = datetime(2026, 11, 25, 12, tzinfo=UTC)
    known = periods(["UTC"], wall=wall, now_ms=NOW_MS)
    later = wall + timedelta(seconds=5)

    assert alike(known, periods(["UTC"], wall=later, now_ms=NOW_MS + 5_003))
    assert not alike(
        known, periods(["UTC"], wall=later + timedelta(hours=1), now_ms=NOW_MS + 5_000)
    )
    assert not alike(known, periods(["UTC"], wall=wall + timedelta(days=1), now_ms=NOW_MS))
    assert not alike(known, periods(["UTC", "Asia/Tokyo"], wall=wall, now_ms=NOW_MS))
    assert not alike(known, {})


def test_an_unknown_zone_is_an_error() -> None:
    """The budgets file is checked for them before."""
    with pytest.raises(ZoneInfoNotFoundError):
        periods(["Europe/Nowhere"], wall=datetime.now(UTC), now_ms=0)
