"""What outlives a restart of the simulator: the accounts, and the catalogues.

An outage of Keepa leaves its buckets as they are: they refill meanwhile, and no charge is
forgotten. A catalogue follows from its seed and start, so it needs no memory. But after hours of
fast events they would take minutes to run again: it goes on from a copy that is stored now and
then.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from deploy.keepa_simulator.account import Account
from deploy.keepa_simulator.catalogue import Catalogue

# They take a second or two to run again.
EVENTS_PER_COPY: Final = 10_000
_SEAL_BYTES: Final = sha256().digest_size


@cache
def _code() -> bytes:
    """The source of this version of the simulator."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return b"".join(file.read_bytes() for file in files)


def _seal(made_of: Mapping[str, Any], body: bytes) -> bytes:
    """Of a copy of a catalogue; differs if it was made otherwise, or damaged."""
    return sha256(_code() + json.dumps(made_of, sort_keys=True).encode() + body).digest()


class Kept:
    """The file; every charge is in it before its reply is sent.

    Args:
        path: It need not exist yet.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text() if path.exists() else ""
        state: dict[str, Any] = json.loads(text) if text else {}
        self.start_ms: int | None = state.get("start_ms")
        self._accounts: dict[str, dict[str, Any]] = state.get("accounts", {})
        # The number of events that each stored copy has seen.
        self._copied: dict[int, int] = {}

    def restore(self, name: str, account: Account) -> None:
        """Puts the account called *name* back where it was, if it is in the file."""
        for field, value in self._accounts.get(name, {}).items():
            setattr(account, field, value)

    def save(self, start_ms: int, accounts: Mapping[str, Account]) -> None:
        """Replaces the file at once, so that no end of the process leaves half of it."""
        names = [field.name for field in fields(Account)]
        state = {
            "start_ms": start_ms,
            "accounts": {
                name: {field: getattr(account, field) for field in names}
                for name, account in accounts.items()
            },
        }
        _replace(self._path, json.dumps(state).encode())

    def save_catalogue(self, catalogue: Catalogue, made_of: Mapping[str, Any]) -> None:
        """Stores a copy if the last one is `EVENTS_PER_COPY` old; *made_of* are its arguments."""
        domain = catalogue.domain
        if catalogue.events - self._copied.get(domain, 0) < EVENTS_PER_COPY:
            return
        self._copied[domain] = catalogue.events
        body = pickle.dumps(catalogue)
        _replace(self._copy_of(domain), _seal(made_of, body) + body)

    def catalogue(self, made_of: Mapping[str, Any]) -> Catalogue | None:
        """The stored copy; None if there is none that is whole, of this version and *made_of*."""
        path = self._copy_of(made_of["domain"])
        stored = path.read_bytes() if path.exists() else b""
        seal, body = stored[:_SEAL_BYTES], stored[_SEAL_BYTES:]
        if seal != _seal(made_of, body):
            return None
        catalogue: Catalogue = pickle.loads(body)  # noqa: S301 - its owner's, like the state
        self._copied[catalogue.domain] = catalogue.events
        return catalogue

    def _copy_of(self, domain: int) -> Path:
        return self._path.with_name(f"{self._path.name}.catalogue-{domain}")


def _replace(path: Path, content: bytes) -> None:
    """Writes a file that is never seen half."""
    written = path.with_name(f"{path.name}.new")
    written.write_bytes(content)
    written.replace(path)
