"""Which fetcher processes are alive, for people."""

from typing import Final, LiteralString

from fetcher.postgres.database import Connection

BEAT: Final[LiteralString] = """
INSERT INTO workers (holder, version, doing) VALUES (%s, %s, %s)
ON CONFLICT (holder) DO UPDATE SET seen_at = now(), doing = EXCLUDED.doing
"""

LEAVE: Final[LiteralString] = "DELETE FROM workers WHERE holder = %s"

# A holder's name begins with its host's.
HEARD_OF: Final[LiteralString] = """
SELECT EXISTS (SELECT FROM workers
                WHERE starts_with(holder, %s) AND seen_at > now() - %s * interval '1 second')
"""

FORGET: Final[LiteralString] = "DELETE FROM workers WHERE seen_at < now() - interval '1 day'"


def beat(connection: Connection, *, holder: str, version: str, doing: str) -> None:
    """Say that *holder* lives, and what it does."""
    connection.execute(BEAT, (holder, version, doing))
    connection.execute(FORGET)


def leave(connection: Connection, *, holder: str) -> None:
    """*holder* has stopped."""
    connection.execute(LEAVE, (holder,))


def heard_of(connection: Connection, *, host: str, within_s: float) -> bool:
    """Whether a process of *host* has said within *within_s* seconds that it lives."""
    row = connection.execute(HEARD_OF, (f"{host}-", within_s)).fetchone()
    return row is not None and bool(row[0])
