"""Free ports: no two programs are given the same one."""

import socket
import subprocess
import sys

import pytest

from deploy.local.ports import BLOCK, Ports

GIVEN = f"""
from deploy.local.ports import free_port
print(*(free_port() for _ in range({BLOCK})), flush=True)
input()
"""


def test_no_two_processes_are_given_the_same_port() -> None:
    """Neither at once nor one after another, as long as both run; nor does one twice."""
    command = [sys.executable, "-c", GIVEN]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as two,
    ):
        given = []
        for process in (one, two):
            assert process.stdout is not None
            given += process.stdout.readline().split()
        for process in (one, two):
            process.communicate("\n")

    assert len(set(given)) == len(given) == 2 * BLOCK


def test_a_taken_port_is_not_given() -> None:
    """What another program has bound is passed over."""
    ports = Ports()
    first = ports.free("127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))

        assert ports.free("127.0.0.1") not in {first, first + 1}


def test_a_host_that_is_not_here_has_none() -> None:
    """The system's own reason is raised."""
    with pytest.raises(OSError, match=r"assign|address"):
        Ports().free("192.0.2.1")
