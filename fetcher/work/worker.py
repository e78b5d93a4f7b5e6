"""One fetcher process: its threads, its heartbeat, and its end.

Some threads read pages, as many buy details, one renews the claims of both and reports that
the process lives. The main thread starts and watches them, and waits for the end: a signal, the
time limit, or an error that a person must see.
"""

import random
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from fetcher.broker_client import (
    BrokerAwayError,
    BrokerRefusedError,
    LeaseDeniedError,
    WaitCancelledError,
)
from fetcher.errors import DatabaseAwayError, DatabaseError, DatabaseNotSetUpError
from fetcher.keepa import Keepa
from fetcher.postgres.claims import PAGE_WORK, PRODUCT_WORK, WorkTable, renew_claims
from fetcher.postgres.database import Connection
from fetcher.postgres.keepa_errors import add_errors
from fetcher.postgres.schema import missing_migrations
from fetcher.postgres.workers import SILENT_CLAIMS, beat, leave
from fetcher.work.details import EnrichmentWork
from fetcher.work.pages import ScanWork
from fetcher.work.paid_call import KeyRefusedError, Outage, PaidCalls
from fetcher.work.shared import Every, StoppedError, Workplace
from fetcher.work.threads import STEP_AT_MOST_S, Activity, Threads
from fetcher.work.turns import Turn
from fetcher.work.verdicts import judge_outdated

log = structlog.get_logger(__name__)

# Pause after a look that found no work; it varies, so that fleets don't look in step.
IDLE_S: Final = 0.5
DENIED_PAUSE_MAX_S: Final = 10.0
AWAY_PAUSE_MAX_S: Final = 10.0
SCHEMA_PAUSE_S: Final = 2.0
# The check of the tables takes less as a rule; a process that waits for them is not at work.
TABLES_CHECK_S: Final = 1.0
JUDGE_AGAIN_PAUSE_S: Final = 30.0
WATCH_EVERY_S: Final = 1.0

# After FINISH_SECONDS, and replies to write, a stop takes this for the last settles, and about
# as long for Postgres to take back the claims.
GOODBYE_S: Final = 1.0

# Of one process. Postgres works on no more at once than it has cores; by default it allows a
# hundred to all processes together.
WORKER_CONNECTIONS_MAX: Final = 16

SCANS: Final = "scans"
DETAILS: Final = "details"
HEARTBEAT: Final = "heartbeat"

# What a thread does that another of its kind keeps from looking for work.
AWAITS_TURN: Final = "waiting for its turn"


def connections_of(calls_in_flight: int) -> int:
    """Returns the most connections to Postgres that a process opens: one for each thread."""
    return min(2 * calls_in_flight + 1, WORKER_CONNECTIONS_MAX)


