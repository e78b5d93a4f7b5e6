"""The file of identities: callers by token or certificate, and their roles.

    [fetchers]
    role = "fetcher"
    certificates = ["fetcher.example", "spiffe://example/fetcher"]

    [anna]
    role = "operator"
    token_sha256 = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]

The broker and the console read the same format, and may read the same file. It never
holds a token itself, only its SHA-256: the `sha256sum` of the file that holds the token.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from protos.channel.credential_files import CredentialError, read_file
from protos.process.text_file import decode_text

# Precedes the holder's own name, separated by a slash.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Role(StrEnum):
    """Purpose of an identity."""

    FETCHER = "fetcher"
    OPERATOR = "operator"
    VIEWER = "viewer"


Digest = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)]


class Entry(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, defer_build=True)

    role: Role
    # A SPIFFE id, a DNS name or, where the certificate has neither, its common name.
    certificates: list[str] = []
    token_sha256: list[Digest] = []
    priority_max: Literal["high", "normal", "low"] = "high"
    share_max: Annotated[float, Field(gt=0, le=1)] | None = None
    weight: Annotated[float, Field(ge=0.01, le=100)] | None = None


# Built when the first file is read, as most brokers have none.
ENTRIES: Final = TypeAdapter(dict[str, Entry], config=ConfigDict(defer_build=True))


class IdentityFile:
    """The entries by name, and their names by token and certificate.

    Raises:
        ValueError: An entry is invalid; one line.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        self._by_certificate: dict[str, str] = {}
        self._by_digest: dict[str, str] = {}
        for name, entry in entries.items():
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r}: a name is letters, digits, dots and dashes, at most 64"
                )
            if not entry.certificates and not entry.token_sha256:
                raise ValueError(f"{name}: has neither certificates nor token_sha256")
            _enter(self._by_certificate, entry.certificates, name)
            _enter(self._by_digest, entry.token_sha256, name)

    @classmethod
    def read(cls, setting: str, path: Path) -> Self:
        """Reads the TOML file *path*, the value of *setting*.

        Raises:
            CredentialError: It can't be read, or an entry is invalid; one line.
        """
        try:
            entries = ENTRIES.validate_python(tomllib.loads(decode_text(read_file(setting, path))))
            if not entries:
                raise ValueError("has no identity: add a table such as [fetchers]")  # noqa: TRY301 - one line with the others
            return cls(entries)
        except ValidationError as exc:
            error = exc.errors(include_input=False, include_url=False)[0]
            problem = f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
        except ValueError as exc:
            problem = str(exc)
        raise CredentialError(f"{setting}: {path}: {problem}")

    def by_token(self, token: str) -> str | None:
        """Returns the name of the entry that *token* belongs to."""
        # Looked up by digest: the time that takes depends on no character of the token.
        return self.by_digest(digest_of(token))

    def by_digest(self, digest: str) -> str | None:
        """Returns the name of the entry that has the token with this SHA-256."""
        return self._by_digest.get(digest)

    def by_certificate(self, names: Iterable[str]) -> str | None:
        """Returns the name of the entry that one of a certificate's *names* belongs to."""
        return next((self._by_certificate[n] for n in names if n in self._by_certificate), None)


def digest_of(token: str) -> str:
    """Returns the SHA-256 of *token*, as the file holds it."""
    return hashlib.sha256(token.encode()).hexdigest()


def _enter(names: dict[str, str], keys: Iterable[str], name: str) -> None:
    for key in keys:
        if key in names:
            raise ValueError(f"{name} and {names[key]} share a certificate name or token")
        names[key] = name
