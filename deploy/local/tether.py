"""Programs that end with the process that started them, in whatever way that one ends.

Linux can send a signal to a child when its parent dies (PR_SET_PDEATHSIG, see prctl(2)).
This file runs as a program between the two: it requests that signal, changes the user if
one is given, and becomes the program. A function between fork and exec could do the same,
but isn't safe while other threads run. The signal is tied to the parent's *thread*, so
start tethered programs from the main thread. Other systems lack the call; there a program
outlives a parent that is killed with SIGKILL.
"""

import ctypes
import os
import pwd
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class User:
    """An account that runs a program; only root can change to one."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> "User":
        """The account with the name *name*.

        Raises:
            KeyError: the machine has no such account.
        """
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, entry.pw_gid)


def tethered(
    command: Sequence[str],
    *,
    death_signal: signal.Signals = signal.SIGKILL,
    user: User | None = None,
) -> list[str]:
    """The command line that runs *command* while this process lives.

    Args:
        command: Path of the program, and its arguments.
        death_signal: The signal to the program at the end of this process.
        user: The account to change to first; None keeps this process's own.
    """
    account = f"{user.uid}:{user.gid}" if user else "-"
    # -I and -S keep the detour short: Python loads only its standard library.
    detour = [sys.executable, "-I", "-S", __file__]
    return [*detour, str(int(death_signal)), str(os.getpid()), account, *command]


def tether_to_parent(death_signal: signal.Signals) -> None:
    """Requests *death_signal* for this process at the end of its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)


def tether_to_make() -> None:
    """Ends this process with `make`, if that started it: a kill of make means the stack."""
    comm = Path(f"/proc/{os.getppid()}/comm")
    if comm.exists() and comm.read_text().strip() in {"make", "gmake"}:
        tether_to_parent(signal.SIGTERM)


def _become(death_signal: str, parent_pid: str, account: str, program: str, *args: str) -> None:
    if account != "-":
        uid, gid = (int(part) for part in account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of user, because that clears the setting.
    tether_to_parent(signal.Signals(int(death_signal)))
    if os.getppid() != int(parent_pid):
        sys.exit(f"{program}: its parent is gone already")
    os.execv(program, [program, *args])  # noqa: S606 - becoming the program is the point


if __name__ == "__main__":
    _become(*sys.argv[1:])
