"""What the kinds of work of one process share: Postgres, the broker, the queries, the end."""

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

log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0

# After a stop, a reply that was paid for is still tried to be written for so long.
STOP_GRACE_S: Final = 1.0

Result = TypeVar("Result")


class StoppedError(Exception):
    """The process is to end while Postgres is still away."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience: how long claims last, how often and how soon a failed call is repeated."""

    claim_ttl_s: float
    attempts_max: int
    retry_delay_s: float
    poll_speed: float = 1.0

    def retry_delay(self, attempts: int) -> float:
        """Seconds until the next try after *attempts* failed ones; doubles up to a minute."""
        return float(min(self.retry_delay_s * 2 ** min(attempts, 10), 60.0))


@dataclass
class Workplace:
    """Shared by the threads of one process."""

    holder: str
    database: Database
    broker: BrokerClient
    folder: QueryFolder
    limits: Limits
    stop: threading.Event = field(default_factory=threading.Event)
    doing: str = "starting"
    _database_away: bool = False
    _stopped_at_s: float | None = None

    def persist(self, change: Callable[[Connection], Result]) -> Result:
        """Run *change* in one transaction, again and again while Postgres is away.

        Raises:
            StoppedError: The process was told to stop meanwhile.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            # The end can't wait for long.
            timeout_s = STOP_GRACE_S / 2 if self.stop.is_set() else None
            try:
                with self.database.connection(timeout_s=timeout_s) as connection:
                    result = change(connection)
            except DatabaseAwayError as exc:
                self._say_away(exc)
            else:
                self._say_back()
                return result
            if self.stop.is_set():
                self._check_grace()
                # The event doesn't wait any more, and Postgres must not be hammered.
                time.sleep(FIRST_PAUSE_S)
            else:
                self.stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def rest(self, pause_s: float) -> None:
        """Wait for *pause_s* seconds or the end."""
        self.stop.wait(pause_s)

    def _check_grace(self) -> None:
        now_s = time.monotonic()
        if self._stopped_at_s is None:
            self._stopped_at_s = now_s
        if now_s - self._stopped_at_s > STOP_GRACE_S:
            raise StoppedError

    def _say_away(self, exc: DatabaseAwayError) -> None:
        if not self._database_away:
            self._database_away = True
            log.warning("Postgres is away: waiting for it", problem=str(exc))

    def _say_back(self) -> None:
        if self._database_away:
            self._database_away = False
            log.info("Postgres is back")
