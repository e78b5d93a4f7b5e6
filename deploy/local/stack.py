"""The whole stack on this machine: starts, watches and stops it in order.

Order of starting: the simulator and Postgres, then the broker and the tables, then the
fetchers. Order of stopping: the fetchers first, so that every paid reply is written and
every lease settled; then the figures; then the rest.

One thread decides everything. The others only put events into its queue.
"""

import queue
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Final

from broker.keepa_status import ProbeFailure
from deploy.keepa_simulator.options import DEMO_KEY
from deploy.local.crew import Crew
from deploy.local.data_dir import DataDir
from deploy.local.errors import ProgramError, StackError
from deploy.local.log_line import LogLine
from deploy.local.parts import Parts
from deploy.local.ports import free_port
from deploy.local.postgres import PostgresServer
from deploy.local.program import Program
from deploy.local.screen import Screen
from deploy.local.settings import Keepa, StackSettings
from deploy.local.summary import RunTotals
from deploy.local.survey import Survey, Surveyor
from fetcher.settings import Settings as FetcherSettings
from fetcher.work.pace import PLAN_EVENT

FIRST_FETCHER: Final = "fetcher-1"
_DATABASE: Final = "deals"
# Each simulator is an account of its own under the same key, so its journal begins anew.
_SIMULATED_JOURNAL: Final = "simulated_journal"
_READY_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.1
_SURVEY_S: Final = 0.5
# Without a terminal, the summary is a line at this interval.
_SUMMARY_LINE_S: Final = 10.0
_KEY_FAILURES: Final = {failure for failure in ProbeFailure if failure.is_permanent}
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopAskedError(Exception):
    """A signal or the clock stops the stack; the message names it."""


@dataclass(frozen=True, slots=True)
class _Logged:
    name: str
    line: LogLine


@dataclass(frozen=True, slots=True)
class _StopAsked:
    reason: str


_Event = _Logged | _StopAsked | Survey


