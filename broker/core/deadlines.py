"""Who must have an answer by when."""

from collections.abc import Iterator
from heapq import heappop, heappush

from broker.core.leases import LeaseRequest
from broker.core.probing import PATIENCE_MS
from broker.core.waitlist import Waiting, Waitlist


class Deadlines:
    """Deadlines of those who wait, soonest first; a repeated request moves its own."""

    def __init__(self) -> None:
        self._soonest: list[tuple[int, str]] = []
        # Past their deadline, but their first decision still awaits a probe.
        self._overdue: dict[str, Waiting] = {}

    def add(self, request: LeaseRequest) -> None:
        """Take note of when *request* wants its answer, if it says so."""
        if request.deadline_ms is not None:
            heappush(self._soonest, (request.deadline_ms, request.lease_id))

    def drop(self, lease_id: str) -> None:
        """It has its answer, or needs none."""
        self._overdue.pop(lease_id, None)

    def passed(self, waitlist: Waitlist, now_ms: int, *, undecided: bool) -> Iterator[Waiting]:
        """Whose time is up; while *undecided*, only those who can't await a probe."""
        while self._soonest and self._soonest[0][0] <= now_ms:
            deadline_ms, lease_id = heappop(self._soonest)
            waiting = waitlist.get(lease_id)
            if waiting is not None and waiting.request.deadline_ms == deadline_ms:
                self._overdue[lease_id] = waiting
        for waiting in self._overdue.values():
            if not undecided or waiting.due_ms(PATIENCE_MS) <= now_ms:
                yield waiting

    def next_wake_ms(self) -> int | None:
        """When somebody's time is up next."""
        times = [waiting.due_ms(PATIENCE_MS) for waiting in self._overdue.values()]
        return min([*times, *(deadline_ms for deadline_ms, _ in self._soonest[:1])], default=None)
