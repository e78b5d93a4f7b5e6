"""A virtual clock and the events that move it. Milliseconds, from 0."""

from collections.abc import Callable
from heapq import heappop, heappush

Action = Callable[[], None]


class Timeline:
    """Runs events in the order of their times; equals in the order they were set."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.events = 0
        self._set = 0
        self._heap: list[tuple[int, int, Action]] = []

    def at(self, time_ms: int, action: Action) -> None:
        """Runs *action* at *time_ms*; what lies in the past runs next."""
        self._set += 1
        heappush(self._heap, (max(time_ms, self.now_ms), self._set, action))

    def after(self, delay_ms: int, action: Action) -> None:
        """Runs *action* in *delay_ms*."""
        self._set += 1
        heappush(self._heap, (self.now_ms + delay_ms, self._set, action))

    def step(self) -> None:
        """Runs the next event."""
        self.now_ms, _, action = heappop(self._heap)
        self.events += 1
        action()
