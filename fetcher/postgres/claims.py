"""Claims: the right of one process to work on one row: a page, a product, a message.

A table of work has a two-column key and the columns fence, holder, claim_expires, attempts,
not_before and error. The state of an open row is the table's ready state or `claimed`.

Law:
1. A row has at most one holder. Each claim raises the row's fence, and each change by a
   holder names its fence: after a takeover, the former holder changes nothing.
2. A claim is short and is renewed. An expired claim stays good until another one is made.
   The new claim counts as a try: else a row that kills its holders would be tried for ever.
3. Claiming and renewing skip locked rows and never wait. A statement that locks several rows
   locks them in the order of their keys: no two holders wait in a circle.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, Protocol, TypeVar

from fetcher.postgres.database import Connection

Key = tuple[int | str, int | str]

# Longer than any message that a person reads in a table.
ERROR_CHARACTERS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class WorkTable:
    """A table of work; statements call it `w`."""

    name: LiteralString
    key: tuple[LiteralString, LiteralString]
    key_types: tuple[LiteralString, LiteralString]
    ready: LiteralString

    @property
    def is_open(self) -> LiteralString:
        """The condition for a row that can be claimed, with the parameter *take_over*."""
        return f"""w.state IN ('{self.ready}', 'claimed') AND w.not_before <= now()
   AND (w.state = '{self.ready}' OR (%(take_over)s AND w.claim_expires < now()))"""


PAGE_WORK: Final = WorkTable("scan_pages", ("scan_id", "page"), ("bigint", "integer"), "ready")
PRODUCT_WORK: Final = WorkTable("products", ("domain_id", "asin"), ("smallint", "text"), "wanted")


class Claim(Protocol):
    """The right to work on one row, until another claim is made under a higher fence.

    *attempts* counts the tries that have failed so far.
    """

    @property
    def key(self) -> Key:
        """The key of its row."""

    @property
    def fence(self) -> int:
        """The number of this claim."""

    @property
    def attempts(self) -> int:
        """Number of tries that have failed."""


AnyClaim = TypeVar("AnyClaim", bound=Claim)


def claim_statement(
    table: WorkTable, candidates: LiteralString, returning: LiteralString
) -> LiteralString:
    """Returns the statement that claims what *candidates* selects: keys of open rows `w`.

    Its parameters are *holder*, *ttl_s* and those of *candidates*. It returns *returning*:
    columns of `w` and of `next`, the candidates.
    """
    first, second = table.key
    return f"""
WITH next AS ({candidates} FOR UPDATE OF w SKIP LOCKED)
UPDATE {table.name} w
   SET attempts = w.attempts + (w.state = 'claimed')::integer, state = 'claimed',
       fence = w.fence + 1, holder = %(holder)s,
       claim_expires = now() + %(ttl_s)s * interval '1 second'
  FROM next
 WHERE w.{first} = next.{first} AND w.{second} = next.{second}
RETURNING {returning}
"""  # noqa: S608 - every part is a constant


def renew_claims(
    connection: Connection,
    table: WorkTable,
    *,
    holder: str,
    ttl_s: float,
    but: Sequence[Claim] = (),
) -> int:
    """Extends every claim of *holder*, *but* some, to *ttl_s* seconds from now.

    Returns how many.
    """
    first, second = table.key
    # A locked row is being written by its holder.
    statement = f"""
WITH mine AS (
    SELECT {first}, {second} FROM {table.name}
     WHERE holder = %(holder)s AND state = 'claimed'
       AND ({first}, {second}) NOT IN (
           SELECT * FROM unnest(%(first)s::{table.key_types[0]}[],
                                %(second)s::{table.key_types[1]}[]))
       FOR UPDATE SKIP LOCKED)
UPDATE {table.name} w SET claim_expires = now() + %(ttl_s)s * interval '1 second'
  FROM mine
 WHERE w.{first} = mine.{first} AND w.{second} = mine.{second}
