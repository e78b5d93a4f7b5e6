"""When each waiting request must have its answer."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from broker.core.leases import LeaseRequest
from broker.core.probing import PATIENCE_MS
from broker.core.waitlist import Waiting, Waitlist

# Stale entries beyond this, and beyond those that count, are cleared away.
STALE_MAX: Final = 64


class Deadlines:
    """Deadlines of the requests that wait, soonest first; a repeated request moves its own."""

    def __init__(self) -> None:
        # Entries of requests that were answered or moved are stale, and few.
        self._soonest: list[tuple[int, str]] = []
        self._deadlines: dict[str, int] = {}
        # Past their deadline, but their first decision still awaits a probe.
        self._overdue: dict[str, Waiting] = {}

    def add(self, request: LeaseRequest) -> None:
        """Take note of when *request* wants its answer, if it has a deadline."""
        lease_id, deadline_ms = request.lease_id, request.deadline_ms
        if deadline_ms == self._deadlines.get(lease_id):
            return
        self.drop(lease_id)
        if deadline_ms is None:
            return
        self._deadlines[lease_id] = deadline_ms
        heappush(self._soonest, (deadline_ms, lease_id))
        if len(self._soonest) > 2 * len(self._deadlines) + STALE_MAX:
            self._soonest = [(due_ms, name) for name, due_ms in self._deadlines.items()]
            heapify(self._soonest)

    def drop(self, lease_id: str) -> None:
        """It has its answer, or needs none."""
        self._overdue.pop(lease_id, None)
        self._deadlines.pop(lease_id, None)

    def passed(self, waitlist: Waitlist, now_ms: int, *, undecided: bool) -> Iterator[Waiting]:
        """The requests out of time; while *undecided*, only those that can't await a probe."""
        while self._soonest and self._soonest[0][0] <= now_ms:
            deadline_ms, lease_id = heappop(self._soonest)
            waiting = waitlist.get(lease_id)
            if waiting is not None and self._deadlines.get(lease_id) == deadline_ms:
                self._overdue[lease_id] = waiting
        for waiting in self._overdue.values():
            if not undecided or waiting.due_ms(PATIENCE_MS) <= now_ms:
                yield waiting

    def next_wake_ms(self) -> int | None:
        """When the next request runs out of time."""
        times = [waiting.due_ms(PATIENCE_MS) for waiting in self._overdue.values()]
        return min([*times, *(deadline_ms for deadline_ms, _ in self._soonest[:1])], default=None)
