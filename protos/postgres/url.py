"""Database URLs, checked before they are used.

libpq quotes the offending part of a URL that it can't parse, and that part may be the
password. libpq parses a URL that passes this check as its author meant it: later messages
quote nothing but hosts, names and options.

Syntax: PostgreSQL documentation, section 34.1.1.2, "Connection URIs".
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict

EXAMPLE: Final = "postgresql://user:password@127.0.0.1:5432/deals"
# libpq accepts no other spelling: it reads anything else as "keyword=value" pairs.
SCHEMES: Final = ("postgresql://", "postgres://")
PORT_MAX: Final = 2**16 - 1

STRAY_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
# Letters of any script: libpq resolves names as the system does.
HOST_NAME: Final = re.compile(r"[\w.-]*")

# libpq checks these only when it connects, each time.
CHOICES: Final[Mapping[str, frozenset[str]]] = {
    "sslmode": frozenset({
        "disable", "allow", "prefer", "require", "verify-ca", "verify-full",
    }),
    "target_session_attrs": frozenset({
        "any", "read-write", "read-only", "primary", "standby", "prefer-standby",
    }),
    "channel_binding": frozenset({"disable", "prefer", "require"}),
    "gssencmode": frozenset({"disable", "prefer", "require"}),
    "load_balance_hosts": frozenset({"disable", "random"}),
}  # fmt: skip
SECRET_OPTIONS: Final = ("password", "sslpassword")


def check_database_url(text: str) -> str:
    """Returns *text* if libpq parses it as it was meant.

    Raises:
        ValueError: It does not; the message never quotes any of it.
    """
    if not text.startswith(SCHEMES):
        raise ValueError(f"must look like {EXAMPLE}, and begin with postgresql://")
    if not text.isprintable() or " " in text:
        raise ValueError("holds blanks or control characters: write them as %20 and the like")
    if STRAY_PERCENT.search(text):
        raise ValueError("holds a % that begins no %XX: write %25 for a % in the password")
    rest = text.partition("://")[2]
    # An @, / or ? within the password ends it for libpq.
    place = "write %40 for @, %2F for / and %3F for ? in user, password and options"
    if rest.count("@") > 1:
        raise ValueError(f"holds more than one @: {place}")
    userinfo, at, _ = rest.partition("@")
    if at and ("/" in userinfo or "?" in userinfo):
        raise ValueError(f"holds a / or ? before the @: {place}")
    try:
        options = conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        # The driver's message quotes the part that it can't parse.
        problem = (
            "holds an option that libpq does not have, or one without a value; after the ?"
            " stand libpq's own, such as sslmode=require, and a ? in the password is %3F"
        )
    else:
        _check_options(options)
        return text
    raise ValueError(problem)


def secrets_of(text: str) -> Iterator[str]:
    """Yields the passwords in a URL, even a malformed one: as libpq and as people read it."""
    try:
        options = conninfo_to_dict(text)
    except psycopg.Error:
        options = {}
    yield from (str(options[name]) for name in SECRET_OPTIONS if options.get(name))
    authority = text.partition("://")[2].rpartition("@")[0]
    if password := authority.partition(":")[2]:
        yield password
        yield unquote(password)


def _check_options(options: Mapping[str, object]) -> None:
    hosts = str(options.get("host") or "").split(",")
    ports = str(options.get("port") or "").split(",")
    addresses = str(options.get("hostaddr") or "").split(",")
    place = "after the @ stands host:port, or several of them with commas between"
    # A host may also be the folder of the server's socket, or an abstract socket.
    are_hosts = all(
        host.startswith(("/", "@")) or HOST_NAME.fullmatch(host) or _is_address(host)
        for host in hosts
    )
    if not are_hosts or not all(map(_is_address, addresses)):
        raise ValueError(f"holds no valid host: {place}")
    if not all(
        not port or (port.isascii() and port.isdecimal() and 0 < int(port) <= PORT_MAX)
        for port in ports
    ):
        raise ValueError(f"holds no valid port: {place}; a : in the password is %3A")
    servers = max(len(hosts), len(addresses))
    if len(ports) not in {1, servers} or (any(addresses) and len(addresses) != servers):
        raise ValueError(f"holds another number of ports than of hosts: {place}")
    for name, choices in CHOICES.items():
        if (value := options.get(name)) is not None and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(sorted(choices))}")


def _is_address(text: str) -> bool:
    try:
        return not text or bool(ipaddress.ip_address(text))
    except ValueError:
        return False
