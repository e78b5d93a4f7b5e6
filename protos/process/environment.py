"""The environment and `.env` as plain text, for a command that must answer at once.

Loading pydantic takes longer than the rest of `tokenbroker status`. Servers and all other
commands read the same sources through the settings classes; a test compares both ways.
"""

import os
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

from protos.channel.access import Access, addresses_of
from protos.process.text_file import REMEDY, NotUtf8Error, read_text

ENV_FILE: Final = Path(".env")
# The same in every locale.
ENCODING: Final = "utf-8-sig"
BROKER_ADDRESS: Final = "127.0.0.1:50051"


class SettingsError(ValueError):
    """A setting is missing or malformed; one line per problem, with its remedy.

    A ValueError, so that a validator may raise it too.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def broker_access() -> tuple[str, Access]:
    """Reads the broker's address, and a client's files: the fields of `ClientSettings`.

    Raises:
        SettingsError: A variable is malformed, or `.env` can't be read.
    """
    found = _variables()
    address = found.get("broker_address", BROKER_ADDRESS)
    try:
        check_target(address)
    except ValueError as exc:
        raise SettingsError([f"BROKER_ADDRESS: {exc}"]) from None

    def path(name: str) -> Path | None:
        return Path(found[name]) if name in found else None

    return address, Access(
        ca_file=path("broker_tls_ca_file"),
        cert_file=path("broker_tls_client_cert_file"),
        key_file=path("broker_tls_client_key_file"),
        server_name=found.get("broker_tls_server_name", ""),
        token_file=path("broker_token_file"),
    )


def check_target(text: str) -> None:
    """Checks that *text* is a gRPC target, or several with commas between.

    Raises:
        ValueError: It is none.
    """
    for address in addresses_of(text):
        host, _, port = address.rpartition(":")
        sound = host and port.isdecimal() and 0 < int(port) < 2**16
        if not sound and not address.startswith("unix:"):
            raise ValueError("must look like 127.0.0.1:50051, or a:50051,b:50051 for several")


def env_file_error(exc: OSError | UnicodeDecodeError) -> SettingsError:
    """Returns in one line why `.env` could not be read; it quotes no content."""
    if isinstance(exc, OSError):
        return SettingsError([f"{ENV_FILE.absolute()}: can't be read: {exc.strerror}"])
    return SettingsError([f"{ENV_FILE.absolute()}: {_why_unreadable(ENV_FILE)}"])


def _variables() -> dict[str, str]:
    """The variables that are not empty, by their names in small letters."""
    problem = None
    in_file: dict[str, str | None] = {}
    try:
        if ENV_FILE.is_file() or ENV_FILE.is_fifo():
            in_file = dotenv_values(ENV_FILE, encoding=ENCODING)
    except (OSError, UnicodeDecodeError) as exc:
        problem = env_file_error(exc)
    if problem is not None:
        # Outside the handler: the cause in a traceback would show the content.
        raise problem
    return {
        name.lower(): value
        for source in (in_file, os.environ)
        for name, value in source.items()
        if value
    }


def _why_unreadable(path: Path) -> str:
    try:
        read_text(path)
    except (OSError, NotUtf8Error) as exc:
        return str(exc)
    return f"it is not UTF-8: {REMEDY}"
