"""Walks commands through a broken world, many in one process.

A start of Python for each command in each state would take minutes. `walk` divides the
steps among a few processes of this module, and each of those runs its part in order.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import typer

from tests.fix_broker import environment

# Values of arguments without a default; a new argument needs one here.
ARGUMENTS: Mapping[str, str] = {"asin": "B0D8W1YVBX", "name": "worker-1", "channel": "team"}
DEADLINE_S = 60
TOO_LATE = -1
# For all steps of one process on a busy machine.
WALK_TIMEOUT_S = 300


class TooLateError(BaseException):
    """A command did not end in time; none of its handlers catches this."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The ending of a command.

    Attributes:
        text: Its output: stderr, then stdout.
    """

    command: str
    code: int
    stderr: str
    stdout: str
    took_s: float

    @property
    def text(self) -> str:
        """All of its output."""
        return self.stderr + self.stdout

    def faults(self, secrets: Mapping[str, str]) -> Iterator[str]:
        """Forbidden behaviour, which no broken state excuses."""
        if "Traceback" in self.text:
            yield f"{self.command}: a traceback: {self.text[-2000:]}"
        if self.code not in {0, 1, 2}:
            yield f"{self.command}: exit code {self.code}"
        if self.code and not self.text.strip():
            yield f"{self.command}: exit code {self.code} without a word"
        if self.code == 2 and not self.stderr.strip():
            yield f"{self.command}: exit code 2 without a line on stderr"
        for name, secret in secrets.items():
            if secret in self.text:
                yield f"{self.command}: shows {name}"


def leaves(app: typer.Typer) -> list[list[str]]:
    """The words of every command of *app*, with an argument where one is required."""
    return list(_leaves(typer.main.get_command(app), []))


def _leaves(command: Any, words: list[str]) -> Iterator[list[str]]:
    children = getattr(command, "commands", {})
    for name, child in children.items():
        yield from _leaves(child, [*words, name])
    # A group that runs without a subcommand is a command too, except the program itself.
    if not children or (command.invoke_without_command and words):
        params = (param for param in command.params if param.param_type_name == "argument")
        required = [param.name for param in params if param.required]
        yield [*words, *(ARGUMENTS[name] for name in required)]


@dataclass(frozen=True, slots=True)
class Step:
    """One command in one state.

    Attributes:
        module: The module of the command's `main`.
        until: For a command that lasts: the output after which it gets SIGTERM.
    """

    module: str
    words: list[str]
    folder: str
    settings: dict[str, str]
    until: str = ""


def walk(steps: Mapping[str, Step], *, processes: int = 3) -> dict[str, Ending]:
    """The ending of each step, by its name."""
    names = list(steps)
    with ThreadPoolExecutor(processes) as pool:
        parts = [names[start::processes] for start in range(processes)]
        done = pool.map(_walk_part, [{name: steps[name] for name in part} for part in parts])
    return {name: ending for part in done for name, ending in part.items()}


def _walk_part(steps: Mapping[str, Step]) -> dict[str, Ending]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.walk"],
        input=json.dumps({name: asdict(step) for name, step in steps.items()}),
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WALK_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    endings = json.loads(done.stdout.splitlines()[-1])
    return {name: Ending(**ending) for name, ending in endings.items()}


def run_step(step: Step) -> Ending:
    """Runs a command in this process as its own process would."""
    main = import_module(step.module).main
    stdout, stderr = io.StringIO(), io.StringIO()
    started_s = time.monotonic()
    code = 0
    over = threading.Event()
    with (
        patch.object(sys, "argv", ["command", *step.words]),
        patch.dict(os.environ, environment(**step.settings), clear=True),
        contextlib.chdir(step.folder),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        _deadline(),
    ):
        if step.until:
            threading.Thread(target=_stop_later, args=(step.until, stderr, over)).start()
        try:
            main()
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
        except TooLateError:
            code = TOO_LATE
        except Exception:  # noqa: BLE001 - printed as Python itself would
            code = 1
            traceback.print_exc()
        over.set()
        sys.stderr.flush()
    took_s = time.monotonic() - started_s
    return Ending(" ".join(step.words), code, stderr.getvalue(), stdout.getvalue(), took_s)


def _stop_later(until: str, stderr: io.StringIO, over: threading.Event) -> None:
    while not over.wait(0.02):
        if until in stderr.getvalue():
            os.kill(os.getpid(), signal.SIGTERM)
            return


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TooLateError

    signal.signal(signal.SIGALRM, give_up)
    # Until the command has a handler of its own.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(DEADLINE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.set_wakeup_fd(-1)


if __name__ == "__main__":
    given = {name: Step(**step) for name, step in json.load(sys.stdin).items()}
    ends = {name: asdict(run_step(step)) for name, step in given.items()}
    sys.stdout.write("\n" + json.dumps(ends) + "\n")
    sys.stdout.flush()
    # Threads of interrupted commands must not keep the process alive.
    os._exit(0)
