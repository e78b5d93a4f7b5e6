"""One program of the stack as a child process: start, output, stop.

A program has a session of its own. Ctrl-C in a terminal therefore reaches only the
parent, which then stops its programs in the right order. A program is tethered to the
parent, so it never outlives it.
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
# The project's commands return it when a setting is missing or malformed.
EXIT_BAD_SETTING: Final = 2
_POLL_S: Final = 0.02


class Program:
    """A child process; its output goes to a file and, line by line, to *on_line*.

    Args:
        name: Name of the program and of its log.
        command: Path of the program, and its arguments.
        environment: Its whole environment.
        log_path: File to which its output is appended.
        folder: Its working directory; default: the parent's.
        on_line: Takes every line, in a thread of its own.
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
        """Starts or restarts it; call it from the main thread, with which it ends.

        Args:
            this_time: Environment variables for this start alone.
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
        """Sends SIGTERM; harmless if it has ended."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL, which leaves it no chance to clean up."""
        if self._process is not None:
            self._process.kill()

    def wait(self, timeout_s: float) -> int:
        """Waits for its end and its last line; returns the exit code.

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
        """Sends SIGTERM, after *timeout_s* seconds SIGKILL; returns the exit code."""
        stop_together([self], timeout_s)
        return self.wait(timeout_s)

    def await_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Blocks until *ready* is true.

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
        """Accepts exit code 0 only.

        Raises:
            ProgramError: any other code; with the last message, and the code if it is 2.
        """
        if code == EXIT_BAD_SETTING:
            raise ProgramError(self.last_message, code)
        if code != 0:
            raise ProgramError(f"{self.name}: {self.last_message} ({how_it_ended(code)})")

    @property
    def last_message(self) -> str:
        """Its last line in readable form."""
        self._catch_up()
        return str(LogLine.parse(self.last_line)).removeprefix("ERROR: ") or "no message"

    def output(self) -> str:
        """Its output so far; after its end, all of it."""
        self._catch_up()
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def _catch_up(self) -> None:
        """After the program's end, waits until its last line is copied."""
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
    """Stops several at once; returns those that had to be killed."""
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
