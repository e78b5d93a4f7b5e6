"""The identities file: callers, their roles, and the methods that each role may call.

    [fetchers]
    role = "fetcher"
    certificates = ["fetcher.example", "spiffe://example/fetcher"]

    [partners]
    role = "fetcher"
    token_sha256 = ["4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce"]
    priority_max = "low"   # lowers requests above it; default "high"
    share_max = 0.25       # of all tokens within any hour, over all holders of the identity

    [anna]
    role = "operator"
    token_sha256 = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]

The file never holds a token itself. It holds the `sha256sum` of the file that a client
names in BROKER_TOKEN_FILE.
"""

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from broker.core.budgets import Budget
from broker.core.leases import Priority
from broker.rpc.introspection import CHANNELZ_NAME, REFLECTION_NAME, SERVICE_NAME
from protos.channel.credential_files import CredentialError, read_file
from protos.channel.reasons import Reason
from protos.process.text_file import decode_text

SETTING: Final = "BROKER_IDENTITIES_FILE"
# Precedes the holder's own name, separated by a slash.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Role(StrEnum):
    """Purpose of an identity."""

    FETCHER = "fetcher"
    OPERATOR = "operator"
    VIEWER = "viewer"


EVERY_ROLE: Final = frozenset(Role)
READ: Final = EVERY_ROLE
LEASE: Final = frozenset({Role.FETCHER})
STEER: Final = frozenset({Role.OPERATOR})

# Services with read-only methods.
READ_SERVICES: Final = frozenset({CHANNELZ_NAME, REFLECTION_NAME})
METHODS: Final = {
    "AcquireLease": LEASE,
    "RenewLease": LEASE,
    "SettleLease": LEASE,
    "GetCaller": READ,
    "GetBucket": READ,
    "WatchBucket": READ,
    "ListLeases": READ,
    "SyncBucket": STEER,
    "PauseGrants": STEER,
    "ResumeGrants": STEER,
}


def roles_for(method: str) -> frozenset[Role]:
    """Roles that may call *method*, "/service/name"; no role may call a method not listed."""
    service, _, name = method.lstrip("/").rpartition("/")
    if service in READ_SERVICES:
        return READ
    return METHODS.get(name, frozenset()) if service == SERVICE_NAME else frozenset()


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller with credentials."""

    name: str
    role: Role
    priority_max: Priority = Priority.HIGH

    def signed(self, holder: str) -> str:
        """*holder* prefixed with the identity; identities have no slash, so none can be forged."""
        return f"{self.name}/{holder}"

    def capped(self, priority: Priority) -> Priority:
        """*priority*, lowered to the identity's maximum."""
        return max(priority, self.priority_max, key=lambda each: each.value)

    def owns(self, holder: str) -> bool:
        """Whether *holder* was signed by this identity."""
        return holder.startswith(f"{self.name}/")


class RefusedError(Exception):
    """A call is not allowed; the message gives reason and remedy, and holds no secret."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# Checks the caller's credentials again; raises RefusedError if they no longer suffice.
still_let_in: ContextVar[Callable[[], None]] = ContextVar("still_let_in", default=lambda: None)
# The identity behind the current call; None without an identities file.
caller: ContextVar[Identity | None] = ContextVar("caller", default=None)

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)]


class Entry(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    role: Role
    # A SPIFFE id, a DNS name or, where the certificate has neither, its common name.
    certificates: list[str] = []
    token_sha256: list[Digest] = []
    priority_max: Literal["high", "normal", "low"] = "high"
    share_max: Annotated[float, Field(gt=0, le=1)] | None = None


ENTRIES: Final = TypeAdapter(dict[str, Entry])


class IdentityBook:
    """The identities file, ready to look up."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._by_certificate: dict[str, Identity] = {}
        self._by_digest: dict[str, Identity] = {}
        # An identity's name needs no escape in a budget's pattern; see NAME.
        self.budgets = tuple(
            Budget(f"identity:{name}", f"{name}/*", share=entry.share_max)
            for name, entry in entries.items()
            if entry.share_max is not None
        )
        for name, entry in entries.items():
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r}: a name is letters, digits, dots and dashes, at most 64"
                )
            if not entry.certificates and not entry.token_sha256:
                raise ValueError(f"{name}: has neither certificates nor token_sha256")
            identity = Identity(name, entry.role, Priority[entry.priority_max.upper()])
            _enter(self._by_certificate, entry.certificates, identity)
            _enter(self._by_digest, entry.token_sha256, identity)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the TOML file *path*.

        Raises:
            CredentialError: It can't be read, or an entry is invalid; one line.
        """
        try:
            entries = ENTRIES.validate_python(tomllib.loads(decode_text(read_file(SETTING, path))))
            if not entries:
                raise ValueError("has no identity: add a table such as [fetchers]")  # noqa: TRY301 - one line with the others
            return cls(entries)
        except ValidationError as exc:
            error = exc.errors(include_input=False, include_url=False)[0]
            problem = f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
        except ValueError as exc:
            problem = str(exc)
        raise CredentialError(f"{SETTING}: {path}: {problem}")

    def by_token(self, token: str) -> Identity | None:
        """The identity that *token* belongs to."""
        # Looked up by digest: the time that takes depends on no character of the token.
        return self._by_digest.get(hashlib.sha256(token.encode()).hexdigest())

    def by_certificate(self, names: Iterable[str]) -> Identity | None:
        """The identity that one of a certificate's *names* belongs to."""
        return next((self._by_certificate[n] for n in names if n in self._by_certificate), None)


def _enter(book: dict[str, Identity], keys: Iterable[str], identity: Identity) -> None:
    for key in keys:
        if key in book:
            other = book[key].name
            raise ValueError(f"{identity.name} and {other} share a certificate name or token")
        book[key] = identity
