"""Replays the journal through the core, with Keepa's own count as the witness.

Reads Postgres itself: a journal is too large for the broker's RPCs, and the audit must not
depend on what it checks.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from broker.core.replay import Replay
from broker.journal.history import replayed
from broker.journal.schema import ADVICE, PROGRAM
from protos.postgres.connections import Connection, connect
from protos.postgres.errors import DatabaseError

ACCOUNTS: Final = "SELECT DISTINCT account FROM tokenbroker.leader ORDER BY 1"
OPENING: Final = """
SELECT clock_timestamp() - %s
"""


class UnknownAccountError(DatabaseError):
    """The journal holds none, or several accounts."""


@dataclass(frozen=True, slots=True)
class Audit:
    """A replay, and the account of its journal."""

    account: str
    replay: Replay


def audit(database_url: str, *, account: str | None, since: timedelta | None) -> Audit:
    """Replays the journal of *account*; times of the result are Unix ms.

    Args:
        database_url: The journal's database.
        account: Fingerprint of the key; None if the journal has one account.
        since: How far back the replay begins: at the leases that were open then, and with
            Keepa's next count as the opening balance. None: at the first record kept.

    Raises:
        DatabaseError: Postgres can't be read, or the account is not clear.
    """
    with connect(database_url, ADVICE, PROGRAM) as connection:
        account = account or _only_account(connection)
        opening = None
        if since is not None:
            row = connection.execute(OPENING, (since,)).fetchone()
            assert row is not None
            opening = row[0]
        return Audit(account, replayed(connection, account, opening))


def _only_account(connection: Connection) -> str:
    accounts = [str(name) for (name,) in connection.execute(ACCOUNTS)]
    if len(accounts) == 1:
        return accounts[0]
    if not accounts:
        raise UnknownAccountError("the journal is empty", "run a broker with this database")
    names = ", ".join(accounts)
    raise UnknownAccountError(
        f"the journal has several accounts ({names})", "choose one with --account"
    )
