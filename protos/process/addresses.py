"""Addresses to listen on, and a clear word when one is taken."""

import errno
import socket
from dataclasses import dataclass
from typing import Self

from protos.channel.access import is_loopback

PORT_MAX = 65_535


class ListenError(Exception):
    """An address can't be listened on; the message names the setting and the remedy."""


@dataclass(frozen=True, slots=True)
class Listen:
    """A host and a TCP port; port 0 lets the system choose a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port`, `[v6]:port` or `:port` (all interfaces).

        Raises:
            ValueError: it is none of these.
        """
        host, colon, digits = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            colon = ""
        if not colon or not digits.isdecimal() or int(digits) > PORT_MAX:
            raise ValueError("must be host:port, such as 127.0.0.1:50051")
        return cls(host or "0.0.0.0", int(digits))  # noqa: S104 - ":port" asks for just that

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can connect."""
        return is_loopback(self.host)

    def check_free(self, setting: str) -> None:
        """Bind once and let go: gRPC wouldn't say why it can't.

        Raises:
            ListenError: the address is taken, not allowed or not of this machine.
        """
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
                probe.listen(1)
        except OSError as exc:
            raise listen_error(setting, self, exc) from None


def listen_error(setting: str, listen: Listen, exc: OSError) -> ListenError:
    """Say in one line what is wrong with *listen*, which came from *setting*."""
    match exc.errno:
        case errno.EADDRINUSE:
            problem = "is taken; stop the program that uses it, or choose another port"
        case errno.EACCES:
            problem = "may not be used; choose a port above 1023"
        case errno.EADDRNOTAVAIL:
            problem = "is no address of this machine; use 127.0.0.1 or 0.0.0.0"
        case _:
            problem = f"can't be listened on ({exc.strerror or exc})"
    return ListenError(f"{setting}: {listen} {problem}")
