"""The order in which the threads of one kind look for work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """The right to look for work; of the threads of a kind, one has it at a time.

    It ends when work is claimed. So a process waits for tokens once for each kind of work,
    however many calls it can make at once, and takes no second lease for the same page. Its
    idle threads look no more often than one would.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        # Set after work was done, which may have opened more.
        self._news = threading.Event()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for the turn; it ends with the context, if not before."""
        self._lock.acquire()
        # A look after this moment sees what had been done before it.
        self._news.clear()
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self.end()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread has the turn."""
        return self._thread == threading.get_ident()

    def rest(self, pause_s: float) -> None:
        """Rests for *pause_s* seconds, or until `wake`."""
        self._news.wait(pause_s)

    def wake(self) -> None:
        """Ends the rest of the thread that has the turn."""
        self._news.set()

    def end(self) -> None:
        """Passes the turn on, if the calling thread has it."""
        if self.is_mine:
            self._thread = None
            self._lock.release()
