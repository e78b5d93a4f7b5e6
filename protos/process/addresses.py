"""Addresses to listen on, and a clear error when one is taken."""

import errno
import socket
from dataclasses import dataclass
from typing import Self

from protos.channel.access import is_loopback

PORT_MAX = 65_535
BACKLOG = 1_024
# Either means every interface, IPv4 and IPv6, as in gRPC.
EVERY_INTERFACE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - what a person may ask for


class ListenError(Exception):
    """An address can't be listened on; the message names the setting and the remedy."""


@dataclass(frozen=True, slots=True)
class Listen:
    """A host and a TCP port; port 0 lets the system choose a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `host:port`, `[v6]:port` or `:port` (every interface, IPv4 and IPv6).

        Raises:
            ValueError: it is none of these.
        """
        host, colon, digits = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            colon = ""
        if not colon or not digits.isdecimal() or int(digits) > PORT_MAX:
            raise ValueError("must be host:port, such as 127.0.0.1:50051, [::1]:50051 or :50051")
        return cls(host or "0.0.0.0", int(digits))  # noqa: S104 - ":port" asks for just that

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can connect."""
        return is_loopback(self.host)

    @property
    def as_seen_by_others(self) -> str:
        """The address, with this machine's name in place of every interface."""
        host = socket.gethostname() if self.host in EVERY_INTERFACE else self.host
        return str(Listen(host, self.port))

    @property
    def hosts(self) -> list[str]:
        """The IP addresses to listen on; for every interface, one for IPv4 and IPv6.

        Raises:
            OSError: the name of the host can't be resolved.
        """
        if self.host in EVERY_INTERFACE:
            return ["::" if socket.has_dualstack_ipv6() else "0.0.0.0"]  # noqa: S104 - as asked
        if self.host == "localhost":
            # Both, even against the hosts file (RFC 6761, section 6.3), as in gRPC.
            return ["127.0.0.1", "::1"] if socket.has_ipv6 else ["127.0.0.1"]
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(where[0]) for *_, where in found))

    @property
    def grpc_target(self) -> str:
        """The address for gRPC, which resolves names itself."""
        host = self.hosts[0] if self.host in EVERY_INTERFACE else self.host
        return str(Listen(host, self.port))

    def bind(self, setting: str) -> list[socket.socket]:
        """Opens sockets that listen on every address of the host, all on one port.

        Raises:
            ListenError: the address is taken, not allowed or not of this machine.
        """
        sockets: list[socket.socket] = []
        problem: OSError | None = None
        port = self.port
        try:
            for host in self.hosts:
                try:
                    sockets.append(_listening(host, port))
                except OSError as exc:
                    # A machine may have one of the two families only.
                    if exc.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                        raise
                    problem = exc
                else:
                    port = sockets[0].getsockname()[1]
        except OSError as exc:
            for bound in sockets:
                bound.close()
            raise listen_error(setting, self, exc) from None
        if not sockets:
            raise listen_error(setting, self, problem or OSError("no address")) from None
        return sockets

    def check_free(self, setting: str) -> list[tuple[str, int]]:
        """Binds and closes, for libraries that bind themselves; returns the free places.

        Raises:
            ListenError: the address is taken, not allowed or not of this machine.
        """
        bound = self.bind(setting)
        places = [each.getsockname()[:2] for each in bound]
        for each in bound:
            each.close()
        return places


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)


def listen_error(setting: str, listen: Listen, exc: OSError) -> ListenError:
    """Returns in one line what is wrong with *listen*, the value of *setting*."""
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
