"""TCP ports of this machine."""

import secrets
import socket
from contextlib import suppress
from typing import Final

# Below the range from which systems take the ports of outgoing connections: such a
# connection would take a free port before the program that is to have it.
LOWEST: Final = 10_000
HIGHEST: Final = 32_000
TRIES: Final = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A port of *host* that is free at the moment.

    Raises:
        OSError: *host* has none, or is not this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(TRIES):
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST)
        with socket.socket(family) as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    # Any port, or the system's own reason why there is none.
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
