"""An asyncio loop with a virtual clock: it never waits, and each run is the same."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class StuckError(AssertionError):
    """Every task waits, and no timer is set: in real time this would last for ever."""


class Leap(selectors.SelectSelector):
    """Lets the time pass at once that the loop would wait for; nothing ever arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Moves the clock on by *timeout* seconds."""
        if timeout is None:
            raise StuckError("nothing will ever happen any more")
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at 0 s; its time moves only when every task waits."""

    def __init__(self) -> None:
        self._leap = Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        """Seconds since the start."""
        return self._leap.now_s


def in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Runs *work* in a loop of its own; no task outlives it."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(_end_all(asyncio.all_tasks(loop)))
        loop.close()


async def _end_all(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
