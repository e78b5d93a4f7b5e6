"""TCP ports of this machine."""

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """A port of *host* that is free at the moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
