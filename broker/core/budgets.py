"""Optional budgets: how much of the account a group of callers may spend an hour.

A budget is a pot that all matching calls share. It limits, it reserves nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

WINDOW_SLOTS: Final = 60
SLOT_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit for calls with a holder and an operation that match the patterns (`*`, `?`).

    `tokens_per_hour` in tokens; `share` as a fraction of a full bucket an hour,
    which is an hour's refill. With both the smaller one counts.
    """

    name: str
    holder: str = "*"
    operation: str = "*"
    tokens_per_hour: int | None = None
    share: float | None = None

    def limit(self, capacity: int) -> int:
        """Tokens an hour when the bucket holds *capacity*."""
        limits = []
        if self.tokens_per_hour is not None:
            limits.append(self.tokens_per_hour)
        if self.share is not None:
            limits.append(int(self.share * capacity))
        return min(limits, default=capacity)

    def covers(self, holder: str, operation: str) -> bool:
        """Whether a call counts against this budget."""
        return fnmatchcase(holder, self.holder) and fnmatchcase(operation, self.operation)


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of a budget is used, in tokens of the last hour."""

    budget: Budget
    limit: int
    used: int


class Pot:
    """Spend against one budget within the last hour, by minute."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._slots: dict[int, int] = {}

    def charge(self, tokens: int, at_ms: int) -> None:
        """Count *tokens* spent at *at_ms*; negative to correct an earlier charge."""
        slot = at_ms // SLOT_MS
        if slot not in self._slots:
            newest = max(self._slots, default=slot)
            self._slots = {s: t for s, t in self._slots.items() if s > newest - 2 * WINDOW_SLOTS}
        self._slots[slot] = self._slots.get(slot, 0) + tokens

    def used(self, now_ms: int) -> int:
        """Tokens of the last hour."""
        oldest = now_ms // SLOT_MS - WINDOW_SLOTS
        return sum(tokens for slot, tokens in self._slots.items() if slot > oldest)

    def free_at_ms(self, tokens: int, capacity: int, now_ms: int) -> int | None:
        """When *tokens* will fit; None if they never do."""
        missing = self.used(now_ms) + tokens - self.budget.limit(capacity)
        if missing <= 0:
            return now_ms
        for slot in sorted(s for s in self._slots if s > now_ms // SLOT_MS - WINDOW_SLOTS):
            missing -= self._slots[slot]
            if missing <= 0:
                return (slot + WINDOW_SLOTS) * SLOT_MS
        return None


class BudgetBook:
    """All budgets of the account."""

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self._pots: dict[str, Pot] = {}
        # Grows with every change of the limits.
        self.version = 0
        self.replace(budgets)

    def __bool__(self) -> bool:
        return bool(self._pots)

    def replace(self, budgets: Iterable[Budget]) -> None:
        """Take new limits; what a budget of the same name has spent still counts."""
        pots = {}
        for budget in budgets:
            pot = self._pots.get(budget.name) or Pot(budget)
            pot.budget = budget
            pots[budget.name] = pot
        self._pots = pots
        self.version += 1

    def standings(self, capacity: int, now_ms: int) -> tuple[Standing, ...]:
        """All budgets when the bucket holds *capacity*."""
        return tuple(
            Standing(pot.budget, pot.budget.limit(capacity), pot.used(now_ms))
            for pot in self._pots.values()
        )

    def limit(self, holder: str, operation: str, capacity: int) -> int:
        """Most tokens that one call can ever have."""
        return min(
            (pot.budget.limit(capacity) for pot in self._covering(holder, operation)),
            default=capacity,
        )

    def room(self, holder: str, operation: str, capacity: int, now_ms: int) -> int | None:
        """Tokens that a call may have now; None if no budget covers it."""
        return min(
            (
                pot.budget.limit(capacity) - pot.used(now_ms)
                for pot in self._covering(holder, operation)
            ),
            default=None,
        )

    def free_at_ms(
        self, holder: str, operation: str, tokens: int, capacity: int, now_ms: int
    ) -> int | None:
        """When *tokens* will fit every covering budget; None if they never do."""
        times = [
            pot.free_at_ms(tokens, capacity, now_ms) for pot in self._covering(holder, operation)
        ]
        known = [time for time in times if time is not None]
        return max(known, default=now_ms) if len(known) == len(times) else None

    def charge(self, holder: str, operation: str, tokens: int, at_ms: int) -> None:
        """Count a call against every budget that covers it."""
        for pot in self._covering(holder, operation):
            pot.charge(tokens, at_ms)

    def _covering(self, holder: str, operation: str) -> list[Pot]:
        return [pot for pot in self._pots.values() if pot.budget.covers(holder, operation)]
