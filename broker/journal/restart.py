"""What a restarted broker reads of the journal: holds, ended leases, costs, a pause.

Times come back on the clock of the new broker, by way of the server's: TTLs go on.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final

import structlog

from broker.core.leases import Ended
from broker.core.ledger import CALL_MS_MAX
from broker.core.records import Record, shifted
from broker.core.recovery import PastCharge, PastCost, Recovered
from broker.core.replay import Replay
from broker.journal.encoding import decode
from broker.journal.history import replayed
from broker.journal.holds import fold
from broker.journal.schema import ADVICE, PROGRAM
from broker.journal.writer import SERVER_MS
from protos.postgres.connections import Connection, connect

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# A client repeats a settle for minutes, if its answer was lost.
ENDED_FOR: Final = timedelta(hours=1)
ENDED_MAX: Final = 50_000
# As long as the costs are kept in memory, and as many of each operation and size.
COSTS_FOR: Final = timedelta(hours=6)
COSTS_MAX: Final = 50_000
COSTS_EACH: Final = 256
MS: Final = timedelta(milliseconds=1)

# No hold matters for longer than a lease may last and its call may take: the first count
# of the new epoch includes whatever was charged before.
HOLDS: Final = """
WITH recent AS MATERIALIZED (
    SELECT epoch, seq, time, kind, lease_id, cost, body
    FROM tokenbroker.records
    WHERE account = %(account)s AND time > clock_timestamp() - %(span)s
        AND kind IN ('granted', 'carried', 'adopted', 'renewed', 'expired', 'settled',
                     'revoked', 'abandoned', 'written_off')
), ended AS (
    SELECT DISTINCT lease_id FROM recent
    WHERE kind IN ('revoked', 'abandoned', 'written_off')
        OR (kind = 'settled' AND cost IS NOT NULL)
)
SELECT (extract(epoch FROM time) * 1000)::bigint, kind, body::text
FROM recent
WHERE NOT EXISTS (SELECT FROM ended WHERE ended.lease_id = recent.lease_id)
ORDER BY epoch, seq
"""
ENDED: Final = """
SELECT lease_id, holder, kind, cost, coalesce((body ->> 'late')::boolean, kind = 'written_off'),
    coalesce((body ->> 'unwitnessed')::bigint, 0)
FROM tokenbroker.records
WHERE account = %(account)s AND time > clock_timestamp() - %(span)s
    AND (kind IN ('abandoned', 'written_off') OR (kind = 'settled' AND cost IS NOT NULL))
ORDER BY epoch DESC, seq DESC
LIMIT %(most)s
"""
COSTS: Final = """
SELECT holder, operation, units, cost, time_ms
FROM (
    SELECT *, row_number() OVER (
        PARTITION BY operation, floor(ln(units::float8) / ln(2.0))
        ORDER BY epoch DESC, seq DESC
    ) AS number
    FROM (
        SELECT epoch, seq, holder, operation, cost,
            (body -> 'settlement' ->> 'units')::bigint AS units,
            (extract(epoch FROM time) * 1000)::bigint AS time_ms
        FROM tokenbroker.records
        WHERE account = %(account)s AND time > clock_timestamp() - %(span)s
            AND kind = 'settled' AND cost > 0 AND body ->> 'doubt' IS NULL
        ORDER BY epoch DESC, seq DESC
        LIMIT %(most)s
    ) AS latest
    WHERE units > 0
) AS numbered
WHERE number <= %(each)s
ORDER BY epoch, seq
"""
# Within the last hour by the minute, before that by quarters of an hour: no time zone's day
# begins within one. A day more than the longest month.
CHARGES: Final = """
WITH edge AS (
    SELECT date_bin('15 minutes', clock_timestamp() - interval '1 hour', 'epoch') AS time
)
SELECT holder, operation, sum(charged)::bigint,
    (extract(epoch FROM date_trunc('minute', charged_at)) * 1000)::bigint AS time_ms
FROM tokenbroker.records, edge
WHERE account = %(account)s AND records.time >= edge.time AND charged_at >= edge.time
    AND charged <> 0
GROUP BY 1, 2, 4
UNION ALL
SELECT holder, operation, charged_tokens, (extract(epoch FROM slot) * 1000)::bigint
FROM tokenbroker.spend, edge
WHERE account = %(account)s AND slot < edge.time AND slot > edge.time - interval '32 days'
    AND charged_tokens <> 0