class Worker:
    """The threads of one process; *calls_in_flight* of each kind make calls."""

    def __init__(
        self,
        workplace: Workplace,
        new_keepa: Callable[[], Keepa],
        version: str,
        *,
        calls_in_flight: int = 1,
    ) -> None:
        self._workplace = workplace
        self._version = version
        self._scans = ScanWork(workplace)
        self._crews = (
            Crew(SCANS, PAGE_WORK, self._scan_step, workplace, new_keepa, calls_in_flight),
            Crew(
                DETAILS,
                PRODUCT_WORK,
                EnrichmentWork(workplace).step,
                workplace,
                new_keepa,
                calls_in_flight,
            ),
        )
        self._end_receiver, self._end_sender = socket.socketpair()
        self._end_sender.setblocking(False)
        self._fatal: Exception | None = None
        self._threads = Threads(
            workplace.stop,
            workplace.activities,
            fatal=(KeyRefusedError, BrokerRefusedError),
            end=self._end_by,
        )
        # Set once the tables have been found as this version needs them.
        self._has_tables = threading.Event()
        self._logged_problem = ""
        # Set while deals may be left that older rules have judged.
        self._judge_outdated_again: Every | None = None

    def run(self, *, seconds: float | None = None) -> None:
        """Works until `end` is called or *seconds* have passed.

        Raises:
            FetcherError, BrokerClientError: A person must act; the message has the remedy.
        """
        beat_every_s = self._workplace.limits.beat_every_s
        try:
            self._threads.start(HEARTBEAT, self._heartbeat, longest_pause_s=beat_every_s)
            for crew in self._crews:
                for thread, calls in crew.calls.items():
                    self._threads.start(thread, Round(self, self._workplace, crew, calls))
            self._watch(seconds)
        finally:
            self._end()
        if self._fatal is not None:
            raise self._fatal

    @property
    def wakeup_fd(self) -> int:
        """The descriptor for signal.set_wakeup_fd: any byte written to it ends `run`.

        A signal handler in Python can't wake a thread that is about to wait for a lock;
        a byte in a socket can't be missed.
        """
        return self._end_sender.fileno()

    def close(self) -> None:
        """Disconnects from Keepa; call it after `run`, when no signal can come any more."""
        for crew in self._crews:
            for calls in crew.calls.values():
                calls.keepa.close()
        self._end_receiver.close()
        self._end_sender.close()

    def end(self) -> None:
        """Makes `run` return soon."""
        self._end_sender.send(b"\0")

    def _end_by(self, exc: Exception) -> None:
        self._fatal = self._fatal or exc
        self.end()

    def _watch(self, seconds: float | None) -> None:
        """Waits for the end; logs each stuck thread once."""
        end_s = float("inf") if seconds is None else time.monotonic() + seconds
        logged: set[Activity] = set()
        while (left_s := end_s - time.monotonic()) > 0:
            ended, _, _ = select.select([self._end_receiver], [], [], min(left_s, WATCH_EVERY_S))
            if ended:
                return
            for activity in set(self._workplace.activities.overdue()) - logged:
                logged.add(activity)
                log.error(
                    "thread is stuck: this process no longer counts as alive",
                    thread=activity.thread,
                    doing=activity.text,
                    at_most_s=activity.at_most_s,
                )

    def can_begin(self, kind: str) -> bool:
        """Returns whether the tables can be used; logs once why not."""
        if self._has_tables.is_set():
            return True
        if kind != SCANS:
            # One kind of threads checks for all.
            return False
        if problem := self._schema_problem():
            self._workplace.doing(f"waiting for the database: {problem}", at_most_s=None)
            if problem != self._logged_problem:
                log.warning("waiting for the database", problem=problem)
                self._logged_problem = problem
            return False
        if self._logged_problem:
            log.info("the database can be used")
        self._has_tables.set()
        return True

    def _schema_problem(self) -> str:
        try:
            with self._workplace.database.connection() as connection:
                missing = missing_migrations(connection)
        except DatabaseNotSetUpError as exc:
            return str(exc)
        except DatabaseAwayError as exc:
            return f"Postgres is away: {exc}"
        names = ", ".join(sorted(missing))
        return f"it lacks {names}: run dealfetcher migrate" if missing else ""

    def _scan_step(self, calls: PaidCalls) -> bool:
        if self._workplace.folder.refresh():
            self._workplace.folder.report()
            self._judge_outdated_again = Every(JUDGE_AGAIN_PAUSE_S)
        again = self._judge_outdated_again
        # Repeated until it succeeds; deals that can't be judged must not stop the reading.
        if again is not None and again.is_due(time.monotonic()):
            for query in self._workplace.folder.book.queries:
                judged = 0
                while not self._workplace.stop.is_set():
                    count = self._workplace.persist(partial(judge_outdated, query=query))
                    judged += count
                    if not count:
                        break
                if judged:
                    log.info("deals judged again by changed rules", query=query.name, deals=judged)
            self._judge_outdated_again = None
        return self._scans.step(calls)

    def _heartbeat(self) -> float:
        """Renews the claims, then reports that the process lives; returns the pause in s."""
        workplace = self._workplace
        workplace.doing("renewing claims", at_most_s=STEP_AT_MOST_S)
        pulse, beat_every_s = workplace.pulse, workplace.limits.beat_every_s
        if not self._has_tables.wait(TABLES_CHECK_S):
            try:
                with workplace.database.connection() as connection:
                    self._report(connection)
            except DatabaseError as exc:
                # The thread that waits for the tables logs why.
                log.debug("no report of waiting", problem=str(exc))
            return SCHEMA_PAUSE_S
        try:
            workplace.attempt(self._renew)
        except DatabaseAwayError as exc:
            pulse.miss()
            log.debug("no heartbeat", problem=str(exc))
            return beat_every_s / 2
        pulse.beat(time.monotonic())
        errors = workplace.keepa_errors.take()
        try:
            # Separate: a table of reports that can't be written must cost no claims.
            workplace.attempt(self._report)
            workplace.attempt(partial(add_errors, counts=errors))
        except DatabaseAwayError as exc:
            workplace.keepa_errors.put_back(errors)
            log.debug("no report of being alive", problem=str(exc))
        return beat_every_s

    def _renew(self, connection: Connection) -> None:
        # The claims of a stuck thread lapse: other processes take them over.
        stuck = {activity.thread for activity in self._workplace.activities.overdue()}
        for crew in self._crews:
            renew_claims(
                connection,
                crew.table,
                holder=self._workplace.holder,
                ttl_s=self._workplace.limits.claim_ttl_s,
                but=[
                    claim for name in stuck & set(crew.calls) for claim in crew.calls[name].claims
                ],
            )

    def _report(self, connection: Connection) -> None:
        overdue = self._workplace.activities.overdue()
        shown = overdue or [
            activity
            for activity in self._workplace.activities.current()
            if activity.thread != HEARTBEAT and activity.text != AWAITS_TURN
        ]
        words = "; ".join(f"{activity.thread}: {activity.text}" for activity in shown)
        beat(
            connection,
            holder=self._workplace.holder,
            version=self._version,
            doing=f"stuck: {words}" if overdue else words,
            silent_s=SILENT_CLAIMS * self._workplace.limits.claim_ttl_s
            if overdue or not self._has_tables.is_set()
            else None,
        )

    def _end(self) -> None:
        """Lets the work finish for a moment, then gives back what is still claimed."""
        self._workplace.stop.set()
        log.info("fetcher is stopping")
        self._workplace.broker.stop_waiting()
        for crew in self._crews:
            crew.turn.wake()
        until_s = time.monotonic() + self._workplace.limits.finish_s
        # The heartbeat ends with the stop, and its last renewal may be a third of a claim old.
        with suppress(DatabaseError), self._workplace.database.connection(timeout_s=0.5) as last:
            self._renew(last)
        self._threads.join(until_s=until_s)
        write_until_s = time.monotonic() + self._workplace.limits.write_s
        try:
            # First, so that a reply that comes from now on is known to have come too late.
            for crew in self._crews:
                for calls in crew.calls.values():
                    calls.give_back()
        except (StoppedError, DatabaseError) as exc:
            log.warning("Postgres is away: claims end by themselves", problem=str(exc))
        self._finish_writing(write_until_s)
        with suppress(DatabaseError), self._workplace.database.connection(timeout_s=0.5) as last:
            leave(last, holder=self._workplace.holder)
        self._workplace.broker.close(timeout_s=GOODBYE_S)

    def _finish_writing(self, until_s: float) -> None:
        """Waits until *until_s* for the replies that have come: they were paid for."""
        while writing := [
            name for crew in self._crews for name, calls in crew.calls.items() if calls.is_writing
        ]:
            if time.monotonic() > until_s:
                log.warning("replies are not written: their work is paid for again", of=writing)
                return
            log.info("the end waits for replies to be written", of=writing)
            self._threads.join(until_s=until_s, names=writing)


