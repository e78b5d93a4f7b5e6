"""What people ask the journal: the story of a lease, and where the tokens went."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, LiteralString

from broker.journal.encoding import decode
from broker.journal.questions import By, SpendRow, Told
from broker.journal.schema import ADVICE, PROGRAM
from protos.postgres.connections import Connection, connect

# No question may keep a connection for longer.
TIMEOUT: Final = "SET LOCAL statement_timeout = '5s'"
STORY: Final = """
SELECT (extract(epoch FROM time) * 1000)::bigint, epoch, kind, body::text
FROM tokenbroker.records
WHERE account = %(account)s AND lease_id = %(lease_id)s
ORDER BY epoch, seq
OFFSET %(start)s LIMIT %(most)s
"""
HOLDERS: Final = """
SELECT (extract(epoch FROM time) * 1000)::bigint, epoch, kind, body::text
FROM tokenbroker.records
WHERE account = %(account)s AND holder = %(holder)s AND kind <> 'renewed'
ORDER BY time DESC, epoch DESC, seq DESC
OFFSET %(start)s LIMIT %(most)s
"""
TOTAL: Final = """
SELECT coalesce(sum(tokens), 0)::bigint FROM tokenbroker.spend
WHERE account = %(account)s AND slot >= date_bin('15 minutes', now() - %(since)s, 'epoch')
"""
SUMS: Final[LiteralString] = """
SELECT {key}, sum(tokens)::bigint, sum(calls)::bigint, sum(refusals)::bigint,
    sum(denials)::bigint, sum(written_off_tokens)::bigint
FROM tokenbroker.spend
WHERE account = %(account)s AND slot >= date_bin('15 minutes', now() - %(since)s, 'epoch')
GROUP BY 1
ORDER BY {order}
OFFSET %(start)s LIMIT %(most)s
"""
# Keepa's counts, of probes and of replies.
COUNTS: Final = """
SELECT (extract(epoch FROM time) * 1000)::bigint, tokens_left::int
FROM tokenbroker.records CROSS JOIN LATERAL coalesce(
    body #>> '{envelope,tokens_left}', body #>> '{settlement,envelope,tokens_left}') AS tokens_left
WHERE account = %(account)s AND time >= now() - %(since)s AND kind IN ('observed', 'settled')
    AND tokens_left IS NOT NULL
ORDER BY time DESC, epoch DESC, seq DESC
LIMIT %(most)s
"""
MS: Final = timedelta(milliseconds=1)
BY_TOKENS: Final = "2 DESC, 1"


# The key, and the order: the dearest first, or by time.
GROUPS: Final[dict[By, tuple[LiteralString, LiteralString]]] = {
    By.HOLDER: ("holder", BY_TOKENS),
    By.IDENTITY: ("identity", BY_TOKENS),
    By.OPERATION: ("operation", BY_TOKENS),
    By.HOUR: ("to_char(slot AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00\"Z\"')", "1"),
    By.DAY: ("to_char(slot AT TIME ZONE 'UTC', 'YYYY-MM-DD')", "1"),
}


class Reader:
    """Questions about one account; each opens a connection, and is for a thread.

    Raises:
        DatabaseError: Postgres can't be read.
    """

    def __init__(self, database_url: str, account: str) -> None:
        self._url, self._account = database_url, account

    def story(self, *, lease_id: str = "", holder: str = "", start: int, most: int) -> list[Told]:
        """Returns the records of a lease in their order, or the last ones of a holder."""
        query = STORY if lease_id else HOLDERS
        values = {
            "account": self._account, "lease_id": lease_id, "holder": holder,
            "start": start, "most": most,
        }  # fmt: skip
        with self._asking() as connection:
            return [
                Told(time_ms, epoch, kind, decode(kind, body))
                for time_ms, epoch, kind, body in connection.execute(query, values)
            ]

    def spend(self, by: By, *, since_ms: int, start: int, most: int) -> tuple[int, list[SpendRow]]:
        """Returns the tokens spent in the last *since_ms*, and the sums by *by*.

        Counts whole quarters of an hour, the one that holds the beginning included.
        """
        key, order = GROUPS[by]
        values = {
            "account": self._account, "since": since_ms * MS, "start": start, "most": most,
        }  # fmt: skip
        with self._asking() as connection:
            total = connection.execute(TOTAL, values).fetchone()
            assert total is not None
            query = SUMS.replace("{key}", key).replace("{order}", order)
            return total[0], [SpendRow(*row) for row in connection.execute(query, values)]

    def counts(self, *, since_ms: int, most: int) -> list[tuple[int, int]]:
        """Returns the last counts of Keepa's: Unix ms and tokens, the oldest first."""
        values = {"account": self._account, "since": since_ms * MS, "most": most}
        with self._asking() as connection:
            return connection.execute(COUNTS, values).fetchall()[::-1]

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        with connect(self._url, ADVICE, PROGRAM) as connection:
            connection.execute(TIMEOUT)
            yield connection
