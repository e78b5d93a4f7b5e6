"""The rows of the bench's one table: a figure, its goal, and whether it is met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

MISSED: Final = "missed"


@dataclass(frozen=True, slots=True)
class Goal:
    """The bound that a figure should keep; *at_least* or *at_most* it."""

    bound: float
    at_least: bool

    def met(self, value: float) -> bool:
        """Whether *value* keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {number(self.bound)}"


def at_least(bound: float) -> Goal:
    """The figure should reach *bound*."""
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    """The figure should not exceed *bound*."""
    return Goal(bound, at_least=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the table.

    Args:
        what: What is measured.
        value: The figure, in *unit*; a ratio has none.
        goal: Its goal, if it has one.
        beside: What the figure was taken from, in words.
        why: Why the goal is missed, and what would be needed; shown where it is missed.
        samples: The raw numbers, by what they are.
    """

    what: str
    value: float
    unit: str = ""
    goal: Goal | None = None
    beside: str = ""
    why: str = ""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Whether the goal is met; empty without one."""
        if self.goal is None:
            return ""
        if self.goal.met(self.value):
            return "met"
        return f"{MISSED}: {self.why}" if self.why else MISSED

    @property
    def measured(self) -> str:
        """The figure with its unit."""
        return f"{number(self.value)} {self.unit}".rstrip()


def number(value: float) -> str:
    """*value* with three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def median_ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of rounds that were taken by turns."""
    return median(one / other for one, other in zip(ours, others, strict=True))
