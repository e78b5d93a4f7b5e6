"""Replays the journal through the core, with Keepa's own count as the witness.

Reads Postgres itself: a journal is too large for the broker's RPCs, and the audit must not
depend on what it checks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from broker.core.ledger import CALL_MS_MAX, LEASE_AGE_MS_MAX
from broker.core.records import Record, Started, shifted
from broker.core.replay import Replay
from broker.journal.encoding import decode
from broker.journal.restart import fold
from broker.journal.schema import ADVICE, PROGRAM
from protos.postgres.connections import Connection, connect
from protos.postgres.errors import DatabaseError

MS: Final = timedelta(milliseconds=1)
# Records that are fetched at a time.
FETCHED: Final = 5_000

ACCOUNTS: Final = "SELECT DISTINCT account FROM tokenbroker.leader ORDER BY 1"
HISTORY: Final = """
SELECT epoch, (extract(epoch FROM time) * 1000)::bigint, kind, body::text
FROM tokenbroker.records
WHERE account = %(account)s AND time >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY epoch, seq
"""
# The records before the opening that show which leases were open then.
BEFORE: Final = """
SELECT epoch, (extract(epoch FROM time) * 1000)::bigint, kind, body::text
FROM tokenbroker.records AS record
WHERE account = %(account)s AND time < %(since)s AND time >= %(since)s - %(span)s
    AND kind IN ('granted', 'carried', 'adopted', 'renewed', 'expired', 'settled')
    AND NOT EXISTS (
        SELECT FROM tokenbroker.records AS ending
        WHERE ending.account = %(account)s AND ending.lease_id = record.lease_id
            AND ending.time < %(since)s
            AND (ending.kind IN ('revoked', 'abandoned', 'written_off')
                 OR (ending.kind = 'settled' AND ending.cost IS NOT NULL))
    )
ORDER BY epoch, seq
"""
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
    replay = Replay()
    with connect(database_url, ADVICE, PROGRAM) as connection:
        account = account or _only_account(connection)
        values: dict[str, object] = {"account": account, "since": None}
        if since is not None:
            row = connection.execute(OPENING, (since,)).fetchone()
            assert row is not None
            values |= {"since": row[0], "span": (LEASE_AGE_MS_MAX + CALL_MS_MAX) * MS}
            _open(replay, list(_records(connection, BEFORE, values)))
        for _, record in _records(connection, HISTORY, values):
            replay.take(record)
    return Audit(account, replay)


def _open(replay: Replay, before: list[tuple[int, Record]]) -> None:
    """Lets *replay* begin with the leases that the records *before* leave open."""
    if not before:
        return
    epoch, last = before[-1]
    replay.take(Started(last.at_ms, epoch, LEASE_AGE_MS_MAX))
    for carried in fold(iter([record for _, record in before]), last.at_ms):
        replay.take(carried)


def _records(
    connection: Connection, query: str, values: dict[str, object]
) -> Iterator[tuple[int, Record]]:
    """The epoch and the record of each row, with its moments in Unix ms."""
    with connection.cursor(name="audit") as cursor:
        cursor.itersize = FETCHED
        cursor.execute(query.encode(), values)
        for epoch, time_ms, kind, body in cursor:
            record = decode(kind, body)
            yield epoch, shifted(record, time_ms - record.at_ms)


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
