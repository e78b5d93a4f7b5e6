"""One fetcher process: its threads, its heartbeat, and how it ends.

One thread reads pages, one buys details, one says that the process lives. The main
thread waits for the end: a signal, the time limit, or an error that a person must see.
"""

import random
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from fetcher.broker_client import (
    BrokerAwayError,
    BrokerClientError,
    BrokerRefusedError,
    LeaseDeniedError,
    WaitCancelledError,
)
from fetcher.errors import DatabaseAwayError, FetcherError
from fetcher.keepa import Keepa
from fetcher.postgres.database import Connection
from fetcher.postgres.pages import renew_pages
from fetcher.postgres.products import renew_products
from fetcher.postgres.schema import missing_migrations
from fetcher.postgres.workers import beat, leave
from fetcher.work.details import EnrichmentWork
from fetcher.work.outage import KeyRefusedError
from fetcher.work.pages import ScanWork
from fetcher.work.reevaluation import judge_outdated
from fetcher.work.shared import StoppedError, Workplace

log = structlog.get_logger(__name__)

# Nothing to do: look again after about so long. Fleets must not look in step.
IDLE_S: Final = 0.5
DENIED_PAUSE_MAX_S: Final = 10.0
BUG_PAUSE_S: Final = 5.0
SCHEMA_PAUSE_S: Final = 2.0

# Of the five seconds that a stop may take: first for the work to end by itself, then to
# give back what is still out, then to tell the broker.
FINISH_S: Final = 2.5
GOODBYE_S: Final = 1.0

Step = Callable[[], bool]


class Worker:
    """The threads of one process."""

    def __init__(self, workplace: Workplace, new_keepa: Callable[[], Keepa], version: str) -> None:
        self._workplace = workplace
        self._version = version
        self._scans = ScanWork(workplace, new_keepa())
        self._details = EnrichmentWork(workplace, new_keepa())
        self._end_heard, self._end_said = socket.socketpair()
        self._end_said.setblocking(False)
        self._threads: list[threading.Thread] = []
        self._fatal: FetcherError | BrokerClientError | None = None

    def run(self, *, seconds: float | None = None) -> None:
        """Work until `end` is called or *seconds* have passed.

        Raises:
            FetcherError, BrokerClientError: A person must act; the message says how.
        """
        self._start("scans", self._begin)
        select.select([self._end_heard], [], [], seconds)
        self._end()
        if self._fatal is not None:
            raise self._fatal

    @property
    def wakeup_fd(self) -> int:
        """For signal.set_wakeup_fd: whatever is written there ends `run`.

        A handler of Python's own can't wake a thread that is about to wait for a lock;
        bytes in a socket can't be missed.
        """
        return self._end_said.fileno()

    def end(self) -> None:
        """Have `run` return soon."""
        self._end_said.send(b"\0")

    def _start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _begin(self) -> None:
        self._wait_for_schema()
        self._start("heartbeat", self._heartbeat)
        self._start("details", partial(self._loop, self._details.step))
        self._loop(self._scan_step)

    def _scan_step(self) -> bool:
        if self._workplace.folder.refresh():
            self._workplace.folder.report()
            self._judge_outdated()
        return self._scans.step()

    def _judge_outdated(self) -> None:
        """Judge by today's rules what was judged by others."""
        for query in self._workplace.folder.book.queries:
            judged = 0
            while not self._workplace.stop.is_set():
                count = self._workplace.persist(partial(judge_outdated, query=query))
                judged += count
                if not count:
                    break
            if judged:
                log.info("deals judged again by changed rules", query=query.name, deals=judged)

    def _loop(self, step: Step) -> None:
        while not self._workplace.stop.is_set():
            try:
                if not step():
                    self._workplace.doing = "idle"
                    self._workplace.rest(random.uniform(IDLE_S / 2, IDLE_S))  # noqa: S311 - jitter
            except (WaitCancelledError, StoppedError):
                return
            except LeaseDeniedError as exc:
                log.info("no tokens for now", reason=exc.reason, retry_in_s=exc.retry_delay_s)
                self._workplace.rest(min(max(exc.retry_delay_s, IDLE_S), DENIED_PAUSE_MAX_S))
            except (BrokerAwayError, DatabaseAwayError) as exc:
                # Said by those who wait for them; nothing is held meanwhile.
                log.debug("put off", problem=str(exc))
                self._workplace.rest(IDLE_S)
            except (KeyRefusedError, BrokerRefusedError) as exc:
                self._fatal = exc
                self.end()
                return
            except Exception:
                # A mistake of ours must not stop the process; the work is put off.
                log.exception("unexpected error")
                self._workplace.rest(BUG_PAUSE_S)

    def _wait_for_schema(self) -> None:
        said = ""
        while not self._workplace.stop.is_set() and (problem := self._schema_problem()):
            if problem != said:
                log.warning("waiting for the database", problem=problem)
                said = problem
            self._workplace.rest(SCHEMA_PAUSE_S)

    def _schema_problem(self) -> str:
        try:
            with self._workplace.database.connection() as connection:
                missing = missing_migrations(connection)
        except DatabaseAwayError as exc:
            return f"Postgres is away: {exc}"
        names = ", ".join(sorted(missing))
        return f"it lacks {names}: run dealfetcher migrate" if missing else ""

    def _heartbeat(self) -> None:
        limits = self._workplace.limits
        while not self._workplace.stop.is_set():
            try:
                with self._workplace.database.connection() as connection:
                    self._beat(connection)
            except DatabaseAwayError as exc:
                log.debug("no heartbeat", problem=str(exc))
            self._workplace.rest(limits.claim_ttl_s / 3)

    def _beat(self, connection: Connection) -> None:
        holder, ttl_s = self._workplace.holder, self._workplace.limits.claim_ttl_s
        renew_pages(connection, holder=holder, ttl_s=ttl_s)
        renew_products(connection, holder=holder, ttl_s=ttl_s)
        beat(connection, holder=holder, version=self._version, doing=self._workplace.doing)

    def _end(self) -> None:
        """Let the work finish for a moment, then give back what is still out."""
        self._workplace.stop.set()
        self._workplace.broker.stop_waiting()
        deadline_s = time.monotonic() + FINISH_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        try:
            self._scans.give_back()
            self._details.give_back()
            with self._workplace.database.connection(timeout_s=0.5) as connection:
                leave(connection, holder=self._workplace.holder)
        except (StoppedError, DatabaseAwayError) as exc:
            log.warning("Postgres is away: claims end by themselves", problem=str(exc))
        self._workplace.broker.close(timeout_s=GOODBYE_S)
