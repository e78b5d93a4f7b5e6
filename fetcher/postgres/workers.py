"""The fetcher processes that are alive, and what they do.

`seen_at` is when a process last worked as it should. A process that is stuck, or can't
begin, reports what it does and lets its `seen_at` age.
"""

from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.rows import class_row

from fetcher.postgres.database import Connection

# A process with no report for so many lifetimes of a claim is not alive.
SILENT_CLAIMS: Final = 2

BEAT: Final[LiteralString] = """
INSERT INTO workers (holder, version, doing, seen_at)
VALUES (%(holder)s, %(version)s, %(doing)s,
        now() - coalesce(%(silent_s)s::float8, 0) * interval '1 second')
ON CONFLICT (holder) DO UPDATE
   SET doing = EXCLUDED.doing,
       seen_at = CASE WHEN %(silent_s)s::float8 IS NULL THEN now() ELSE workers.seen_at END
"""

LEAVE: Final[LiteralString] = "DELETE FROM workers WHERE holder = %s"

# A holder's name begins with the name of its host.
OF_HOST: Final[LiteralString] = """
SELECT holder, doing, extract(epoch FROM now() - seen_at)::float8 AS silent_s
  FROM workers WHERE starts_with(holder, %s) ORDER BY seen_at DESC
"""

FORGET: Final[LiteralString] = "DELETE FROM workers WHERE seen_at < now() - interval '1 day'"


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A process, its last report, and for how long it has not worked, in seconds."""

    holder: str
    doing: str
    silent_s: float


def beat(
    connection: Connection,
    *,
    holder: str,
    version: str,
    doing: str,
    silent_s: float | None = None,
) -> None:
    """Reports what *holder* does, and that it works.

    With *silent_s* the holder does not work. It was last seen when it did, or *silent_s*
    seconds ago if it never has.
    """
    values = {"holder": holder, "version": version, "doing": doing, "silent_s": silent_s}
    connection.execute(BEAT, values)
    connection.execute(FORGET)


def leave(connection: Connection, *, holder: str) -> None:
    """Removes *holder*, which has stopped."""
    connection.execute(LEAVE, (holder,))


def workers_of(connection: Connection, host: str) -> list[WorkerRow]:
    """Returns the processes of *host* that have not left, the one seen last first."""
    with connection.cursor(row_factory=class_row(WorkerRow)) as cursor:
        return cursor.execute(OF_HOST, (f"{host}-",)).fetchall()
