"""What the threads of one process share: Postgres, the broker, the queries, the stop."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from fetcher.broker_client import BrokerClient
from fetcher.errors import DatabaseAwayError
from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.query_folder import QueryFolder
from fetcher.work.keepa_errors import KeepaErrors
from fetcher.work.threads import Activities

log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 0.25
# Between two tries after a stop, which leaves little time.
STOPPING_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
# How soon a thread that pauses sees that another one has found Postgres again.
LOOK_EVERY_S: Final = 0.25

# After a stop, a change is still tried for so long while Postgres is away.
STOP_GRACE_S: Final = 1.0

Result = TypeVar("Result")


class StoppedError(Exception):
    """The process is to end while Postgres is still away."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long claims last, how often and how soon a failed call is repeated.

    ``finish_s`` is how long a stop waits for calls under way, and ``write_s`` how much longer
    for the replies among them that have come, which were paid for.
    """

    claim_ttl_s: float
    attempts_max: int
    retry_delay_s: float
    poll_speed: float = 1.0
    finish_s: float = 2.5
    write_s: float = 5.0

    @property
    def beat_every_s(self) -> float:
        """How often claims are renewed, in seconds."""
        return self.claim_ttl_s / 3

    def retry_delay(self, attempts: int) -> float:
        """Returns the seconds after *attempts* failed tries; doubles up to a minute."""
        return float(min(self.retry_delay_s * 2 ** min(attempts, 10), 60.0))


class Every:
    """A timer that is due at once, then at most every *period_s* seconds."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._last_s = float("-inf")

    def is_due(self, now_s: float) -> bool:
        """Returns whether it is due; if so, the next period starts now."""
        if now_s - self._last_s < self._period_s:
            return False
        self._last_s = now_s
        return True


class Pulse:
    """Decides by the heartbeats' success whether expired claims may be taken over.

    A claim of another process may have expired because Postgres took no renewals for a
    while. This process's own heartbeats show that too. The claim's holder renews it as soon
    as Postgres takes renewals again, and gets that time: else its work would be paid twice.
    A process that has just started has no heartbeats to judge by, and waits as well.
    """

    def __init__(self, limits: Limits) -> None:
        # One beat may be late, two in a row are an outage.
        self._gap_max_s = 2 * limits.beat_every_s
        self._settle_s = 1.5 * limits.beat_every_s
        self._last_s: float | None = None
        self._steady_since_s = float("inf")

    def beat(self, now_s: float) -> None:
        """Records a heartbeat that has succeeded."""
        if self._last_s is None or now_s - self._last_s > self._gap_max_s:
            self._steady_since_s = now_s
        self._last_s = now_s

    def miss(self) -> None:
        """Records a heartbeat that has failed."""
        self._last_s = None

    def may_take_over(self, now_s: float) -> bool:
        """Returns whether living holders of expired claims have had the time to renew them."""
        last_s = self._last_s
        if last_s is None or now_s - last_s > self._gap_max_s:
            return False
        return now_s - self._steady_since_s >= self._settle_s


class Troubles:
    """The threads that Postgres fails at present; logs the first trouble and the last end.

    ``recoveries`` counts the changes that were made by a thread in trouble: Postgres takes
    writes again, and the others need not wait for the end of their pause.
    """

    def __init__(self) -> None:
        self.recoveries = 0
        self._lock = threading.Lock()
        self._threads: dict[str, str] = {}

    def begin(self, exc: DatabaseAwayError) -> None:
        """Records that Postgres has failed the calling thread."""
        with self._lock:
            is_first = not self._threads
            self._threads[threading.current_thread().name] = str(exc)
        if is_first:
            log.warning("Postgres is away: waiting for it", problem=str(exc))

    def end(self, *, by_change: bool = True) -> None:
        """Records that Postgres serves the calling thread: it took a change, or only let read."""
        with self._lock:
            was_in_trouble = self._threads.pop(threading.current_thread().name, None) is not None
            self.recoveries += was_in_trouble and by_change
            was_last = was_in_trouble and not self._threads
        if was_last:
            log.info("Postgres is back")


@dataclass
class Workplace:
    """What the threads of one process share."""

    holder: str
    database: Database
    broker: BrokerClient
    folder: QueryFolder
    limits: Limits
    stop: threading.Event = field(default_factory=threading.Event)
    activities: Activities = field(default_factory=Activities)
    troubles: Troubles = field(default_factory=Troubles)
    keepa_errors: KeepaErrors = field(default_factory=KeepaErrors)

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.limits)

    @property
    def may_take_over(self) -> bool:
        """Whether this process may claim what others have left behind."""
        return self.pulse.may_take_over(time.monotonic())

    def doing(self, text: str, *, at_most_s: float | None) -> None:
        """Records what the calling thread does, and how long it may take; None: for ever."""
        self.activities.begin(text, at_most_s=at_most_s)

    def attempt(self, change: Callable[[Connection], Result]) -> Result:
        """Runs *change* in one transaction, once.

        Raises:
            DatabaseAwayError: Nothing has changed; try again later.
            DatabaseRefusedError: The same change fails again.
        """
        try:
            with self.database.connection() as connection:
                result = change(connection)
        except DatabaseAwayError as exc:
            self.troubles.begin(exc)
            raise
        self.troubles.end()
        return result

    def persist(
        self, change: Callable[[Connection], Result], *, grace_s: float = STOP_GRACE_S
    ) -> Result:
        """Runs *change* in one transaction, again and again while Postgres is away.

        The pauses between two tries grow, and end as soon as another thread has made a change.
        After a stop it fails for *grace_s* seconds at most before it is given up.

        Raises:
            StoppedError: The process is to end, and Postgres has not come back.
            DatabaseRefusedError: The same change fails again.
        """
        pause_s = FIRST_PAUSE_S
        has_failed = False
        give_up_at_s: float | None = None
        while True:
            # A stop can't wait for long.
            timeout_s = STOP_GRACE_S / 2 if self.stop.is_set() else None
            # Another thread may find Postgres while this try still fails.
            recoveries = self.troubles.recoveries
            try:
                with self.database.connection(timeout_s=timeout_s) as connection:
                    result = change(connection)
            except DatabaseAwayError as exc:
                has_failed = True
                self.troubles.begin(exc)
            else:
                # Reading may work where writing does not: it ends no earlier trouble.
                if has_failed:
                    self.troubles.end()
                return result
            self.doing("waiting for Postgres", at_most_s=None)
            if self.stop.is_set():
                now_s = time.monotonic()
                # Each change has its own time, whatever another thread had to give up.
                if give_up_at_s is None:
                    give_up_at_s = now_s + grace_s
                if now_s > give_up_at_s:
                    raise StoppedError("Postgres did not come back before the end")
                # The event that is set does not wait, and Postgres must not be hammered.
                time.sleep(STOPPING_PAUSE_S)
            else:
                self._await_recovery(pause_s, recoveries)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _await_recovery(self, pause_s: float, recoveries: int) -> None:
        """Waits for *pause_s*, the stop, or more *recoveries* of the process than these."""
        until_s = time.monotonic() + pause_s
        while self.troubles.recoveries == recoveries:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or self.stop.wait(min(left_s, LOOK_EVERY_S)):
                return

    def rest(self, pause_s: float) -> None:
        """Waits for *pause_s* seconds or the stop."""
        self.stop.wait(pause_s)
