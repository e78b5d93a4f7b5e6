"""Delays before a program that ended is restarted: short ones first, then longer ones.

Pure: the time is a parameter.
"""

from dataclasses import dataclass
from typing import Final

DELAY_S_MIN: Final = 0.5
DELAY_S_MAX: Final = 15.0
# A program that ran this long has recovered from its former trouble.
STEADY_S: Final = 30.0


@dataclass(slots=True)
class Restart:
    """The restart plan of one program; delays double until it has run steadily."""

    count: int = 0
    delay_s: float = DELAY_S_MIN
    due_s: float | None = None

    def ended(self, *, started_s: float, now_s: float) -> float:
        """Plans the next start after an end at *now_s*; returns the delay in seconds."""
        steady = now_s - started_s >= STEADY_S
        self.delay_s = DELAY_S_MIN if steady or not self.count else self._doubled()
        self.count += 1
        self.due_s = now_s + self.delay_s
        return self.delay_s

    def take_due(self, now_s: float) -> bool:
        """Whether to start now; true once per plan."""
        if self.due_s is None or now_s < self.due_s:
            return False
        self.due_s = None
        return True

    def _doubled(self) -> float:
        return min(DELAY_S_MAX, 2 * self.delay_s)