"""  # noqa: S608 - every part is a constant
    values = _parameters(but) | {"holder": holder, "ttl_s": ttl_s}
    return connection.execute(statement, values).rowcount


def lock_claims(
    connection: Connection, table: WorkTable, claims: Sequence[AnyClaim]
) -> list[AnyClaim]:
    """Locks the claimed rows until the transaction ends; returns the lost claims."""
    rows = connection.execute(_held(table), _parameters(claims)).fetchall()
    return _lost(claims, rows)


def release_claims(
    connection: Connection, table: WorkTable, claims: Sequence[AnyClaim]
) -> list[AnyClaim]:
    """Releases claims without counting a try; returns the lost claims."""
    return _end(connection, table, claims, state=table.ready, tries=0, error=None)


def fail_claims(
    connection: Connection,
    table: WorkTable,
    claims: Sequence[AnyClaim],
    error: str,
    *,
    delays_s: Sequence[float],
) -> list[AnyClaim]:
    """Counts a failed try of each; the next one waits for its delay in seconds.

    Returns the lost claims.
    """
    return _end(
        connection, table, claims, state=table.ready, tries=1, error=error, delays_s=delays_s
    )


def bury_claims(
    connection: Connection, table: WorkTable, claims: Sequence[AnyClaim], error: str
) -> list[AnyClaim]:
    """Sets rows aside until a person looks at them; returns the lost claims."""
    return _end(connection, table, claims, state="dead", tries=1, error=error)


def _end(
    connection: Connection,
    table: WorkTable,
    claims: Sequence[AnyClaim],
    *,
    state: str,
    tries: int,
    error: str | None,
    delays_s: Sequence[float] | None = None,
) -> list[AnyClaim]:
    first, second = table.key
    statement = f"""
WITH held AS ({_held(table)})
UPDATE {table.name} w
   SET state = %(state)s, error = %(error)s, attempts = w.attempts + %(tries)s, holder = NULL,
       claim_expires = NULL, not_before = now() + held.delay_s * interval '1 second'
  FROM held
 WHERE w.{first} = held.{first} AND w.{second} = held.{second}
RETURNING w.{first}, w.{second}
"""  # noqa: S608 - every part is a constant
    values = _parameters(claims, delays_s) | {
        "state": state,
        "tries": tries,
        # Postgres takes no NUL in a text, and errors quote Keepa.
        "error": None if error is None else error.replace("\0", "")[:ERROR_CHARACTERS_MAX],
    }
    return _lost(claims, connection.execute(statement, values).fetchall())


def _held(table: WorkTable) -> LiteralString:
    first, second = table.key
    return f"""
SELECT w.{first}, w.{second}, mine.delay_s
  FROM {table.name} w
  JOIN unnest(%(first)s::{table.key_types[0]}[], %(second)s::{table.key_types[1]}[],
              %(fences)s::bigint[], %(delays_s)s::float8[])
       AS mine ({first}, {second}, fence, delay_s)
    ON w.{first} = mine.{first} AND w.{second} = mine.{second} AND w.fence = mine.fence
 WHERE w.state = 'claimed'
 ORDER BY w.{first}, w.{second}
   FOR UPDATE OF w
"""  # noqa: S608 - every part is a constant


def _parameters(
    claims: Sequence[Claim], delays_s: Sequence[float] | None = None
) -> dict[str, Any]:
    return {
        "first": [claim.key[0] for claim in claims],
        "second": [claim.key[1] for claim in claims],
        "fences": [claim.fence for claim in claims],
        "delays_s": [0.0] * len(claims) if delays_s is None else list(delays_s),
    }


def _lost(claims: Iterable[AnyClaim], rows: Iterable[Sequence[Any]]) -> list[AnyClaim]:
    kept = {(row[0], row[1]) for row in rows}
    return [claim for claim in claims if claim.key not in kept]
