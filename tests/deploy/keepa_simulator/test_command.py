"""The command reports errors in one line, and ends on a signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.keepa_simulator.__main__ import main
from tests.fix_broker import environment
from tests.fix_simulator import StartSimulator
from tests.in_process import run_here
from tests.waiting import wait_until


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return run_here(
        main, "keepa-simulator", arguments, environment=environment(), folder=Path.cwd()
    )


def test_taken_port_is_one_line(start_simulator: StartSimulator) -> None:
    """A second simulator on the same port exits with 2 and no traceback."""
    address = start_simulator().base_url.removeprefix("http://")
    done = run("serve", "--listen", address)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert address in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fault", "earthquake"], "unknown fault"),
        (["--listen", "nowhere"], "HOST:PORT"),
        (["--latency", "slow"], "LOW-HIGH"),
        (["--rate", "0"], "rate"),
    ],
)
def test_bad_option_is_explained(arguments: list[str], says: str) -> None:
    """The error names a malformed option; the exit code is 2."""
    done = run("serve", *arguments)

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_termination_is_clean(start_simulator: StartSimulator) -> None:
    """SIGTERM ends the server with exit code 0."""
    assert start_simulator().stop() == 0


def test_fixture_leaves_nothing_behind() -> None:
    """A simulator ends with the process that started it, even if that is killed."""
    script = (
        "import sys; from tests.fix_simulator import launch_simulator\n"
        "print(launch_simulator().process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()

    wait_until(lambda: not _is_alive(pid), "the simulator ends")


def _is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie doesn't."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - /proc
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
