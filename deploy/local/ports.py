"""TCP ports of this machine."""

import secrets
import socket
from collections import deque
from contextlib import suppress
from threading import Lock
from typing import Final

# Below the range from which systems take the ports of outgoing connections: such a
# connection would take a free port before the program that is to have it.
LOWEST: Final = 10_000
HIGHEST: Final = 32_000
# A process takes whole blocks, so that no other one is given a port that its program has not
# bound yet. The first port of a block is its guard: as long as it is bound, so is the block.
BLOCK: Final = 100
TRIES: Final = 1_000
GUARD_HOST: Final = "127.0.0.1"


class Ports:
    """Hands out each port of this process's blocks once."""

    def __init__(self) -> None:
        self._left: deque[int] = deque()
        self._lock = Lock()

    def free(self, host: str) -> int:
        """A port of *host* that is free at the moment; see `free_port`."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with self._lock:
            for _ in range(TRIES):
                if not self._left:
                    self._take_block()
                    continue
                port = self._left.popleft()
                with socket.socket(family) as probe, suppress(OSError):
                    probe.bind((host, port))
                    return port
        # Any port, or the system's own reason why there is none.
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])

    def _take_block(self) -> None:
        """Adds the ports of some block, if no other process has it."""
        first = LOWEST + BLOCK * secrets.randbelow((HIGHEST - LOWEST) // BLOCK)
        guard = socket.socket()
        try:
            guard.bind((GUARD_HOST, first))
        except OSError:
            guard.close()
        else:
            # Open until the process ends.
            guard.detach()
            self._left.extend(range(first + 1, first + BLOCK))


_PORTS: Final = Ports()


def free_port(host: str = "127.0.0.1") -> int:
    """A port of *host* that is free at the moment, and that no other process is given.

    Raises:
        OSError: *host* has none, or is not this machine.
    """
    return _PORTS.free(host)
