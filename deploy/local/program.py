"""One program of the stack as a child process: started, listened to, stopped.

A program lives in a session of its own, so that Ctrl-C in a terminal reaches
only the parent, which then stops its programs in the right order; and it is
tethered, so that it never outlives the parent.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from deploy.local.errors import ProgramError
from deploy.local.log_line import LogLine
from deploy.local.tether import tethered

STOP_TIMEOUT_S: Final = 15.0
# Our commands return it when a setting is missing or malformed.
EXIT_BAD_SETTING: Final = 2
_POLL_S: Final = 0.02


class Program:
    """A child process whose output goes to a file and, line by line, to *on_line*.

    Args:
        name: What people call it; also the name of its log.
        command: Path of the program, and its arguments.
        environment: Its whole environment.
        log_path: File that its output is appended to.
        folder: Its working directory; by default our own.
        on_line: Called for every line, from a thread of its own.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        folder: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._log_path = log_path
        self._folder = folder
        self._on_line = on_line
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.started_s = 0.0
        self.last_line = ""

    @property
    def pid(self) -> int:
        """Process id of the latest start."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; None while it runs. Negative: the signal that ended it."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, **this_time: str) -> Self:
        """Start it, or start it again; from the main thread, whose life it shares.

        Args:
            this_time: Variables of the environment for this start alone.
        """
        assert not self.running
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_path.touch()
        self._process = subprocess.Popen(
            tethered(self._command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**self._environment, **this_time},
            cwd=self._folder,
            start_new_session=True,
        )
        self.started_s = time.monotonic()
        self._reader = threading.Thread(
            target=self._read, args=(self._process,), name=f"read {self.name}", daemon=True
        )
        self._reader.start()
        return self

    def terminate(self) -> None:
        """Ask it to end; harmless when it already has."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a chance to clean up, as `kill -9` does."""
        if self._process is not None:
            self._process.kill()

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and for its last words, and return the exit code.

        Raises:
            ProgramError: it is still running after *timeout_s* seconds.
        """
        assert self._process is not None
        assert self._reader is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProgramError(f"{self.name} did not end within {timeout_s:.0f} s") from None
        self._reader.join(STOP_TIMEOUT_S)
        return code

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end, insist after *timeout_s* seconds, and return the exit code."""
        stop_together([self], timeout_s)
        return self.wait(timeout_s)

    def await_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Block until *ready* says so.

        Raises:
            ProgramError: it ended first, or *timeout_s* seconds have passed.
        """
        deadline_s = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                self.check(self.wait(STOP_TIMEOUT_S))
                raise ProgramError(f"{self.name} ended before it was ready")
            if time.monotonic() > deadline_s:
                raise ProgramError(f"{self.name} was not ready within {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def check(self, code: int) -> None:
        """Accept exit code 0 only.

        Raises:
            ProgramError: with the program's last words, and its code if that is 2.
        """
        if code == EXIT_BAD_SETTING:
            raise ProgramError(self.last_words, code)
        if code != 0:
            raise ProgramError(f"{self.name}: {self.last_words} ({how_it_ended(code)})")

    @property
    def last_words(self) -> str:
        """The last line that it wrote, as a person would like to read it."""
        self._catch_up()
        return str(LogLine.parse(self.last_line)).removeprefix("ERROR: ") or "no message"

    def output(self) -> str:
        """What it has written so far; after its end, everything."""
        self._catch_up()
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def _catch_up(self) -> None:
        """Waits, once the program has ended, until its last line has been copied."""
        if not self.running and self._reader not in {None, threading.current_thread()}:
            self._reader.join(STOP_TIMEOUT_S)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout, self._log_path.open("ab", buffering=0) as log:
            for raw in process.stdout:
                log.write(raw)
                line = raw.decode(errors="replace").rstrip()
                self.last_line = line or self.last_line
                if self._on_line and line:
                    self._on_line(line)


def how_it_ended(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def stop_together(programs: Iterable[Program], timeout_s: float = STOP_TIMEOUT_S) -> list[Program]:
    """Stop several at once; returns those that had to be killed."""
    running = [program for program in programs if program.running]
    for program in running:
        program.terminate()
    deadline_s = time.monotonic() + timeout_s
    stubborn = []
    for program in running:
        try:
            program.wait(max(0.0, deadline_s - time.monotonic()))
        except ProgramError:
            program.kill()
            program.wait(STOP_TIMEOUT_S)
            stubborn.append(program)
    return stubborn
