"""Chance, from one seed; every stroke of it can be muted on its own.

Every actor has dice of its own, so that muting a stroke of one of them changes
no other draw: that is what lets a failing run shrink.
"""

from math import log
from random import Random
from typing import NamedTuple


class Stroke(NamedTuple):
    """The *number*-th time that chance struck for *actor*."""

    actor: str
    number: int


class Fate:
    """Deals out dice; remembers what struck, and mutes what shall not strike."""

    def __init__(self, seed: int, *, muted: frozenset[Stroke] = frozenset()) -> None:
        self.seed = seed
        self.muted = muted
        # Filled on request only, before the first stroke.
        self.struck: list[Stroke] | None = None

    def dice(self, actor: str) -> "Dice":
        """The dice of *actor*, a unique name."""
        return Dice(self, actor)


class Dice:
    """One actor's chance."""

    def __init__(self, fate: Fate, actor: str) -> None:
        self._fate = fate
        self._actor = actor
        self._strokes = 0
        self.random = Random(f"{fate.seed}/{actor}").random

    def strikes(self, probability: float) -> bool:
        """Whether it happens this time."""
        if probability <= 0 or self.random() >= probability:
            return False
        self._strokes += 1
        fate = self._fate
        if fate.struck is None and not fate.muted:
            return True
        stroke = Stroke(self._actor, self._strokes)
        if stroke in fate.muted:
            return False
        if fate.struck is not None:
            fate.struck.append(stroke)
        return True

    def between(self, low: int, high: int) -> int:
        """A whole number from *low* to *high*."""
        return low + int(self.random() * (high - low + 1))

    def exponential(self, mean: float) -> int:
        """A waiting time without memory."""
        return int(-mean * log(1.0 - self.random()))

    def pareto(self, shape: float) -> float:
        """At least 1, with a heavy tail: P(> x) = x ** -shape."""
        return float((1.0 - self.random()) ** (-1.0 / shape))
