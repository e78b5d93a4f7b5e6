"""A product with changes since the start, or shortly before it."""

from dataclasses import dataclass
from typing import Final

from deploy.keepa_simulator.facts import Facts
from deploy.keepa_simulator.history import (
    NO_DATA,
    NO_OFFER,
    History,
    averages,
    base_history,
    base_value,
    change_times,
)
from deploy.keepa_simulator.keepa_time import DAY_MINUTES

# Keepa's date ranges 0 to 3. The "day" averages 48 hours, according to the Java client.
AVERAGE_WINDOWS: Final = (2 * DAY_MINUTES, 7 * DAY_MINUTES, 31 * DAY_MINUTES, 90 * DAY_MINUTES)
# A change older than this is dropped once this many newer ones exist.
_CHANGES_KEPT: Final = 120


def percent(part: int, whole: int) -> int:
    """*part* in percent of *whole*, halves rounded up."""
    return (200 * part + whole) // (2 * whole) if whole > 0 else 0


@dataclass(frozen=True, slots=True)
class Sums:
    """Totals of a history, each by date range; a positive delta is a drop."""

    average: tuple[int, ...]
    delta: tuple[int, ...]
    delta_percent: tuple[int, ...]


_FLAT: Final = (0,) * len(AVERAGE_WINDOWS)
_NO_SUMS: Final = Sums((NO_DATA,) * len(AVERAGE_WINDOWS), _FLAT, _FLAT)


def sums_of(history: History, end: int) -> Sums:
    """Sums *history* up as of the Keepa minute *end*."""
    if not history:
        return _NO_SUMS
    current = history[-1][1]
    average = averages(history, end, AVERAGE_WINDOWS)
    if current < 0:
        return Sums(average, _FLAT, _FLAT)
    delta = tuple([mean - current if mean >= 0 else 0 for mean in average])
    shares = [percent(drop, mean) for drop, mean in zip(delta, average, strict=True)]
    return Sums(average, delta, tuple(shares))


class Figures:
    """One price type of a product, as of the Keepa minute *end*.

    Prices are in the smallest currency unit. Sums are computed on first use: most deals
    fail a cheaper filter before.
    """

    __slots__ = ("_end", "_history", "_sums", "current", "previous", "since")

    def __init__(self, history: History, end: int) -> None:
        self.since, self.current = history[-1] if history else (-1, NO_OFFER)
        self.previous = history[-2][1] if len(history) > 1 else NO_OFFER
        self._end = end
        self._history = history
        self._sums: Sums | None = None

    @property
    def sums(self) -> Sums:
        """Averages and deltas by date range."""
        if self._sums is None:
            self._sums = sums_of(self._history, self._end)
            self._history = []
        return self._sums

    @property
    def delta_last(self) -> int:
        """The drop of the price at its last change; 0 if it is unknown."""
        return self.previous - self.current if min(self.previous, self.current) >= 0 else 0


# A serialised deal, cut where the creation date of the price type belongs.
RowText = tuple[str, str]


class Listing:
    """A product with its recent changes.

    Args:
        facts: The product.
        anchor: The Keepa minute at which the simulator started.
        last_update: The Keepa minute at which the product was last seen.
    """

    __slots__ = (
        "_changes",
        "_figures",
        "_times",
        "facts",
        "last_update",
        "lightning",
        "row",
        "warehouse_condition",
    )

    def __init__(self, facts: Facts, anchor: int, last_update: int) -> None:
        self.facts = facts
        self._times = change_times(facts, anchor)
        self.last_update = last_update
        self.lightning = (0, 0)
        self.warehouse_condition = 0
        # The serialised deal as of the last update; `deal_row` fills it.
        self.row: RowText | None = None
        self._changes: list[tuple[int, int, int]] = []
        self._figures: dict[int, Figures] = {}

    def change(self, price_type: int, value: int) -> None:
        """Sets *price_type* to *value* from the last update on."""
        if self.current(price_type) != value:
            self._changes.append((self.last_update, price_type, value))
            self._figures.pop(price_type, None)

    def touch(self, keepa_minute: int) -> None:
        """Begins an update at *keepa_minute*, which is later than the last one."""
        assert keepa_minute > self.last_update
        self.last_update = keepa_minute
        self.shrink()
        del self._changes[:-_CHANGES_KEPT]

    def shrink(self) -> None:
        """Drops everything that can be computed again."""
        self.row = None
        self._figures.clear()

    def history(self, price_type: int) -> History:
        """The whole history of *price_type*."""
        history = base_history(self.facts, price_type, self._times)
        history += [
            (minute, value) for minute, type_, value in self._changes if type_ == price_type
        ]
        return history

    def figures(self, price_type: int) -> Figures:
        """The figures of *price_type* as of the last update."""
        if (known := self._figures.get(price_type)) is None:
            known = Figures(self.history(price_type), self.last_update)
            self._figures[price_type] = known
        return known

    def current(self, price_type: int) -> int:
        """The current value of *price_type*, -1 if there is none."""
        for _, type_, value in reversed(self._changes):
            if type_ == price_type:
                return value
        return base_value(self.facts, price_type)

    @property
    def tracking_since(self) -> int:
        """The Keepa minute of the first record."""
        return self._times[0]
