"""A command's end: one line, whatever its surroundings do."""

import subprocess
import sys

CLOSING = """
import grpc, threading
from protos.process.command import run_command

def _poll_connectivity():
    raise ValueError("Channel closed!")

def start(target):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()

def fail():
    raise ValueError("a mistake of ours")

def command():
    start(_poll_connectivity)
    start(fail)

run_command("test", command, exit_codes={}, secrets=lambda: [])
"""
PRINTING = """
from protos.process.command import run_command
run_command("test", lambda: print("x" * 100_000), exit_codes={}, secrets=lambda: [])
"""


def test_a_closed_channels_own_thread_ends_in_silence() -> None:
    """Its race is gRPC's; errors of all other threads are shown."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSING], capture_output=True, text=True, timeout=60, check=True
    )

    assert "Channel closed" not in done.stderr
    assert "a mistake of ours" in done.stderr


def test_a_full_disk_is_one_line() -> None:
    """Neither the write nor the flush at exit ends in a traceback."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [sys.executable, "-c", PRINTING],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "test: the output can't be written: No space left on device\n"
