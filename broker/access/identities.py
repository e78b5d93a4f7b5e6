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

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from broker.core.budgets import Budget
from broker.core.leases import Priority
from broker.rpc.introspection import CHANNELZ_NAME, REFLECTION_NAME, SERVICE_NAME
from protos.channel.reasons import Reason
from protos.process.identities import IdentityFile, Role

SETTING: Final = "BROKER_IDENTITIES_FILE"

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
    "ListCosts": READ,
    "ExplainLease": READ,
    "ListSpend": READ,
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


class IdentityBook:
    """The identities file, ready to look up."""

    def __init__(self, file: IdentityFile) -> None:
        self.file = file
        # An identity's name needs no escape in a budget's pattern; see `identities.NAME`.
        self.budgets = tuple(
            Budget(f"identity:{name}", f"{name}/*", share=entry.share_max)
            for name, entry in file.entries.items()
            if entry.share_max is not None
        )
        # The shares of each priority class; any other identity then has 1.
        self.weights = {
            name: entry.weight for name, entry in file.entries.items() if entry.weight is not None
        }
        self._identities = {
            name: Identity(name, entry.role, Priority[entry.priority_max.upper()])
            for name, entry in file.entries.items()
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the TOML file *path*.

        Raises:
            CredentialError: It can't be read, or an entry is invalid; one line.
        """
        return cls(IdentityFile.read(SETTING, path))

    def by_token(self, token: str) -> Identity | None:
        """The identity that *token* belongs to."""
        return self._identities.get(self.file.by_token(token) or "")

    def by_certificate(self, names: Iterable[str]) -> Identity | None:
        """The identity that one of a certificate's *names* belongs to."""
        return self._identities.get(self.file.by_certificate(names) or "")
