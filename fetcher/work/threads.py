"""The threads of one process: none ends while the process lives, and a stuck one is noticed.

Law:
1. A thread repeats its step until the process is to end. An error that no step expects is
   logged once with its traceback; the thread rests, longer each time, and goes on.
2. An error that only a person can mend ends the process. So does the end of a thread.
3. A thread notes what it does and how long that may take. A thread that takes longer is
   stuck: it is logged, and its process no longer counts as alive.
"""

import threading
import time
import traceback
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Final

import structlog

from fetcher.errors import FetcherError

log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0

# For all that a step does besides waiting for tokens and calling Keepa: mostly statements.
STEP_AT_MOST_S: Final = 300.0

# One round of a thread's work; returns the seconds to rest before the next one.
Step = Callable[[], float]


class ThreadEndedError(FetcherError):
    """A thread has ended, or could not begin, although the process was to go on."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What a thread does since *since_s*, and may do for *at_most_s*; None: for ever."""

    thread: str
    text: str
    since_s: float
    at_most_s: float | None

    def is_overdue(self, now_s: float) -> bool:
        """Returns whether the thread is stuck in it."""
        return self.at_most_s is not None and now_s - self.since_s > self.at_most_s


class Activities:
    """The present activity of each thread; each thread writes its own, any thread reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: dict[str, Activity] = {}

    def begin(self, text: str, *, at_most_s: float | None = STEP_AT_MOST_S) -> None:
        """Records what the calling thread does from now on."""
        name = threading.current_thread().name
        with self._lock:
            self._current[name] = Activity(name, text, time.monotonic(), at_most_s)

    def rest(self) -> None:
        """Records that the calling thread rests, without a limit."""
        name = threading.current_thread().name
        with self._lock:
            if (current := self._current.get(name)) is not None:
                self._current[name] = replace(current, at_most_s=None)

    def current(self) -> list[Activity]:
        """Returns the activities of all threads, by name."""
        with self._lock:
            return [self._current[name] for name in sorted(self._current)]

    def overdue(self) -> list[Activity]:
        """Returns the activities in which threads are stuck."""
        now_s = time.monotonic()
        return [activity for activity in self.current() if activity.is_overdue(now_s)]


class Threads:
    """Starts threads, keeps them going, and waits for their end.

    Args:
        stop: Set when the process is to end.
        activities: Where the threads record what they do.
        fatal: Errors that end the process.
        end: Called with a fatal error, from the thread that raised it.
    """

    def __init__(
        self,
        stop: threading.Event,
        activities: Activities,
        *,
        fatal: tuple[type[Exception], ...],
        end: Callable[[Exception], None],
    ) -> None:
        self._stop = stop
        self._activities = activities
        self._fatal = fatal
        self._end = end
        self._threads: list[threading.Thread] = []

    def start(self, name: str, step: Step, *, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        """Repeats *step* in a thread, resting up to *longest_pause_s* after unexpected errors.

        For one thread only.

        Raises:
            ThreadEndedError: The machine can't run another thread.
        """
        thread = threading.Thread(
            target=self._run, args=(name, step, longest_pause_s), name=name, daemon=True
        )
        try:
            thread.start()
        except (RuntimeError, MemoryError) as exc:
            raise ThreadEndedError(
                f"the thread {name!r} can't be started ({exc}): allow this user more processes"
                " (ulimit -u) or more memory"
            ) from None
        self._threads.append(thread)

    def join(self, *, until_s: float, names: Container[str] | None = None) -> None:
        """Waits for the end of threads, all or *names*, until *until_s* on the monotonic clock."""
        for thread in self._threads:
            if names is None or thread.name in names:
                thread.join(max(0.0, until_s - time.monotonic()))

    def _run(self, name: str, step: Step, longest_pause_s: float) -> None:
        mishaps = Mishaps(name, longest_pause_s=longest_pause_s)
        try:
            while not self._stop.is_set():
                try:
                    pause_s = step()
                except self._fatal as exc:
                    self._end(exc)
                    return
                except Exception as exc:  # noqa: BLE001 - a thread's top level; logged there
                    self._activities.begin("resting after an unexpected error")
                    pause_s = mishaps.note(exc)
                else:
                    mishaps.over()
                self._activities.rest()
                self._stop.wait(pause_s)
        except BaseException as exc:
            log.exception("thread ended", thread=name)
            self._end(ThreadEndedError(f"the thread {name!r} ended by {type(exc).__name__}"))


class Mishaps:
    """Unexpected errors of one thread: each is logged once, and the pauses grow."""

    def __init__(self, thread: str, *, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        self._thread = thread
        self._longest_pause_s = longest_pause_s
        self._count = 0
        self._logged: set[tuple[type[Exception], str]] = set()

    def note(self, exc: Exception) -> float:
        """Logs *exc* unless it came before from the same place; returns the seconds to rest."""
        pause_s = float(min(FIRST_PAUSE_S * 2 ** min(self._count, 10), self._longest_pause_s))
        self._count += 1
        frames = traceback.extract_tb(exc.__traceback__)
        kind = (type(exc), f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "")
        if kind not in self._logged:
            self._logged.add(kind)
            log.error("unexpected error", thread=self._thread, retry_in_s=pause_s, exc_info=exc)
        return pause_s

    def over(self) -> None:
        """Starts afresh: a step has succeeded."""
        if self._count:
            log.info("goes on after an unexpected error", thread=self._thread, times=self._count)
        self._count = 0
        self._logged.clear()
