"""A product that something has happened to since, or shortly before, the start."""

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

# Keepa's date ranges 0 to 3. The Java client says that the "day" averages 48 hours.
AVERAGE_WINDOWS: Final = (2 * DAY_MINUTES, 7 * DAY_MINUTES, 31 * DAY_MINUTES, 90 * DAY_MINUTES)
# A change older than this is forgotten once there are so many newer ones.
_CHANGES_KEPT: Final = 120


def percent(part: int, whole: int) -> int:
    """*part* in percent of *whole*, halves rounded up."""
    return (200 * part + whole) // (2 * whole) if whole > 0 else 0


@dataclass(frozen=True, slots=True)
class Figures:
    """One price type of a listing as of its last update; tuples are by date range.

    Prices are in the smallest currency unit; a positive delta is a drop.
    """

    current: int
    since: int
    previous: int
    average: tuple[int, ...]
    delta: tuple[int, ...]
    delta_percent: tuple[int, ...]

    @property
    def delta_last(self) -> int:
        """By how much the price dropped at its last change; 0 if that can't be said."""
        return self.previous - self.current if min(self.previous, self.current) >= 0 else 0


_FLAT: Final = ((0,) * len(AVERAGE_WINDOWS), (0,) * len(AVERAGE_WINDOWS))
_NO_FIGURES: Final = Figures(NO_OFFER, -1, NO_OFFER, (NO_DATA,) * len(AVERAGE_WINDOWS), *_FLAT)


def figures_of(history: History, end: int) -> Figures:
    """Sum *history* up as of the Keepa minute *end*."""
    if not history:
        return _NO_FIGURES
    since, current = history[-1]
    previous = history[-2][1] if len(history) > 1 else NO_OFFER
    average = averages(history, end, AVERAGE_WINDOWS)
    if current < 0:
        return Figures(current, since, previous, average, *_FLAT)
    delta = tuple(mean - current if mean >= 0 else 0 for mean in average)
    shares = tuple(percent(drop, mean) for drop, mean in zip(delta, average, strict=True))
    return Figures(current, since, previous, average, delta, shares)


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
        # The deal as of the last update, serialised, kept by whoever serialises.
        self.row: tuple[str, str] | None = None
        self._changes: list[tuple[int, int, int]] = []
        self._figures: dict[int, Figures] = {}

    def change(self, price_type: int, value: int) -> None:
        """Let *price_type* be *value* from the last update on."""
        if self.current(price_type) != value:
            self._changes.append((self.last_update, price_type, value))
            self._figures.pop(price_type, None)

    def touch(self, keepa_minute: int) -> None:
        """Begin an update at *keepa_minute*, which is later than the last one."""
        assert keepa_minute > self.last_update
        self.last_update = keepa_minute
        self.shrink()
        del self._changes[:-_CHANGES_KEPT]

    def shrink(self) -> None:
        """Forget what can be worked out again."""
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
            known = figures_of(self.history(price_type), self.last_update)
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
