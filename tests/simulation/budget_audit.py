"""Budgets by an auditor's own books: what may be granted, and what was spent in the end.

At every grant, and for each budget of a day that covers the call and is enforced:

* something is left, and beside other calls at least what the call holds;
* the holder has no more calls open than it may have;
* no day ends with more spent than the limit and one call's overrun.

A budget in shadow mode denies nothing. Calls count on the day of their grant, at their
hold until they are over, then at what Keepa has charged.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from broker.core.allocator import Allocator
from broker.core.budgets import Budget, Mode, Period, Span
from broker.core.leases import DenialReason, Denied, Lease
from tests.simulation.call import Call

Fail = Callable[[str, str], None]


def days(day_ms: int, starts_ms: int, count: int) -> dict[tuple[str, Span], list[Period]]:
    """So many days of *day_ms* from *starts_ms* on, by the broker's clock."""
    return {
        ("UTC", Span.DAY): [
            Period(f"{n}", starts_ms + n * day_ms, starts_ms + (n + 1) * day_ms)
            for n in range(count)
        ]
    }


@dataclass(slots=True)
class Day:
    """The calls of one budget on one day: holds of those under way, costs of the others."""

    held: dict[str, int] = field(default_factory=dict)
    spent: int = 0
    # The most that one call has cost beyond its hold.
    overrun: int = 0
    unproven_overrun: int = 0

    @property
    def used(self) -> int:
        """Tokens that count."""
        return self.spent + sum(self.held.values())


class BudgetAudit:
    """The auditor's books of all budgets."""

    def __init__(self, budgets: tuple[Budget, ...], day_ms: int, fail: Fail) -> None:
        self._budgets, self._day_ms, self._fail = budgets, day_ms, fail
        self.days: dict[tuple[str, int], Day] = defaultdict(Day)
        self._calls: dict[str, tuple[Call, Lease, list[Day]]] = {}
        # Tokens served to each identity.
        self.served: dict[str, int] = defaultdict(int)

    def granted(self, allocator: Allocator, call: Call, lease: Lease, true_ms: int) -> None:
        """A call was granted at *true_ms*."""
        self.served[lease.holder.partition("/")[0]] += lease.tokens
        # The end of a run drops all budgets, so that every request is served.
        if not self._day_ms or not allocator.budgets.exist:
            return
        for budget in self._budgets:
            if not budget.covers(call.holder, call.demand.operation):
                continue
            day = self.days[budget.name, true_ms // self._day_ms]
            if budget.mode is Mode.ENFORCE:
                self._check(budget, day, allocator, lease)
                self._check_in_flight(budget, allocator, lease)
            day.held[lease.lease_id] = lease.tokens
            self._calls.setdefault(lease.lease_id, (call, lease, []))[2].append(day)

    def over(self, call: Call) -> None:
        """A call is settled, or given up."""
        self._end(call.lease_id)

    def _end(self, lease_id: str, written_off: int | None = None) -> None:
        call, lease, days = self._calls.pop(lease_id, (None, None, []))
        if call is None or lease is None:
            return
        cost = written_off
        if cost is None:
            cost = call.cost if call.charged else 0
        for day in days:
            overrun = max(0, cost - day.held.pop(lease_id))
            day.spent += cost
            day.overrun = max(day.overrun, overrun)
            # Calls of unproven cost take the prior at its word, and overrun together.
            day.unproven_overrun += 0 if lease.proven else overrun

    def denied(self, outcome: Denied) -> None:
        """A request was denied."""
        if outcome.reason is not DenialReason.BUDGET_EXHAUSTED:
            return
        for budget in self._budgets:
            if budget.mode is Mode.SHADOW and f"budget {budget.name} " in outcome.message:
                self._fail("shadow", f"{budget.name} has denied {outcome.lease_id}")

    def check_limits(self) -> None:
        """No day of an enforced budget was exceeded by more than one call's overrun."""
        limits: Mapping[str, int | None] = {
            budget.name: budget.tokens_per_day
            for budget in self._budgets
            if budget.mode is Mode.ENFORCE
        }
        for (name, number), day in self.days.items():
            limit = limits.get(name)
            if limit is not None and day.used > limit + day.overrun + day.unproven_overrun:
                self._fail("budget", f"{name}, day {number}: {day.used} of {limit} tokens")

    def _check(self, budget: Budget, day: Day, allocator: Allocator, lease: Lease) -> None:
        limit = budget.tokens_per_day
        if limit is None:
            return
        ledger = allocator.ledger
        # Taken back because it never reached its client, or written off: only Keepa's count
        # can show what a lost call cost, and the broker's reading of it counts.
        for held in [held for held in day.held if ledger.lease(held) is None]:
            ended = ledger._ended.get(held)
            self._end(held, None if ended is None else ended.written_off)
        left = limit - day.used
        beside = bool(day.held)
        # A lone call may reach beyond the limit, as a call may take Keepa's count below zero.
        day.overrun = max(day.overrun, lease.tokens - left)
        if left <= 0 or (beside and lease.tokens > left):
            self._fail(
                "budget",
                f"{lease.lease_id} got {lease.tokens} tokens; {budget.name} had {left} left",
            )

    def _check_in_flight(self, budget: Budget, allocator: Allocator, lease: Lease) -> None:
        most = budget.in_flight_max
        if most is None:
            return
        holds = allocator.ledger.holds
        calls = [
            held
            for held in holds
            if held.holder == lease.holder
            and holds.is_open(held.lease_id)
            and budget.covers(held.holder, held.operation)
        ]
        if len(calls) > most:
            self._fail("in flight", f"{lease.holder} has {len(calls)} calls open of {most}")