class Crew:
    """The threads of one kind, which take turns in looking for work; their calls overlap."""

    def __init__(
        self,
        kind: str,
        table: WorkTable,
        step: Callable[[PaidCalls], bool],
        workplace: Workplace,
        new_keepa: Callable[[], Keepa],
        size: int,
    ) -> None:
        self.kind = kind
        self.table = table
        self.step = step
        self.turn = Turn()
        outage = Outage(workplace)
        names = [kind, *(f"{kind}-{number}" for number in range(2, size + 1))]
        # One session per thread: a session serves one thread only.
        self.calls = {name: PaidCalls(workplace, new_keepa(), self.turn, outage) for name in names}


class Round:
    """One round of a thread that makes paid calls: a step of its crew, and the pause after it."""

    def __init__(self, worker: Worker, workplace: Workplace, crew: Crew, calls: PaidCalls) -> None:
        self._worker = worker
        self._workplace = workplace
        self._crew = crew
        self._calls = calls
        self._failures = 0
        self._is_idle = False

    def __call__(self) -> float:
        """Works once; returns the seconds to rest."""
        workplace, turn = self._workplace, self._crew.turn
        workplace.doing(AWAITS_TURN, at_most_s=None)
        with turn.taken():
            if workplace.stop.is_set():
                return 0.0
            self._is_idle = False
            pause_s = self._work()
            if not turn.is_mine:
                turn.wake()
                return pause_s
            if not pause_s:
                return 0.0
            # Nothing was claimed: the others would find as little, and rest as well.
            workplace.activities.rest()
            if self._is_idle:
                turn.rest(pause_s)
            else:
                workplace.rest(pause_s)
        return 0.0

    def _work(self) -> float:
        workplace = self._workplace
        workplace.doing("looking for work", at_most_s=STEP_AT_MOST_S)
        if not self._worker.can_begin(self._crew.kind):
            return SCHEMA_PAUSE_S
        try:
            has_worked = self._crew.step(self._calls)
        except LeaseDeniedError as exc:
            log.info("no tokens for now", reason=exc.reason, retry_in_s=exc.retry_delay_s)
            return float(min(max(exc.retry_delay_s, IDLE_S), DENIED_PAUSE_MAX_S))
        except (BrokerAwayError, WaitCancelledError, StoppedError) as exc:
            # Already logged where the wait happens, or the process ends; nothing is held here.
            log.debug("postponed", problem=str(exc))
            return IDLE_S
        except DatabaseAwayError:
            # Already logged by `Troubles`.
            self._failures += 1
            return float(min(IDLE_S * 2 ** min(self._failures, 10), AWAY_PAUSE_MAX_S))
        self._failures = 0
        # It may have found nothing to change, and Postgres may be read-only.
        workplace.troubles.end(by_change=False)
        if has_worked:
            return 0.0
        workplace.doing("idle", at_most_s=None)
        self._is_idle = True
        return random.uniform(IDLE_S / 2, IDLE_S)  # noqa: S311 - jitter
