"""Walks commands through a broken world, many in one process.

A start of Python for each command in each state would take minutes. `walk` hands the
steps to a few processes of this module, and each of those runs them one after the other.
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

# What an argument without a default is given; a new one has to be added here.
ARGUMENTS: Mapping[str, str] = {"asin": "B0D8W1YVBX"}
DEADLINE_S = 60
TOO_LATE = -1
# For all steps of one process, on a busy machine.
WALK_TIMEOUT_S = 300


class TooLateError(BaseException):
    """A command did not end in time; no handler of its own catches this."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended.

    Attributes:
        text: What it wrote to stderr, and behind it what it wrote to stdout.
    """

    command: str
    code: int
    stderr: str
    stdout: str
    took_s: float

    @property
    def text(self) -> str:
        """All that it wrote."""
        return self.stderr + self.stdout

    def faults(self, secrets: Mapping[str, str]) -> Iterator[str]:
        """What no command may do, whatever is wrong around it."""
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
    # A group that works without a subcommand is a command too, but not the program itself.
    if not children or (command.invoke_without_command and words):
        params = (param for param in command.params if param.param_type_name == "argument")
        required = [param.name for param in params if param.required]
        yield [*words, *(ARGUMENTS[name] for name in required)]


@dataclass(frozen=True, slots=True)
class Step:
    """One command in one state.

    Attributes:
        module: Whose `main` is called.
        until: For a command that lasts: once it has written this, it is told to stop.
    """

    module: str
    words: list[str]
    folder: str
    settings: dict[str, str]
    until: str = ""


def walk(steps: Mapping[str, Step], *, processes: int = 3) -> dict[str, Ending]:
    """How each step ended, by its name."""
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
    """Run a command in this process as its own process would."""
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
    # Threads of commands that were cut off must not hold the process.
    os._exit(0)