class Stack:
    """One run of the stack.

    Args:
        settings: Settings of the run.
        data_dir: Folder for data and logs, already locked.
        screen: Output for events.
    """

    def __init__(self, settings: StackSettings, data_dir: DataDir, screen: Screen) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._screen = screen
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._began_s = time.monotonic()
        self._shown_s = self._began_s
        self._postgres: PostgresServer | None = None
        self._simulator: Program | None = None
        self._broker = Crew(screen.note)
        self._fetchers = Crew(screen.note)
        self._gateway = Crew(screen.note)
        self._console = Crew(screen.note)
        self._alert = Crew(screen.note)
        self._surveyor: Surveyor | None = None
        self._totals = RunTotals()
        self._stop_signals = 0

    def run(self) -> None:
        """Starts everything, watches it until a signal or the clock, stops everything.

        Raises:
            StackError: the stack can't start or go on; everything has been stopped.
        """
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        reason = "failed"
        try:
            self._start()
            self._watch()
        except StopAskedError as asked:
            reason = str(asked)
        finally:
            self._stop(reason)

    def _start(self) -> None:
        environment = self._environment()
        # The fetchers' settings also serve the surveys, so a wrong one is reported at once.
        access = FetcherSettings.load().require_access()
        simulator_url = self._start_simulator(environment)
        database_url = self._start_postgres(environment)
        parts = self._parts(environment)
        migration = parts.migration().start()
        # The stack's fetchers end with it, so no lease can be left from an earlier run.
        self._broker.start(parts.broker(), BROKER_RECOVERY_GRACE_MS="0")
        self._announce(simulator_url)
        self._await(migration, lambda: not migration.running)
        migration.check(migration.wait(_READY_TIMEOUT_S))
        for number in range(1, self._settings.fetchers + 1):
            self._fetchers.start(parts.fetcher(number))
        self._gateway.start(parts.gateway())
        self._console.start(parts.console())
        if self._settings.alerts_file is not None:
            self._alert.start(parts.alert())
        self._surveyor = Surveyor(
            environment["BROKER_ADDRESS"], database_url, simulator_url, access
        )
        self._surveyor.report_to(self._events.put, _SURVEY_S)
        self._screen.open()

    def _environment(self) -> dict[str, str]:
        """Variables of all programs; the simulator and Postgres add to them."""
        settings = self._settings
        return {
            "BROKER_LISTEN": str(settings.rpc),
            "BROKER_HTTP_LISTEN": str(settings.http),
            "GATEWAY_LISTEN": settings.gateway_listen,
            "GATEWAY_HTTP_LISTEN": settings.gateway_http_listen,
            "CONSOLE_LISTEN": settings.console_listen,
            "BROKER_ADDRESS": settings.broker_address,
            "QUERIES": str(settings.queries),
            "LOG_LEVEL": settings.log_level,
        }

    def _parts(self, environment: dict[str, str]) -> Parts:
        return Parts(environment, self._data_dir.logs, self._on_line)

    def _start_simulator(self, environment: dict[str, str]) -> str:
        """Starts the simulator if there is no other Keepa; returns its base URL."""
        if self._settings.keepa is not Keepa.SIMULATOR:
            return ""
        port = free_port()
        self._simulator = self._parts(environment).simulator(self._settings, port).start()
        url = f"http://127.0.0.1:{port}"
        environment |= {
            "KEEPA_BASE_URL": url,
            "KEEPA_API_KEY": DEMO_KEY,
            "POLL_SPEED": str(self._settings.simulator_speed),
        }
        return url

    def _start_postgres(self, environment: dict[str, str]) -> str:
        """Starts Postgres unless there is one; returns the URL of the database."""
        if not self._settings.runs_postgres:
            return FetcherSettings.load().require_database_url()
        self._postgres = PostgresServer(
            self._data_dir.postgres, log_path=self._data_dir.logs / "postgres.log"
        )
        self._postgres.start()
        url = self._postgres.create_database(_DATABASE)
        self._data_dir.database_url_file.write_text(url + "\n")
        environment["DATABASE_URL"] = url
        if self._settings.brings_journal:
            journal_url = url
            if self._settings.keepa is Keepa.SIMULATOR:
                journal_url = self._postgres.create_database(_SIMULATED_JOURNAL, anew=True)
            self._data_dir.broker_database_url_file.write_text(journal_url + "\n")
            # Alone, the broker leads at once, also after a run that was killed.
            environment |= {"BROKER_DATABASE_URL": journal_url, "BROKER_LEADERSHIP": "sole"}
        return url

    def _announce(self, simulator_url: str) -> None:
        settings, note = self._settings, self._screen.note
        match settings.keepa:
            case Keepa.SIMULATOR:
                lump, tick_s = settings.simulator_rate, settings.simulator_tick_s
                note(f"Keepa: a simulator at {simulator_url}, {lump} tokens every {tick_s:.1f} s")
                note("set KEEPA_API_KEY to use the real one")
            case Keepa.REAL | Keepa.NAMED:
                note(f"Keepa: {settings.keepa_url}, with your key; its tokens will be spent")
        if self._postgres is not None:
            note(f"Postgres {self._postgres.major}: {self._postgres.url(_DATABASE)}")
        else:
            note("Postgres: yours, by DATABASE_URL")
        if self._settings.journal_is_off:
            note("journal: off; BROKER_DATABASE_URL names a database for it, or the same")
        note(f"broker: gRPC on {settings.rpc}, metrics on http://{settings.http}/metrics")
        note(f"tokens in a browser: http://{settings.http}/")
        note(f"deals in a browser: http://{settings.console_listen}/")
        note(f"gateway: Keepa's API for any client on http://{settings.gateway_listen}")
        if settings.alerts_file is None:
            note("alerts wait: ALERTS_FILE names no channels (fetcher/README.md)")
        note(f"{settings.fetchers} fetchers, queries in {settings.queries}")
        note(f"logs in {self._data_dir.logs}")
        if settings.run_seconds is None:
            note("Ctrl-C stops everything")

    def _await(self, program: Program, ready: Callable[[], bool]) -> None:
        """Handles events until *ready* is true."""
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while not ready():
            if time.monotonic() > deadline_s:
                raise ProgramError(f"{program.name} was not ready within {_READY_TIMEOUT_S:.0f} s")
            self._step()

    def _watch(self) -> None:
        # The clock starts here, so a slow start doesn't shorten the run.
        self._began_s = time.monotonic()
        while True:
            self._step()
            self._check_clock()

    def _step(self) -> None:
        """Handles the next event; without one, tends the programs that ended."""
        try:
            self._handle(self._events.get(timeout=_POLL_S))
        except queue.Empty:
            self._tend()

    def _handle(self, event: _Event) -> None:
        match event:
            case _Logged():
                # All fetchers have the same plan, so only the first one's is shown.
                if event.line.event != PLAN_EVENT or event.name == FIRST_FETCHER:
                    self._screen.show_line(event.name, event.line)
                self._check_key(event)
            case Survey():
                self._totals.note(event)
                self._show(event)
                self._tend()
            case _StopAsked():
                raise StopAskedError(event.reason)

    def _check_key(self, logged: _Logged) -> None:
        """Raises `StackError` if Keepa's very first answer refuses the key."""
        failure = logged.line.fields.get("failure")
        if logged.name == "broker" and failure in _KEY_FAILURES and not self._totals.synced:
            raise StackError(f"KEEPA_API_KEY: {logged.line.fields.get('reason', failure)}")

    def _tend(self) -> None:
        if self._simulator is not None and not self._simulator.running:
            # Its bucket and its call log are lost, so the figures could no longer agree.
            self._simulator.check(self._simulator.wait(_READY_TIMEOUT_S))
            raise ProgramError("the simulator has ended")
        if self._postgres is not None and self._postgres.returncode is not None:
            self._screen.note("Postgres ended; starting it again")
            self._postgres.start()
        self._broker.tend()
        self._fetchers.tend()
        self._gateway.tend()
        self._console.tend()
        self._alert.tend()

    def _check_clock(self) -> None:
        limit_s = self._settings.run_seconds
        if limit_s is not None and time.monotonic() - self._began_s >= limit_s:
            raise StopAskedError(f"RUN_SECONDS={limit_s:g} have passed")

    def _show(self, survey: Survey) -> None:
        now_s = time.monotonic()
        if not self._screen.is_live and now_s - self._shown_s < _SUMMARY_LINE_S:
            return
        self._shown_s = now_s
        self._screen.show(survey, self._footing(now_s))

    def _footing(self, now_s: float) -> str:
        limit_s = self._settings.run_seconds
        until = f" of {limit_s:g}" if limit_s else ""
        restarts = self._broker.restarts + self._fetchers.restarts
        return (
            f"{self._totals.deals or 0} deals, {self._totals.new_deals} new"
            f" · {self._fetchers.running} fetchers, {restarts} restarts"
            f" · {now_s - self._began_s:.0f}{until} s"
        )

    def _stop(self, reason: str) -> None:
        self._screen.close()
        self._screen.note(f"stopping: {reason}")
        if self._surveyor is not None:
            self._surveyor.pause()
        for crew in (self._alert, self._console, self._gateway, self._fetchers):
            for program in crew.stop():
                self._screen.note(f"{program.name} did not end by itself and was killed")
        if self._surveyor is not None:
            self._totals.note(self._surveyor.take())
            self._surveyor.close()
        self._broker.stop()
        if self._simulator is not None:
            self._simulator.stop()
        if self._postgres is not None:
            self._postgres.stop()
        self._drain()
        if self._surveyor is not None:
            for line in self._totals.closing_lines():
                self._screen.note(line)

    def _drain(self) -> None:
        """Shows the lines that were logged during the stop."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if isinstance(event, _Logged):
                self._screen.show_line(event.name, event.line)

    def _on_line(self, name: str, text: str) -> None:
        self._events.put(_Logged(name, LogLine.parse(text)))

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop_signals += 1
        if self._stop_signals > 1:
            # A second signal kills fetchers that still wait for a reply.
            self._fetchers.kill()
        self._events.put(_StopAsked(signal.Signals(number).name))
