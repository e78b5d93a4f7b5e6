"""Rebuilds the books from the rows of the journal, from any moment on."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from broker.core.ledger import CALL_MS_MAX, LEASE_AGE_MS_MAX
from broker.core.records import Record, Started, shifted
from broker.core.replay import Replay
from broker.journal.encoding import decode
from broker.journal.holds import fold
from protos.postgres.connections import Connection

MS: Final = timedelta(milliseconds=1)
# Records that are fetched at a time.
FETCHED: Final = 5_000

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


def replayed(
    connection: Connection, account: str, since: datetime | None, *, offset_ms: int = 0
) -> Replay:
    """Replays the journal of *account*.

    Args:
        connection: The database, outside of autocommit.
        account: Fingerprint of the key.
        since: Where the replay begins, with the leases that were open then; None: at the
            first record kept.
        offset_ms: Unix time less the clock of the replay's moments.
    """
    replay = Replay()
    values: dict[str, object] = {"account": account, "since": since}
    if since is not None:
        values["span"] = (LEASE_AGE_MS_MAX + CALL_MS_MAX) * MS
        _open(replay, list(_records(connection, BEFORE, values, offset_ms)))
    for _, record in _records(connection, HISTORY, values, offset_ms):
        replay.take(record)
    return replay


def _open(replay: Replay, before: list[tuple[int, Record]]) -> None:
    """Lets *replay* begin with the leases that the records *before* leave open."""
    if not before:
        return
    epoch, last = before[-1]
    replay.take(Started(last.at_ms, epoch, LEASE_AGE_MS_MAX))
    for carried in fold(iter([record for _, record in before]), last.at_ms):
        replay.take(carried)


def _records(
    connection: Connection, query: str, values: dict[str, object], offset_ms: int
) -> Iterator[tuple[int, Record]]:
    """The epoch and the record of each row, with its moments on the clock asked for."""
    with connection.cursor(name="history") as cursor:
        cursor.itersize = FETCHED
        cursor.execute(query.encode(), values)
        for epoch, time_ms, kind, body in cursor:
            record = decode(kind, body)
            yield epoch, shifted(record, time_ms - record.at_ms - offset_ms)
