"""The leader's row in Postgres: runs the elector's attempts.

Each attempt is one statement that commits by itself, so that it works behind PgBouncer,
too, and a stopped process holds no lock. The row decides by compare and swap; no clock of
the server takes part.
"""

from pathlib import Path
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg.errors import InvalidSchemaName, UndefinedTable

from broker.core.elector import Action, Attempt, Row

MIGRATION: Final = Path(__file__).parent / "migrations" / "0001.leader.sql"
CONNECT_TIMEOUT_S: Final = 3
# libpq closes a connection that has gone unacknowledged for so long.
SILENCE_MS_MAX: Final = 3_000

LOOK: Final[LiteralString] = """
SELECT epoch, holder, renewals, address FROM tokenbroker.leader WHERE account = %(account)s
"""

# The first row of the account; another broker may be as quick.
TAKE_FIRST: Final[LiteralString] = """
INSERT INTO tokenbroker.leader (
       account, epoch, holder, renewals, address, taken_at, renewed_at
) VALUES (
       %(account)s, %(epoch)s, %(holder)s, 0, %(address)s,
       clock_timestamp(), clock_timestamp()
) ON CONFLICT (account) DO NOTHING
RETURNING epoch, holder, renewals, address
"""

# Only the row as it was seen: any renewal since then keeps the leader.
TAKE: Final[LiteralString] = """
UPDATE tokenbroker.leader
   SET epoch = %(epoch)s, holder = %(holder)s, renewals = 0, address = %(address)s,
       taken_at = clock_timestamp(), renewed_at = clock_timestamp()
 WHERE account = %(account)s AND epoch = %(seen_epoch)s
   AND holder = %(seen_holder)s AND renewals = %(seen_renewals)s
RETURNING epoch, holder, renewals, address
"""

RENEW: Final[LiteralString] = """
UPDATE tokenbroker.leader
   SET renewals = renewals + 1, address = %(address)s, renewed_at = clock_timestamp()
 WHERE account = %(account)s AND epoch = %(epoch)s AND holder = %(holder)s
RETURNING epoch, holder, renewals, address
"""

RELEASE: Final[LiteralString] = """
UPDATE tokenbroker.leader SET holder = '', renewals = renewals + 1
 WHERE account = %(account)s AND epoch = %(epoch)s AND holder = %(holder)s
RETURNING epoch, holder, renewals, address
"""

CHANGES: Final = {Action.TAKE: TAKE, Action.RENEW: RENEW, Action.RELEASE: RELEASE}

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class Found(NamedTuple):
    """The row after an attempt, and whether that very attempt wrote it."""

    row: Row | None
    done: bool


class LeaderRow:
    """The row of one account, over a connection of its own.

    Args:
        database_url: Where the row is.
        account: Fingerprint of the Keepa key.
        holder: Unique per process start.
        address: Where clients reach this broker.
    """

    def __init__(self, database_url: str, *, account: str, holder: str, address: str) -> None:
        self._database_url = database_url
        self._about = {"account": account, "holder": holder, "address": address}
        self._connection: Connection | None = None

    async def run(self, attempt: Attempt) -> Found:
        """Runs *attempt*; after an error or a cancellation the connection is a new one.

        Raises:
            psycopg.Error: It has failed, or its outcome is unknown.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            connection = await self._connect()
        try:
            found = await self._run(connection, attempt)
        except (UndefinedTable, InvalidSchemaName):
            await connection.execute(migration())
            found = await self._run(connection, attempt)
        except BaseException:
            # Not `close`: that would wait for a server that does not answer.
            connection.pgconn.finish()
            raise
        self._connection = connection
        return found

    async def close(self) -> None:
        """Disconnects."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _connect(self) -> Connection:
        return await psycopg.AsyncConnection.connect(
            self._database_url,
            autocommit=True,
            # A prepared statement belongs to one server connection, a pooler has many.
            prepare_threshold=None,
            connect_timeout=CONNECT_TIMEOUT_S,
            tcp_user_timeout=SILENCE_MS_MAX,
            application_name="tokenbroker-leader",
        )

    async def _run(self, connection: Connection, attempt: Attempt) -> Found:
        values: dict[str, object] = {**self._about, "epoch": attempt.epoch}
        statement = CHANGES.get(attempt.action)
        if (seen := attempt.seen) is not None:
            values |= {
                "seen_epoch": seen.epoch,
                "seen_holder": seen.holder,
                "seen_renewals": seen.renewals,
            }
        elif attempt.action is Action.TAKE:
            statement = TAKE_FIRST
        if statement is not None:
            written = await (await connection.execute(statement, values)).fetchone()
            if written is not None:
                return Found(Row(*written), done=True)
        read = await (await connection.execute(LOOK, values)).fetchone()
        return Found(None if read is None else Row(*read), done=False)


def migration() -> bytes:
    """The statements that create the table, where it is missing."""
    return MIGRATION.read_bytes()