"""
# So many counts show how often Keepa refills; of them, those that a start has time for.
COUNTS: Final = 30
COUNTS_FOR: Final = timedelta(minutes=5)
LAST_COUNTS: Final = """
SELECT greatest(min(time), least(max(time), clock_timestamp() - %(span)s)) FROM (
    SELECT time FROM tokenbroker.records
    WHERE account = %(account)s AND time > clock_timestamp() - %(longest)s
        AND kind = 'observed' AND (body ->> 'taken')::boolean
    ORDER BY time DESC
    LIMIT %(counts)s
) AS counts
HAVING count(*) > 0
"""
PAUSED: Final = """
SELECT kind = 'paused' FROM tokenbroker.records
WHERE account = %s AND kind IN ('paused', 'resumed')
ORDER BY time DESC, seq DESC
LIMIT 1
"""


def load(
    database_url: str, account: str, now_ms: Callable[[], int], *, lease_age_ms_max: int
) -> Recovered:
    """Reads what the journal remembers of *account*; for a thread, not for the event loop.

    Args:
        database_url: The journal's database.
        account: Fingerprint of the Keepa key.
        now_ms: The broker's clock, on which the times come back.
        lease_age_ms_max: The greatest age of a lease.

    Raises:
        DatabaseError: Postgres can't be read.
    """
    with connect(database_url, ADVICE, PROGRAM) as connection:
        row = connection.execute(SERVER_MS).fetchone()
        assert row is not None
        offset_ms = int(row[0]) - now_ms()
        span = (lease_age_ms_max + CALL_MS_MAX) * MS
        past = _holds(connection, account, span, offset_ms)
        return Recovered(
            leases=tuple(fold(past, now_ms())),
            ended=tuple(_ended(connection, account)),
            costs=tuple(_costs(connection, account, offset_ms)),
            charges=tuple(_charges(connection, account, offset_ms)),
            paused=_paused(connection, account),
            books=_books(connection, account, offset_ms),
        )


def _books(connection: Connection, account: str, offset_ms: int) -> Replay | None:
    """The books as the last records have them; None if Keepa has not been asked lately."""
    values = {
        "account": account, "counts": COUNTS, "span": COUNTS_FOR, "longest": COSTS_FOR,
    }  # fmt: skip
    row = connection.execute(LAST_COUNTS, values).fetchone()
    if row is None:
        return None
    try:
        return replayed(connection, account, row[0], offset_ms=offset_ms)
    except AssertionError:
        # Records that lead to impossible books must not keep a broker from leading.
        log.exception("journal: the last records can't be replayed")
        return None


def _holds(
    connection: Connection, account: str, span: timedelta, offset_ms: int
) -> Iterator[Record]:
    for time_ms, kind, body in connection.execute(HOLDS, {"account": account, "span": span}):
        record = decode(kind, body)
        # The row's time is Unix time, the record's that of the broker that made it.
        yield shifted(record, time_ms - record.at_ms - offset_ms)


def _ended(connection: Connection, account: str) -> Iterator[tuple[str, Ended]]:
    values = {"account": account, "span": ENDED_FOR, "most": ENDED_MAX}
    found = connection.execute(ENDED, values).fetchall()
    for lease_id, holder, kind, cost, late, unwitnessed in reversed(found):
        if kind == "written_off":
            yield lease_id, Ended(late, int(cost), holder, int(unwitnessed))
        else:
            yield lease_id, Ended(late)


def _costs(connection: Connection, account: str, offset_ms: int) -> Iterator[PastCost]:
    values = {
        "account": account, "span": COSTS_FOR, "most": COSTS_MAX, "each": COSTS_EACH,
    }  # fmt: skip
    for holder, operation, units, cost, time_ms in connection.execute(COSTS, values):
        yield PastCost(holder, operation, units, cost, time_ms - offset_ms)


def _charges(connection: Connection, account: str, offset_ms: int) -> Iterator[PastCharge]:
    values = {"account": account}
    for holder, operation, tokens, time_ms in connection.execute(CHARGES, values):
        yield PastCharge(holder, operation, tokens, time_ms - offset_ms)


def _paused(connection: Connection, account: str) -> bool:
    row = connection.execute(PAUSED, (account,)).fetchone()
    return row is not None and bool(row[0])
