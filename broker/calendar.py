"""Days and months of time zones, as instants on the broker's clock.

The wall clock and the time zones stay here: the core gets names and instants. A day
lasts 23 or 25 hours where the clocks change, and a month as many days as it has.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from broker.core.budgets import Period, Periods, Span

# The present one and the next, so that the core passes a reset without a word from here.
PERIODS: Final = 2
# Rounding, and clocks that drift apart between two looks, move an end by less.
JITTER_MS: Final = 500


def zone_of(name: str) -> tzinfo:
    """The time zone *name*; UTC needs no data of the machine.

    Raises:
        ZoneInfoNotFoundError: This machine has no data of it.
    """
    return UTC if name == "UTC" else ZoneInfo(name)


def alike(known: Periods, other: Periods) -> bool:
    """Whether both have the same periods, which end at about the same instants."""
    return known.keys() == other.keys() and all(
        [period.name for period in coming] == [period.name for period in other[key]]
        and all(
            abs(period.ends_ms - before.ends_ms) <= JITTER_MS
            for period, before in zip(coming, other[key], strict=True)
        )
        for key, coming in known.items()
    )


def present(time_zones: Iterable[str], now_ms: int) -> Periods:
    """The periods by this machine's time of day; see `periods`."""
    return periods(time_zones, wall=datetime.now(UTC), now_ms=now_ms)


def periods(
    time_zones: Iterable[str], *, wall: datetime, now_ms: int
) -> dict[tuple[str, Span], tuple[Period, ...]]:
    """The present and the coming day and month of each of *time_zones*.

    Args:
        time_zones: IANA names, such as Europe/Berlin.
        wall: The time of day, with a time zone.
        now_ms: The broker's clock at the same moment.

    Raises:
        ZoneInfoNotFoundError: This machine has no data of a time zone.
    """
    found = {}
    for name in time_zones:
        zone = zone_of(name)
        for span in (Span.DAY, Span.MONTH):
            day = wall.astimezone(zone).date()
            if span is Span.MONTH:
                day = day.replace(day=1)
            coming = []
            for _ in range(PERIODS):
                label = f"{day:%Y-%m-%d}" if span is Span.DAY else f"{day:%Y-%m}"
                bounds = [day, day + timedelta(days=1)]
                if span is Span.MONTH:
                    bounds[1] = (day + timedelta(days=31)).replace(day=1)
                starts_ms, ends_ms = (now_ms + _delay_ms(bound, zone, wall) for bound in bounds)
                coming.append(Period(label, starts_ms, ends_ms))
                day = bounds[1]
            found[name, span] = tuple(coming)
    return found


def _delay_ms(day: date, zone: tzinfo, wall: datetime) -> int:
    """The time from *wall* to the first moment of *day*; negative if that has passed."""
    # A midnight that the clocks skip stands for the moment of the change. Aware datetimes
    # of one zone subtract by what their clocks show: hence the timestamps.
    midnight = datetime.combine(day, time.min, tzinfo=zone)
    return round((midnight.timestamp() - wall.timestamp()) * 1000)
