"""Programs as children: their output, their end, and the tether to the parent."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deploy.local.errors import ProgramError
from deploy.local.program import Program, stop_together
from tests.waiting import DEADLINE_S, wait_until

STUBBORN = (
    "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
)
POLITE = "import signal; print('up', flush=True); signal.pause()"


def python(source: str, folder: Path, name: str = "program") -> Program:
    """A program of one line of Python."""
    return Program(
        name,
        [sys.executable, "-c", source],
        environment=os.environ,
        log_path=folder / f"{name}.log",
    )


def test_every_line_is_passed_on_and_kept(tmp_path: Path) -> None:
    """Every line, of either stream, reaches the callback and the log."""
    lines: list[str] = []
    program = Program(
        "talker",
        [sys.executable, "-uc", "import sys; print('one'); print('two', file=sys.stderr)"],
        environment=os.environ,
        log_path=tmp_path / "talker.log",
        on_line=lines.append,
    ).start()
    code = program.wait(DEADLINE_S)

    assert code == 0
    assert lines == ["one", "two"]
    assert program.output().splitlines() == ["one", "two"]


def test_a_program_that_ends_before_it_is_ready_is_quoted(tmp_path: Path) -> None:
    """The error repeats the last line of a program that gave up."""
    program = python("raise SystemExit('no such port')", tmp_path).start()

    with pytest.raises(ProgramError, match=r"program: no such port \(exit code 1\)"):
        program.await_ready(lambda: False, 60)


def test_a_stubborn_program_is_killed(tmp_path: Path) -> None:
    """A program that ignores SIGTERM is killed and named."""
    stubborn = python(STUBBORN, tmp_path, "stubborn").start()
    polite = python(POLITE, tmp_path, "polite").start()
    for program in (stubborn, polite):
        program.await_ready(lambda program=program: program.last_line == "up", 60)  # type: ignore[misc]
    killed = stop_together([stubborn, polite], timeout_s=3)

    assert killed == [stubborn]
    assert (stubborn.returncode, polite.returncode) == (-signal.SIGKILL, -signal.SIGTERM)


def test_a_program_starts_again_after_its_end(tmp_path: Path) -> None:
    """The same program can start again, and its log goes on."""
    program = python("print('hello')", tmp_path)
    for _ in range(2):
        program.start().wait(DEADLINE_S)

    assert program.output().splitlines() == ["hello", "hello"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems can't tether a child")
def test_programs_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """A program that ignores SIGTERM ends with a parent that is killed."""
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(f"""
            import os, pathlib, signal, sys
            from deploy.local.program import Program
            command = [sys.executable, "-c", {STUBBORN!r}]
            log = pathlib.Path({str(tmp_path / "log")!r})
            child = Program("child", command, environment=os.environ, log_path=log).start()
            child.await_ready(lambda: child.last_line == "up", 60)
            print(child.pid, flush=True)
            signal.pause()
        """)],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    alive_before = is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not is_alive(pid), "the program ends")

    assert alive_before


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie doesn't."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}
