"""What outlives a restart of the simulator: the accounts, and since when the catalogues run.

An outage of Keepa leaves its buckets as they are: they refill meanwhile, and no charge is
forgotten. The catalogues are made anew from the seed, and run from the same start to now.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from deploy.keepa_simulator.account import Account


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
        written = self._path.with_name(f"{self._path.name}.new")
        written.write_text(json.dumps(state))
        written.replace(self._path)
