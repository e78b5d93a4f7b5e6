"""Reading certificates, keys and tokens from files; each error is one line."""

import codecs
import ssl
from pathlib import Path


class CredentialError(Exception):
    """A file can't be used; the message names its setting and the remedy, not the content."""


def read_file(setting: str, path: Path) -> bytes:
    """Returns the content of the file that *setting* names.

    Raises:
        CredentialError: It can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise CredentialError(f"{setting}: {path} can't be read ({exc.strerror})") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CredentialError(
            f"{setting}: {path} is UTF-16, which Windows calls Unicode, not UTF-8:"
            " save it as UTF-8"
        )
    return content.removeprefix(codecs.BOM_UTF8)


def check_ca(setting: str, ca: bytes) -> None:
    """Checks that *ca* holds PEM certificates.

    Raises:
        CredentialError: It doesn't.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise CredentialError(f"{setting}: holds no certificate in PEM form") from None


def check_pair(cert: tuple[str, Path], key: tuple[str, Path]) -> None:
    """Checks that certificate and key, each a setting and its file, belong together.

    Raises:
        CredentialError: They don't, or are no PEM files.
    """
    try:
        # An encrypted key must fail rather than ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert[1], key[1], password="")
    except OSError:
        raise CredentialError(
            f"{cert[0]} and {key[0]}: {cert[1]} and {key[1]} must be a PEM certificate chain and"
            " its key, not encrypted"
        ) from None
